"""The images that a store has: put there by a pull, a build or ``load``, found by their names and digests.

An image is a manifest whose blobs are all in the store, and a record ``images/<digest>`` that says so. Its layers are
unpacked when it is first used.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sandbox.errors import ImageError, ImageNotFound
from sandbox.images.blobs import LayerBlob, new_hash
from sandbox.images.blobstore import path_of
from sandbox.images.documents import INDEXES, MANIFESTS, Descriptor, parse_json
from sandbox.images.layout import DirectoryBlobs
from sandbox.images.manifests import Manifests, Parts, diff_ids
from sandbox.images.names import Names
from sandbox.images.places import store_errors
from sandbox.images.references import parse_registry_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.images.blobs import Blobs
    from sandbox.images.store import Store

__all__ = ["Images", "StoredImage", "not_here"]

#: A digest or the beginning of one; fewer digits could be meant as a name.
_ID = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})")


@attrs.frozen
class StoredImage:
    """An image in a store."""

    #: The manifest, or the index that names mean.
    start: Descriptor
    #: Its documents and layers.
    parts: Parts
    #: When it came, in seconds since 1970.
    time: float
    #: What it is called, each name in full.
    names: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """What names mean, and what a registry calls it: ``sha256:…`` of the index or manifest."""
        return self.start.digest

    @property
    def id(self) -> str:
        """What docker and podman call the image's id: the digest of its configuration."""
        return self.parts.config.digest

    @property
    def size(self) -> int:
        """Bytes of its layers as they came, compressed."""
        return sum(layer.size for layer in self.parts.layers)


def not_here(blob: Descriptor, image: StoredImage, operation: str, called: str) -> ImageError:
    """The error for a blob of an image that the store has not kept.

    :param called: what the user called the image
    """
    return ImageError(
        f"{blob.digest} is not in the store", operation=operation, object=called,
        hint="layers as they came are forgotten where SANDBOX_KEEP_BLOBS is `no`: fetch them again without it, "
        f"`sandbox pull {(*image.names, 'IMAGE')[0]}`",
    )  # fmt: skip


