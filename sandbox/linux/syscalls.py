"""System calls that :mod:`os` lacks, three to six lines each.

Every call goes through :func:`invoke`, the one place that turns ``errno`` into :class:`KernelError`; tests replace it
to record the calls, or to make one of them fail. Numbers from 424 on are the same on every architecture; the few
older ones are looked up in a table.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_long, c_size_t, c_uint, c_ulong, c_void_p
from typing import Any

from .constants import (
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    CLONE_INTO_CGROUP,
    CLONE_PIDFD,
    KEYCTL_JOIN_SESSION_KEYRING,
    SECCOMP_SET_MODE_FILTER,
)
from .errors import KernelError

_libc = ctypes.CDLL(None, use_errno=True)

_GENERIC = {"pivot_root": 41, "seccomp": 277, "keyctl": 219}
_NUMBERS = {
    "x86_64": {"pivot_root": 155, "seccomp": 317, "keyctl": 250},
    "ppc64le": {"pivot_root": 203, "seccomp": 358, "keyctl": 271},
    "s390x": {"pivot_root": 217, "seccomp": 348, "keyctl": 280},
}.get(os.uname().machine, _GENERIC)
_NR_PIDFD_SEND_SIGNAL = 424
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_PIDFD_OPEN = 434
_NR_CLONE3 = 435
_NR_CLOSE_RANGE = 436
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442


def _bind(symbol: str, *argument_types: Any) -> Callable[..., int]:
    """A C function with its own signature; ``syscall`` is bound many times, once for each shape of arguments."""
    prototype = ctypes.CFUNCTYPE(c_long, *argument_types, use_errno=True)
    return prototype((symbol, _libc))


_mount = _bind("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = _bind("umount2", c_char_p, c_int)
_unshare = _bind("unshare", c_int)
_setns = _bind("setns", c_int, c_int)
_prctl = _bind("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_capset = _bind("capset", c_char_p, c_char_p)
_sethostname = _bind("sethostname", c_char_p, c_size_t)
_setdomainname = _bind("setdomainname", c_char_p, c_size_t)
_personality = _bind("personality", c_ulong)
_pivot_root = _bind("syscall", c_long, c_char_p, c_char_p)
_seccomp = _bind("syscall", c_long, c_uint, c_uint, c_char_p)
_keyctl = _bind("syscall", c_long, c_int, c_long)
_pidfd_send_signal = _bind("syscall", c_long, c_int, c_int, c_void_p, c_uint)
_open_tree = _bind("syscall", c_long, c_int, c_char_p, c_uint)
_move_mount = _bind("syscall", c_long, c_int, c_char_p, c_int, c_char_p, c_uint)
_pidfd_open = _bind("syscall", c_long, c_int, c_uint)
_clone3 = _bind("syscall", c_long, c_void_p, c_size_t)
_close_range = _bind("syscall", c_long, c_uint, c_uint, c_uint)
_openat2 = _bind("syscall", c_long, c_int, c_char_p, c_char_p, c_size_t)
_mount_setattr = _bind("syscall", c_long, c_int, c_char_p, c_uint, c_char_p, c_size_t)


def invoke(function: Callable[..., int], operation: str, target: str, *arguments: Any) -> int:
    """Call ``function``; a negative result becomes :class:`KernelError` with ``operation`` and ``target``."""
    result = function(*arguments)
    if result < 0:
        raise KernelError(ctypes.get_errno(), operation, target)
    return result


def encoded(path: str) -> bytes:
    """A path for the kernel. NUL is refused, as :mod:`os` does it: ctypes would end the path there, and another be meant."""
    if "\0" in path:
        raise ValueError("a path cannot contain a NUL character")
    return os.fsencode(path)


def mount(source: str | None, target: str, fstype: str | None, flags: int = 0, data: str | None = None) -> None:
    """mount(2). ``target`` may be ``/proc/self/fd/N`` to mount on an object that was opened safely before."""
    invoke(
        _mount, f"mount {fstype or source or 'flags'} on", target,
        encoded(source) if source else None, encoded(target), fstype.encode() if fstype else None, flags,
        os.fsencode(data) if data else None,
    )  # fmt: skip


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    invoke(_umount2, "unmount", target, encoded(target), flags)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2); ``pivot_root(".", ".")`` stacks the old root above the new one, to be detached next."""
    invoke(_pivot_root, "pivot_root to", new_root, _NUMBERS["pivot_root"], encoded(new_root), encoded(put_old))


def open_tree(path: str, flags: int, dir_fd: int = AT_FDCWD) -> int:
    """open_tree(2): a file descriptor of a mount, or with OPEN_TREE_CLONE of a detached copy."""
    return invoke(_open_tree, "open_tree", path, _NR_OPEN_TREE, dir_fd, encoded(path), flags)


def move_mount(from_fd: int, to_path: str, to_fd: int = AT_FDCWD, flags: int = 0) -> None:
    """move_mount(2): attach the detached mount ``from_fd`` at ``to_path``."""
    invoke(_move_mount, "move_mount to", to_path, _NR_MOVE_MOUNT, from_fd, b"", to_fd, encoded(to_path), flags)


def mount_setattr(
    fd: int, path: str, at_flags: int, attr_set: int = 0, attr_clr: int = 0, propagation: int = 0, userns_fd: int = 0
) -> None:
    """mount_setattr(2) with ``struct mount_attr`` version 0."""
    attr = struct.pack("=QQQQ", attr_set, attr_clr, propagation, userns_fd)
    invoke(
        _mount_setattr, "mount_setattr", path, _NR_MOUNT_SETATTR, fd, encoded(path), at_flags, attr, len(attr)
    )  # fmt: skip


