"""Paths inside a root that someone else filled: resolved by the kernel within it (openat2(2) RESOLVE_IN_ROOT)."""

from __future__ import annotations

import errno
import os
import stat

from sandbox.linux import constants as c, syscalls
from sandbox.linux.errors import KernelError

_IN_ROOT = c.RESOLVE_IN_ROOT | c.RESOLVE_NO_MAGICLINKS


def locate(root_fd: int, path: str, *, follow: bool = True) -> int:
    """An O_PATH descriptor of ``path`` below ``root_fd``; links stay inside the root, or are refused (ELOOP)."""
    resolve = _IN_ROOT if follow else c.RESOLVE_NO_SYMLINKS | c.RESOLVE_IN_ROOT
    return syscalls.openat2(path, c.O_PATH, resolve=resolve, dir_fd=root_fd)


def read_file(root_fd: int, path: str, limit: int = 1 << 20) -> bytes:
    """The start of a regular file below ``root_fd``; b"" if there is none. A FIFO or device does not block or answer."""
    try:
        fd = syscalls.openat2(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, resolve=_IN_ROOT, dir_fd=root_fd)
    except OSError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        return os.read(fd, limit)
    finally:
        os.close(fd)


def ensure(root_fd: int, path: str, *, directory: bool, follow: bool = True) -> int:
    """Like :func:`locate`, but what is missing is made: directories (0755), and at the end an empty file if asked."""
    try:
        return locate(root_fd, path, follow=follow)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
    names = [name for name in path.split("/") if name not in ("", ".")]
    walked = ""
    parent = os.dup(root_fd)
    try:
        for position, name in enumerate(names):
            walked += "/" + name
            parent = _step(root_fd, parent, walked, name, directory or position < len(names) - 1, follow)
        result, parent = parent, -1
        return result
    finally:
        if parent >= 0:
            os.close(parent)


def _step(root_fd: int, parent: int, walked: str, name: str, directory: bool, follow: bool) -> int:
    """One component further; closes ``parent``, which the new descriptor replaces."""
    try:
        found = locate(root_fd, walked, follow=follow)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        _make(parent, name, directory, walked)
        found = locate(root_fd, walked, follow=follow)
    os.close(parent)
    return found


def _make(parent: int, name: str, directory: bool, walked: str) -> None:
    try:
        if directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent))
    except OSError as error:
        raise KernelError(error.errno or 0, "make the mount point", walked) from None


def as_path(fd: int) -> str:
    """A path that names the object behind ``fd``, for calls that take no descriptor."""
    return f"/proc/self/fd/{fd}"
