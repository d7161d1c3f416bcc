"""Read files as an overlay of directories would show them, without mounting anything.

Nothing here trusts the directories: links are resolved by hand and inside the merged root only, every step is
taken with ``O_NOFOLLOW`` relative to a directory descriptor, and only regular files are opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sandbox.errors import ImageError

__all__ = ["read_files"]

_OPAQUE = "user.overlay.opaque"
_LINK_LIMIT = 40  # as the kernel, path_resolution(7)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_CHUNK = 1 << 16

_Directory = tuple[int, ...]
"""A merged directory: descriptors of what makes it up, uppermost first."""


class _Leaf(NamedTuple):
    """Something that is not a directory."""

    parent: int
    name: str
    mode: int


def read_files(roots: Sequence[Path], paths: Sequence[str], *, limit: int, image: str) -> list[bytes | None]:
    """Contents of files of a merged root.

    :param roots: the directories, lowest first
    :param paths: paths inside the merged root; links in them are followed inside that root
    :param limit: size in bytes above which a file is refused
    :param image: name of the image, for errors
    :returns: ``None`` for a file that is not there
    :raises ImageError: one is no regular file, is too large, is behind too many links or may not be read
    """
    path, found = paths[0], []
    descriptors: list[int] = []
    try:
        walk = _Walk(roots, descriptors)
        for path in paths:
            leaf = walk.find(path)
            found.append(None if leaf is None else _read(leaf, limit))
    except OSError as error:
        raise ImageError(
            operation="read from image", object=image, path=path, errno=error.errno, cause=_cause(error)
        ) from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return found


class _Walk:
    """Path resolution; its descriptors last until whoever gave the list closes what is in it."""

    def __init__(self, roots: Sequence[Path], descriptors: list[int]) -> None:
        self._descriptors = descriptors
        self._root = tuple(self._keep(os.open(root, _DIRECTORY & ~os.O_NOFOLLOW)) for root in reversed(roots))
        #: What was entered: the files that are read lie in the same directory.
        self._entered: dict[tuple[_Directory, str], _Directory] = {}
        self._trail: list[_Directory] = []
        self._todo: list[str] = []
        self._links = 0

    def find(self, path: str) -> _Leaf | None:
        """Where the file is; ``None`` if it or a directory on the way does not exist."""
        self._trail, self._todo, self._links = [self._root], path.split("/")[::-1], 0
        while self._todo:
            name = self._todo.pop()
            if name == "..":
                self._trail = self._trail[:-1] or [self._root]
            elif name not in ("", "."):
                step = self._trail[-1], name
                found = self._entered.get(step) or self._step(*step)
                if isinstance(found, _Leaf) and stat.S_ISLNK(found.mode):
                    self._follow(found)
                elif isinstance(found, _Leaf):
                    return None if any(self._todo) else found
                elif found:
                    self._entered[step] = found
                    self._trail.append(found)
                else:
                    return None
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))

    def _follow(self, link: _Leaf) -> None:
        self._links += 1
        if self._links > _LINK_LIMIT:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(link.name, dir_fd=link.parent)
        self._todo += target.split("/")[::-1]
        if target.startswith("/"):
            self._trail = [self._root]

    def _step(self, directory: _Directory, name: str) -> _Leaf | _Directory:
        """What ``name`` is in a merged directory: a leaf, a merged directory, or ``()`` for nothing."""
        found: list[int] = []
        for depth, parent in enumerate(directory, 1):
            try:
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(status.st_mode):
                hidden = bool(found) or (stat.S_ISCHR(status.st_mode) and status.st_rdev == 0)
                return tuple(found) if hidden else _Leaf(parent, name, status.st_mode)
            found.append(self._keep(os.open(name, _DIRECTORY, dir_fd=parent)))
            if depth < len(directory) and _is_opaque(found[-1]):
                break  # nothing of what lies below shows
        return tuple(found)

    def _keep(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def _read(leaf: _Leaf, limit: int) -> bytes:
    """The content; what is there was a regular file at the last look and must still be one once open."""
    if not stat.S_ISREG(leaf.mode):
        raise OSError(errno.EINVAL, "not a regular file")
    descriptor = os.open(leaf.name, _FILE, dir_fd=leaf.parent)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        content = _read_up_to(descriptor, limit + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes")
    return content


def _read_up_to(descriptor: int, size: int) -> bytes:
    """Files are small and read for each start, so they get no file object."""
    content = b""
    while len(content) < size and (more := os.read(descriptor, min(size - len(content), _CHUNK))):
        content += more
    return content


def _cause(error: OSError) -> str | None:
    """What strerror(3) does not say."""
    known = os.strerror(error.errno) if error.errno else None
    return error.strerror if error.strerror != known else None