def unshare(flags: int) -> None:
    """unshare(2)."""
    invoke(_unshare, "unshare namespaces", f"{flags:#x}", flags)


def setns(fd: int, flags: int) -> None:
    """setns(2); with a pidfd, ``flags`` may name several namespaces that are joined as one step."""
    invoke(_setns, "setns", f"{flags:#x}", fd, flags)


def clone3(flags: int, exit_signal: int = 17, cgroup_fd: int = -1) -> tuple[int, int]:
    """clone3(2) in the manner of fork: returns (pid, pidfd) in the parent, (0, -1) in the child.

    The interpreter's own fork handlers do not run: the caller must be single-threaded, and the child must end in
    exec or ``os._exit``. With ``cgroup_fd`` the child is born in that cgroup (Linux 5.7).
    """
    pidfd = c_int(-1)
    if cgroup_fd >= 0:
        flags |= CLONE_INTO_CGROUP
    args = ctypes.create_string_buffer(struct.pack(
        "=11Q", flags | CLONE_PIDFD, ctypes.addressof(pidfd), 0, 0, exit_signal, 0, 0, 0, 0, 0, max(cgroup_fd, 0)
    ), 88)  # fmt: skip
    pid = invoke(_clone3, "clone3", f"{flags:#x}", _NR_CLONE3, ctypes.addressof(args), 88)
    return pid, (pidfd.value if pid else -1)


def pidfd_open(pid: int) -> int:
    """pidfd_open(2)."""
    return invoke(_pidfd_open, "pidfd_open", str(pid), _NR_PIDFD_OPEN, pid, 0)


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """pidfd_send_signal(2): signals the process the descriptor stands for, never a later one with its number."""
    invoke(_pidfd_send_signal, "signal", str(signal), _NR_PIDFD_SEND_SIGNAL, pidfd, signal, None, 0)


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """close_range(2); with CLOSE_RANGE_CLOEXEC the descriptors are only marked."""
    invoke(_close_range, "close_range", str(first), _NR_CLOSE_RANGE, first, last, flags)


def openat2(path: str, flags: int, mode: int = 0, resolve: int = 0, dir_fd: int = AT_FDCWD) -> int:
    """openat2(2): open with the path walk restricted by ``resolve`` (RESOLVE_IN_ROOT, …). Close-on-exec always."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return invoke(_openat2, "open", path, _NR_OPENAT2, dir_fd, encoded(path), how, len(how))


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2)."""
    return invoke(_prctl, "prctl", str(option), option, arg2, arg3, arg4, arg5)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) for the calling thread, sets given as 64-bit masks."""
    invoke(_capset, "capset", f"{effective:#x}", *capability_sets(effective, permitted, inheritable))


def capability_sets(effective: int, permitted: int, inheritable: int) -> tuple[bytes, bytes]:
    """The two arguments of capset(2)."""
    low = 0xFFFFFFFF
    data = struct.pack(
        "=6I",
        effective & low, permitted & low, inheritable & low, effective >> 32, permitted >> 32, inheritable >> 32,
    )  # fmt: skip
    return struct.pack("=Ii", 0x20080522, 0), data  # _LINUX_CAPABILITY_VERSION_3


def seccomp_filter(program: bytes, flags: int = 0) -> None:
    """seccomp(2) SECCOMP_SET_MODE_FILTER: ``program`` is an array of ``struct sock_filter`` (8 bytes each)."""
    instructions = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    invoke(_seccomp, "seccomp", "filter", _NUMBERS["seccomp"], SECCOMP_SET_MODE_FILTER, flags, fprog)


def join_session_keyring() -> None:
    """keyctl(2): a new, anonymous session keyring, so that the caller's keys are out of reach."""
    invoke(_keyctl, "keyctl", "session keyring", _NUMBERS["keyctl"], KEYCTL_JOIN_SESSION_KEYRING, 0)


def set_title(title: str) -> None:
    """Overwrite this process's /proc/self/cmdline, which anyone who sees the process may read (proc_pid_stat(5))."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, the 48th and 49th field
    if 0 < start < end:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, title.encode()[: end - start - 1], min(len(title.encode()), end - start - 1))


def sethostname(name: str) -> None:
    """sethostname(2)."""
    encoded = os.fsencode(name)
    invoke(_sethostname, "sethostname", name, encoded, len(encoded))


def setdomainname(name: str) -> None:
    """setdomainname(2): the NIS domain name; /proc/sys/kernel/domainname is not for the root of a user namespace to write."""
    encoded = os.fsencode(name)
    invoke(_setdomainname, "setdomainname", name, encoded, len(encoded))


def personality(persona: int) -> None:
    """personality(2)."""
    invoke(_personality, "personality", f"{persona:#x}", persona)


__all__ = [
    "AT_FDCWD", "AT_SYMLINK_NOFOLLOW", "KernelError", "capability_sets", "capset", "clone3", "close_range", "invoke",
    "join_session_keyring", "mount", "mount_setattr", "move_mount", "open_tree", "openat2", "personality",
    "pidfd_open", "pidfd_send_signal", "pivot_root", "prctl", "seccomp_filter", "set_title", "setdomainname", "sethostname",
    "setns", "umount", "unshare",
]  # fmt: skip
