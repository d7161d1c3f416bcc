"""The driver of an external engine: it makes the root file system, and has crun or runc do the rest.

It is forked from the shim like a container's init, and becomes root of the pod's user namespace like one, so that the
engine never has more rights than the container's own root. It stays in the shim's process namespace, and in a mount
namespace of its own, which goes with it: bundle, state and logs of the engine are in it, and nothing has to be undone.
What the engine orphans becomes a child of the driver (PR_SET_CHILD_SUBREAPER), to be killed if the start fails; and so
does the init, to become the shim's when the driver ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from sandbox.linux import constants as c, netlink, syscalls
from sandbox.linux.cgroup import hierarchies
from sandbox.linux.errors import KernelError
from sandbox.linux.mounts import remount_bind

from . import beneath, bundle, init, process, rootfs as roots
from .complaints import explain
from .failure import Failure
from .init import Order
from .steps import Device, Scene, Sysctl
from .tools import Tool

_CGROUP2 = "/sys/fs/cgroup"
_BUNDLE = "bundle"
_CONSOLE = "console"
#: Seconds between looks at whether the program was executed: the kernel tells nobody. The first suffices as a rule.
_FIRST_LOOK, _LONGEST_LOOK = 0.0003, 0.02
#: Seconds for an engine to end by itself when the container's init has.
_FAREWELL = 2.0


class Job(NamedTuple):
    """What the driver needs beside the order that any init gets."""

    order: Order
    tool: Tool
    spec: Mapping[str, Any]
    #: Namespaces to join; None if the driver was born in new ones.
    join: Mapping[str, int] | None
    container_id: str


class Stopped(Exception):
    """The shim wants no container any more."""


def main(job: Job, channel: socket.socket) -> NoReturn:
    """From birth to the end; reports over ``channel``."""
    progress = init.Progress()
    driver = _Driver(job, channel, progress)
    try:
        driver.prepare()
        driver.run()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is reported
        driver.kill()
        init.report(channel, _known(error), progress)


def _known(error: BaseException) -> BaseException:
    if isinstance(error, Stopped):
        return Failure(operation="start container", detail="it was stopped before it had started")
    return error


class _Driver:
    def __init__(self, job: Job, channel: socket.socket, progress: init.Progress) -> None:
        self._job, self._order, self._channel, self._progress = job, job.order, channel, progress
        self._directory = f"{job.order.scratch}/{_BUNDLE}"
        self._init = -1
        self._init_fd = -1

    # -- before the engine ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Namespaces, the root, the bundle."""
        order = self._order
        syscalls.prctl(c.PR_SET_CHILD_SUBREAPER, 1)
        self._close_others()
        for fd in order.v1_tasks:
            os.write(fd, b"0")
        if self._channel.recv(16) != b"go":
            os._exit(1)
        self._progress.doing = "join the pod's namespaces"
        self._enter()
        if order.notify:
            self._progress.doing = "bind the notification socket"
            init.bind_notify(order.notify, self._channel)
        self._set_sysctls()
        syscalls.mount(None, "/", None, c.MS_PRIVATE | c.MS_REC)
        self._progress.doing = "make the host read-only"
        _protect_host(step.path for step in order.plan.steps if isinstance(step, Device))
        self._progress.doing = "make the root file system"
        roots.mount_scratch(order.scratch, order.rootfs.size)
        scene = roots.assemble(order.rootfs, order.layers, order.scratch, order.prepared)
        if order.plan.read_only_root:
            self._protect(scene.root_fd)
        self._progress.doing = "write the bundle"
        self._write_bundle(self._bring_in())
        self._show_cgroup2()

    def _close_others(self) -> None:
        """Others' pipes and sockets: as long as they are open here, nobody sees their end."""
        order = self._order
        keep = {self._channel.fileno(), *order.stdio, *order.v1_tasks, *order.layers, *order.prepared.values(),
                *(self._job.join or {}).values()}  # fmt: skip
        process.close_all_but(keep)

    def _enter(self) -> None:
        join = self._job.join
        if join is not None:
            # The host is still writable here: /proc/PID/root must not lead another container's engine to it (ptrace(2)).
            syscalls.prctl(c.PR_SET_DUMPABLE, 0)
            for kind in ("user", *(kind for kind in join if kind != "user")):
                syscalls.setns(join[kind], c.NAMESPACES[kind][0])
            syscalls.unshare(c.CLONE_NEWNS)
        init.own_identity()
        if join is None and "network" in self._order.plan.namespaces:
            netlink.loopback_up()

    def _set_sysctls(self) -> None:
        """Those of the network and IPC namespaces; runc takes the driver's for the host's, and refuses."""
        here = Scene(os.open("/", c.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), {}, "")
        for step in self._order.plan.steps:
            if isinstance(step, Sysctl):
                self._progress.doing = step.describe()
                step.execute(here)

    def _protect(self, root_fd: int) -> None:
        """Engines make only the root's own mount read-only, not what the image `host` has below it."""
        for overlay in self._order.rootfs.overlays:
            if overlay.target == "/":
                continue
            for target, directory in bundle.mount_points(self._order.plan, overlay.target):
                kind = self._is_directory(target) if directory is None else directory
                os.close(beneath.ensure(root_fd, target, directory=kind))
            init.make_read_only(root_fd, overlay.target)

    def _is_directory(self, target: str) -> bool:
        return stat.S_ISDIR(os.fstat(self._order.prepared[target]).st_mode)

    def _bring_in(self) -> dict[str, str]:
        """Attach what is bound from the host, prepared by the shim, where the engine finds it."""
        os.mkdir("binds")
        places = bundle.places(self._order.plan, f"{self._order.scratch}/binds")
        for target, place in places.items():
            if self._is_directory(target):
                os.mkdir(place)
            else:
                os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
            syscalls.move_mount(self._order.prepared[target], place, flags=c.MOVE_MOUNT_F_EMPTY_PATH)
        return places

    def _write_bundle(self, places: Mapping[str, str]) -> None:
        os.mkdir(_BUNDLE, 0o700)
        os.chdir(_BUNDLE)
        document = bundle.document(
            self._job.spec, self._order.plan, root=f"{self._order.scratch}/root", sources=places
        )  # fmt: skip
        with open("config.json", "w") as file:
            json.dump(document, file)

    @staticmethod
    def _show_cgroup2() -> None:
        """Where cgroup version 2 is not at /sys/fs/cgroup (hybrid hosts), crun gives up; read-only, runc keeps out."""
        mounted = hierarchies().v2
        if mounted is not None:
            syscalls.mount(mounted, _CGROUP2, None, c.MS_BIND)
            remount_bind(_CGROUP2, c.MS_RDONLY)

    # -- the engine -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """``create``, hand over the init, ``start``, wait until the program is executed."""
        with _owners_kept(self._order.stdio):
            self._run()

    def _run(self) -> None:
        tool = self._job.tool
        self._progress.doing = f"{tool.name} create"
        with self._console() as console:
            options = [f"--console-socket={_CONSOLE}"] if console else []
            self._call("create", "--pid-file=pid", *options, stdio=self._order.stdio)
            if console:
                self._hand_over_terminal(console)
        self._hand_over_init()
        engine = _running(self._init)
        self._progress.doing = f"{tool.name} start"
        self._call("start", until=self._init_fd)
        self._await_program(engine)

    @contextlib.contextmanager
    def _console(self) -> Iterator[socket.socket | None]:
        if not self._order.plan.program.terminal:
            yield None
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(_CONSOLE)
            listener.listen(1)
            yield listener

    def _call(self, command: str, *options: str, stdio: Iterable[int] = (), until: int = -1) -> None:
        """One command of the engine. Raises :class:`Failure` with what it complained of.

        ``until``: a process without which it has nothing to wait for. crun waits for ever for an init that has died.
        """
        argv = self._job.tool.command(f"{self._directory}/state", "log", command, *options, self._job.container_id)
        pid, pidfd = self._spawn(argv, tuple(stdio))
        try:
            if until >= 0:
                select.select([pidfd, until, self._channel.fileno()], [], [])
                if not self._wait_for(pidfd, _FAREWELL):
                    syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
                    raise Failure(operation=f"{self._job.tool.name} {command}", object=self._job.container_id,
                                  detail="the container's init has died before its program was executed")  # fmt: skip
            self._wait_for(pidfd)
        except Stopped:
            syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
            raise
        finally:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.close(pidfd)
        if code:
            raise self._explained(command, code)

    def _spawn(self, argv: list[str], stdio: tuple[int, ...]) -> tuple[int, int]:
        pid, pidfd = syscalls.clone3(0, signal.SIGCHLD)
        if pid == 0:
            _execute(argv, stdio)
        return pid, pidfd

    def _wait_for(self, pidfd: int, timeout: float | None = None) -> bool:
        """Until the process has ended. Raises :class:`Stopped` if the shim says so meanwhile."""
        channel = self._channel.fileno()
        ready, _, _ = select.select([pidfd, channel], [], [], timeout)
        if channel in ready:
            raise Stopped
        return bool(ready)

    def _hand_over_terminal(self, listener: socket.socket) -> None:
        listener.settimeout(5)
        with listener.accept()[0] as connection:
            _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        if self._order.plan.program.window:
            rows, columns = self._order.plan.program.window
            fcntl.ioctl(fds[0], c.TIOCSWINSZ, rows.to_bytes(2, "little") + columns.to_bytes(2, "little") + bytes(4))
        socket.send_fds(self._channel, [b'{"terminal": true}'], fds)
        os.close(fds[0])

    def _hand_over_init(self) -> None:
        with open("pid") as file:
            self._init = int(file.read())
        self._init_fd = syscalls.pidfd_open(self._init)
        fds = [self._init_fd, *(os.open(f"/proc/{self._init}/ns/{name}", os.O_RDONLY) for name in ("pid", "mnt"))]
        socket.send_fds(self._channel, [json.dumps({"init": self._init}).encode()], fds)

    def _await_program(self, before: _Running) -> None:
        """Until the init runs another program than the engine's. If it ends as the engine's, nothing was executed."""
        pause = _FIRST_LOOK
        while _running(self._init).file in (None, before.file):
            if self._wait_for(self._init_fd, pause):
                break
            pause = min(pause * 2, _LONGEST_LOOK)
        now = _running(self._init)
        if now.file is None and now.name == before.name:
            raise self._explained("start", 0)

    def _explained(self, command: str, code: int) -> Failure:
        return explain(self._job.tool, self._job.spec, command, _complaints(), code, self._version())

    def _version(self) -> str:
        """What the engine calls itself, for the report of a failure."""
        read_end, write_end = os.pipe()
        pid, pidfd = self._spawn([self._job.tool.path, "--version"], (0, write_end, write_end))
        os.close(write_end)
        with open(read_end) as file:
            text = file.readline().strip()
        code = os.waitpid(pid, 0)[1]
        os.close(pidfd)
        return text if code == 0 else ""

    def kill(self) -> None:
        """Take back everything that was started; an init that was handed over is left to the shim to reap."""
        if self._init_fd >= 0:
            syscalls.pidfd_send_signal(self._init_fd, signal.SIGKILL)
        while pids := [pid for pid in _children() if pid != self._init]:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            for pid in pids:
                os.waitpid(pid, 0)


