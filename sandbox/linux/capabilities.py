"""Capabilities by name, in the kernel's order (capabilities(7))."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from . import syscalls
from .constants import PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, PR_CAP_AMBIENT_RAISE, PR_CAPBSET_DROP

#: Every capability of Linux 6.x; the index is its number.
NAMES: tuple[str, ...] = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
    "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
_NUMBERS = {name: number for number, name in enumerate(NAMES)}
CAP_KILL = 1 << _NUMBERS["CAP_KILL"]
CAP_SETGID = 1 << _NUMBERS["CAP_SETGID"]
CAP_SETUID = 1 << _NUMBERS["CAP_SETUID"]
CAP_SETPCAP = 1 << _NUMBERS["CAP_SETPCAP"]
CAP_SYS_ADMIN = 1 << _NUMBERS["CAP_SYS_ADMIN"]


def mask(names: Iterable[str]) -> int:
    """The 64-bit set of ``names`` (``CAP_…``). Raises :class:`ValueError` that names an unknown one."""
    return _mask(tuple(names))


@lru_cache(maxsize=64)
def _mask(names: tuple[str, ...]) -> int:
    result = 0
    for name in names:
        if name not in _NUMBERS:
            raise ValueError(f"unknown capability {name!r}")
        result |= 1 << _NUMBERS[name]
    return result


def last() -> int:
    """The highest capability number of the running kernel (``/proc/sys/kernel/cap_last_cap``)."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def effective() -> int:
    """The caller's effective set (``/proc/self/status``)."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


def members(mask: int) -> Iterator[int]:
    """The numbers of the capabilities in a set."""
    return (number for number in range(mask.bit_length()) if mask >> number & 1)


def drop_bounding(keep: int, highest: int) -> None:
    """Drop every capability up to number ``highest`` that is not in ``keep`` from the bounding set."""
    drop = syscalls.prctl
    for number in members(((1 << highest + 1) - 1) & ~keep):
        drop(PR_CAPBSET_DROP, number)


def set_ambient(wanted: int, highest: int) -> None:
    """Make the ambient set exactly ``wanted``; each must be permitted and inheritable already."""
    syscalls.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for number in members(wanted & ((1 << highest + 1) - 1)):
        syscalls.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)
