"""The program inside: tells as one line of JSON what its kernel lets it see and do. Runs by itself, in any Python 3.

What differs from one run to the next (process ids, inode numbers) is left out or given as a yes or no.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import stat
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Report = dict[str, Any]

ME = "/proc/self"
LIBC = ctypes.CDLL(None, use_errno=True)
PROC_PATHS = (
    "acpi asound bus fs interrupts irq kcore keys latency_stats sched_debug scsi sys sysrq-trigger timer_list"
)
SYSCTLS = (
    "net/ipv4/ping_group_range net/ipv4/ip_unprivileged_port_start net/ipv4/ip_forward net/ipv4/ip_default_ttl "
    "kernel/shmmax kernel/msgmax fs/mqueue/msg_max kernel/hostname kernel/domainname"
)
PLACES = "/ /etc /usr /tmp /run /root /home /var /dev /sys /sys/fs/cgroup /in /out /data"
OWNED = "/ /etc /usr /bin /tmp /run /root /dev /dev/shm /dev/pts /proc /sys /in /in/file /out /data /made"
PRCTLS = {"pdeathsig": 2, "dumpable": 3, "securebits": 27, "timerslack": 30, "subreaper": 37, "thp_disable": 42}


def read(path: str) -> str:
    try:
        with open(path) as stream:
            return stream.read().strip("\0\n")
    except OSError as error:
        return f"error: {error.strerror}"


def tried(action: Callable[..., object], *arguments: object) -> str:
    """What comes of an attempt: "ok" or the kernel's refusal."""
    try:
        action(*arguments)
    except OSError as error:
        return str(error.strerror)
    return "ok"


def status() -> dict[str, str]:
    lines = (line.partition(":") for line in read(f"{ME}/status").splitlines())
    return {name: value.strip() for name, _, value in lines}


def identity() -> Report:
    mask = os.umask(0)
    os.umask(mask)
    return {
        "uids": os.getresuid(), "gids": os.getresgid(), "groups": sorted(os.getgroups()), "umask": oct(mask),
        "cwd": os.getcwd(), "argv": read(f"{ME}/cmdline").split("\0")[:4], "env": dict(os.environ),
        "pid": os.getpid(), "ppid": os.getppid(),
        "session_leader": os.getsid(0) == os.getpid(), "group_leader": os.getpgrp() == os.getpid(),
        "nice": os.nice(0), "affinity": len(os.sched_getaffinity(0)), "scheduler": os.sched_getscheduler(0),
    }  # fmt: skip


def rights() -> Report:
    found = status()
    names = (
        "CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Seccomp_filters SigBlk SigIgn SigCgt Umask CoreDumping"
    )
    result: Report = {name: found.get(name) for name in names.split()}
    result["personality"] = read(f"{ME}/personality")
    for name, number in PRCTLS.items():
        if name in ("pdeathsig", "subreaper"):
            value = ctypes.c_int(-1)
            LIBC.prctl(number, ctypes.byref(value), 0, 0, 0)
            result[name] = value.value
        else:
            result[name] = LIBC.prctl(number, 0, 0, 0, 0)
    result["oom_score_adj"] = read(f"{ME}/oom_score_adj")
    return result


def syscalls() -> Report:
    """Attempts at what a seccomp profile, or the lack of rights, forbids."""
    calls: dict[str, Callable[[], int]] = {
        "unshare_user": lambda: LIBC.unshare(0x10000000),
        "mount": lambda: LIBC.mount(b"none", b"/mnt", b"tmpfs", 0, None),
        "keyctl": lambda: LIBC.syscall(250, 0, -3, 0),
        "sethostname": lambda: LIBC.sethostname(b"other", 5),
        "chroot": lambda: LIBC.chroot(b"/"),
        "bpf": lambda: LIBC.syscall(321, 0, 0, 0),
        "ptrace": lambda: LIBC.ptrace(0, 0, 0, 0),
    }
    result = {}
    for name, call in calls.items():
        pid = os.fork()
        if pid == 0:
            ctypes.set_errno(0)
            os._exit(0 if call() >= 0 else ctypes.get_errno())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        result[name] = "ok" if code == 0 else os.strerror(code) if code > 0 else f"killed by {-code}"
    return result


def namespaces() -> dict[str, str]:
    return {name: os.readlink(f"{ME}/ns/{name}") for name in sorted(os.listdir(f"{ME}/ns"))}


