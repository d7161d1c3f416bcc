"""What is still open to a service: a report from its settings alone, without systemd.

The items, their weights and the sum are those of ``systemd-analyze security`` (systemd 252), so that the figures can be
compared; a test compares them for every unit file of the machine. The words are ours, and so is the item on io_uring,
which adds nothing to the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import attrs

from sandbox.services.settings import Assignment, Settings
from sandbox.services.syscalls import members

__all__ = ["Exposure", "Finding", "exposure"]

#: From how much on (in percent) a service is called so.
_LEVELS = ((100, "DANGEROUS"), (90, "UNSAFE"), (75, "EXPOSED"), (50, "MEDIUM"), (10, "OK"), (1, "SAFE"), (0, "PERFECT"))


@attrs.frozen
class Finding:
    """One item of a report.

    >>> Finding("PrivateTmp=", 1000, 1, 1, "reads and writes the /tmp of others").closed
    False
    """

    #: The property, as ``systemd-analyze security`` names the item.
    name: str
    weight: int
    #: The badness that counts with the whole weight.
    range: int
    #: 0: closed. None: the item does not apply.
    badness: int | None
    #: What a process of the service can do while this is open.
    text: str

    @property
    def closed(self) -> bool:
        """Nothing is left open here; also where it does not apply."""
        return not self.badness

    @property
    def points(self) -> int:
        """What it adds to the sum."""
        return -(-(self.badness or 0) * self.weight // self.range)


@attrs.frozen
class Exposure:
    """How far a service is open.

    >>> exposure([]).level
    'UNSAFE'
    """

    findings: tuple[Finding, ...]

    @property
    def _weight(self) -> int:
        return sum(finding.weight for finding in self.findings if finding.badness is not None)

    @property
    def percent(self) -> int:
        """0 (all closed) to 100, rounded up; systemd prints a tenth of it."""
        return -(-sum(finding.points for finding in self.findings) * 100 // self._weight)

    @property
    def level(self) -> str:
        """In a word: PERFECT, SAFE, OK, MEDIUM, EXPOSED, UNSAFE, DANGEROUS."""
        return next(word for least, word in _LEVELS if self.percent >= least)

    @property
    def open(self) -> list[Finding]:
        """What is open, what weighs most first."""
        return sorted((f for f in self.findings if not f.closed), key=lambda f: -f.points)

    def share(self, finding: Finding) -> int:
        """What one item adds to :attr:`percent`, rounded up."""
        return -(-finding.points * 100 // self._weight)


class _Item(NamedTuple):
    name: str
    weight: int
    range: int
    #: Settings → badness, None where the item does not apply.
    assess: Callable[[Settings], int | None]
    text: str


def exposure(assignments: Iterable[Assignment]) -> Exposure:
    """Judge a service by its settings, as the system manager would apply them."""
    settings = Settings(assignments)
    return Exposure(tuple(Finding(item.name, item.weight, item.range, item.assess(settings), item.text)
                          for item in _ITEMS))  # fmt: skip


def _switch(name: str, weight: int, text: str) -> _Item:
    return _Item(f"{name}=", weight, 1, lambda settings: int(not settings.on(name)), text)


def _any_capability(short: str, weight: int, text: str, names: Iterable[str]) -> _Item:
    wanted = frozenset(f"CAP_{name}" for name in names)
    return _Item(f"CapabilityBoundingSet=~CAP_{short}", weight, 1, lambda s: int(bool(wanted & s.capabilities)), text)


def _capability(name: str, weight: int, text: str) -> _Item:
    return _any_capability(name, weight, text, [name])


def _namespace(kind: str, weight: int, text: str) -> _Item:
    return _Item(f"RestrictNamespaces=~{kind}", weight, 1, lambda s: int(kind in s.namespaces), text)


def _families(short: str, weight: int, text: str, names: Iterable[str]) -> _Item:
    wanted = set(names)

    def assess(settings: Settings) -> int:
        allow, families = settings.address_families
        return int(bool(wanted & families) if allow else not wanted <= families if families else True)

    return _Item(f"RestrictAddressFamilies=~{short}", weight, 1, assess, text)


_USUAL_FAMILIES = {"AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET"}


def _other_families(settings: Settings) -> int:
    allow, families = settings.address_families
    strange = families - _USUAL_FAMILIES
    return int(bool(strange) if allow else not strange)


def _calls(group: str, weight: int, text: str) -> _Item:
    def assess(settings: Settings) -> int:
        allow, calls = settings.system_calls
        if allow:
            return 9 if members(group) & calls else 0
        return 10 if not calls or not members(group) <= calls else 0

    return _Item(f"SystemCallFilter=~{group}", weight, 10, assess, text)


def _user(settings: Settings) -> int:
    if _is_root(settings):
        return 10
    return 9 if settings.user in {"nobody", "65534"} else 0


def _is_root(settings: Settings) -> bool:
    """Said or by default; a dynamic user of that name makes no difference to systemd."""
    return settings.user == "root" and not (settings.dynamic_user and not settings.given("User"))


def _groups(settings: Settings) -> int | None:
    return None if _is_root(settings) else int(bool(settings.words("SupplementaryGroups")))


def _ipc(settings: Settings) -> int | None:
    return None if _is_root(settings) else int(not settings.on("RemoveIPC"))


def _later(assess: Callable[[Settings], int]) -> Callable[[Settings], int | None]:
    """For what makes no sense in early boot, when file systems are not there yet."""
    return lambda settings: None if settings.explicit("DefaultDependencies") is False else assess(settings)


def _root(settings: Settings) -> int:
    return int(settings.last("RootDirectory") in {"", "/"} and not settings.given("RootImage"))


def _architectures(settings: Settings) -> int:
    words = settings.words("SystemCallArchitectures")
    return 10 if not words else 0 if set(words) == {"native"} else 8


def _devices(settings: Settings) -> int:
    policy = settings.choice("DevicePolicy", ("auto", "closed", "strict"), "auto")
    if policy == "auto" and not settings.on("PrivateDevices"):
        return 10
    # The manager lets a service that may not set the clock read it, and lists the device for that.
    return 5 if settings.words("DeviceAllow") or settings.on("ProtectClock") else 0


def _umask(settings: Settings) -> int:
    mask = settings.umask
    return next((bad for bit, bad in ((0o002, 10), (0o004, 5), (0o020, 2), (0o040, 1)) if not mask & bit), 0)


def _delegate(settings: Settings) -> int:
    """Anything but ``no`` hands the control group over, an empty list of controllers too."""
    return int(settings.explicit("Delegate") is not False and "Delegate" in settings.names)


def _addresses(settings: Settings) -> int:
    if settings.given("IPIngressFilterPath") or settings.given("IPEgressFilterPath"):
        return 0
    if not {"0.0.0.0/0", "::/0"} <= settings.addresses("IPAddressDeny"):
        return 10
    allowed = settings.addresses("IPAddressAllow")
    return 0 if not allowed else 2 if all(map(_is_local, allowed)) else 5


def _is_local(network: str) -> bool:
    return network.startswith("127.") or network.partition("/")[0] == "::1"


def _by_choice(name: str, weight: int, range: int, badness: dict[str, int], default: str, text: str) -> _Item:
    return _Item(f"{name}=", weight, range, lambda s: badness[s.choice(name, badness, default)], text)


def _io_uring(settings: Settings) -> int | None:
    """Where nothing is restricted that it goes past, there is nothing to tell."""
    return int(settings.io_uring) if settings.io_uring_matters else None


_HOME = {"no": 10, "read-only": 5, "tmpfs": 1, "yes": 0}
_SYSTEM = {"no": 10, "yes": 5, "full": 3, "strict": 0}

#: An item that ``systemd-analyze security`` does not have.
IO_URING_ITEM = "SystemCallFilter=~io_uring_setup"

_ITEMS = (
    _Item("User=/DynamicUser=", 2000, 10, _user, "runs as root, or as a user that others use too"),
    _Item("SupplementaryGroups=", 200, 1, _groups, "has further groups"),
    _Item("RemoveIPC=", 100, 1, _ipc, "leaves shared memory and message queues behind"),
    _Item("RootDirectory=/RootImage=", 200, 1, _later(_root), "sees the host's root directory"),
    _Item("ProtectSystem=", 1000, 10, _later(lambda s: _SYSTEM[s.protect_system]), "writes to files of the system"),
    _Item("ProtectHome=", 1000, 10, _later(lambda s: _HOME[s.protect_home]), "sees home directories"),
    _Item("PrivateTmp=", 1000, 1, _later(lambda s: int(not s.on("PrivateTmp"))), "reads and writes the /tmp of others"),
    _switch("PrivateDevices", 1000, "opens the host's devices"),
    _Item("DeviceAllow=", 1000, 10, _devices, "may open any device, or some that are listed"),
    _switch("PrivateMounts", 1000, "makes mounts that the host sees"),
    _switch("PrivateUsers", 1000, "has the host's users, not a namespace of its own"),
    _switch("PrivateNetwork", 2500, "has the host's network"),
    _Item("IPAddressDeny=", 1000, 10, _addresses, "exchanges packets with any address, or with some"),
    _by_choice("ProtectProc", 1000, 3, {"default": 3, "noaccess": 1, "invisible": 0, "ptraceable": 0}, "default",
               "sees the processes of others in /proc"),
    _by_choice("ProcSubset", 10, 1, {"all": 1, "pid": 0}, "all", "sees what /proc tells of the machine"),
    _switch("ProtectControlGroups", 1000, "changes control groups"),
    _switch("ProtectKernelModules", 1000, "loads kernel modules"),
    _switch("ProtectKernelTunables", 1000, "changes settings of the kernel"),
    _switch("ProtectKernelLogs", 1000, "reads and empties the kernel's log"),
    _switch("ProtectClock", 1000, "sets the clock"),
    _switch("ProtectHostname", 50, "changes the host's name"),
    _switch("NoNewPrivileges", 1000, "gains privileges by programs that are set-user-ID"),
    _switch("RestrictSUIDSGID", 1000, "makes files set-user-ID"),
    _switch("RestrictRealtime", 500, "takes the CPU with real-time scheduling"),
    _switch("LockPersonality", 100, "changes how system calls are understood"),
    _switch("MemoryDenyWriteExecute", 100, "makes memory that is written to executable"),
    _Item("SystemCallArchitectures=", 1000, 10, _architectures, "makes system calls of other architectures"),
    _Item("UMask=", 100, 10, _umask, "makes files that others may read, or write"),
    _by_choice("KeyringMode", 1000, 1, {"private": 0, "shared": 1, "inherit": 1}, "private",
               "shares keys with other services"),
    _Item("Delegate=", 100, 1, _delegate, "runs a part of the control group tree itself"),
    _by_choice("NotifyAccess", 1000, 1, {"none": 0, "main": 0, "exec": 0, "all": 1}, "none",
               "lets any process of it report its state"),
    _Item("AmbientCapabilities=", 500, 1, lambda s: int(s.given("AmbientCapabilities")),
          "gives capabilities to programs that have none"),
    _capability("SYS_ADMIN", 1500, "mounts, and does most else that only an administrator may"),
    _any_capability("SET(UID|GID|PCAP)", 1500, "becomes other users", ["SETUID", "SETGID", "SETPCAP"]),
    _capability("SYS_PTRACE", 1500, "reads and changes other processes"),
    _any_capability("(CHOWN|FSETID|SETFCAP)", 1000, "gives files to others", ["CHOWN", "FSETID", "SETFCAP"]),
    _any_capability("(DAC_*|FOWNER|IPC_OWNER)", 1000, "opens files whatever their permissions",
                    ["DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "IPC_OWNER"]),
    _capability("NET_ADMIN", 1000, "configures the network"),
    _capability("SYS_MODULE", 1000, "loads kernel modules"),
    _capability("SYS_RAWIO", 1000, "talks to hardware directly"),
    _capability("SYS_TIME", 1000, "sets the clock"),
    _any_capability("AUDIT_*", 500, "reads and steers the audit log",
                    ["AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE"]),
    _capability("SYSLOG", 500, "reads the kernel's log"),
    _any_capability("SYS_(NICE|RESOURCE)", 500, "gives itself more of the CPU and other resources",
                    ["SYS_NICE", "SYS_RESOURCE"]),
    _capability("MKNOD", 500, "makes device nodes"),
    _any_capability("NET_(BIND_SERVICE|BROADCAST|RAW)", 500, "listens on low ports, sends raw packets",
                    ["NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW"]),
    _capability("KILL", 500, "signals any process"),
    _capability("SYS_BOOT", 100, "reboots the machine"),
    _any_capability("MAC_*", 100, "changes mandatory access control", ["MAC_ADMIN", "MAC_OVERRIDE"]),
    _capability("LINUX_IMMUTABLE", 75, "makes files immutable"),
    _capability("IPC_LOCK", 50, "locks memory"),
    _capability("SYS_CHROOT", 50, "changes its root directory"),
    _capability("BLOCK_SUSPEND", 25, "keeps the machine awake"),
    _capability("WAKE_ALARM", 25, "wakes the machine"),
    _capability("LEASE", 25, "takes leases on any file"),
    _capability("SYS_TTY_CONFIG", 25, "hangs up terminals"),
    _capability("BPF", 25, "loads BPF programs"),
    _capability("SYS_PACCT", 25, "switches process accounting"),
    _namespace("user", 1500, "makes user namespaces, and has every capability in there"),
    _namespace("mnt", 500, "makes mount namespaces"),
    _namespace("ipc", 500, "makes IPC namespaces"),
    _namespace("pid", 500, "makes process namespaces"),
    _namespace("cgroup", 500, "makes cgroup namespaces"),
    _namespace("net", 500, "makes network namespaces"),
    _namespace("uts", 100, "makes namespaces for host names"),
    _families("AF_(INET|INET6)", 1500, "opens Internet sockets", ["AF_INET", "AF_INET6"]),
    _families("AF_UNIX", 25, "opens local sockets", ["AF_UNIX"]),
    _families("AF_NETLINK", 200, "talks to the kernel through netlink", ["AF_NETLINK"]),
    _families("AF_PACKET", 1000, "reads and writes raw packets", ["AF_PACKET"]),
    _Item("RestrictAddressFamilies=~…", 1250, 1, _other_families, "opens rare kinds of sockets"),
    _calls("@swap", 1000, "switches swap space"),
    _calls("@obsolete", 250, "makes system calls that nobody needs any more"),
    _calls("@clock", 1000, "makes system calls that set the clock"),
    _calls("@cpu-emulation", 250, "makes system calls that emulate other CPUs"),
    _calls("@debug", 1000, "makes system calls for debuggers"),
    _calls("@mount", 1000, "makes system calls that mount"),
    _calls("@module", 1000, "makes system calls that load modules"),
    _calls("@raw-io", 1000, "makes system calls for direct hardware access"),
    _calls("@reboot", 1000, "makes system calls that reboot"),
    _calls("@privileged", 700, "makes system calls that only root has a use for"),
    _calls("@resources", 700, "makes system calls that change priorities and limits"),
    _Item(IO_URING_ITEM, 0, 1, _io_uring, "goes past RestrictAddressFamilies= and RestrictSUIDSGID= with io_uring"),
)  # fmt: skip
