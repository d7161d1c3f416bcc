"""Blobs in the store: ``blobs/<algorithm>/<hex>``, each verified before it has that name."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO, Self

from sandbox.errors import ImageVerificationError
from sandbox.images.blobs import new_hash
from sandbox.images.documents import Descriptor
from sandbox.images.places import Places, store_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BlobStore", "BlobWriter"]

_CHUNK = 1 << 20


class BlobStore:
    """The blobs of a store, as :class:`~sandbox.images.blobs.Blobs`, and a way to add some.

    Whatever was added, opened or asked for stays as long as this process lives; after that what images of the store
    need stays (:class:`sandbox.images.stored.Images`).
    """

    def __init__(self, places: Places) -> None:
        self._places = places

    def open(self, name: str) -> BinaryIO:
        """A blob by its path, ``blobs/sha256/…``; see :class:`~sandbox.images.blobs.Blobs`."""
        self._places.use(name)
        return open(self._places.root / name, "rb")

    def has(self, digest: str, size: int | None = None) -> bool:
        """Whether a blob is here, of this size if one is given; if so, it stays.

        :raises ImageError: the digest is malformed
        """
        new_hash(digest, "blob")  # a path is made of it
        name = path_of(digest)
        self._places.use(name)
        try:
            status = (self._places.root / name).stat()
        except FileNotFoundError:
            return False
        return stat.S_ISREG(status.st_mode) and size in (None, status.st_size)

    def add(
        self,
        content: BinaryIO | bytes,
        digest: str | None = None,
        *,
        size: int | None = None,
        media_type: str = "",
        image: str = "blob",
    ) -> Descriptor:
        """Take a blob in, whole and verified or not at all.

        :param content: bytes, or a file that is read to its end
        :param digest: what it must be; without, it is stored under its SHA-256
        :param size: what it must be, in bytes
        :param image: what it belongs to, for errors
        :raises ImageVerificationError: size or digest is not what was promised
        :raises StoreError: the store cannot be written
        """
        if digest is not None and size is not None and self.has(digest, size):
            return Descriptor(media_type, digest, size)
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        with self.writer(digest, size=size, image=image) as writer:
            while chunk := file.read(_CHUNK):
                writer.write(chunk)
            return writer.commit(media_type)

    def writer(
        self, digest: str | None = None, *, size: int | None = None, image: str = "blob"
    ) -> BlobWriter:
        """Write a blob piece by piece: a context manager; what is not committed is forgotten.

        :raises ImageError: the digest is malformed
        """
        return BlobWriter(self._places, digest, size, image)

    def items(self) -> Iterator[tuple[str, int]]:
        """Digest and size of everything here."""
        root = self._places.root / "blobs"
        with store_errors("list blobs", "blobs", self._places.root):
            for algorithm in sorted(root.iterdir()) if root.exists() else ():
                with os.scandir(algorithm) as entries:
                    found = [(f"{algorithm.name}:{entry.name}", entry.stat().st_size) for entry in entries]
                yield from sorted(found)


class BlobWriter:
    """A blob in the making.

    >>> with store.blobs.writer("sha256:…", size=3) as writer:
    ...     writer.write(b"abc")
    ...     writer.commit()
    """

    def __init__(self, places: Places, digest: str | None, size: int | None, image: str) -> None:
        self._places = places
        self._digest = digest
        self._promised = size
        self._image = image
        self._hash = hashlib.sha256() if digest is None else new_hash(digest, image)
        self._stack = ExitStack()
        #: Bytes written so far.
        self.size = 0

    def __enter__(self) -> Self:
        with store_errors("write blob", self._image, self._places.root):
            self._file, self._path = self._stack.enter_context(self._places.new_file())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, piece: bytes | memoryview) -> None:
        """Append.

        :raises ImageVerificationError: it is more than was promised
        :raises StoreError: the disk is full, or whatever the kernel says
        """
        self.size += len(piece)
        if self._promised is not None and self.size > self._promised:
            raise self._wrong(self._promised, self.size)
        self._hash.update(piece)
        view = memoryview(piece)
        with store_errors("write blob", self._image, self._places.root):
            while view:
                view = view[os.write(self._file, view) :]

    def commit(self, media_type: str = "") -> Descriptor:
        """Verify, and let everybody see it.

        :raises ImageVerificationError: size or digest is not what was promised
        """
        algorithm = self._digest.partition(":")[0] if self._digest else "sha256"
        digest = f"{algorithm}:{self._hash.hexdigest()}"
        if self._promised is not None and self.size != self._promised:
            raise self._wrong(self._promised, self.size)
        if self._digest is not None and digest != self._digest:
            raise self._wrong(self._digest, digest)
        name = path_of(digest)
        with store_errors("write blob", self._image, self._places.root):
            self._places.use(name)
            self._places.directory(os.path.dirname(name))
            self._path.rename(self._places.root / name)
        return Descriptor(media_type, digest, self.size)

    def _wrong(self, expected: str | int, actual: str | int) -> ImageVerificationError:
        return ImageVerificationError(
            operation="verify", object=self._image, digest=self._digest, expected=expected, actual=actual,
            hint="the image is damaged or was tampered with: fetch it again",
        )  # fmt: skip


def path_of(digest: str) -> str:
    """Where a blob is, below the root of a store or layout."""
    algorithm, _, value = digest.partition(":")
    return f"blobs/{algorithm}/{value}"