def mounts() -> Report:
    """By place: type, options of the mount and of its file system, propagation."""
    result: Report = {}
    for line in read(f"{ME}/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        head, (fstype, _, data) = left.split(" "), right.split(" ", 2)
        own = sorted(data.split(",")) if fstype != "overlay" else []
        place = head[4]
        while place in result:
            place += " (again)"
        result[place] = {"type": fstype, "options": sorted(head[5].split(",")), "data": own,
                         "propagation": sorted(word.split(":")[0] for word in head[6:])}  # fmt: skip
    return result


def devices() -> Report:
    result: Report = {}
    for name in sorted(os.listdir("/dev")):
        path = f"/dev/{name}"
        state = os.lstat(path)
        kind = stat.filemode(state.st_mode)[0]
        numbers = [os.major(state.st_rdev), os.minor(state.st_rdev)] if kind in "cb" else None
        link = os.readlink(path) if kind == "l" else None
        result[name] = [kind, oct(stat.S_IMODE(state.st_mode)), numbers, link, [state.st_uid, state.st_gid]]
    return result


def write_to(path: str) -> None:
    with open(path, "r+b", buffering=0) as stream:
        stream.write(b"x")


def open_as(path: str, flags: int) -> None:
    os.close(os.open(path, flags, 0o600))


def create(path: str) -> None:
    open_as(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL)
    os.unlink(path)


def usable() -> Report:
    nodes = {name: tried(write_to, f"/dev/{name}") for name in ("null", "zero", "full", "random")}
    nodes["tty"] = tried(open_as, "/dev/tty", os.O_RDWR)
    nodes["mknod"] = tried(os.mknod, "/dev/probe", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    nodes["shm"] = tried(open_as, "/dev/shm/probe", os.O_CREAT | os.O_RDWR)
    nodes["sysctl"] = tried(write_to, "/proc/sys/net/ipv4/ip_forward")
    nodes["ptmx"] = tried(os.openpty)
    return nodes


def is_read_only(path: str) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def proc_paths() -> Report:
    """What is masked reads as nothing, what is read-only cannot be opened for writing."""
    result: Report = {}
    for name in (*(f"/proc/{name}" for name in PROC_PATHS.split()), "/sys/firmware", "/sys/devices/virtual/powercap"):
        path = name.removeprefix("/proc/") if name.startswith("/proc/") else name
        if os.path.isdir(name):
            result[path] = ["directory", "many" if path == "sys" else len(os.listdir(name)), is_read_only(name)]
        elif os.path.exists(name):
            kind = stat.filemode(os.stat(name).st_mode)[0]
            result[path] = [tried(read, name), kind, is_read_only(name), tried(open_as, name, os.O_WRONLY)]
    return result


def writable() -> Report:
    places = [path for path in PLACES.split() if os.path.exists(path)]
    return {place: tried(create, f"{place}/probe-{os.getpid()}") for place in places}


def owners() -> Report:
    """Owner and mode of directories, and of what was brought in."""
    result = {}
    for path in OWNED.split():
        try:
            state = os.stat(path)
        except OSError:
            continue
        result[path] = [state.st_uid, state.st_gid, oct(state.st_mode)]
    return result


def descriptors() -> Report:
    found: Report = {}
    for name in os.listdir(f"{ME}/fd"):
        try:
            target = os.readlink(f"{ME}/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own
        flags = next(x for x in read(f"{ME}/fdinfo/{name}").splitlines() if x.startswith("flags"))
        found[name] = [target.split(":")[0], oct(int(flags.split()[1], 8) & ~0o100000)]  # O_LARGEFILE means nothing
    return found


def limits() -> Report:
    names = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
    return {name: resource.getrlimit(getattr(resource, name)) for name in names}


def network() -> Report:
    result = {}
    for name in sorted(os.listdir("/sys/class/net")):
        result[name] = read(f"/sys/class/net/{name}/flags")
    # The containers of a pod share its ports, and all of them try at about the same time.
    result["sockets"] = tried(lambda: socket.create_server(("127.0.0.1", 80), reuse_port=True).close())
    return result


def terminal() -> Report | None:
    if not os.isatty(0):
        return None
    size = os.get_terminal_size(0)
    state = os.stat(os.ttyname(0))
    return {"name": os.ttyname(0), "size": [size.columns, size.lines], "controls": os.tcgetpgrp(0) == os.getpgrp(),
            "mode": oct(state.st_mode), "owner": [state.st_uid, state.st_gid],
            "console": os.path.exists("/dev/console") and os.stat("/dev/console").st_rdev == state.st_rdev}  # fmt: skip


def main() -> None:
    seen = {
        "identity": identity(), "rights": rights(), "namespaces": namespaces(), "mounts": mounts(), "devices": devices(),
        "owners": owners(), "descriptors": descriptors(), "rlimits": limits(), "network": network(), "terminal": terminal(),
        "uid_map": read(f"{ME}/uid_map").split(), "gid_map": read(f"{ME}/gid_map").split(),
        "setgroups": read(f"{ME}/setgroups"),
        "cgroup": [line.split(":", 1)[1] for line in read(f"{ME}/cgroup").splitlines()], "hostname": socket.gethostname(),
        "sysctls": {name: read(f"/proc/sys/{name}") for name in SYSCTLS.split()}, "proc_paths": proc_paths(),
        "hosts": read("/etc/hosts"), "ignored": [n for n in range(1, 32) if signal.getsignal(n) == signal.SIG_IGN],
        "usable": usable(), "writable": writable(), "syscalls": syscalls(),
    }  # fmt: skip
    print(json.dumps(seen), flush=True)  # noqa: T201 - its report


main()
if os.environ.get("LINGER"):
    time.sleep(float(os.environ["LINGER"]))
