"""Images in one file: ``oci-archive:PATH[:TAG]``, a layout in a tar, and ``docker-archive:PATH[:NAME]``.

The archive is not unpacked: an index of it is made once, and blobs are read from where they are. One that is
compressed as a whole is decompressed into an unnamed file of the store first.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import stat
import tarfile
import tempfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from sandbox.errors import ImageError, ImageNotFound
from sandbox.images.blobs import read_document
from sandbox.images.errors import ImageTooLarge
from sandbox.images.layout import from_layout
from sandbox.images.manifests import image_from, parse_json_list
from sandbox.images.references import parse_registry_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.images.image import Image
    from sandbox.images.limits import Limits
    from sandbox.images.references import Reference
    from sandbox.images.store import Store

__all__ = [
    "ArchiveBlobs",
    "docker_config",
    "docker_entries",
    "docker_parts",
    "docker_tags",
    "opened",
    "resolve",
]

_MEMBERS = 100_000
_LINKS = 8
_CONFIG_DIGEST = re.compile(r"(?:.*/)?([0-9a-f]{64})(?:\.json)?")


def resolve(reference: Reference, store: Store) -> Image:
    """The image in an archive. For a bare path, what is inside decides which kind of archive it is.

    :raises ImageNotFound: there is no such file, or nothing with that name in it; lists what there is
    :raises ImageError: it is no archive of an image, or a damaged one
    """
    with opened(reference, store) as archive:
        transport = reference.transport
        if transport == "path":
            transport = "oci-archive" if "oci-layout" in archive else "docker-archive"
        if transport == "oci-archive":
            return from_layout(archive, reference, store)
        return _docker(archive, reference, store)


class ArchiveBlobs:
    """The members of a tar archive by name, each readable at any time and from any thread."""

    def __init__(self, descriptor: int) -> None:
        """Read all headers of the archive behind a seekable descriptor.

        :raises tarfile.TarError: it is no archive
        """
        self._descriptor = descriptor
        self._places: dict[str, tuple[int, int] | str] = {}
        os.lseek(descriptor, 0, os.SEEK_SET)
        with os.fdopen(os.dup(descriptor), "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for number, member in enumerate(archive):
                if number > _MEMBERS:
                    raise tarfile.ReadError(f"more than {_MEMBERS} members")
                self._note(member)

    def _note(self, member: tarfile.TarInfo) -> None:
        name = posixpath.normpath(member.name)
        if member.issym():
            self._places[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
        elif member.islnk():
            self._places[name] = posixpath.normpath(member.linkname)
        elif member.isreg() and not member.issparse():
            self._places[name] = (member.offset_data, member.size)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def open(self, name: str) -> BinaryIO:
        """Open a member; links between members are followed. See :class:`~sandbox.images.blobs.Blobs`."""
        place = self._places.get(posixpath.normpath(name))
        for _ in range(_LINKS):
            if not isinstance(place, str):
                break
            place = self._places.get(place)
        if place is None or isinstance(place, str):
            raise FileNotFoundError(2, os.strerror(2), name)
        return io.BufferedReader(_Slice(self._descriptor, *place))


class _Slice(io.RawIOBase):
    """A stretch of a file, read without moving the file's own position."""

    def __init__(self, descriptor: int, start: int, length: int) -> None:
        self._descriptor = descriptor
        self._position = start
        self._end = start + length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._end - self._position]
        count = os.preadv(self._descriptor, [view], self._position)
        self._position += count
        return count


