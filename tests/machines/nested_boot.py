"""The supervisor of a nested system manager: boots systemd as process 1 of namespaces of its own, and cleans up after it.

Usage: python3 -I -S nested_boot.py < PIPE > EVENTS 2> LOG

Reads one line of JSON, the keys of :class:`Options`, and keeps standard input open: its end means "take the machine
away", whoever held the other end and however that one died. Writes lines of JSON: ``{"pid": …, "cgroup": …}`` when
process 1 exists, ``{"ready": true}`` when it has finished booting, ``{"failed": …}`` when there will be no machine. What
systemd prints on its console goes to standard error.

The machine's root is an overlay of the host's with a tmpfs on top, so that programs are all there and nothing is
written to the host. None of the host's units is enabled in it, and no generator runs: it boots one target of its own.
Standard library only, and nothing of ours: the testbed does not rest on what is tested in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_libc = ctypes.CDLL(None, use_errno=True)

NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWPID, NEWNET = (
    0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x20000000, 0x40000000,
)  # fmt: skip
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = 0x1000, 0x4000, 1 << 18, 1 << 20
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP = 1, 24
#: What the machine must not do to a kernel it shares: load modules, write to ports, set the clock.
DROPPED = {"CAP_SYS_MODULE": 16, "CAP_SYS_RAWIO": 17, "CAP_SYS_TIME": 25}

CGROUP_PREFIX = "nested-machine-"
TARGET = "nested.target"
#: Where the machine is put together. What the host has there is covered in our mount namespace only.
STAGE = Path("/run")
SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
#: What becomes empty in the machine: enabled units, drop-ins and generators of the host.
EMPTIED = (
    "etc/systemd/system",
    "etc/systemd/system.conf.d",
    "etc/systemd/system.control",
    "etc/systemd/system-generators",
    "usr/lib/systemd/system-generators",
    "usr/lib/systemd/system-environment-generators",
    "usr/local/lib/systemd/system",
    "var/lib/systemd",
)
#: Directories of links that pull units in; the targets themselves stay.
WANTS = "usr/lib/systemd/system"
UNITS = {
    TARGET: "[Unit]\nDescription=Nested machine\nDefaultDependencies=no\nAllowIsolate=yes\nWants={wants}\n",
    # Takes no part in the boot: whoever starts a service with default dependencies gets these two, empty as they are.
    "sysinit.target": "[Unit]\nDescription=System Initialization\nDefaultDependencies=no\n",
}


@dataclass(frozen=True)
class Options:
    """What the machine is to be like."""

    #: Units that the boot starts.
    wants: list[str]
    #: Unit files of its own, text by name.
    units: dict[str, str]
    #: Directories and files of the host that are seen at the same place, read-only, whatever lies there otherwise.
    binds: list[str]
    #: Seconds until systemd must have booted.
    timeout: float


def check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def mount(
    source: str, target: Path, fstype: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    arguments = [
        os.fsencode(source),
        os.fsencode(target),
        fstype and fstype.encode(),
        flags,
        data and data.encode(),
    ]
    check(_libc.mount(*arguments), f"mount {fstype or 'bind'} on {target}")


def bind(source: str, target: Path, *, read_only: bool = False) -> None:
    mount(source, target, flags=MS_BIND | MS_REC)
    if read_only:
        mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def emit(**event: Any) -> None:
    os.write(1, json.dumps(event).encode() + b"\n")


# --- the cgroup -----------------------------------------------------------------


def cgroup2() -> Path:
    """Where cgroup2 is mounted: of several places the first."""
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split(" ")[4])
    raise OSError("cgroup2 is not mounted")


def remove_cgroup(top: Path) -> None:
    """Kill what is in it and remove it with all that lies below; it may be gone already."""
    with contextlib.suppress(OSError):
        (top / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 5
    while top.exists() and time.monotonic() < deadline:
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        if top.exists():  # a killed process leaves its cgroup a moment after it has died
            time.sleep(0.005)


def sweep(parent: Path) -> None:
    """Remove cgroups of supervisors that were killed; their machines died with them."""
    for left in parent.glob(f"{CGROUP_PREFIX}*"):
        if not Path("/proc", left.name.removeprefix(CGROUP_PREFIX)).exists():
            remove_cgroup(left)


@contextlib.contextmanager
def own_cgroup() -> Iterator[Path]:
    parent = cgroup2()
    sweep(parent)
    directory = parent / f"{CGROUP_PREFIX}{os.getpid()}"
    directory.mkdir()
    try:
        yield directory
    finally:
        remove_cgroup(directory)


# --- the file systems -------------------------------------------------------------


def stage(options: Options, console: str) -> Path:
    """Put the machine's root together; returns where. Runs in the machine's namespaces, as its process 1."""
    mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)
    sources = {name: os.open(name, os.O_PATH | os.O_CLOEXEC) for name in [*options.binds, console]}
    mount("tmpfs", STAGE, "tmpfs", data="mode=0755")
    root = overlay()
    api_file_systems(root)
    devices(root / "dev")
    for name in options.binds:
        bind_at_same_place(sources[name], root, name)
    (root / "dev/console").touch()
    bind(f"/proc/self/fd/{sources[console]}", root / "dev/console")
    return root


def overlay() -> Path:
    """The host's root file system below, what is ours on top. Other file systems of the host are left out."""
    upper, work, root = STAGE / "upper", STAGE / "work", STAGE / "root"
    for directory in (upper, work, root):
        directory.mkdir()
    for name in (*EMPTIED, *(f"{WANTS}/{path.name}" for path in Path("/", WANTS).glob("*.wants"))):
        empty(upper / name)
    mount("overlay", root, "overlay", data=f"lowerdir=/,upperdir={upper},workdir={work}")
    return root


