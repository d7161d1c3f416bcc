"""Capabilities of a sandbox: which there are, which it gets, and why (capabilities(7)).

All of them only count inside the pod's user namespace: CAP_CHOWN changes owners among the ids the pod has.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Every capability of Linux 6.x, in the kernel's order.
ALL: tuple[str, ...] = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT",
    "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE",
    "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
    "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip

#: What a container gets unless it asks for something else, each with the program that breaks without it.
#: Left out of the usual container defaults: NET_RAW (raw sockets forge packets to neighbours; ping works
#: through ping_group_range), MKNOD (device nodes never work in a user namespace) and AUDIT_WRITE (the audit
#: subsystem belongs to the host).
DEFAULT: dict[str, str] = {
    "CAP_CHOWN": "package managers and database images give files to their service user",
    "CAP_DAC_OVERRIDE": "root in the container writes to its service user's directories",
    "CAP_FOWNER": "tar and installers set modes and times on files of other users",
    "CAP_FSETID": "install -m 2755 keeps the set-group-id bit",
    "CAP_KILL": "supervisors running as root stop services of other users",
    "CAP_SETGID": "daemons drop from root to their group",
    "CAP_SETUID": "daemons drop from root to their user; su, gosu, apt's _apt",
    "CAP_SETPCAP": "daemons and setpriv shrink their own bounding set",
    "CAP_NET_BIND_SERVICE": "servers that carry it as a file capability (caddy) do not even start without",
    "CAP_SYS_CHROOT": "sshd, postfix and debootstrap chroot",
    "CAP_SETFCAP": "packages set file capabilities when they are installed",
}

_KNOWN = frozenset(ALL)


def canonical(name: str) -> str:
    """``"CAP_NET_ADMIN"`` from any of net_admin, NET_ADMIN, CAP_NET_ADMIN; ``"ALL"`` stays.

    Raises :class:`ValueError` that names a capability that does not exist.
    """
    upper = name.upper()
    if upper == "ALL":
        return upper
    full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if full not in _KNOWN:
        raise ValueError(f"there is no capability {name!r}; see capabilities(7)")
    return full


def resolve(base: Iterable[str] | None, add: Iterable[str], drop: Iterable[str]) -> tuple[str, ...]:
    """The capabilities of a container, in the kernel's order.

    ``base`` replaces the default set. As in docker and podman, adding ``"ALL"`` comes first and named drops
    take away from it; dropping ``"ALL"`` leaves the named additions only.
    """
    added, dropped = set(add), set(drop)
    chosen = set(DEFAULT if base is None else base)
    if "ALL" in dropped:
        chosen = set()
    if "ALL" in added | chosen:
        chosen = set(ALL)
    chosen = (chosen | added) - dropped
    return tuple(name for name in ALL if name in chosen)
