"""The child's half of the native engine: what runs between clone3(2) and execve(2).

The process is a copy of the shim in new namespaces. It must not import anything any more: once it has entered the
container's root, modules would be the container's. And it must not be inspected: until the program is executed its memory
is the shim's, so it is not dumpable.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, NoReturn

from sandbox.linux import capabilities, constants as c, netlink, syscalls
from sandbox.linux.errors import KernelError
from sandbox.linux.idmap import become_root
from sandbox.linux.users import UserDatabase, UserNotFoundError

from . import beneath, hooks, process, rootfs as roots
from .failure import Failure, describe
from .plan import Plan, Shape
from .steps import Scene, Step, about

#: Read once, in the shim: /proc/sys may be masked in a container.
_HIGHEST_CAPABILITY = capabilities.last()
#: Characters of one text in an error; six bytes each at most, a dozen texts, and the shim reads 64 KiB.
_LONGEST_FACT = 2000


class Order(NamedTuple):
    """Everything the init of a container needs to know."""

    plan: Plan
    rootfs: roots.Rootfs
    layers: list[int]
    prepared: dict[str, int]
    stdio: tuple[int, ...]
    v1_tasks: tuple[int, ...]
    scratch: str
    state: dict[str, object]
    notify: str | None


class Entry(NamedTuple):
    """Everything an exec'd process needs to know; ``flags`` are the namespaces to join with ``init_pidfd``."""

    program: process.Program
    user: str | None
    init_pidfd: int
    flags: int
    stdio: tuple[int, ...]
    v1_tasks: tuple[int, ...]
    mark: bool


def failure_of(message: bytes) -> Failure:
    """The failure that a child reported, or that it died before it could."""
    if not message:
        return Failure(operation="start the process", detail="it died before it could tell why")
    facts = dict(json.loads(message)["error"])
    return Failure(facts.pop("type"), **facts)


#: Messages of a child that bring a descriptor, and what it is: the notification socket, the terminal's master side, a pidfd of
#: the program below a reaping init, the file system that has what is changed of the image.
GIFTS = {b'{"notify": true}': "notify", b'{"terminal": true}': "terminal", b'{"program": true}': "entrance",
         b'{"changes": true}': "changes"}  # fmt: skip


def is_gift(message: bytes) -> bool:
    """Whether this message of a child brings a descriptor."""
    return message in GIFTS


class Progress:
    """The step that is being done, for the error message."""

    doing = "set up the process"


def encode(message: dict[str, Any]) -> bytes:
    """One message to the shim."""
    return json.dumps(message).encode()


def encode_error(error: BaseException, doing: str) -> bytes:
    """What went wrong; long texts (a PATH, a command) are cut, for the message has to be received whole."""
    facts = describe(error, doing)
    return encode({"error": {name: _cut(fact) if isinstance(fact, str) else fact for name, fact in facts.items()}})


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_FACT else f"{text[:_LONGEST_FACT]}…"


def report(channel: socket.socket, error: BaseException, progress: Progress) -> NoReturn:
    """Tell what went wrong, and end."""
    try:
        channel.send(encode_error(error, progress.doing))
    finally:
        os._exit(1)


def main(order: Order, channel: socket.socket) -> NoReturn:
    """The container's init, from birth to execve(2)."""
    progress = Progress()
    try:
        begin(order.stdio, order.v1_tasks)
        await_go(channel)
        progress.doing = "enter the user namespace"
        own_identity()
        if "network" in order.plan.namespaces:
            progress.doing = "bring up the loopback device"
            netlink.loopback_up()
        syscalls.mount(None, "/", None, c.MS_PRIVATE | c.MS_REC)
        roots.mount_scratch(order.scratch, order.rootfs.size)
        finish(order, channel, progress)
    except BaseException as error:  # noqa: BLE001 - it is told to who waits, and the process ends
        report(channel, error, progress)


def await_go(channel: socket.socket) -> None:
    """Wait until the shim has mapped our ids; end if it has gone away instead."""
    if channel.recv(16) != b"go":
        os._exit(1)


def finish(order: Order, channel: socket.socket, progress: Progress, staged: Collection[Step] = ()) -> NoReturn:
    """From a namespace with a scratch tmpfs to the program; ``staged`` are steps that were done ahead (:mod:`.spare`)."""
    if not staged and "cgroup" in order.plan.namespaces:
        progress.doing = "make the cgroup namespace"
        syscalls.unshare(c.CLONE_NEWCGROUP)
    _name_namespaces(order.plan, progress)
    if order.notify:
        progress.doing = "bind the notification socket"
        bind_notify(order.notify, channel)
    _make_root(order, channel, progress, staged)
    if "startContainer" in order.plan.hooks:
        progress.doing = "run the startContainer hooks"
        hooks.run(order.plan.hooks["startContainer"], "startContainer", order.state)
    program = order.plan.program
    if program.terminal:
        progress.doing = "open the terminal"
        _give_terminal(program, channel, console=True)
    progress.doing = "start the program"
    if order.plan.init:
        process.set_oom_score(program)
        _reap_for(program, channel, progress)
    process.become(program, _HIGHEST_CAPABILITY, channel.fileno())


