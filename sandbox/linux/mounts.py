"""Mount options and the mount table (mount(8), proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from . import constants as c, syscalls

#: option → (flag, True if the option clears it).
_FLAGS: dict[str, tuple[int, bool]] = {
    "ro": (c.MS_RDONLY, False), "rw": (c.MS_RDONLY, True),
    "nosuid": (c.MS_NOSUID, False), "suid": (c.MS_NOSUID, True),
    "nodev": (c.MS_NODEV, False), "dev": (c.MS_NODEV, True),
    "noexec": (c.MS_NOEXEC, False), "exec": (c.MS_NOEXEC, True),
    "sync": (c.MS_SYNCHRONOUS, False), "async": (c.MS_SYNCHRONOUS, True),
    "dirsync": (c.MS_DIRSYNC, False),
    "mand": (c.MS_MANDLOCK, False), "nomand": (c.MS_MANDLOCK, True),
    "noatime": (c.MS_NOATIME, False), "atime": (c.MS_NOATIME, True),
    "nodiratime": (c.MS_NODIRATIME, False), "diratime": (c.MS_NODIRATIME, True),
    "relatime": (c.MS_RELATIME, False), "norelatime": (c.MS_RELATIME, True),
    "strictatime": (c.MS_STRICTATIME, False), "nostrictatime": (c.MS_STRICTATIME, True),
    "lazytime": (c.MS_LAZYTIME, False), "nolazytime": (c.MS_LAZYTIME, True),
    "nosymfollow": (c.MS_NOSYMFOLLOW, False), "symfollow": (c.MS_NOSYMFOLLOW, True),
    "silent": (c.MS_SILENT, False), "loud": (c.MS_SILENT, True),
    "bind": (c.MS_BIND, False), "rbind": (c.MS_BIND | c.MS_REC, False),
    "remount": (c.MS_REMOUNT, False), "defaults": (0, False),
}  # fmt: skip

_PROPAGATION: dict[str, int] = {
    "private": c.MS_PRIVATE, "rprivate": c.MS_PRIVATE | c.MS_REC,
    "slave": c.MS_SLAVE, "rslave": c.MS_SLAVE | c.MS_REC,
    "shared": c.MS_SHARED, "rshared": c.MS_SHARED | c.MS_REC,
    "unbindable": c.MS_UNBINDABLE, "runbindable": c.MS_UNBINDABLE | c.MS_REC,
}  # fmt: skip

#: Recursive attributes of the OCI runtime-spec ("rro", …) → (MOUNT_ATTR flag, clears).
_RECURSIVE: dict[str, tuple[int, bool]] = {
    "rro": (c.MOUNT_ATTR_RDONLY, False), "rrw": (c.MOUNT_ATTR_RDONLY, True),
    "rnosuid": (c.MOUNT_ATTR_NOSUID, False), "rsuid": (c.MOUNT_ATTR_NOSUID, True),
    "rnodev": (c.MOUNT_ATTR_NODEV, False), "rdev": (c.MOUNT_ATTR_NODEV, True),
    "rnoexec": (c.MOUNT_ATTR_NOEXEC, False), "rexec": (c.MOUNT_ATTR_NOEXEC, True),
    "rnosymfollow": (c.MOUNT_ATTR_NOSYMFOLLOW, False), "rsymfollow": (c.MOUNT_ATTR_NOSYMFOLLOW, True),
}  # fmt: skip

#: Options that ask for an idmapped mount.
IDMAP_OPTIONS = frozenset({"idmap", "ridmap"})


class MountOptions(NamedTuple):
    """Mount options taken apart: what the kernel takes as flags, as propagation, as recursive attributes, as data."""

    flags: int
    cleared: int
    propagation: int
    recursive_set: int
    recursive_clear: int
    data: str
    idmap: bool
    copy_up: bool


def parse_options(options: Iterable[str]) -> MountOptions:
    """Sort OCI mount options; what is no known flag is file-system data, in the order given."""
    return _parse_options(tuple(options))


@lru_cache(maxsize=256)
def _parse_options(options: tuple[str, ...]) -> MountOptions:
    flags = cleared = propagation = recursive_set = recursive_clear = 0
    idmap = copy_up = False
    data: list[str] = []
    for option in options:
        if option in _FLAGS:
            flag, clears = _FLAGS[option]
            flags, cleared = (flags & ~flag, cleared | flag) if clears else (flags | flag, cleared & ~flag)
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option in _RECURSIVE:
            flag, clears = _RECURSIVE[option]
            recursive_set |= 0 if clears else flag
            recursive_clear |= flag if clears else 0
        elif option in IDMAP_OPTIONS:
            idmap = True
        elif option == "tmpcopyup":
            copy_up = True
        else:
            data.append(option)
    return MountOptions(flags, cleared, propagation, recursive_set, recursive_clear, ",".join(data), idmap, copy_up)


def propagation_flag(name: str) -> int:
    """The mount(2) flag of a propagation type ("rprivate", …); :class:`KeyError` if there is none."""
    return _PROPAGATION[name]


class MountPoint(NamedTuple):
    """One line of mountinfo, as far as it is used."""

    id: int
    parent: int
    root: str
    target: str
    options: frozenset[str]
    fstype: str
    source: str
    super_options: frozenset[str]


def _unescape(field: str) -> str:
    return field.encode("latin-1").decode("unicode_escape").encode("latin-1").decode("utf-8", "surrogateescape")


def parse_mountinfo(text: str) -> Iterator[MountPoint]:
    """The mounts of ``text``, in the order in which the kernel lists them (a parent before what lies on it)."""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        head, tail = left.split(" "), right.split(" ")
        root, target = head[3], head[4]
        if "\\" in line:
            root, target = _unescape(root), _unescape(target)
        yield MountPoint(
            int(head[0]), int(head[1]), root, target, frozenset(head[5].split(",")), tail[0], tail[1],
            frozenset(tail[2].split(",")) if len(tail) > 2 else frozenset(),
        )  # fmt: skip


def mount_table(process: str = "self") -> list[MountPoint]:
    """The mounts that ``/proc/<process>`` sees."""
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        return list(parse_mountinfo(file.read().decode("utf-8", "surrogateescape")))


#: Flags that a bind remount in a user namespace must keep, because the kernel locks them there (mount_namespaces(7)).
_STATVFS_FLAGS = (
    (os.ST_RDONLY, c.MS_RDONLY), (os.ST_NOSUID, c.MS_NOSUID), (os.ST_NODEV, c.MS_NODEV),
    (os.ST_NOEXEC, c.MS_NOEXEC), (os.ST_NOATIME, c.MS_NOATIME), (os.ST_NODIRATIME, c.MS_NODIRATIME),
    (os.ST_RELATIME, c.MS_RELATIME),
)  # fmt: skip


def current_flags(path: str) -> int:
    """The mount flags in force at ``path``, as mount(2) takes them."""
    state = os.statvfs(path).f_flag
    return sum(flag for bit, flag in _STATVFS_FLAGS if state & bit)


def bind(source: str, target: str, flags: int = c.MS_BIND | c.MS_REC) -> None:
    """Bind ``source`` at ``target``, with what is mounted below it."""
    syscalls.mount(source, target, None, flags | c.MS_BIND)


def remount_bind(target: str, flags: int, cleared: int = 0) -> None:
    """Change the flags of the mount at ``target``, keeping those that are in force and not cleared."""
    keep = current_flags(target) & ~cleared
    syscalls.mount(None, target, None, c.MS_REMOUNT | c.MS_BIND | keep | (flags & ~c.MS_REC))


def idmapped_clone(source: str, userns_fd: int, *, recursive: bool = False, read_only: bool = False) -> int:
    """A detached copy of the mount at ``source`` in which ids are mapped as in the user namespace (mount_setattr(2)).

    Needs CAP_SYS_ADMIN in the user namespace that owns the file system, and a file system with FS_ALLOW_IDMAP.
    """
    attributes = c.MOUNT_ATTR_IDMAP | (c.MOUNT_ATTR_RDONLY if read_only else 0)
    return _clone(source, c.AT_RECURSIVE if recursive else 0, attributes, userns_fd)


def read_only_clone(source: str) -> int:
    """A detached, read-only copy of the mount at ``source``."""
    return _clone(source, 0, c.MOUNT_ATTR_RDONLY, 0)


def _clone(source: str, flag: int, attributes: int, userns_fd: int) -> int:
    fd = syscalls.open_tree(source, c.OPEN_TREE_CLONE | c.OPEN_TREE_CLOEXEC | flag)
    try:
        syscalls.mount_setattr(fd, "", c.AT_EMPTY_PATH | flag, attr_set=attributes, userns_fd=userns_fd)
    except OSError:
        os.close(fd)
        raise
    return fd
