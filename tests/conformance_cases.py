"""Containers, and what a program in each of them has to see."""

from __future__ import annotations

from typing import Any, NamedTuple

from sandbox import Mount, Security
from sandbox.oci import capabilities


class Case(NamedTuple):
    #: Arguments of the container.
    fields: dict[str, Any]
    #: Path into the report → what it has to be.
    declared: dict[str, Any]


def mask(*names: str) -> str:
    return f"{sum(1 << capabilities.ALL.index(name) for name in names):016x}"


DEFAULT = tuple(capabilities.DEFAULT)
NONE = mask()
READ_ONLY = "Read-only file system"
DENIED = "Permission denied"

CASES = {
    "plain": Case({}, {
        "identity.uids": [0, 0, 0], "identity.groups": [0], "identity.umask": "0o22", "identity.cwd": "/", "identity.pid": 1,
        "identity.ppid": 0, "identity.session_leader": True, "rights.CapEff": mask(*DEFAULT), "rights.CapBnd": mask(*DEFAULT),
        "rights.CapInh": NONE, "rights.CapAmb": NONE, "rights.NoNewPrivs": "1", "rights.Seccomp": "2", "rights.pdeathsig": 0,
        "rights.SigBlk": NONE, "hostname": "box", "setgroups": "allow", "terminal": None, "mounts./proc.type": "proc",
        "mounts./sys.type": "sysfs", "mounts./dev.type": "tmpfs", "mounts./dev/pts.type": "devpts",
        "mounts./dev/mqueue.type": "mqueue", "mounts./sys/fs/cgroup.type": "cgroup2", "devices.null": ["c", "0o666", [1, 3]],
        "usable.null": "ok", "usable.mknod": "Operation not permitted", "usable.ptmx": "ok", "network.lo": "0x9",
        "network.sockets": "ok", "writable./": "ok", "writable./etc": "ok", "usable.sysctl": DENIED,
        "writable./sys": READ_ONLY, "writable./sys/fs/cgroup": READ_ONLY, "sysctls.net/ipv4/ip_unprivileged_port_start": "0",
        "syscalls.unshare_user": "Operation not permitted", "syscalls.mount": "Operation not permitted",
        "proc_paths.sys": ["directory", "many", True], "mounts./.propagation": [],
    }),
    "user": Case({"user": "65534:65534", "groups": ["7"], "umask": 0o077, "working_dir": "/tmp"}, {
        "identity.uids": [65534] * 3, "identity.gids": [65534] * 3, "identity.groups": [7, 65534], "identity.umask": "0o77",
        "identity.cwd": "/tmp", "rights.CapEff": NONE, "rights.CapPrm": NONE, "writable./etc": DENIED, "writable./tmp": "ok",
    }),
    "capabilities": Case(
        {"user": "1000:1000", "security": Security(cap_add=["net_bind_service", "sys_chroot"], cap_drop=["chown"])}, {
            "rights.CapAmb": mask("CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT"),
            "rights.CapEff": mask("CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT"),
            "rights.CapBnd": mask(*{*DEFAULT, "CAP_SYS_CHROOT"} - {"CAP_CHOWN"}), "syscalls.chroot": "ok",
        },
    ),
    "read-only": Case({"security": Security(read_only_root=True), "mounts": [Mount.tmpfs("/opt/free")]}, {
        "writable./": READ_ONLY, "writable./etc": READ_ONLY, "writable./usr": READ_ONLY, "writable./tmp": READ_ONLY,
        "writable./dev": "ok", "usable.shm": "ok", "mounts./opt/free.type": "tmpfs",
    }),
    "limits": Case(
        {"ulimits": {"nofile": (100, 200), "core": 0}, "sysctls": {"net.ipv4.ip_default_ttl": "99", "kernel.shmmax": "4096"},
         "working_dir": "/new/directory", "oom_score_adj": 500, "env": {"OWN": "a b=c"}},
        {"rlimits.RLIMIT_NOFILE": [100, 200], "rlimits.RLIMIT_CORE": [0, 0], "sysctls.net/ipv4/ip_default_ttl": "99",
         "sysctls.kernel/shmmax": "4096", "identity.cwd": "/new/directory", "rights.oom_score_adj": "500",
         "identity.env.OWN": "a b=c"},
    ),
    "terminal": Case({"tty": True}, {
        "terminal.name": "/dev/pts/0", "terminal.controls": True, "terminal.console": True, "identity.env.TERM": "xterm",
        "usable.tty": "ok", "devices.console": ["c", "0o620", [136, 0]],
    }),
    "privileged": Case({"security": Security(privileged=True)}, {
        "rights.NoNewPrivs": "0", "rights.Seccomp": "0", "syscalls.unshare_user": "ok", "syscalls.mount": "ok",
        "usable.mknod": "Operation not permitted", "proc_paths.sys": ["directory", "many", False],
    }),
    "notified": Case({"notify": True}, {"identity.pid": 1}),
}  # fmt: skip