def intermediate(
    order: Order, channel: socket.socket, join: Mapping[str, int], cgroup_fd: int, answer: socket.socket
) -> NoReturn:
    """Join the pod's namespaces and beget the container's init there; tells its process id."""
    progress = Progress()
    try:
        sys.meta_path.clear()
        progress.doing = "join the pod's namespaces"
        for kind in ("user", *(kind for kind in join if kind != "user")):
            syscalls.setns(join[kind], c.NAMESPACES[kind][0])
        if "time" in order.plan.namespaces:
            progress.doing = "set the clocks of the time namespace"
            _offset_clocks(order.plan)
        progress.doing = "make the container's namespaces"
        rest = [kind for kind in order.plan.namespaces if kind not in (*join, "cgroup", "time")]
        flags = sum(c.NAMESPACES[kind][0] for kind in rest) | c.CLONE_PARENT
        pid, _ = syscalls.clone3(flags, 0, cgroup_fd)
        if pid == 0:
            main(order, channel)
        answer.send(str(pid).encode())
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - it is told to who waits, and the process ends
        report(answer, error, progress)


def enter(entry: Entry, channel: socket.socket) -> NoReturn:
    """An exec'd process, from birth in the container's process namespace to execve(2)."""
    progress = Progress()
    try:
        begin(entry.stdio, entry.v1_tasks)
        progress.doing = "join the container"
        # It is seen from within already, and until it executes its program its memory is the shim's.
        syscalls.prctl(c.PR_SET_DUMPABLE, 0)
        own_keyring()
        syscalls.setns(entry.init_pidfd, entry.flags)
        become_root()
        syscalls.prctl(c.PR_SET_DUMPABLE, 0)
        if entry.mark:
            syscalls.unshare(c.CLONE_NEWCGROUP)
        os.setsid()
        program = _with_user(entry)
        if program.terminal:
            progress.doing = "open the terminal"
            _give_terminal(program, channel, console=False)
        progress.doing = "start the program"
        process.become(program, _HIGHEST_CAPABILITY, channel.fileno(), make_cwd=False)
    except BaseException as error:  # noqa: BLE001 - it is told to who waits, and the process ends
        report(channel, error, progress)


def _with_user(entry: Entry) -> process.Program:
    """Resolve a user by the container's own files as they are now; HOME follows unless it was given."""
    if entry.user is None:
        return entry.program
    root_fd = os.open("/", c.O_PATH | os.O_DIRECTORY)
    files = [beneath.read_file(root_fd, path).decode("utf-8", "replace") for path in ("/etc/passwd", "/etc/group")]
    try:
        user = UserDatabase(*files).lookup(entry.user)
    except UserNotFoundError as error:
        raise Failure("UserNotFound", operation=f"look up the {error.kind}", object=error.name,
                      detail=f"not in the container's /etc/{'passwd' if error.kind == 'user' else 'group'}",
                      hint="add it there, or give a number") from None  # fmt: skip
    env = {"HOME": user.home, **entry.program.env}
    groups = tuple(dict.fromkeys((user.gid, *user.groups))) if entry.program.may_set_groups else ()
    return entry.program._replace(uid=user.uid, gid=user.gid, groups=groups, env=env)


def begin(stdio: tuple[int, ...], v1_tasks: tuple[int, ...]) -> None:
    """What comes first in every child: no imports any more, the standard streams, the version 1 cgroups."""
    sys.meta_path.clear()
    process.open_oom_score()
    for number, fd in enumerate(stdio):
        os.dup2(fd, number)
    for fd in v1_tasks:
        # "0" is the writer itself; a single thread moves without the global lock that moving others takes.
        os.write(fd, b"0")


def own_identity() -> None:
    """Be root of the new user namespace, unobserved, in a session and with a keyring of one's own."""
    own_keyring()
    become_root()
    syscalls.prctl(c.PR_SET_DUMPABLE, 0)
    os.setsid()


def own_keyring() -> None:
    """Programs that may use keyctl(2) would otherwise find each other's keys in the shim's session keyring.

    Called before the user changes: it counts against the quota of whoever runs the shim, which for root has no bound.
    """
    try:
        syscalls.join_session_keyring()
    except KernelError as error:
        if error.errno == errno.EDQUOT:
            raise Failure(operation="make a session keyring", errno=errno.EDQUOT,
                          cause="this user has as many keys as the kernel allows",
                          hint="raise kernel.keys.maxkeys (sysctl)") from None  # fmt: skip
        if error.errno != errno.ENOSYS:
            raise


def _name_namespaces(plan: Plan, progress: Progress) -> None:
    progress.doing = "set the host name"
    if plan.hostname:
        syscalls.sethostname(plan.hostname)
    if plan.domainname:
        syscalls.setdomainname(plan.domainname)


