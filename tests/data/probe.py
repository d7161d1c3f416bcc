"""Run inside a container: tries one way out after another and reports how each went, as JSON.

``probe.py`` prints ``{name: result}``; a result is what was found, or ``{"errno": "EPERM"}``. It needs nothing but a Python
interpreter, and tries in a process of its own what could harm itself.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import platform
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
PROBES: dict[str, Callable[[], Any]] = {}
_GENERIC = {"mount": 40, "umount2": 39, "pivot_root": 41, "unshare": 97, "setns": 268, "bpf": 280, "keyctl": 219,
            "add_key": 217, "perf_event_open": 241, "init_module": 105, "kexec_load": 104, "reboot": 142, "swapon": 224,
            "open_by_handle_at": 265, "settimeofday": 170, "userfaultfd": 282, "syslog": 116, "acct": 89,
            "ptrace": 117, "quotactl": 60, "name_to_handle_at": 264}  # fmt: skip
_X86_64 = {"mount": 165, "umount2": 166, "pivot_root": 155, "unshare": 272, "setns": 308, "bpf": 321, "keyctl": 250,
           "add_key": 248, "perf_event_open": 298, "init_module": 175, "kexec_load": 246, "reboot": 169, "swapon": 167,
           "open_by_handle_at": 304, "settimeofday": 164, "userfaultfd": 323, "syslog": 103, "acct": 163,
           "ptrace": 101, "quotactl": 179, "name_to_handle_at": 303}  # fmt: skip
#: These have the same number everywhere.
_EVERYWHERE = {"io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "clone3": 435,
               "mount_setattr": 442}  # fmt: skip
NUMBERS = {**(_X86_64 if platform.machine() == "x86_64" else _GENERIC), **_EVERYWHERE}


def probe(function: Callable[[], Any]) -> Callable[[], Any]:
    PROBES[function.__name__] = function
    return function


def call(name: str, *arguments: Any) -> int:
    """A system call; its result, or the error as an exception."""
    result: int = libc.syscall(NUMBERS[name], *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def in_child(action: Callable[[], Any]) -> Any:
    """What ``action`` returns, done by a process that ends afterwards."""
    read_end, write_end = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(write_end, json.dumps(outcome(action)).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as stream:
        said = stream.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(said) if said else {"signal": os.waitstatus_to_exitcode(status)}


def outcome(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except OSError as error:
        return {"errno": errno.errorcode.get(error.errno or 0, str(error))}


def status_field(name: str) -> str:
    with open("/proc/self/status") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith(f"{name}:"))


# --- what can be seen ---------------------------------------------------------------------------------------------


@probe
def processes() -> list[str]:
    """Arguments of every process there is, but for this one."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with open(f"/proc/{name}/cmdline") as file:
                found.append(file.read().replace("\0", " ").strip())
    return found


@probe
def descriptors() -> list[int]:
    """Open when this program began; the reports go to 1."""
    return DESCRIPTORS


@probe
def places() -> dict[str, list[str]]:
    return {path: sorted(os.listdir(path)) for path in ("/root", "/home", "/run", "/tmp", "/mnt", "/media", "/srv")
            if os.path.isdir(path) and os.access(path, os.R_OK)}  # fmt: skip


@probe
def shadow() -> Any:
    with open("/etc/shadow") as file:
        return len(file.read())


@probe
def devices() -> list[str]:
    """Names in /dev, but for links; and what lies elsewhere as a device."""
    return sorted(name for name in os.listdir("/dev") if not os.path.islink(f"/dev/{name}"))


@probe
def interfaces() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex())


@probe
def limits() -> dict[str, str]:
    """Of this process, as the kernel writes them."""
    names = ("NoNewPrivs", "Seccomp", "CapBnd", "CapEff", "CapAmb", "Uid", "Groups")
    return {name: status_field(name) for name in names}


@probe
def session() -> bool:
    """Whether this is a session of its own that has no terminal."""
    with open("/proc/1/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return fields[3] == "1" and fields[4] == "0"


@probe
def init_environment() -> str:
    with open("/proc/1/environ") as file:
        return file.read()


@probe
def masked() -> dict[str, Any]:
    """What the kernel would tell about the whole machine: (type, size) of what is there instead."""
    found = {}
    for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
                 "/proc/acpi", "/sys/devices/virtual/powercap"):  # fmt: skip
        if os.path.lexists(path):
            found[path] = outcome(lambda path=path: _contents(path))  # type: ignore[misc]
    return found


def _contents(path: str) -> int:
    if os.path.isdir(path):
        return len(os.listdir(path))
    with open(path, "rb") as file:
        return len(file.read(4096))


# --- what can be written ------------------------------------------------------------------------------------------


def _write(path: str) -> int:
    with open(path, "r+b", buffering=0) as file:
        return file.write(file.read(64) or b"0")


@probe
def kernel_files() -> dict[str, Any]:
    """Files of the kernel that hold for the whole machine."""
    paths = ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/overcommit_memory",
             "/proc/sys/fs/file-max", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity",
             "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/sys/kernel/modprobe", "/sys/kernel/uevent_helper",
             "/proc/sys/kernel/ns_last_pid")  # fmt: skip
    return {path: outcome(lambda path=path: _write(path)) for path in paths if os.path.exists(path)}  # type: ignore[misc]


@probe
def cgroup_files() -> Any:
    for directory, _, names in os.walk("/sys/fs/cgroup"):
        if "cgroup.procs" in names:
            return outcome(lambda directory=directory: _write(f"{directory}/cgroup.procs"))  # type: ignore[misc]
    return "none"


