"""What a service can be denied, piece by piece, and how pieces become the lines of a unit file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sandbox.linux.capabilities import NAMES
from sandbox.services.settings import NAMESPACES, Assignment
from sandbox.services.syscalls import IO_URING, members

__all__ = ["Ladder", "Restriction", "compose", "ladders"]


class Restriction(NamedTuple):
    """One piece: a property with its value, or what is taken out of a property that is a list (``~CAP_KILL``)."""

    property: str
    value: str

    def __str__(self) -> str:
        return f"{self.property}={self.value}"


#: Alternatives for one thing, the strictest first.
Ladder = tuple[Restriction, ...]

#: Stands for all address families that are not in the list.
_OTHERS = "AF_*"
_FAMILIES = ("AF_INET", "AF_INET6", "AF_PACKET", "AF_NETLINK", "AF_UNIX", _OTHERS)
#: Groups that some services do without; what is in none of them is needed by all, or dangerous to none.
_CALLS = (
    "@clock", "@cpu-emulation", "@debug", "@module", "@mount", "@obsolete", "@raw-io", "@reboot", "@swap", "@privileged",
    "@resources", "@keyring", "@pkey", "@memlock", "@setuid", "@chown", "@timer", "@sync", "@network-io", "@ipc",
)  # fmt: skip
_WIDE = "@system-service"
_SWITCHES = (
    "NoNewPrivileges", "PrivateTmp", "PrivateDevices", "PrivateMounts", "ProtectKernelTunables", "ProtectKernelModules",
    "ProtectKernelLogs", "ProtectControlGroups", "ProtectClock", "RestrictSUIDSGID", "RestrictRealtime", "ProtectHostname",
    "LockPersonality", "MemoryDenyWriteExecute", "RemoveIPC",
)  # fmt: skip
_CHOICES = (
    ("ProtectSystem", ("strict", "full", "yes")), ("ProtectHome", ("yes", "tmpfs", "read-only")),
    ("ProtectProc", ("invisible",)), ("ProcSubset", ("pid",)), ("UMask", ("0077", "0027")),
    # ProtectSystem=strict alone leaves these two open (see the profiles).
    ("ReadOnlyPaths", ("-/run",)), ("TemporaryFileSystem", ("/dev/shm:mode=1777",)), ("PrivateIPC", ("yes",)),
    ("KeyringMode", ("private",)), ("SystemCallArchitectures", ("native",)), ("DevicePolicy", ("closed",)),
)  # fmt: skip


def ladders(*, root: bool = True) -> list[Ladder]:
    """All that can be tried, what weighs most first.

    :param root: the manager runs as root, and can run services as other users
    """
    single = [(Restriction(name, "yes"),) for name in _SWITCHES]
    users = [("PrivateUsers", ("yes",)), ("DynamicUser", ("yes",))] if root else []
    chosen = [tuple(Restriction(name, value) for value in values) for name, values in [*users, *_CHOICES]]
    return [
        (Restriction("PrivateNetwork", "yes"),), *chosen, *single,
        (Restriction("IPAddressDeny", "any"), Restriction("IPAddressDeny", "any except localhost")),
        (Restriction("SystemCallFilter", _WIDE),),
        # What does other asynchronous input and output can still go without io_uring.
        (Restriction("SystemCallFilter", "~@aio"), Restriction("SystemCallFilter", f"~{' '.join(IO_URING)}")),
        *((Restriction("SystemCallFilter", f"~{group}"),) for group in _CALLS),
        *((Restriction("CapabilityBoundingSet", f"~{name}"),) for name in NAMES),
        *((Restriction("RestrictNamespaces", f"~{kind}"),) for kind in sorted(NAMESPACES)),
        *((Restriction("RestrictAddressFamilies", f"~{family}"),) for family in _FAMILIES),
    ]  # fmt: skip


def compose(restrictions: Iterable[Restriction]) -> list[Assignment]:
    """Restrictions as assignments: the pieces of a list become one, the rest stay as they are.

    >>> compose([Restriction("RestrictNamespaces", f"~{kind}") for kind in NAMESPACES])
    [('RestrictNamespaces', 'yes')]
    """
    taken: dict[str, list[str]] = {}
    for restriction in restrictions:
        taken.setdefault(restriction.property, []).append(restriction.value.removeprefix("~"))
    return [line for name, values in taken.items() for line in _WRITERS.get(name, _as_it_is)(name, values)]


def _as_it_is(name: str, values: list[str]) -> list[Assignment]:
    return [(name, value) for value in values]


def _capabilities(name: str, values: list[str]) -> list[Assignment]:
    """What is left, not what is taken: newer kernels have more of them."""
    return [(name, " ".join(capability for capability in NAMES if capability not in values))]


def _namespaces(name: str, values: list[str]) -> list[Assignment]:
    left = sorted(NAMESPACES - set(values))
    return [(name, " ".join(left) or "yes")]


def _families(name: str, values: list[str]) -> list[Assignment]:
    if _OTHERS in values:
        return [(name, " ".join(family for family in _FAMILIES if family not in values) or "none")]
    return [(name, "~" + " ".join(values))]


def _addresses(name: str, values: list[str]) -> list[Assignment]:
    if values[-1] == "any":
        return [(name, "any")]
    return [("IPAddressAllow", "localhost"), (name, "any")]


def _system_calls(name: str, values: list[str]) -> list[Assignment]:
    groups = [value for value in values if value != _WIDE]
    lines = [("SystemCallErrorNumber", "EPERM")]
    if _WIDE in values:
        lines.append((name, _WIDE))
        groups = [group for group in groups if any(members(word) & members(_WIDE) for word in group.split())]
    return [*lines, (name, "~" + " ".join(groups))] if groups else lines


_WRITERS = {
    "CapabilityBoundingSet": _capabilities, "RestrictNamespaces": _namespaces, "RestrictAddressFamilies": _families,
    "IPAddressDeny": _addresses, "SystemCallFilter": _system_calls,
}  # fmt: skip
