"""Digests of files that were read before, so that a build does not read a large context again in which nothing has changed.

A file is the same if its device, inode, size, mtime and ctime are: a write sets the ctime (inode(7); through a mapping, the
first one after its page was written back), and nobody can set it back. Two changes within one tick of the clock look alike,
though, so what was changed shortly before it was read is not noted (git calls such entries racy). Nor is what lies on file
systems that others write to by their own clocks.

The table is one file of the store for each context; one that is lost or damaged costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.build.tree import Tree
    from sandbox.images.store import Store

__all__ = ["Content", "KnownFiles", "content_of"]

_CHUNK = 1 << 20
#: Device, inode, size, mtime, ctime, SHA-256.
_RECORD = struct.Struct("=QQqqq32s")
#: So long must a change be over, in ns: longer than a tick of the kernel's clock (at most 10 ms), or, where times of files
#: are whole seconds, than two of those (FAT).
_SETTLED, _SETTLED_WHOLE_SECONDS = 200_000_000, 3_000_000_000
#: Less than that is read again rather than noted.
_WORTH_NOTING = 1 << 20
#: With more entries than that, those that were not met in this build are forgotten.
_MOST = 100_000
_OTHERS_CLOCKS = frozenset({"9p", "afs", "ceph", "cifs", "nfs", "nfs4", "smb3", "virtiofs"})

_Facts = tuple[int, int, int]
#: Gives the SHA-256 of a regular file of a tree.
Content = Callable[["Tree", str, os.stat_result], bytes]


def content_of(tree: Tree, path: str, _state: os.stat_result) -> bytes:
    """The SHA-256 of a regular file. Raises :class:`OSError`."""
    return _read_file(tree, path)[0]


def _read_file(tree: Tree, path: str) -> tuple[bytes, os.stat_result, os.stat_result]:
    """The digest of a file, and what it was like before and after it was read."""
    hashed = hashlib.sha256()
    fd = tree.open(path)
    try:
        before = os.fstat(fd)
        while piece := os.read(fd, _CHUNK):
            hashed.update(piece)
        return hashed.digest(), before, os.fstat(fd)
    finally:
        os.close(fd)


class KnownFiles:
    """What is known of the files of one directory."""

    def __init__(self, store: Store, directory: Path, *, forget: bool = False) -> None:
        """Nothing is read yet.

        :param forget: begin anew
        """
        name = hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:32]
        self._store = store
        self._name = f"build-caches/files-{name}"
        self._device = _device(directory)
        self._known = {} if forget else dict(_read(store.root / self._name))
        self._met: set[tuple[int, int]] = set()
        self._unsaved = 0

    def digest(self, tree: Tree, path: str, state: os.stat_result) -> bytes:
        """As :func:`content_of`; the file is read only if it is not known."""
        key, facts = _identity(state)
        self._met.add(key)
        known = self._known.get(key)
        if known is not None and known[0] == facts:
            return known[1]
        now = time.time_ns()
        found, before, after = _read_file(tree, path)
        same = _identity(before) == _identity(after) == (key, facts)
        if same and key[0] == self._device and _settled(facts[2], now):
            self._known[key] = facts, found
            self._unsaved += facts[0]
        else:
            self._known.pop(key, None)
        return found

    def save(self) -> None:
        """Write the table, if it is worth it.

        :raises StoreError: the store cannot be written
        """
        if self._unsaved < _WORTH_NOTING:
            return
        if len(self._known) > _MOST:
            self._known = {key: value for key, value in self._known.items() if key in self._met}
        places = self._store.places
        records = (_RECORD.pack(*key, *facts, found) for key, (facts, found) in self._known.items())
        places.use(self._name)
        places.write(self._store.root / self._name, b"".join(records))
        self._unsaved = 0


def _identity(state: os.stat_result) -> tuple[tuple[int, int], _Facts]:
    return (state.st_dev, state.st_ino), (state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def _settled(changed: int, now: int) -> bool:
    """Whether a later change would have another time."""
    return now - changed > (_SETTLED if changed % 1_000_000_000 else _SETTLED_WHOLE_SECONDS)


def _device(directory: Path) -> int | None:
    """The device whose files can be known by their times; none for file systems of other machines."""
    device = directory.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(" ")
            if fields[2] == number:
                kind = fields[fields.index("-") + 1]
                return None if kind in _OTHERS_CLOCKS or kind.startswith("fuse") else device
    return device  # subvolumes of btrfs have devices that no mount names


def _read(path: Path) -> list[tuple[tuple[int, int], tuple[_Facts, bytes]]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = len(content) - len(content) % _RECORD.size
    return [((row[0], row[1]), (row[2:5], row[5])) for row in _RECORD.iter_unpack(content[:whole])]