@probe
def own_executable() -> Any:
    """CVE-2019-5736: what started the container must not be what it can overwrite."""
    return {link: outcome(lambda link=link: os.close(os.open(link, os.O_WRONLY)))  # type: ignore[misc]
            for link in ("/proc/self/exe", "/proc/1/exe")}  # fmt: skip


@probe
def programs_of_the_host() -> Any:
    """Written to, not on the host but in the container's own layer at most."""
    return outcome(lambda: os.close(os.open("/usr/bin/env", os.O_WRONLY | os.O_APPEND)))


# --- what can be called -------------------------------------------------------------------------------------------


@probe
def mounts() -> dict[str, Any]:
    where = tempfile.mkdtemp(dir="/dev/shm")
    place = where.encode()
    return {
        "mount": in_child(lambda: call("mount", b"none", place, b"tmpfs", 0, None)),
        "bind": in_child(lambda: call("mount", b"/", place, None, 4096, None)),
        "remount": in_child(lambda: call("mount", None, b"/proc/sys", None, 4096 | 32, None)),
        "umount": in_child(lambda: call("umount2", b"/proc/sys", 2)),
        "pivot_root": in_child(lambda: call("pivot_root", b".", b".")),
        "fsopen": in_child(lambda: call("fsopen", b"tmpfs", 0)),
        "open_tree": in_child(lambda: call("open_tree", -100, b"/", 1)),
    }


@probe
def namespaces() -> dict[str, Any]:
    kinds = {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "net": 0x40000000, "uts": 0x4000000}

    def clone3(flags: int) -> int:
        arguments = struct.pack("=8Q", flags, 0, 0, 0, 17, 0, 0, 0)
        pid = call("clone3", ctypes.create_string_buffer(arguments, 64), 64)
        if pid == 0:
            os._exit(0)
        return 0

    unshared = {name: in_child(lambda flag=flag: call("unshare", flag)) for name, flag in kinds.items()}  # type: ignore[misc]
    cloned = {f"clone3 {name}": in_child(lambda flag=flag: clone3(flag)) for name, flag in kinds.items()}  # type: ignore[misc]
    return {**unshared, **cloned}


@probe
def system_calls() -> dict[str, Any]:
    buffer = ctypes.create_string_buffer(256)
    attempts: dict[str, tuple[Any, ...]] = {
        "bpf": (0, buffer, 64), "keyctl": (0, -3, 1), "add_key": (b"user", b"x", b"y", 1, -3),
        "perf_event_open": (buffer, 0, -1, -1, 0), "io_uring_setup": (4, buffer), "init_module": (buffer, 1, b""),
        "kexec_load": (0, 0, None, 0), "swapon": (b"/dev/null", 0), "open_by_handle_at": (-100, buffer, 0),
        "settimeofday": (buffer, None), "userfaultfd": (0,), "acct": (None,), "quotactl": (0, b"/", 0, buffer),
        "reboot": (0, 0, 0, None), "syslog": (3, buffer, 64),
    }  # fmt: skip
    return {name: in_child(lambda name=name: call(name, *attempts[name])) for name in attempts}  # type: ignore[misc]


@probe
def device_nodes() -> Any:
    """A block device that would be the host's disk."""
    where = tempfile.mkdtemp(dir="/dev/shm")
    return {
        "block": outcome(lambda: os.mknod(f"{where}/disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))),
        "memory": outcome(lambda: os.mknod(f"{where}/mem", stat.S_IFCHR | 0o600, os.makedev(1, 1))),
    }


@probe
def typed_into_the_terminal() -> Any:
    """TIOCSTI: would be read by the shell after us."""

    def push() -> None:
        master, slave = os.openpty()
        os.setsid()
        fcntl.ioctl(slave, 0x540E, 0)  # TIOCSCTTY
        fcntl.ioctl(slave, 0x5412, b"x")
        os.close(master)

    return in_child(push)


@probe
def host_name() -> Any:
    return in_child(lambda: socket.sethostname("escaped"))


@probe
def sockets() -> dict[str, Any]:
    def connect(host: str, port: int) -> None:
        with socket.create_connection((host, port), timeout=1):
            pass

    kinds = {"raw": (socket.AF_INET, socket.SOCK_RAW, 1), "packet": (socket.AF_PACKET, socket.SOCK_RAW, 0),
             "vsock": (40, socket.SOCK_STREAM, 0), "alg": (38, socket.SOCK_SEQPACKET, 0),
             "audit": (socket.AF_NETLINK, socket.SOCK_RAW, 9)}  # fmt: skip
    made = {name: outcome(lambda kind=kind: socket.socket(*kind).close()) for name, kind in kinds.items()}  # type: ignore[misc]
    return {**made, "internet": outcome(lambda: connect("192.0.2.1", 80))}


@probe
def set_user_id() -> list[int]:
    """What a set-user-ID program of a user that is not root gets: effective and real user."""
    for path in ("/usr/bin/su", "/bin/su", "/usr/bin/passwd", "/usr/bin/mount", "/bin/mount"):
        if os.path.exists(path):
            return [os.stat(path).st_mode & stat.S_ISUID, os.stat(path).st_uid]
    return [0, 0]


if __name__ == "__main__":
    DESCRIPTORS = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    wanted = sys.argv[1:] or list(PROBES)
    sys.stdout.write(json.dumps({name: outcome(PROBES[name]) for name in wanted}))
