"""Named profiles: what a service may do, as a set of unit properties each."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from sandbox.errors import ModelError
from sandbox.services.settings import Assignment, split_assignment
from sandbox.services.syscalls import IO_URING

__all__ = ["PROFILES", "Profile", "profile"]


@attrs.frozen
class Profile:
    """A set of properties with a name.

    >>> ("PrivateNetwork", "yes") in profile("strict").assignments()
    True
    """

    name: str
    #: What it is for, in a sentence.
    purpose: str
    #: What a service under it cannot do, a phrase each.
    blocks: tuple[str, ...]
    #: The properties, as the lines of a unit file.
    lines: tuple[str, ...]
    #: Further ones for managers that run as root. An ordinary user's cannot keep them, and runs nothing as root anyway.
    root_lines: tuple[str, ...] = ()
    #: Further ones for managers of ordinary users.
    user_lines: tuple[str, ...] = ("PrivateUsers=yes",)

    def assignments(self, *, root: bool = True) -> list[Assignment]:
        """The properties for a manager of root, or of an ordinary user.

        What takes a mount namespace, an ordinary user's manager does only for services with a user namespace.
        """
        return [split_assignment(line) for line in (*self.lines, *(self.root_lines if root else self.user_lines))]


#: What nearly every program does without.
_BASE = (
    "NoNewPrivileges=yes", "RestrictSUIDSGID=yes", "RestrictRealtime=yes", "LockPersonality=yes",
    "KeyringMode=private", "PrivateTmp=yes", "PrivateMounts=yes", "PrivateDevices=yes",
    "ProtectClock=yes", "ProtectControlGroups=yes", "ProtectHostname=yes", "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes", "ProtectKernelTunables=yes", "RestrictNamespaces=yes",
    "SystemCallArchitectures=native", "SystemCallErrorNumber=EPERM", "SystemCallFilter=@system-service",
    # Otherwise RestrictAddressFamilies= and RestrictSUIDSGID= would be kept by those only who ask the usual way.
    f"SystemCallFilter=~{' '.join(IO_URING)}",
)
_BASE_BLOCKS = (
    "see or touch the /tmp of others",
    "open devices other than /dev/null and its like",
    "change settings, modules, log or clock of the kernel, or the host's name",
    "gain privileges: by set-user-ID programs, namespaces, real-time scheduling",
    "make system calls that services do not need (mount, ptrace, reboot, swapon …): they fail with EPERM",
    "use io_uring, which no filter of system calls sees into",
)
_READ_MOSTLY = ("ProtectSystem=full", "ProtectHome=read-only")
_READ_MOSTLY_BLOCKS = ("write to /usr, /boot, /etc and to home directories",)
#: What a program does without that was written to run as a service.
_CONFINED = (
    "ProtectSystem=strict", "ProtectHome=yes", "UMask=0077", "RemoveIPC=yes",
    # ProtectSystem=strict leaves /dev alone, where the host's /dev/shm is, and all that makes a new /proc or /sys
    # (ProtectProc=, ProtectControlGroups= …) implies MountAPIVFS=, by which /run stays writable (systemd 252).
    "ReadOnlyPaths=-/run", "PrivateIPC=yes",
    "SystemCallFilter=~@privileged @resources",
)
_CONFINED_BLOCKS = (
    "write to any file, except below /tmp, /var/tmp and /dev/shm, which are its own",
    "share memory, semaphores or message queues with others",
    "see home directories",
    "where the manager runs as root: be root or a user that others are, have capabilities, or look around in /proc",
    "change owners of files, its priority or its limits",
    "make files that others may read",
)
_SOCKETS = "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK"
_SOCKETS_BLOCK = "open sockets other than local, Internet and netlink ones"
_NO_NETWORK = ("PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK")
_NO_NETWORK_BLOCK = "reach any network: it has a loopback interface of its own"
_DEVICES = ("DevicePolicy=closed",)
_NOBODY = (
    "DevicePolicy=closed", "DynamicUser=yes", "ProtectProc=invisible", "ProcSubset=pid",
    "TemporaryFileSystem=/dev/shm:mode=1777",
)
#: The manager of an ordinary user mounts nothing for what runs outside of the sandbox (``+``), our helper for sockets, and
#: fails if that has TemporaryFileSystem= (systemd 252); it passes over InaccessiblePaths= there.
_USERS = ("PrivateUsers=yes", "InaccessiblePaths=-/dev/shm")
_POWERLESS = (*_NOBODY, "CapabilityBoundingSet=", "PrivateUsers=yes")


def _lines(*parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(line for part in parts for line in part)


_ALL = (
    Profile(
        "default", "For any program: what it does not miss is taken away.",
        (*_READ_MOSTLY_BLOCKS, *_BASE_BLOCKS, _SOCKETS_BLOCK),
        _lines(_BASE, _READ_MOSTLY, [_SOCKETS]), _DEVICES,
    ),
    Profile(
        "offline", "As default, without a network: builds, tests, converters.",
        (_NO_NETWORK_BLOCK, *_READ_MOSTLY_BLOCKS, *_BASE_BLOCKS, _SOCKETS_BLOCK),
        _lines(_BASE, _READ_MOSTLY, _NO_NETWORK), _DEVICES,
    ),
    Profile(
        "network-client", "For a program that talks to others and keeps nothing.",
        (*_CONFINED_BLOCKS, *_BASE_BLOCKS, _SOCKETS_BLOCK),
        _lines(_BASE, _CONFINED, [_SOCKETS]), _POWERLESS, _USERS,
    ),
    Profile(
        "network-server", "As network-client, and may listen on ports below 1024.",
        (*_CONFINED_BLOCKS, *_BASE_BLOCKS, _SOCKETS_BLOCK),
        _lines(_BASE, _CONFINED, [_SOCKETS]),
        (*_NOBODY, "CapabilityBoundingSet=CAP_NET_BIND_SERVICE", "AmbientCapabilities=CAP_NET_BIND_SERVICE"), _USERS,
    ),
    Profile(
        "strict", "For a program that computes: it has its input, its output, and no network.",
        # Files (memfd_create(2), /proc/self/mem) are no hindrance to it; this is against mistakes of its own.
        (_NO_NETWORK_BLOCK, *_CONFINED_BLOCKS, "map memory writable and executable, or make it so in turn (JIT compilers do)",
         *_BASE_BLOCKS, "open sockets other than local ones"),
        _lines(_BASE, _CONFINED, ["PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX", "MemoryDenyWriteExecute=yes"]),
        _POWERLESS, _USERS,
    ),
)  # fmt: skip

#: Every profile by its name.
PROFILES: dict[str, Profile] = {item.name: item for item in _ALL}


def profile(name: str) -> Profile:
    """The profile called ``name``. Raises ModelError."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ModelError(
            "there is no such profile", class_name="service", field="profile", value=name,
            hint=f"choose one of {', '.join(PROFILES)}, or None to start from nothing",
        ) from None  # fmt: skip
