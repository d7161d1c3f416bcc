"""Names of numbers: signals, capabilities, exit statuses, log levels and the like (the man pages named at each)."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Mapping, Sequence

from ._numbers import _I32_MAX as I32_MAX, U32_MAX, U64_MAX, integer, within
from ._words import split

_CAPABILITIES = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
#: capabilities(7), in the order of their numbers.
CAPABILITIES: Sequence[str] = tuple(f"CAP_{name}" for name in _CAPABILITIES.split())
#: syslog(3).
LOG_LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
LOG_FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "", "", "", "", *(f"local{number}" for number in range(8)),
)  # fmt: skip
#: sched(7), ioprio_set(2), set_mempolicy(2).
CPU_SCHEDULING = {"other": 0, "batch": 3, "idle": 5, "fifo": 1, "rr": 2}
IO_SCHEDULING = ("none", "realtime", "best-effort", "idle")
NUMA_POLICIES = ("default", "preferred", "bind", "interleave", "local")
#: capabilities(7), "The securebits flags".
SECURE_BITS = {
    "noroot": 1, "noroot-locked": 2, "no-setuid-fixup": 4, "no-setuid-fixup-locked": 8,
    "keep-caps": 16, "keep-caps-locked": 32,
}  # fmt: skip
#: namespaces(7): those that RestrictNamespaces= knows.
NAMESPACES = {
    "cgroup": 0x02000000, "ipc": 0x08000000, "net": 0x40000000, "mnt": 0x00020000,
    "pid": 0x20000000, "user": 0x10000000, "uts": 0x04000000, "time": 0x00000080,
}  # fmt: skip
#: What it restricts when it restricts all: time namespaces are no part of it.
ALL_NAMESPACES = sum(NAMESPACES.values()) & ~NAMESPACES["time"]
#: mount(2), "Changing the propagation type of an existing mount".
PROPAGATION = {"": 0, "shared": 1 << 20, "slave": 1 << 19, "private": 1 << 18}
#: core(5), "Controlling which mappings are written to the core dump".
CORE_MAPPINGS = (
    "private-anonymous", "shared-anonymous", "private-file-backed", "shared-file-backed", "elf-headers",
    "private-huge", "shared-huge", "private-dax", "shared-dax",
)  # fmt: skip
#: systemd.exec(5), "Process Exit Codes".
EXIT_STATUSES = {
    "SUCCESS": 0, "FAILURE": 1, "INVALIDARGUMENT": 2, "NOTIMPLEMENTED": 3, "NOPERMISSION": 4, "NOTINSTALLED": 5,
    "NOTCONFIGURED": 6, "NOTRUNNING": 7, "USAGE": 64, "DATAERR": 65, "NOINPUT": 66, "NOUSER": 67, "NOHOST": 68,
    "UNAVAILABLE": 69, "SOFTWARE": 70, "OSERR": 71, "OSFILE": 72, "CANTCREAT": 73, "IOERR": 74, "TEMPFAIL": 75,
    "PROTOCOL": 76, "NOPERM": 77, "CONFIG": 78, "CHDIR": 200, "NICE": 201, "FDS": 202, "EXEC": 203, "MEMORY": 204,
    "LIMITS": 205, "OOM_ADJUST": 206, "SIGNAL_MASK": 207, "STDIN": 208, "STDOUT": 209, "CHROOT": 210, "IOPRIO": 211,
    "TIMERSLACK": 212, "SECUREBITS": 213, "SETSCHEDULER": 214, "CPUAFFINITY": 215, "GROUP": 216, "USER": 217,
    "CAPABILITIES": 218, "CGROUP": 219, "SETSID": 220, "CONFIRM": 221, "STDERR": 222, "PAM": 224, "NETWORK": 225,
    "NAMESPACE": 226, "NO_NEW_PRIVILEGES": 227, "SECCOMP": 228, "SELINUX_CONTEXT": 229, "PERSONALITY": 230,
    "APPARMOR": 231, "ADDRESS_FAMILIES": 232, "RUNTIME_DIRECTORY": 233, "CHOWN": 235, "SMACK_PROCESS_LABEL": 236,
    "KEYRING": 237, "STATE_DIRECTORY": 238, "CACHE_DIRECTORY": 239, "LOGS_DIRECTORY": 240,
    "CONFIGURATION_DIRECTORY": 241, "NUMA_POLICY": 242, "CREDENTIALS": 243, "BPF": 244, "EXCEPTION": 255,
}  # fmt: skip
#: ip(7), IP_TOS.
IP_TOS = {"low-delay": 16, "throughput": 8, "reliability": 4, "low-cost": 2}
#: systemd.exec(5), "SystemCallErrorNumber=": what "kill" is as a number.
KILL = I32_MAX - 1

SIGNALS: Mapping[str, int] = {
    member.name.removeprefix("SIG"): member.value
    for member in signal.Signals
    if not member.name.startswith("SIGRT")
}


def number_of(text: str, names: Mapping[str, int] | Sequence[str], what: str, highest: int | None) -> int:
    """The number of a name, or a number up to ``highest`` as it is (None: names only)."""
    table = (
        names if isinstance(names, Mapping) else {name: number for number, name in enumerate(names) if name}
    )
    if text in table:
        return table[text]
    if highest is not None:
        try:
            return integer(text, 0, highest)
        except ValueError:
            pass
    raise ValueError(f"not {what}: {', '.join(filter(None, table))} are known")


def signal_number(text: str) -> int:
    """``SIGTERM``, ``TERM``, ``15``, ``RTMIN+3``, ``RTMAX-1``."""
    try:
        number = integer(text, -I32_MAX, I32_MAX)
    except ValueError:
        return _named_signal(text.removeprefix("SIG"))
    return within(number, 1, 64)


def _named_signal(name: str) -> int:
    if name in SIGNALS:
        return SIGNALS[name]
    match = re.fullmatch(r"(?:RTMIN(?:\+(.+))?|RTMAX(?:-(.+))?)", name)
    if match is None:
        raise ValueError("not a signal")
    offset = integer(match[1] or match[2] or "0", 0, signal.SIGRTMAX - signal.SIGRTMIN)
    return signal.SIGRTMIN + offset if name.startswith("RTMIN") else signal.SIGRTMAX - offset


def errno_or_kill(text: str) -> int:
    """``EPERM``, ``1``, or ``kill``."""
    if text == "kill":
        return KILL
    value = getattr(errno, text, None) if text.isupper() else None
    return value if isinstance(value, int) else integer(text, 0, 4095)


def capability(text: str) -> int:
    if text.upper() in CAPABILITIES:
        return CAPABILITIES.index(text.upper())
    try:
        return integer(text, 0, 62)
    except ValueError:
        raise ValueError(f"not a capability: {text}") from None


def capabilities(text: str) -> int:
    """Words of capabilities as a mask; ~ before the first turns it over."""
    mask = 0
    for word in split(text.removeprefix("~")):
        mask |= 1 << capability(word)
    return mask ^ U64_MAX if text.startswith("~") else mask


def secure_bits(text: str) -> int:
    bits = 0
    for word in split(text):
        bits |= number_of(word, SECURE_BITS, "secure bits", None)
    return bits


def namespaces(text: str) -> int:
    """The namespaces that stay allowed, as flags of clone(2)."""
    flags = 0
    for word in split(text.removeprefix("~")):
        flags |= number_of(word, NAMESPACES, "a namespace", None)
    return ALL_NAMESPACES & ~flags if text.startswith("~") else flags


def core_mappings(text: str) -> int:
    """Words, or masks in hexadecimal, of what core dumps contain."""
    mask = 0
    for word in split(text):
        if word == "all":
            mask |= U32_MAX
        elif word == "default":
            mask |= 0x33
        elif word in CORE_MAPPINGS:
            mask |= 1 << CORE_MAPPINGS.index(word)
        elif re.fullmatch("(0[xX])?[0-9a-fA-F]+", word):
            mask |= within(int(word, 16), 0, U64_MAX)
        else:
            raise ValueError(f"not a kind of mapping: {', '.join(CORE_MAPPINGS)} are known")
    return mask


def exit_status(text: str) -> int:
    return EXIT_STATUSES[text] if text in EXIT_STATUSES else integer(text, 0, 255)


def all_numa_nodes() -> set[int]:
    """What NUMAMask=all means on this machine."""
    try:
        names = os.listdir("/sys/devices/system/node")
    except OSError:
        names = []
    highest = max((int(name[4:]) for name in names if re.fullmatch("node[0-9]+", name)), default=0)
    return set(range(highest + 1))