class Images:
    """The images of one store.

    >>> Images(Store.default()).find("debian:12").digest
    'sha256:…'
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.names = Names(store)
        self._listed = DirectoryBlobs(store.root)  # who only lists what there is uses none of it

    def add(self, start: Descriptor, *, name: str | None = None, image: str | None = None) -> StoredImage:
        """Note that an image is here, once all its blobs are.

        :param start: its manifest, or the index that was asked for
        :param name: what to call it from now on, a reference in full
        :param image: what the user called it, for errors
        :raises ImageError: a blob is missing or a document is bad
        """
        called = image or name or start.digest
        parts = Manifests(self.store.blobs, called, self.store).parts(start)
        for blob in parts.blobs:
            if not self.store.blobs.has(blob.digest, blob.size):
                raise ImageError(
                    f"the blob {blob.digest} is not in the store", operation="add image", object=called
                )
        now = time.time()
        record = {"digest": start.digest, "mediaType": start.media_type, "size": start.size, "time": now}
        with store_errors("add image", called, self.store.root):
            self.store.places.write(self._path(start.digest), json.dumps(record).encode())
        if name is not None:
            self.names.set(name, start.digest)
        return StoredImage(start, parts, now, (name,) if name is not None else ())

    def copy(
        self, blobs: Blobs, start: Descriptor, *, name: str | None = None, image: str | None = None
    ) -> StoredImage:
        """Take an image in from somewhere else: documents first, then the layers that are not here yet.

        :param blobs: where it is; every blob is verified on the way
        :raises ImageVerificationError: a blob is not what its descriptor says
        :raises ImageError: it is incomplete or bad
        """
        called = image or name or start.digest
        parts = Manifests(blobs, called, self.store).parts(start)
        for blob in (*parts.documents, parts.config, *parts.layers):
            if not self.store.blobs.has(blob.digest, blob.size):
                self._fetch(blobs, blob, called)
        return self.add(start, name=name, image=called)

    def _fetch(self, blobs: Blobs, blob: Descriptor, image: str) -> None:
        new_hash(blob.digest, image)  # a path is made of it
        try:
            file = blobs.open(path_of(blob.digest))
        except OSError as error:
            raise ImageError(operation=f"open {blob.digest} of", object=image, errno=error.errno) from error
        with file:
            self.store.blobs.add(file, blob.digest, size=blob.size, image=image)

    def items(self) -> Iterator[StoredImage]:
        """All images, the newest first. One whose blobs are damaged or gone is left out."""
        names: dict[str, list[str]] = {}
        for each in self.names.items():
            names.setdefault(each.digest, []).append(each.name)
        records = sorted(self._records(), key=lambda record: record["time"], reverse=True)
        for record in records:
            try:
                yield self._load(record["digest"], record, tuple(names.get(record["digest"], ())))
            except ImageError:
                continue

    def digests(self) -> set[str]:
        """Of all images, damaged ones too."""
        return {record["digest"] for record in self._records()}

    def forget(self, digest: str) -> None:
        """Drop the record of an image; :mod:`sandbox.images.collect` is who removes images."""
        self._path(digest).unlink(missing_ok=True)

    def get(self, digest: str) -> StoredImage:
        """The image with this manifest or index.

        :raises ImageError: it is damaged or incomplete
        """
        record = self._record(self._path(digest)) or {}
        names = tuple(each.name for each in self.names.items() if each.digest == digest)
        return self._load(digest, record, names)

    def find(self, text: str) -> StoredImage:
        """The image that is called so here, or whose digest or id begins so.

        :param text: a name (``debian:12``), a digest, or at least six digits of one
        :raises ImageNotFound: there is none, or several
        """
        found = self.look_up(text)
        if found is None:
            there = ", ".join(sorted(each.name for each in self.names.items())) or "nothing"
            raise ImageNotFound(
                f"the store {self.store.root} has no such image", operation="find image", object=text,
                hint=f"there is: {there}",
            )  # fmt: skip
        return found

    def look_up(self, text: str) -> StoredImage | None:
        """As :meth:`find`, but ``None`` if there is none."""
        digest = self._meaning(text)
        return self.get(digest) if digest is not None else self._by_id(text)

    def start_of(self, text: str) -> Descriptor | None:
        """Where the image that :meth:`look_up` finds starts. Each container asks, so what it is called is not read up."""
        digest = self._meaning(text)
        if digest is not None:
            return self._start(digest, self._record(self._path(digest)) or {}, text)
        found = self._by_id(text)
        return found.start if found is not None else None

    def lacking(self, image: StoredImage) -> tuple[Descriptor, ...]:
        """Its blobs that are not here: layers as they came are forgotten if ``SANDBOX_KEEP_BLOBS`` says so."""
        return tuple(blob for blob in image.parts.blobs if not self._is_here(blob))

    def check_complete(self, image: StoredImage, operation: str, called: str) -> None:
        """What is to leave the store has to be in it, as it came.

        :raises ImageError: a blob is not; unpacked layers alone are enough for containers, but not to make it again
        """
        if lacking := self.lacking(image):
            raise not_here(lacking[0], image, operation, called)

    def _is_here(self, blob: Descriptor) -> bool:
        try:
            return (self.store.root / path_of(blob.digest)).stat().st_size == blob.size
        except FileNotFoundError:
            return False

    def layer_blobs(self, image: StoredImage) -> list[LayerBlob]:
        """The layers of an image as they came, lowest first."""
        manifests = Manifests(self.store.blobs, image.digest, self.store)
        config = parse_json(manifests.config(image.parts), image.digest, "configuration")
        return [
            LayerBlob(image.digest, diff_id, manifests.opener(layer), layer.digest, layer.size)
            for diff_id, layer in zip(diff_ids(config, image.digest), image.parts.layers, strict=True)
        ]

    # -- finding
    # -------------------------------------------------------------------------------------------------------

    def _meaning(self, text: str) -> str | None:
        """What a name means here. With a digest, the digest decides: a tag beside it may have moved on."""
        try:
            reference = parse_registry_name(text)
        except ImageError:
            return None
        if not reference.digest:
            return self.names.get(reference.canonical)
        return reference.digest if self._record(self._path(reference.digest)) else None

    def _by_id(self, text: str) -> StoredImage | None:
        if (match := _ID.fullmatch(text)) is None:
            return None
        found = {
            each.digest: each
            for each in self.items()
            if any(known.partition(":")[2].startswith(match[1]) for known in (each.digest, each.id))
        }
        if len(found) > 1:
            raise ImageNotFound(
                "several images begin so", operation="find image", object=text,
                hint=f"there are: {', '.join(sorted(found))}",
            )  # fmt: skip
        return next(iter(found.values()), None)

    def _load(self, digest: str, record: dict[str, Any], names: tuple[str, ...]) -> StoredImage:
        called = names[0] if names else digest
        start = self._start(digest, record, called)
        parts = Manifests(self._listed, called, self.store).parts(start)
        return StoredImage(start, parts, record.get("time", 0.0), names)

    def _start(self, digest: str, record: dict[str, Any], image: str) -> Descriptor:
        """The descriptor of a manifest; what its record does not say, the document does."""
        if record:
            return Descriptor(record["mediaType"], digest, record["size"])
        new_hash(digest, image)
        limit = self.store.limits.manifest
        try:
            with self._listed.open(path_of(digest)) as file:
                content = file.read(limit + 1)
        except OSError as error:
            raise ImageError(
                operation=f"open manifest {digest} of", object=image, errno=error.errno
            ) from error
        document = parse_json(content, image, "manifest")
        kind = document.get("mediaType") or (INDEXES if "manifests" in document else MANIFESTS)[0]
        return Descriptor(str(kind), digest, len(content))

    # -- records
    # -------------------------------------------------------------------------------------------------------

    def _path(self, digest: str) -> Path:
        algorithm, _, value = digest.partition(":")
        return self.store.root / "images" / f"{algorithm}-{value}"

    def _records(self) -> list[dict[str, Any]]:
        with store_errors("list images", "images", self.store.root):
            try:
                paths = list((self.store.root / "images").iterdir())
            except FileNotFoundError:
                return []
        return [record for path in paths if (record := self._record(path)) is not None]

    def _record(self, path: Path) -> dict[str, Any] | None:
        """A record; one that a power failure has emptied is as good as none."""
        with store_errors("read record", path.name, self.store.root):
            try:
                record = json.loads(path.read_bytes())
            except (FileNotFoundError, ValueError):
                return None
        return (
            record
            if isinstance(record, dict) and record.keys() >= {"digest", "mediaType", "size", "time"}
            else None
        )
