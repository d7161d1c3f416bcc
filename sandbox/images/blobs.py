"""Blobs: where their bytes come from, and that they are the bytes that were promised."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, BinaryIO, Protocol, Self

import attrs

from sandbox.errors import ImageError, ImageVerificationError
from sandbox.images.errors import ImageTooLarge, LayerError, MediaTypeError
from sandbox.images.limits import Limits

__all__ = ["Blobs", "LayerBlob", "PlainLayer", "new_hash", "read_document"]

_CHUNK = 1 << 20
_OUTPUT = 4 << 20  # most that one step of decompression may give
_DIGEST = re.compile(r"sha(256|384|512):([0-9a-f]+)")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
#: Frames that carry no data and may come first, RFC 8878 section 3.1.2 "Skippable Frames".
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")


class Blobs(Protocol):
    """Something that has blobs by name: a directory, an archive."""

    def open(self, name: str) -> BinaryIO:
        """A blob by its path, ``blobs/sha256/…``.

        :raises FileNotFoundError: there is none
        :raises OSError: it is no regular file, or cannot be read
        """
        ...


@attrs.frozen
class LayerBlob:
    """A layer as it is stored somewhere, maybe compressed."""

    #: The image it belongs to, for errors.
    image: str
    #: Digest of the uncompressed archive, from the image's configuration.
    diff_id: str
    #: Opens the bytes as stored.
    open: Callable[[], BinaryIO]
    #: Digest and size of the bytes as stored; ``None`` where the source promises nothing about them.
    digest: str | None = None
    size: int | None = None


def new_hash(digest: str, image: str) -> Any:
    """A hash object for a digest like ``sha256:…``.

    :raises ImageError: the digest is malformed or of an algorithm that OCI does not know
    """
    match = _DIGEST.fullmatch(digest)
    if match is None or len(match[2]) * 4 != int(match[1]):
        raise ImageError(f"`{digest[:150]}` is not a digest", operation="verify", object=image)
    return hashlib.new(f"sha{match[1]}")


def read_document(blobs: Blobs, digest: str, size: int | None, *, limit: int, image: str, what: str) -> bytes:
    """A small blob, whole and verified.

    :param size: what its descriptor says; ``None`` if nothing does
    :param limit: bytes above which it is refused
    :param what: ``"manifest"``, ``"config"`` …, for errors
    :raises ImageVerificationError: size or digest is not what was promised
    :raises ImageError: it is missing, too large or not readable
    """
    hashed = new_hash(digest, image)
    if size is not None and size > limit:
        raise ImageTooLarge(f"the {what} has {size} bytes, more than {limit}", operation="read", object=image)
    algorithm, _, value = digest.partition(":")
    try:
        with blobs.open(f"blobs/{algorithm}/{value}") as file:
            content = file.read((limit if size is None else size) + 1)
            if size is not None and len(content) > size:
                content += file.read(limit - size)
    except OSError as error:
        raise missing(image, what, digest, error) from error
    if len(content) > limit:
        raise ImageTooLarge(f"the {what} is larger than {limit} bytes", operation="read", object=image)
    hashed.update(content)
    _compare(image, digest, size, len(content))
    _compare(image, digest, digest, f"{algorithm}:{hashed.hexdigest()}")
    return content


def missing(image: str, what: str, digest: str, error: OSError) -> ImageError:
    """The error for a blob that cannot be opened."""
    return ImageError(
        "it is not a regular file" if error.errno is None else None,
        operation=f"open {what} {digest} of",
        object=image,
        path=error.filename if isinstance(error.filename, str) else None,
        errno=error.errno,
        hint="the image is incomplete: copy it again, for example with `skopeo copy`",
    )


class PlainLayer:
    """The uncompressed bytes of a layer; iterate over them, then :meth:`verify`.

    Memory use is bounded whatever the input: a step of decompression gives at most 4 MiB.
    """

    def __init__(self, blob: LayerBlob, limits: Limits) -> None:
        self._blob = blob
        self._limits = limits
        self._stored = new_hash(blob.digest or blob.diff_id, blob.image)
        self._plain = new_hash(blob.diff_id, blob.image)
        self._hash_plain = True
        self._stored_size = self._plain_size = 0
        try:
            self._file = blob.open()
        except OSError as error:
            raise missing(blob.image, "layer", blob.digest or blob.diff_id, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[bytes]:
        """Pieces of the uncompressed archive.

        :raises LayerError: the compression is broken, or a limit is passed
        :raises MediaTypeError: the compression is one that this installation cannot read
        """
        for piece in self._decompressed():
            self._plain_size += len(piece)
            self._check_size()
            if self._hash_plain:
                self._plain.update(piece)
            yield piece

    def read(self, size: int = _CHUNK) -> bytes:
        """Bytes as stored, hashed on the way; what decompressors that pull are given."""
        try:
            chunk = self._file.read(size)
        except OSError as error:
            what = f"read layer {self._blob.digest or self._blob.diff_id} of"
            raise ImageError(operation=what, object=self._blob.image, errno=error.errno) from error
        self._stored.update(chunk)
        self._stored_size += len(chunk)
        return chunk

    def verify_stored(self) -> None:
        """Read what is left and compare with the descriptor, so that damage is told from hostility.

        :raises ImageVerificationError: size or digest is not what was promised
        """
        promised = self._blob.size
        while self.read():
            if promised is not None and self._stored_size > promised:
                break
        if self._blob.digest is not None:
            _compare(self._blob.image, self._blob.digest, promised, self._stored_size)
            self._compare_digest(self._blob.digest, self._stored)

    def verify(self) -> None:
        """Check everything that was promised about these bytes, once all of them have been read.

        :raises ImageVerificationError: size or digest is not what was promised
        """
        self.verify_stored()
        self._compare_digest(self._blob.diff_id, self._plain if self._hash_plain else self._stored)

    @property
    def plain_size(self) -> int:
        """Bytes of uncompressed archive so far."""
        return self._plain_size

    def _compare_digest(self, expected: str, hashed: Any) -> None:
        algorithm = expected.partition(":")[0]
        _compare(self._blob.image, expected, expected, f"{algorithm}:{hashed.hexdigest()}")

    def _check_size(self) -> None:
        name, allowed = self._limits.decompressed(self._stored_size)
        if self._plain_size > allowed:
            raise ImageTooLarge(
                f"more than {allowed} bytes when decompressed",
                operation="unpack",
                object=self._blob.image,
                layer=self._blob.digest or self._blob.diff_id,
                feature=name,
                hint=f"if you trust the image, raise the store's limit `{name}`",
            )

    def _decompressed(self) -> Iterator[bytes]:
        first = self.read()
        if first.startswith(_GZIP):
            return self._gunzip(first)
        if first.startswith(_ZSTD) or _ZSTD_SKIPPABLE.match(first):
            return self._unzstd(first)
        self._hash_plain = self._stored.name != self._plain.name  # the same bytes need not be hashed twice
        return self._as_it_is(first)

    def _as_it_is(self, chunk: bytes) -> Iterator[bytes]:
        while chunk:
            yield chunk
            chunk = self.read()

    def _gunzip(self, chunk: bytes) -> Iterator[bytes]:
        """All members, one after another (RFC 1952 section 2.2); padding of zeros at the end is ignored."""
        inflate = inflater()
        try:
            while chunk:
                member = inflate.decompressobj(wbits=31)
                while not member.eof:
                    piece = member.decompress(chunk, _OUTPUT)
                    if piece:
                        yield piece
                    chunk = member.unconsumed_tail
                    if not chunk and len(piece) < _OUTPUT and not member.eof:
                        chunk = self._more()
                chunk = self._after_padding(member.unused_data)
        except (zlib.error, inflate.error) as error:
            raise self._broken("gzip", error) from error

    def _more(self) -> bytes:
        if chunk := self.read():
            return chunk
        raise self._broken("gzip", "the stream is cut off")

    def _after_padding(self, chunk: bytes) -> bytes:
        chunk = chunk.lstrip(b"\0")
        while not chunk and (more := self.read()):
            chunk = more.lstrip(b"\0")
        return chunk

    def _unzstd(self, first: bytes) -> Iterator[bytes]:
        zstd = _zstandard(self._blob)
        source = _Prefixed(first, self)
        stream = zstd.ZstdDecompressor().stream_reader(source, read_across_frames=True)
        try:
            while piece := stream.read(_OUTPUT):
                yield piece
        except zstd.ZstdError as error:
            raise self._broken("zstd", error) from error

    def _broken(self, compression: str, cause: object) -> LayerError:
        return LayerError(
            f"broken {compression} compression",
            operation="unpack",
            object=self._blob.image,
            layer=self._blob.digest or self._blob.diff_id,
            cause=str(cause),
        )


class _Prefixed:
    """A reader that gives back what was read to look at it."""

    def __init__(self, first: bytes, rest: PlainLayer) -> None:
        self._first = first
        self._rest = rest

    def read(self, size: int) -> bytes:
        if self._first:
            piece, self._first = self._first[:size], self._first[size:]
            return piece
        return self._rest.read(size)


@cache
def inflater() -> Any:
    """What decompresses gzip: ISA-L's igzip where its bindings are installed (twice as fast), else zlib; same interface."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    return isal_zlib


def _zstandard(blob: LayerBlob) -> Any:
    try:
        import zstandard
    except ImportError:
        raise MediaTypeError(
            f"layer {blob.digest or blob.diff_id} is compressed with zstd",
            operation="unpack",
            object=blob.image,
            feature="zstd",
            hint="pip install 'pytest-sandbox[zstd]'",
        ) from None
    return zstandard


def _compare(image: str, digest: str, expected: str | int | None, actual: str | int) -> None:
    if expected is not None and expected != actual:
        raise ImageVerificationError(
            operation="verify",
            object=image,
            digest=digest,
            expected=expected,
            actual=actual,
            hint="the image is damaged or was tampered with: fetch it again",
        )
