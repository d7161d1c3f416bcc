"""Images from the store to a registry: what is there is not sent again, what another repository has is mounted.

Blobs go first, several at once, then the manifest, then the index that leads to it (distribution-spec,
"Pushing a manifest with its blobs"). An upload that breaks goes on where the registry says it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from sandbox.errors import ImageError, ImageVerificationError
from sandbox.images.blobs import new_hash, read_document
from sandbox.images.blobstore import path_of
from sandbox.images.distribution.addresses import joined
from sandbox.images.distribution.client import Cancelled, Repository
from sandbox.images.distribution.progress import Progress, Silent
from sandbox.images.distribution.pull import repositories
from sandbox.images.distribution.transport import PATIENCE, Patience, Transport
from sandbox.images.documents import INDEXES, MANIFESTS, Descriptor, descriptor, descriptors, parse_json
from sandbox.images.errors import RegistryError
from sandbox.images.references import parse_registry_name
from sandbox.images.stored import Images, not_here

if TYPE_CHECKING:
    from typing import BinaryIO

    from sandbox.images.distribution.transport import Answer
    from sandbox.images.references import Reference
    from sandbox.images.store import Store
    from sandbox.images.stored import StoredImage

__all__ = ["Pushed", "push"]

_AT_ONCE = 3
#: Bytes sent in one request; the most that is sent twice when a connection breaks.
_PIECE = 16 << 20
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")


class Pushed(NamedTuple):
    """What a push has come to."""

    #: Digest of what the name means at the registry now.
    digest: str
    #: Blobs that were sent, mounted from another repository, and there already.
    sent: int
    mounted: int
    present: int
    #: The index that it is part of in the store, where that was left behind because other machines' parts are not here.
    without_index: str | None


def push(
    image: StoredImage,
    destination: Reference,
    store: Store,
    *,
    progress: Progress | None = None,
    patience: Patience = PATIENCE,
) -> Pushed:
    """Send an image of the store to a registry.

    An index goes along if all it refers to is in the store; else the manifest for this machine goes alone.

    :raises AuthenticationError: the registry wants other credentials, or does not let us write there
    :raises ImageError: a blob is not in the store, or not what it should be
    :raises RegistryError: the registry cannot be reached, or refuses
    """
    if destination.digest and not destination.tag:
        raise ImageError(
            "a digest is no name to push to", operation="push", object=destination.text, hint="write NAME:TAG"
        )
    with Transport(patience) as transport:
        return _Push(image, destination, store, transport, progress or Silent()).run()


class _Document(NamedTuple):
    blob: Descriptor
    content: bytes


class _Push:
    """One push."""

    def __init__(
        self, image: StoredImage, destination: Reference, store: Store, transport: Transport, progress: Progress
    ) -> None:  # fmt: skip
        self._image = image
        self._destination = destination
        self._store = store
        self._transport = transport
        self._progress = progress
        self._stop = threading.Event()
        self._remote: Repository = repositories(
            destination, transport, push=True, stop=self._stop, tell=progress.say
        )[0]
        self._origins = _origins(store, destination)
        self._counts = {"sent": 0, "mounted": 0, "present": 0}
        self._guard = threading.Lock()

    def run(self) -> Pushed:
        """Blobs, then documents from the innermost to the one that gets the name."""
        start, left_out = self._image.start, None
        try:
            documents, blobs = self._closure(start)
            if start.media_type in INDEXES and not self._complete(documents, blobs):
                start, left_out = self._image.parts.manifest, start.digest
                documents, blobs = self._closure(start)
            self._send_blobs(blobs)
            for document in documents[:-1]:
                self._put(document, document.blob.digest)
            self._put(documents[-1], self._destination.tag)
        finally:
            self._progress.close()
        return Pushed(start.digest, **self._counts, without_index=left_out)

    # -- what belongs to it
    # --------------------------------------------------------------------------------------

    def _closure(self, start: Descriptor) -> tuple[list[_Document], list[Descriptor]]:
        """Documents, each after those it refers to, and blobs; documents that are not here have no content."""
        documents: dict[str, _Document] = {}
        blobs: dict[str, Descriptor] = {}
        for found in self._walk(start, self._store.limits.nesting):
            if isinstance(found, _Document):
                documents.setdefault(found.blob.digest, found)
            else:
                blobs.setdefault(found.digest, found)
        return list(documents.values()), list(blobs.values())

    def _walk(self, blob: Descriptor, depth: int) -> Iterator[_Document | Descriptor]:
        if blob.media_type not in INDEXES + MANIFESTS or depth < 0:
            yield blob
            return
        if not self._store.blobs.has(blob.digest, blob.size):
            yield _Document(blob, b"")
            return
        image, limit = self._destination.text, self._store.limits.manifest
        content = read_document(self._store.blobs, blob.digest, blob.size, limit=limit, image=image, what="manifest")
        document = parse_json(content, image, "manifest")
        if blob.media_type in INDEXES:
            for each in descriptors(document, "manifests", image, "index"):
                yield from self._walk(each, depth - 1)
        else:
            yield descriptor(document.get("config"), image, "manifest, config")
            yield from descriptors(document, "layers", image, "manifest")
        yield _Document(blob, content)

    def _complete(self, documents: Sequence[_Document], blobs: Sequence[Descriptor]) -> bool:
        """Whether all of it is in the store."""
        has = self._store.blobs.has
        return all(each.content for each in documents) and all(has(each.digest, each.size) for each in blobs)

    # -- blobs
    # ---------------------------------------------------------------------------------------------------

    def _send_blobs(self, blobs: Sequence[Descriptor]) -> None:
        for blob in blobs:
            if not self._store.blobs.has(blob.digest, blob.size):
                raise not_here(blob, self._image, "push", self._destination.text)
        for blob in blobs[:1]:  # alone, so that scheme and token are settled once
            self._send(blob)
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sandbox-push") as pool:
            running = [pool.submit(self._send, blob) for blob in blobs[1:]]
            try:
                for future in running:
                    future.result()
            except BaseException as error:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                self._transport.abort()
                if isinstance(error, Cancelled):
                    _raise_the_reason(running)
                raise

    def _send(self, blob: Descriptor) -> None:
        """Get one blob there, the cheapest way."""
        try:
            self._count(self._sent(blob))
        except BaseException:
            self._stop.set()
            raise
        self._progress.end(blob.digest)

    def _count(self, how: str) -> None:
        with self._guard:
            self._counts[how] += 1

    def _sent(self, blob: Descriptor) -> str:
        if self._remote.has_blob(blob.digest):
            return "present"
        if (place := self._begin(blob)) is None:
            return "mounted"
        with self._store.blobs.open(path_of(blob.digest)) as file:
            attempt = 1
            while True:
                self._progress.begin(blob.digest, blob.size, 0)
                try:
                    self._upload(blob, place, file)
                    return "sent"
                except RegistryError as error:
                    error.temporary |= error.status in {404, 416}  # the registry has lost the thread
                    self._remote.wait(error, attempt)
                attempt += 1
                if self._remote.has_blob(blob.digest):
                    return "sent"
                place = self._upload_place("blobs/uploads/")

    def _begin(self, blob: Descriptor) -> str | None:
        """Where to upload a blob; ``None`` if the registry has taken it from another repository."""
        if (origin := self._origins.get(blob.digest)) is None:
            return self._upload_place("blobs/uploads/")
        query = f"mount={quote(blob.digest)}&from={quote(origin, safe='/')}"
        with self._remote.request(
            "POST", f"blobs/uploads/?{query}", body=b"", expect={201, 202}, also=(f"repository:{origin}:pull",)
        ) as answer:  # fmt: skip
            return None if answer.status == 201 else self._location(answer)

    def _upload_place(self, path: str) -> str:
        with self._remote.request("POST", path, body=b"", expect={202}) as answer:
            return self._location(answer)

    def _location(self, answer: Answer) -> str:
        place = answer.headers.get("Location")
        if not place:
            raise RegistryError(
                "it does not say where to upload to", operation="push", object=self._destination.text,
                registry=str(answer.origin),
            )  # fmt: skip
        return joined(answer.url, place)

    def _upload(self, blob: Descriptor, place: str, file: BinaryIO) -> None:
        """One request for a small blob, pieces for a large one; it is verified before the registry may call it whole."""
        hashed = new_hash(blob.digest, self._destination.text)
        position = 0
        while blob.size - position > _PIECE:
            piece = os.pread(file.fileno(), _PIECE, position)
            hashed.update(piece)
            place = self._patch(place, position, piece)
            position += len(piece)
            self._progress.advance(blob.digest, len(piece))
        piece = os.pread(file.fileno(), _PIECE + 1, position)
        hashed.update(piece)
        actual = f"{blob.digest.partition(':')[0]}:{hashed.hexdigest()}"
        if actual != blob.digest:
            raise ImageVerificationError(
                "the store is damaged", operation="verify", object=self._destination.text, digest=blob.digest,
                expected=blob.digest, actual=actual, hint="fetch or build the image again",
            )  # fmt: skip
        joint = "&" if "?" in place else "?"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(piece))}
        if position:
            headers["Content-Range"] = f"{position}-{position + len(piece) - 1}"
        self._remote.once("PUT", f"{place}{joint}digest={quote(blob.digest)}", headers, piece, expect={201}).close()
        self._progress.advance(blob.digest, len(piece))

    def _patch(self, place: str, position: int, piece: bytes) -> str:
        """Send a piece; returns where the next one goes. After a broken connection only what did not get there."""
        end, attempt = position + len(piece), 1
        while True:
            rest = piece[len(piece) - (end - position) :]
            headers = {
                "Content-Type": "application/octet-stream", "Content-Length": str(len(rest)),
                "Content-Range": f"{position}-{end - 1}",
            }  # fmt: skip
            try:
                with self._remote.once("PATCH", place, headers, rest, expect={202}) as answer:
                    return self._location(answer)
            except RegistryError as error:
                if error.status == 416:
                    error.temporary = True  # it has more, or less, than we thought: ask
                self._remote.wait(error, attempt)
                attempt += 1
                place, there = self._where(place, position)
                if not position <= there <= end:
                    raise
                position = there
                if position == end:
                    return place

    def _where(self, place: str, otherwise: int) -> tuple[str, int]:
        """How far an upload has got: where to go on, and how many bytes are there."""
        with self._remote.request("GET", place, expect={204, 202}) as answer:
            found = _RANGE.fullmatch(answer.headers.get("Range", ""))
            there = int(found[1]) + 1 if found is not None else otherwise
            # An empty upload is "0-0" to some; the piece before this one got there whole.
            return self._location(answer), max(there, otherwise) if there > 1 else otherwise

    # -- documents
    # -----------------------------------------------------------------------------------------------

    def _put(self, document: _Document, name: str) -> None:
        headers = {"Content-Type": document.blob.media_type}
        with self._remote.request("PUT", f"manifests/{name}", headers, document.content, expect={201}) as answer:
            said = answer.headers.get("Docker-Content-Digest")
            if said and said != document.blob.digest:
                raise ImageVerificationError(
                    "what the registry says it has got", operation="verify", object=self._destination.text,
                    digest=document.blob.digest, expected=document.blob.digest, actual=said,
                    hint="the registry changes manifests, or lies",
                )  # fmt: skip


def _origins(store: Store, destination: Reference) -> dict[str, str]:
    """Blob → a repository of the same registry that has it too, as far as the names in the store tell."""
    found: dict[str, str] = {}
    for image in Images(store).items():
        for name in image.names:
            with contextlib.suppress(ImageError):
                known = parse_registry_name(name)
                if known.domain == destination.domain and known.repository != destination.repository:
                    found.update((blob.digest, known.repository) for blob in image.parts.blobs)
    return found


def _raise_the_reason(running: Sequence[Future[None]]) -> None:
    """Raise what the others were given up for."""
    for future in running:
        error = future.exception() if future.done() and not future.cancelled() else None
        if error is not None and not isinstance(error, Cancelled):
            raise error