def empty(directory: Path) -> None:
    """An empty directory that hides what lies below it in an overlay, of the same owner and mode as that."""
    directory.mkdir(parents=True)
    os.setxattr(directory, "trusted.overlay.opaque", b"y")
    inside = Path("/", directory.relative_to(STAGE / "upper"))
    for parent in (inside, *inside.parents):
        if parent.exists():
            os.chmod(STAGE / "upper" / parent.relative_to("/"), parent.stat().st_mode & 0o7777)


def api_file_systems(root: Path) -> None:
    """What systemd would mount itself, so that it finds it done; what belongs to the host's kernel read-only."""
    mount("proc", root / "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for file in (root / "proc/sys", root / "proc/sysrq-trigger"):
        if file.exists():
            bind(str(file), file, read_only=True)
    mount("sysfs", root / "sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("cgroup2", root / "sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("tmpfs", root / "run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    mount("tmpfs", root / "tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")


def devices(directory: Path) -> None:
    mount("tmpfs", directory, "tmpfs", MS_NOSUID, "mode=0755")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        # Nodes of its own: systemd gives a terminal to the service that wants it, and takes its mode away from others.
        os.mknod(directory / name, stat.S_IFCHR, os.stat(f"/dev/{name}").st_rdev)
        os.chmod(directory / name, 0o666)
    for name in ("pts", "shm", "mqueue"):
        (directory / name).mkdir()
    mount(
        "devpts",
        directory / "pts",
        "devpts",
        MS_NOSUID | MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=0620,gid=5",
    )
    mount("tmpfs", directory / "shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    mount("mqueue", directory / "mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
    for name, target in links.items():
        (directory / name).symlink_to(target)


def bind_at_same_place(source: int, root: Path, name: str) -> None:
    target = root / name.lstrip("/")
    if os.path.isdir(f"/proc/self/fd/{source}"):
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    bind(f"/proc/self/fd/{source}", target, read_only=True)


def configure(root: Path, options: Options) -> None:
    """The few files in which the machine differs from the host."""
    target = {TARGET: UNITS[TARGET].format(wants=" ".join(options.wants))}
    for name, text in {**UNITS, **target, **options.units}.items():
        (root / "etc/systemd/system" / name).write_text(text, "utf-8")
    # A time-out of a unit must not be longer than a test waits; no accounting that the kernel may lack.
    conf = "[Manager]\nDefaultTimeoutStartSec=20s\nDefaultTimeoutStopSec=5s\n"
    (root / "etc/systemd/system.conf").write_text(conf, "ascii")
    (root / "etc/fstab").write_text("", "ascii")
    for name, text in (("machine-id", os.urandom(16).hex() + "\n"), ("hostname", "nested\n")):
        (root / "etc" / name).unlink(missing_ok=True)
        (root / "etc" / name).write_text(text, "ascii")


# --- process 1 ----------------------------------------------------------------------


def listen_for_readiness(root: Path) -> socket.socket:
    """The socket on which systemd tells that it has booted; process 1 finds it by $NOTIFY_SOCKET (sd_notify(3))."""
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    (root / "run/host").mkdir()
    receiver.bind(str(root / "run/host/notify"))
    return receiver


def become_systemd(root: Path) -> NoReturn:
    os.chdir(root)
    check(_libc.pivot_root(b".", b"."), "pivot_root")
    check(_libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/")
    # Services get mount namespaces of their own, and see mounts that appear later.
    mount("none", Path("/"), flags=MS_REC | MS_SHARED)
    socket.sethostname("nested")
    for name, number in DROPPED.items():
        check(_libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0), f"drop {name}")
    console = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)
    for number in range(3):
        os.dup2(console, number)
    os.closerange(3, 1024)
    program = next(path for path in SYSTEMD if os.path.exists(path))
    command = [
        program,
        "--system",
        f"--unit={TARGET}",
        "--log-target=console",
        "--show-status=no",
        "--log-color=no",
    ]
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM": "dumb"}
    os.execve(program, command, {**environment, "container": "test", "NOTIFY_SOCKET": "/run/host/notify"})


def process_1(options: Options, cgroup: Path, console: str, channel: socket.socket) -> NoReturn:
    """The first process of the machine, from its birth until it is systemd. Its failures go through the channel."""
    try:
        check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
        (cgroup / "cgroup.procs").write_text("0")
        check(_libc.unshare(NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWNET), "unshare")
        os.setsid()
        root = stage(options, console)
        configure(root, options)
        receiver = listen_for_readiness(root)
        socket.send_fds(channel, [b"staged"], [receiver.fileno()])
        become_systemd(root)
    except BaseException as error:  # noqa: BLE001  # there is nobody above us: the supervisor tells it
        channel.send(f"{type(error).__name__}: {error}".encode())
    os._exit(1)


# --- the supervisor -----------------------------------------------------------------


def start(options: Options, cgroup: Path, console: str) -> tuple[int, socket.socket]:
    """Start process 1. Returns its process id and the socket on which it tells that it has booted."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    check(_libc.unshare(NEWPID), "unshare the process namespace")
    pid = os.fork()
    if pid == 0:
        process_1(options, cgroup, console, theirs)
    theirs.close()
    ours.settimeout(options.timeout)
    text, descriptors, _, _ = socket.recv_fds(ours, 4096, 1)
    if not descriptors:
        raise OSError(text.decode() or "process 1 died before it was systemd")
    return pid, socket.socket(fileno=descriptors[0])


def watch(pid: int, console: int, readiness: socket.socket, timeout: float) -> None:
    """Pass the console on and tell of readiness, until the machine or whoever asked for it has gone."""
    end = os.pidfd_open(pid)
    ready_by = time.monotonic() + timeout
    sources = {0, console, end, readiness.fileno()}
    ready = False
    while True:
        left = None if ready else ready_by - time.monotonic()
        readable, _, _ = select.select(sources, (), (), left if left is None else max(left, 0))
        if console in readable:
            with contextlib.suppress(OSError):  # EIO while nobody has the other side open
                os.write(2, os.read(console, 65536))
        # It goes on telling its status, and stands still once nobody reads that.
        if readiness.fileno() in readable and b"READY=1" in readiness.recv(4096).split() and not ready:
            ready = True
            emit(ready=True)
        if 0 in readable and not os.read(0, 4096):
            return
        if end in readable:
            emit(failed="systemd has ended")
            return
        if not readable:
            emit(failed=f"systemd did not finish booting within {timeout:g} s")
            return


def main() -> None:
    with open(0, "rb", buffering=0, closefd=False) as stream:
        options = Options(**json.loads(stream.readline()))
    console, theirs = os.openpty()
    pid = 0
    try:
        with own_cgroup() as cgroup:
            try:
                pid, readiness = start(options, cgroup, os.ttyname(theirs))
                emit(pid=pid, cgroup=str(cgroup))
                watch(pid, console, readiness, options.timeout)
            finally:
                if pid:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
    except OSError as error:
        emit(failed=str(error))


if __name__ == "__main__":
    main()
