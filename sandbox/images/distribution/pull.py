"""Images from registries into the store: one pull however many processes ask, layers unpacked while others arrive."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from sandbox.errors import ImageError, ImageNotFound, ImageVerificationError
from sandbox.images.blobs import read_document
from sandbox.images.blobstore import path_of
from sandbox.images.distribution.client import Cancelled, Document, Repository
from sandbox.images.distribution.download import Downloads, Interrupted, lock, together
from sandbox.images.distribution.progress import Progress, Silent
from sandbox.images.distribution.registries_conf import RegistriesConf
from sandbox.images.distribution.transport import PATIENCE, Patience, Transport
from sandbox.images.documents import INDEXES, MANIFESTS, Descriptor, descriptor, descriptors, parse_json
from sandbox.images.errors import ImageTooLarge, RegistryError
from sandbox.images.manifests import Manifests
from sandbox.images.places import store_errors
from sandbox.images.stored import Images, StoredImage

if TYPE_CHECKING:
    from sandbox.images.image import Image
    from sandbox.images.references import Reference
    from sandbox.images.store import Store

__all__ = ["POLICIES", "Pulled", "pull", "repositories"]

#: When a registry is asked: each time, if the image is not in the store, not at all.
POLICIES = ("always", "missing", "never")


class Pulled(NamedTuple):
    """What a pull has come to."""

    stored: StoredImage
    #: Ready to be mounted; ``None`` where that was not asked for.
    image: Image | None
    #: False if the store had it already.
    fetched: bool


def pull(
    reference: Reference,
    store: Store,
    *,
    policy: str = "always",
    unpack: bool = True,
    every_platform: bool = False,
    progress: Progress | None = None,
    patience: Patience = PATIENCE,
) -> Pulled:
    """Get an image from its registry, verified, into the store.

    While one process pulls, others that want the same wait for it, and then have it.

    :param reference: of a registry, aliases applied
    :param policy: ``always`` asks the registry what the name means now; ``missing`` is content with what is here
    :param unpack: unpack the layers too
    :param every_platform: fetch what an index has for other machines as well
    :raises ImageNotFound: neither a mirror nor the registry has it
    :raises ImageVerificationError: what they have is not what its digest or size says
    :raises AuthenticationError: they want other credentials
    :raises RateLimited: they answer no more for now
    :raises RegistryError: they cannot be reached, or refuse
    """
    with Transport(patience) as transport:
        work = _Pull(reference, store, transport, progress or Silent(), unpack=unpack, every=every_platform)
        return work.run(policy)


def keeps_blobs() -> bool:
    """Whether layers are kept as they came; ``SANDBOX_KEEP_BLOBS`` says otherwise with ``no``, ``0`` or ``false``."""
    return os.environ.get("SANDBOX_KEEP_BLOBS", "").lower() not in {"no", "0", "false"}


def repositories(
    reference: Reference,
    transport: Transport,
    *,
    push: bool = False,
    stop: threading.Event | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Repository]:
    """Where a reference may be asked for: mirrors and the registry; only the registry for a push.

    :raises RegistryError: registries.conf blocks it
    """
    endpoints = RegistriesConf.load().endpoints(reference)
    return [
        Repository(transport, endpoint, reference.text, push=push, stop=stop, tell=tell)
        for endpoint in (endpoints[-1:] if push else endpoints)
    ]


class _Pull:
    """One pull."""

    def __init__(
        self, reference: Reference, store: Store, transport: Transport, progress: Progress, *, unpack: bool, every: bool
    ) -> None:  # fmt: skip
        self._reference = reference
        self._image = reference.text
        self._store = store
        self._images = Images(store)
        self._transport = transport
        self._progress = progress
        self._unpack = unpack
        self._every = every
        self._stop = threading.Event()

    def run(self, policy: str) -> Pulled:
        """The pull, under the lock of its name."""
        key = hashlib.sha256(self._reference.canonical.encode()).hexdigest()[:40]

        def waiting() -> None:
            self._progress.say("another process is pulling this, waiting for it")

        try:
            with lock(self._store, f"pull-{key}", self._stop, waiting):
                if policy == "missing" and (found := self._here()) is not None:
                    return found
                sources = repositories(
                    self._reference, self._transport, stop=self._stop, tell=self._progress.say
                )
                if policy == "always" and (found := self._still_right(sources)) is not None:
                    return found
                return self._fetch(*self._document(sources))
        finally:
            self._progress.close()

    # -- what it is
    # ----------------------------------------------------------------------------------------------

    def _here(self) -> Pulled | None:
        """What the store has by this name, if all of it is there."""
        if self._every or (found := self._images.look_up(self._reference.canonical)) is None:
            return None
        if not self._unpack:
            complete = all(self._store.blobs.has(blob.digest, blob.size) for blob in found.parts.blobs)
            return Pulled(found, None, fetched=False) if complete else None
        try:
            return Pulled(found, self._manifests().image(found.start), fetched=False)
        except ImageError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def _still_right(self, sources: Sequence[Repository]) -> Pulled | None:
        """What the store has, if the registry says that the name means the same still; that costs it little."""
        if (found := self._here()) is None:
            return None
        if keeps_blobs() and self._images.lacking(found.stored):
            return None  # forgotten by a pull that did not keep them
        if self._reference.digest:
            return found
        for source in sources:
            try:
                digest = source.manifest_digest(self._reference.tag)
            except RegistryError:
                continue  # the next request tells what is wrong
            if digest is not None:
                return found if digest == found.stored.digest else None
        return None

    def _document(self, sources: Sequence[Repository]) -> tuple[Document, list[Repository]]:
        """The manifest or index from the first endpoint that has it right, and the endpoints with that one first."""
        problems: list[ImageError] = []
        name = self._reference.digest or self._reference.tag
        for source in sources:
            try:
                document = source.manifest(name, self._store.limits.manifest)
            except (RegistryError, ImageNotFound, ImageVerificationError, ImageTooLarge) as error:
                problems.append(error)
                if source is not sources[-1]:
                    self._progress.say(f"{source}: {str(error).splitlines()[0]}; asking the next")
                continue
            return document, [source, *(other for other in sources if other is not source)]
        raise together(problems)

    # -- getting it
    # ----------------------------------------------------------------------------------------------

    def _manifests(self, downloads: Downloads | None = None) -> Manifests:
        return Manifests(downloads or self._store.blobs, self._image, self._store)

    def _fetch(self, document: Document, sources: Sequence[Repository]) -> Pulled:
        with Downloads(self._store, sources, self._image, self._progress, self._stop) as downloads:
            try:
                return self._through(downloads, document)
            except Cancelled:
                downloads.wait()  # raises what it was given up for
                raise
            except BaseException:
                downloads.cancel()
                self._transport.abort()
                raise

    def _through(self, downloads: Downloads, document: Document) -> Pulled:
        start = downloads.take(document.content, document.media_type, document.digest)
        manifests = self._manifests(downloads)
        if self._every:
            self._everything(downloads, start, self._store.limits.nesting)
        parts = None
        try:
            parts = manifests.parts(start)
        except ImageNotFound:
            if not self._every:  # nothing for this machine, and that is fine if all was asked for
                raise
        image = None
        if parts is not None:
            downloads.start([parts.config, *parts.layers])
            image = self._unpacked(downloads, manifests, start) if self._unpack else None
        downloads.wait()
        stored = self._images.add(start, name=self._reference.canonical, image=self._image)
        if image is not None and not keeps_blobs():
            self._forget(stored)
        return Pulled(stored, image, fetched=True)

    def _forget(self, stored: StoredImage) -> None:
        """Remove layers as they came, now that they are unpacked, unless another process or another whole image has them.

        An image that was built on this one could not be saved any more, and nobody could fetch it again.
        """
        places = self._store.places
        with store_errors("forget layers of", self._image, self._store.root), places.alone():
            used = set(places.in_use(by_others=True))
            for other in self._images.items():
                if other.digest != stored.digest and not self._images.lacking(other):
                    used.update(path_of(layer.digest) for layer in other.parts.layers)
            for layer in stored.parts.layers:
                if (name := path_of(layer.digest)) not in used:
                    (self._store.root / name).unlink(missing_ok=True)

    def _unpacked(self, downloads: Downloads, manifests: Manifests, start: Descriptor) -> Image:
        """Unpack while the rest arrives. In a thread, so that this one hears Ctrl-C and can call everything off."""
        with ThreadPoolExecutor(1, thread_name_prefix="sandbox-unpack") as worker:
            for _ in range(2):
                work = worker.submit(manifests.image, start)
                try:
                    return work.result()
                except Interrupted:
                    downloads.wait()  # now it is there, and right
                except BaseException:
                    downloads.cancel()
                    self._transport.abort()
                    raise
        raise AssertionError("what is there is not interrupted")

    def _everything(self, downloads: Downloads, blob: Descriptor, depth: int) -> None:
        """Start on all that a manifest or index refers to."""
        if blob.media_type not in INDEXES + MANIFESTS:
            downloads.start([blob])
            return
        if depth < 0:
            raise ImageTooLarge("indexes within indexes, too deep", operation="read", object=self._image)
        limit = self._store.limits.manifest
        content = read_document(
            downloads, blob.digest, blob.size, limit=limit, image=self._image, what="manifest"
        )
        document = parse_json(content, self._image, "manifest")
        if blob.media_type in INDEXES:
            for each in descriptors(document, "manifests", self._image, "index"):
                self._everything(downloads, each, depth - 1)
        else:
            config = descriptor(document.get("config"), self._image, "manifest, config")
            downloads.start([config, *descriptors(document, "layers", self._image, "manifest")])