def _offset_clocks(plan: Plan) -> None:
    """A time namespace is for the children of who makes it, and takes its offsets before the first is born."""
    syscalls.unshare(c.CLONE_NEWTIME)
    with open("/proc/self/timens_offsets", "w") as file:
        rows = ((clock, offset.get("secs", 0), offset.get("nanosecs", 0)) for clock, offset in plan.time_offsets.items())
        file.writelines(f"{clock} {seconds} {nanoseconds}\n" for clock, seconds, nanoseconds in rows)


def _make_root(order: Order, channel: socket.socket, progress: Progress, staged: Collection[Step]) -> None:
    plan = order.plan
    progress.doing = "make the root file system"
    scene = roots.assemble(order.rootfs, order.layers, order.scratch, order.prepared)
    for kind in ("prestart", "createRuntime"):
        if kind in plan.hooks:
            _hooks_of_shim(channel, kind)
    if "createContainer" in plan.hooks:
        hooks.run(plan.hooks["createContainer"], "createContainer", order.state)
    if staged:
        roots.move_staged(scene)
    enter_root(plan.shape(order.rootfs), scene, channel, progress, staged)


def enter_root(
    shape: Shape, scene: Scene, channel: socket.socket, progress: Progress, staged: Collection[Step] = ()
) -> None:  # fmt: skip
    """Do the steps in a root that was assembled, and make it the root."""
    for step in shape.steps:
        if step in staged:
            continue
        progress.doing = step.describe()
        step.execute(scene)
    progress.doing = "enter the root file system"
    _give_changes(shape.rootfs, channel)
    if shape.read_only_root:
        for overlay in (*shape.rootfs.overlays, roots.Overlay("/", ())):
            make_read_only(scene.root_fd, overlay.target)
    os.fchdir(scene.root_fd)
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", c.MNT_DETACH)
    os.chdir("/")
    if shape.propagation != c.MS_PRIVATE | c.MS_REC:
        syscalls.mount(None, "/", None, shape.propagation)


def _give_changes(rootfs: roots.Rootfs, channel: socket.socket) -> None:
    """The scratch file system, which nobody can reach any more once the root is entered: a layer may be made of it."""
    roots.note_made(rootfs)
    fd = os.open(".", c.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    socket.send_fds(channel, [b'{"changes": true}'], [fd])
    os.close(fd)


def make_read_only(root_fd: int, target: str) -> None:
    """Make the mount at ``target`` of the new root read-only."""
    fd = beneath.locate(root_fd, target)
    with about(target):
        syscalls.mount_setattr(fd, "", c.AT_EMPTY_PATH, attr_set=c.MOUNT_ATTR_RDONLY)
    os.close(fd)


def _hooks_of_shim(channel: socket.socket, kind: str) -> None:
    """These run outside the container: ask the shim, and wait for its word."""
    channel.send(json.dumps({"hooks": kind}).encode())
    answer = channel.recv(65536)
    if answer != b"ok":
        raise failure_of(answer)


def bind_notify(name: str, channel: socket.socket) -> None:
    """An abstract socket in the pod's network, there before the program can look for it (sd_notify(3))."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        socket.send_fds(channel, [b'{"notify": true}'], [sock.fileno()])


def _give_terminal(program: process.Program, channel: socket.socket, *, console: bool) -> None:
    master = process.open_terminal(program)
    if console:
        fd = os.open("/dev/console", os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600)
        syscalls.mount(os.readlink("/proc/self/fd/0"), beneath.as_path(fd), None, c.MS_BIND)
        os.close(fd)
    socket.send_fds(channel, [b'{"terminal": true}'], [master])
    os.close(master)


def _reap_for(program: process.Program, channel: socket.socket, progress: Progress) -> None:
    """Stay as process 1: forward signals, reap orphans, end as the program ends. Returns in the program's process."""
    forwarded = {number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)}
    signal.pthread_sigmask(signal.SIG_SETMASK, forwarded)
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if program.terminal:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(0, os.getpid())
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        progress.doing = "start the program"
        # Nobody but root may join the namespaces of a process that is not dumpable (setns(2)), and process 1 stays so.
        own = syscalls.pidfd_open(os.getpid())
        socket.send_fds(channel, [b'{"program": true}'], [own])
        os.close(own)
        return
    channel.close()
    syscalls.close_range(0)
    syscalls.prctl(c.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.capset(capabilities.CAP_KILL, capabilities.CAP_KILL, 0)
    while True:
        number = signal.sigwait(forwarded)
        if number != signal.SIGCHLD:
            os.kill(pid, number)
            continue
        _reap(pid)


def _reap(main_pid: int) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid == main_pid:
            code: Any = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


__all__ = [
    "GIFTS",
    "Entry",
    "Order",
    "Progress",
    "await_go",
    "begin",
    "bind_notify",
    "encode",
    "encode_error",
    "enter",
    "enter_root",
    "failure_of",
    "finish",
    "intermediate",
    "is_gift",
    "main",
    "make_read_only",
    "own_identity",
    "report",
]  # fmt: skip