@contextmanager
def opened(reference: Reference, store: Store) -> Iterator[ArchiveBlobs]:
    """The archive at a reference's path.

    :raises ImageNotFound: there is no such file
    :raises ImageError: it is no archive
    """
    try:
        descriptor = os.open(reference.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        kind = ImageNotFound if isinstance(error, FileNotFoundError) else ImageError
        raise kind(
            operation="find image", object=reference.text, path=reference.path, errno=error.errno
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_an_archive(reference, "it is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        with _uncompressed(file, reference, store) as plain:
            try:
                archive = ArchiveBlobs(plain.fileno())
            except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
                raise _not_an_archive(reference, str(error)) from error
            yield archive


@contextmanager
def _uncompressed(file: BinaryIO, reference: Reference, store: Store) -> Iterator[BinaryIO]:
    """The file itself, or an unnamed copy of it without its compression."""
    if os.pread(file.fileno(), 2, 0) != b"\x1f\x8b":
        yield file
        return
    with tempfile.TemporaryFile(dir=store.scratch()) as plain:
        try:
            _gunzip(file, plain, store.limits, reference)
        except (zlib.error, EOFError) as error:
            raise _not_an_archive(reference, f"broken gzip compression: {error}") from error
        except OSError as error:
            raise ImageError(operation="decompress", object=reference.text, errno=error.errno) from error
        yield plain


def _gunzip(file: BinaryIO, plain: Any, limits: Limits, reference: Reference) -> None:
    """Decompress, within the limits of a layer: else a bomb around the layers would go off before theirs are looked at."""
    import gzip

    with gzip.open(file) as source:
        size = 0
        while piece := source.read(1 << 20):
            size += len(piece)
            limit, allowed = limits.decompressed(file.tell())
            if size > allowed:
                raise ImageTooLarge(
                    f"more than {allowed} bytes when decompressed",
                    operation="decompress",
                    object=reference.text,
                    path=reference.path,
                    feature=limit,
                    hint=f"if you trust the archive, raise the store's limit `{limit}`",
                )
            plain.write(piece)
    plain.flush()


def _not_an_archive(reference: Reference, why: str) -> ImageError:
    return ImageError(
        "this is not an archive of an image",
        operation="open image",
        object=reference.text,
        path=reference.path,
        cause=why,
        hint="archives are made with `docker save`, `podman save` or `skopeo copy`",
    )


# -- docker save
# -------------------------------------------------------------------------------------------------------


def _docker(archive: ArchiveBlobs, reference: Reference, store: Store) -> Image:
    """The image in a docker archive."""
    image = reference.text
    config, layers = docker_parts(_choose(docker_entries(archive, reference, store), reference), image)
    openers = [lambda name=name: archive.open(name) for name in layers]
    document = docker_config(archive, config, store.limits.config, image)
    return image_from(image, document, [None] * len(layers), openers, store=store, digest=None)


def docker_entries(archive: ArchiveBlobs, reference: Reference, store: Store) -> list[dict[str, Any]]:
    """The images of a docker archive, as ``manifest.json`` has them.

    :raises ImageError: there is no such file, or it is not what it should be
    """
    try:
        with archive.open("manifest.json") as file:
            content = file.read(store.limits.manifest + 1)
    except FileNotFoundError:
        raise _not_an_archive(reference, "it has neither oci-layout nor manifest.json") from None
    if len(content) > store.limits.manifest:
        detail = "manifest.json is too large"
        raise ImageTooLarge(detail, operation="read", object=reference.text, feature="manifest")
    return parse_json_list(content, reference.text, "manifest.json")


def docker_parts(entry: dict[str, Any], image: str) -> tuple[str, list[str]]:
    """The names of an image's configuration and layers, lowest first.

    :raises ImageError: they are not names
    """
    config, layers = entry.get("Config"), entry.get("Layers")
    if (
        not isinstance(config, str)
        or not isinstance(layers, list)
        or not all(isinstance(x, str) for x in layers)
    ):
        detail = "`Config` is not a name or `Layers` not a list of names"
        raise ImageError(detail, operation="read manifest.json of", object=image)
    return config, layers


def docker_config(archive: ArchiveBlobs, name: str, limit: int, image: str) -> bytes:
    """The configuration; docker names it by its digest, which is then verified."""
    if match := _CONFIG_DIGEST.fullmatch(name):
        return read_document(
            _Renamed(archive, name),
            f"sha256:{match[1]}",
            None,
            limit=limit,
            image=image,
            what="configuration",
        )
    try:
        with archive.open(name) as file:
            content = file.read(limit + 1)
    except FileNotFoundError as error:
        raise ImageError(f"`{name}` is missing", operation="open configuration of", object=image) from error
    if len(content) > limit:
        raise ImageTooLarge(
            "the configuration is too large", operation="read", object=image, feature="config"
        )
    return content


class _Renamed:
    """One member, whatever name it is asked for by."""

    def __init__(self, archive: ArchiveBlobs, name: str) -> None:
        self._archive = archive
        self._name = name

    def open(self, name: str) -> BinaryIO:  # noqa: ARG002 - there is only one
        return self._archive.open(self._name)


def _choose(entries: list[dict[str, Any]], reference: Reference) -> dict[str, Any]:
    """The entry that was asked for, or the only one."""
    names = {number: docker_tags(entry) for number, entry in enumerate(entries)}
    if reference.digest:
        detail = "docker archives have no manifest digests to find an image by"
        raise ImageNotFound(detail, operation="find image", object=reference.text, hint="use NAME:TAG")
    if not reference.tag and len(entries) == 1:
        return entries[0]
    for number, tags in names.items():
        if reference.tag and _canonical(reference.tag) in map(_canonical, tags):
            return entries[number]
    there = ", ".join(sorted(tag for tags in names.values() for tag in tags)) or "only images without a name"
    raise ImageNotFound(
        f"it has no `{reference.tag}`" if reference.tag else f"it has {len(entries)} images: say which",
        operation="find image",
        object=reference.text,
        hint=f"there is: {there}",
    )


def docker_tags(entry: dict[str, Any]) -> list[str]:
    """The names of an image in a docker archive."""
    tags = entry.get("RepoTags")
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


def _canonical(name: str) -> str:
    try:
        return parse_registry_name(name).canonical
    except ImageError:
        return name