def _protect_host(devices: Iterable[str]) -> None:
    """Make all that is mounted here read-only, but /proc and the device nodes; what is mounted later is as it was made.

    An engine looks for the places of mounts by path, and a program that shares a volume can swap a directory of it for a
    link to the host in between (CVE-2024-45310): then there is nothing to be made at the other end. crun executes itself
    from a read-only mount without a file in /tmp of its own. /proc is for oom_score_adj. A node that the engine binds
    keeps the attributes that the kernel sees in native containers, and nothing can be made in one.
    """
    kept = {}
    for path in ("/proc", *devices):
        flag = c.AT_RECURSIVE if path == "/proc" else 0
        with contextlib.suppress(KernelError):  # no such device: the engine says so
            kept[path] = syscalls.open_tree(path, c.OPEN_TREE_CLONE | c.OPEN_TREE_CLOEXEC | flag)
    syscalls.mount_setattr(c.AT_FDCWD, "/", c.AT_RECURSIVE, attr_set=c.MOUNT_ATTR_RDONLY)
    for path, fd in kept.items():
        if path == "/proc" or not stat.S_ISDIR(os.fstat(fd).st_mode):
            syscalls.move_mount(fd, path, flags=c.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(fd)


def _children() -> list[int]:
    """The children of this process (proc_pid_task_children(5)), which has one thread."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:
        return []  # a kernel without CONFIG_PROC_CHILDREN


@contextlib.contextmanager
def _owners_kept(stdio: Iterable[int]) -> Iterator[None]:
    """Engines give the standard streams to the container's user, for /dev/stdout; files stay the caller's."""
    files = {fd: state for fd in stdio if not stat.S_ISFIFO((state := os.fstat(fd)).st_mode)}
    try:
        yield
    finally:
        for fd, before in files.items():
            now = os.fstat(fd)
            if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
                os.fchown(fd, before.st_uid, before.st_gid)


def _execute(argv: list[str], stdio: tuple[int, ...]) -> NoReturn:
    """The engine's process: it dies with the driver, and sees nothing of the user's environment."""
    try:
        syscalls.prctl(c.PR_SET_PDEATHSIG, signal.SIGKILL)
        null = os.open("/dev/null", os.O_RDWR)
        for number, fd in enumerate(stdio or (null, null, null)):
            os.dup2(fd, number)
        syscalls.close_range(3, flags=c.CLOSE_RANGE_CLOEXEC)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execve(argv[0], argv, {"PATH": process.DEFAULT_PATH})
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is reported
        with open("log", "a") as file:
            file.write(json.dumps({"level": "error", "msg": f"cannot be executed: {error}"}) + "\n")
    finally:
        os._exit(127)


def _complaints() -> list[str]:
    """The errors in the engine's log, the oldest first."""
    try:
        with open("log") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, AttributeError):
            entry = json.loads(line)
            if entry.get("level") in ("error", "fatal") and entry.get("msg"):
                found.append(str(entry["msg"]).strip())
    return found


class _Running(NamedTuple):
    """What a process runs: its name, which stays readable after its end, and the file, which does not."""

    name: str
    file: tuple[int, int] | None


def _running(pid: int) -> _Running:
    with open(f"/proc/{pid}/comm") as stream:
        name = stream.read()
    try:
        state = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return _Running(name, None)
    return _Running(name, (state.st_dev, state.st_ino))
