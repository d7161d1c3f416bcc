"""From what a container changed to a layer: the upper directory of its overlay as an archive.

Standard library and :mod:`sandbox.linux` only: it runs in the helper process (:mod:`sandbox.build.helper`), as root of a
user namespace with the container's ids, so that owners, and the owner that a file capability belongs to, come out as the
container sees them. What overlayfs has for "gone" (a 0:0 character device) and "nothing below shows" (the attribute
``user.overlay.opaque``) becomes what image-spec has ("Layer", section "Whiteouts").
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sandbox.build.tarwriter import Member, TarWriter

__all__ = ["Made", "Part", "attributes", "read_parts", "write_changes"]

#: What the runtime gives every container anew, in whatever image; as with docker, changes to it are not kept.
NEVER = frozenset({b"etc/hosts", b"etc/hostname", b"etc/resolv.conf", b".dockerenv", b"run/.containerenv"})
_OPAQUE = "user.overlay.opaque"
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Made(NamedTuple):
    """An entry that was there before the program started: a mount point, or the directory of one."""

    mode: int
    uid: int
    gid: int


class Part(NamedTuple):
    """A directory with what a container has changed below ``target`` of its root, and what was there before."""

    directory: str
    target: bytes
    made: Mapping[bytes, Made]


def read_parts(text: str) -> list[Part]:
    """The list that the runtime left beside the directories (:func:`sandbox.runtime.rootfs.note_made`)."""
    return [
        Part(directory, os.fsencode(target.strip("/")), _under(os.fsencode(target.strip("/")), rows))
        for directory, target, rows in json.loads(text)
    ]


def _under(target: bytes, rows: list[Any]) -> dict[bytes, Made]:
    above = target + b"/" if target else b""
    return {above + os.fsencode(path): Made(*rest) for path, *rest in rows}


def write_changes(scratch: int, parts: Sequence[Part], out: TarWriter) -> None:
    """Write everything that a container has changed; ``scratch`` is the directory that the parts lie in.

    What the runtime made and the program left alone is left out. Regular files with several names are stored once.
    """
    # One walk after the other, directories between the parts first: they are the mount points of the others.
    for part in sorted(parts, key=lambda part: part.target.count(b"/") if part.target else -1):
        fd = os.open(part.directory, _OPEN | os.O_DIRECTORY, dir_fd=scratch)
        try:
            _Changes(out, part.made).directory(fd, part.target + b"/" if part.target else b"")
        finally:
            os.close(fd)
    out.close()


class _Changes:
    """One walk over an upper directory."""

    def __init__(self, out: TarWriter, made: Mapping[bytes, Made]) -> None:
        self._out = out
        self._made = made
        self._seen: dict[tuple[int, int], bytes] = {}

    def directory(self, fd: int, path: bytes) -> None:
        """The entries of a directory, in the order of their names."""
        for name in sorted(os.listdir(fd)):
            raw = os.fsencode(name)
            self._entry(fd, raw, path + raw)

    def _entry(self, parent: int, name: bytes, path: bytes) -> None:
        state = os.stat(name, dir_fd=parent, follow_symlinks=False)
        kind = stat.S_IFMT(state.st_mode)
        if kind == stat.S_IFDIR:
            self._directory_entry(parent, name, path, state)
        elif path in NEVER or (path in self._made and self._untouched(path, state)):
            return
        elif kind == stat.S_IFCHR and state.st_rdev == 0:
            above, slash, last = path.rpartition(b"/")
            self._out.add(Member(above + slash + b".wh." + last, b"0", 0o600), whiteout=True)
        elif kind == stat.S_IFREG:
            self._file(parent, name, path, state)
        elif kind in (stat.S_IFLNK, stat.S_IFIFO):
            target = os.readlink(name, dir_fd=parent) if kind == stat.S_IFLNK else b""
            self._add(path, b"2" if kind == stat.S_IFLNK else b"6", state, link=os.fsencode(target))
        # Sockets mean nothing without who listened; other devices cannot be made in a user namespace.

    def _untouched(self, path: bytes, state: os.stat_result) -> bool:
        return self._made[path] == Made(state.st_mode, state.st_uid, state.st_gid)

    def _directory_entry(self, parent: int, name: bytes, path: bytes, state: os.stat_result) -> None:
        fd = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=parent)
        try:
            if path in self._made and self._untouched(path, state) and not self._has_news(fd, path + b"/"):
                return
            self._add(path, b"5", state, xattrs=attributes(fd))
            if _is_opaque(fd):
                self._out.add(Member(path + b"/.wh..wh..opq", b"0", 0o600), whiteout=True)
            self.directory(fd, path + b"/")
        finally:
            os.close(fd)

    def _has_news(self, fd: int, path: bytes) -> bool:
        """Whether something in a directory that the runtime made is the program's doing."""
        for name in os.listdir(fd):
            raw = os.fsencode(name)
            inner = path + raw
            state = os.stat(raw, dir_fd=fd, follow_symlinks=False)
            if inner not in self._made:
                if inner not in NEVER:
                    return True
            elif stat.S_ISDIR(state.st_mode):
                below = os.open(raw, _OPEN | os.O_DIRECTORY, dir_fd=fd)
                try:
                    if not self._untouched(inner, state) or self._has_news(below, inner + b"/"):
                        return True
                finally:
                    os.close(below)
            elif not self._untouched(inner, state) and inner not in NEVER:
                return True
        return False

    def _file(self, parent: int, name: bytes, path: bytes, state: os.stat_result) -> None:
        key = state.st_dev, state.st_ino
        if state.st_nlink > 1 and key in self._seen:
            self._add(path, b"1", state, link=self._seen[key])
            return
        self._seen[key] = path
        fd = os.open(name, _OPEN, dir_fd=parent)
        try:
            state = os.fstat(fd)
            self._add(path, b"0", state, size=state.st_size, xattrs=attributes(fd))
            self._out.copy(fd, state.st_size)
        finally:
            os.close(fd)

    def _add(
        self, path: bytes, kind: bytes, state: os.stat_result, *, size: int = 0, link: bytes = b"",
        xattrs: Mapping[bytes, bytes] | None = None,
    ) -> None:  # fmt: skip
        self._out.add(Member(path, kind, state.st_mode, state.st_uid, state.st_gid, int(state.st_mtime), size, link,
                             xattrs or {}))  # fmt: skip


def attributes(fd: int) -> dict[bytes, bytes]:
    """The extended attributes that belong into a layer: those that unpacking keeps."""
    return {os.fsencode(name): os.getxattr(fd, name) for name in _kept(fd)}


def _kept(fd: int) -> Iterator[str]:
    try:
        names = os.listxattr(fd)
    except OSError:
        return  # a file system without any
    for name in names:
        if name == "security.capability" or (name.startswith("user.") and not name.startswith("user.overlay.")):
            yield name


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, _OPAQUE) == b"y"
    except OSError:
        return False
