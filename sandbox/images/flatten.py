"""Write an image's layers as one plain tree, without overlayfs. Standard library and :mod:`sandbox.linux` only.

Runs in the helper process (:mod:`sandbox.images.unpack`), as root of the user namespace that the ids on disk are meant
for. The layers are the store's own and whole; what is *in* them is still an image's: nothing is opened through a link,
and nothing but regular files and directories is opened at all. The target is written by descriptors, starting from an
empty directory.

Hard links, holes, times, modes, owners and attributes come over; device nodes do not (layers in the store have none,
see :mod:`sandbox.images.layers`), nor do sockets. Where the file system can, files share their blocks with the store.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from sandbox.images.layers import IMPLICIT_ROOT_XATTR

__all__ = ["Flattener", "Result"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOATIME
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = "user.overlay.opaque"
_FICLONE = 0x40049409
_SMALL = 256 << 10  # up to here one read and one write are the fastest way
_CHUNK = 64 << 20
_NOTED = 1000
_DEEPEST = 300  # directories within one another; each takes descriptors as long as it is being filled


class Result(NamedTuple):
    """What was written."""

    #: Files, directories and all the rest.
    entries: int
    #: Bytes of regular files.
    size: int
    #: Paths that were left out, and why: ``name [socket]``.
    skipped: list[str]


class Flattener:
    """Copies a stack of layers into one directory."""

    def __init__(self, layers: Sequence[int], target: int, *, owners: bool = True) -> None:
        """Prepare to copy.

        :param layers: descriptors of the layers' directories, uppermost first
        :param target: descriptor of an empty directory
        :param owners: whether files get their owners; without, all belong to the caller
        """
        self._layers = list(layers)
        self._target = target
        self._owners = owners
        self._links: dict[tuple[int, int], bytes] = {}
        self._clone = True
        self._entries = self._size = 0
        self._skipped: list[str] = []

    def copy(self) -> Result:
        """Copy everything.

        :raises OSError: the kernel refuses; its ``filename`` is the path inside the image
        """
        self._fill(self._layers, self._target, b"")
        self._dress(self._root(), self._target)
        return Result(self._entries, self._size, self._skipped)

    def _root(self) -> int:
        """The uppermost layer whose archive told of the root; the lowest, if none did."""
        told = (layer for layer in self._layers if not _has(layer, IMPLICIT_ROOT_XATTR))
        return next(told, self._layers[-1])

    def _fill(self, sources: Sequence[int], target: int, path: bytes) -> None:
        seen: set[bytes] = set()
        for number, source in enumerate(sources):
            for name in os.listdir(source):
                raw = os.fsencode(name)
                if raw not in seen:
                    seen.add(raw)
                    self._entry(sources[number:], target, raw, path + b"/" + raw if path else raw)

    def _entry(self, sources: Sequence[int], target: int, name: bytes, path: bytes) -> None:
        """One name, found in the first of ``sources``."""
        try:
            status = os.stat(name, dir_fd=sources[0], follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                self._directory(sources, target, name, path)
            else:
                self._leaf(sources[0], target, name, path, status)
        except OSError as error:
            if error.filename is None or error.filename in (name, os.fsdecode(name)):
                error.filename = os.fsdecode(path)
            raise

    def _directory(self, sources: Sequence[int], target: int, name: bytes, path: bytes) -> None:
        if path.count(b"/") >= _DEEPEST:
            raise OSError(errno.EMLINK, f"more than {_DEEPEST} directories deep")
        opened: list[int] = []
        try:
            for source in sources:
                try:
                    opened.append(os.open(name, _DIRECTORY, dir_fd=source))
                except FileNotFoundError:
                    continue
                except OSError as error:
                    if error.errno in (
                        errno.ENOTDIR,
                        errno.ELOOP,
                    ):  # a file or a whiteout: nothing below it shows
                        break
                    raise
                if _has(opened[-1], _OPAQUE):
                    break
            os.mkdir(name, 0o700, dir_fd=target)
            self._entries += 1
            made = os.open(name, _DIRECTORY, dir_fd=target)
            opened.append(made)
            self._fill(opened[:-1], made, path)
            self._dress(opened[0], made)
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _leaf(self, source: int, target: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK):
            if kind != stat.S_IFCHR or status.st_rdev:
                self._note(path, "socket" if kind == stat.S_IFSOCK else "device node")
            return
        if status.st_nlink > 1 and self._linked(status, target, name, path):
            return
        self._entries += 1
        if kind == stat.S_IFREG:
            self._file(source, target, name)
            return
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        else:
            os.mkfifo(name, stat.S_IMODE(status.st_mode) & 0o777, dir_fd=target)
        if self._owners:
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        os.utime(name, ns=(status.st_mtime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)

    def _linked(self, status: os.stat_result, target: int, name: bytes, path: bytes) -> bool:
        """Make another name of a file that was copied already; all directories on its path were made by us."""
        first = self._links.setdefault((status.st_dev, status.st_ino), path)
        if first == path:
            return False
        os.link(first, name, src_dir_fd=self._target, dst_dir_fd=target, follow_symlinks=False)
        self._entries += 1
        return True

    def _file(self, source: int, target: int, name: bytes) -> None:
        reading = _open_to_read(name, source)
        try:
            status = os.fstat(reading)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file any more")
            writing = os.open(name, _CREATE, stat.S_IMODE(status.st_mode) & 0o777, dir_fd=target)
            try:
                self._content(reading, writing, status)
                if self._owners:
                    os.chown(writing, status.st_uid, status.st_gid)
                self._attributes(reading, writing)
                if status.st_mode & 0o7000:
                    os.chmod(writing, stat.S_IMODE(status.st_mode))
                os.utime(writing, ns=(status.st_mtime_ns, status.st_mtime_ns))
            finally:
                os.close(writing)
            self._size += status.st_size
        finally:
            os.close(reading)

    def _content(self, reading: int, writing: int, status: os.stat_result) -> None:
        sparse = status.st_blocks * 512 < status.st_size
        if status.st_size <= _SMALL and not sparse:
            while piece := os.read(reading, _SMALL):
                _write_all(writing, piece)
            return
        if self._clone and self._cloned(reading, writing):
            return
        position = 0
        while position < status.st_size and (extent := _extent(reading, position)):
            start, position = extent
            _copy_range(reading, writing, start, position)
        os.ftruncate(writing, status.st_size)

    def _cloned(self, reading: int, writing: int) -> bool:
        try:
            fcntl.ioctl(writing, _FICLONE, reading)
        except OSError:
            self._clone = False
        return self._clone

    def _attributes(self, reading: int, writing: int) -> None:
        for key in os.listxattr(reading):
            kept = key.startswith("user.") and not key.startswith("user.overlay.")
            if kept or key == "security.capability":
                os.setxattr(writing, key, os.getxattr(reading, key))

    def _dress(self, source: int, target: int) -> None:
        """Give a directory its attributes, once everything is in it."""
        status = os.fstat(source)
        if self._owners:
            os.chown(target, status.st_uid, status.st_gid)
        self._attributes(source, target)
        os.chmod(target, stat.S_IMODE(status.st_mode))
        os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))

    def _note(self, path: bytes, why: str) -> None:
        if len(self._skipped) < _NOTED:
            self._skipped.append(f"{path.decode('utf-8', 'backslashreplace')} [{why}]")


def _has(directory: int, attribute: str) -> bool:
    try:
        return os.getxattr(directory, attribute) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


def _open_to_read(name: bytes, directory: int) -> int:
    try:
        return os.open(name, _READ, dir_fd=directory)
    except PermissionError:  # O_NOATIME is for owners only, open(2)
        return os.open(name, _READ & ~os.O_NOATIME, dir_fd=directory)


def _write_all(target: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(target, view) :]


def _extent(file: int, position: int) -> tuple[int, int] | None:
    """The next stretch of data; ``None`` if only a hole is left."""
    try:
        start = os.lseek(file, position, os.SEEK_DATA)
        return start, os.lseek(file, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def _copy_range(reading: int, writing: int, start: int, end: int) -> None:
    """Let the kernel copy a stretch; between file systems that cannot, through this process."""
    while start < end:
        try:
            done = os.copy_file_range(reading, writing, min(end - start, _CHUNK), start, start)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            piece = os.pread(reading, min(end - start, 1 << 20), start)
            done = os.pwrite(writing, piece, start)
        if not done:
            return  # it became shorter; what the store has never does
        start += done
