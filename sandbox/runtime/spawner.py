"""A process that executes programs in a container quickly.

Copying the shim for every exec costs most of the time that an exec takes. A spawner is copied once: it joins the container's
namespaces (but for the process namespace, which is for its children only, so the container does not see it), takes on the
identity that programs get there, and from then on starts them with posix_spawn(3), which copies nothing. It serves one
program at a time and lives in the cgroup of that program.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from sandbox.linux import capabilities, constants as c, syscalls
from sandbox.linux.idmap import become_root

from . import init, process
from .failure import Failure
from .native import Launch, Placement

_HIGHEST_CAPABILITY = capabilities.last()
_MESSAGE = 256 * 1024


class Request(NamedTuple):
    """What differs from one program to the next; the three standard streams travel along."""

    args: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    #: Tell the process id as soon as it runs.
    announce: bool


def identity(program: process.Program) -> process.Program:
    """What of a program a spawner takes on for good."""
    return program._replace(args=(), env={}, cwd="/")


def start(
    program: process.Program, *, pidns_fd: int, init_pidfd: int, namespaces: Sequence[str], placement: Placement
) -> tuple[Launch, socket.socket]:  # fmt: skip
    """Start a spawner for programs like ``program``. It answers ``{"ready": true}`` or an error.

    Its own end of the channel comes along: a request that it dies without reading can be read back from there.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid, pidfd = syscalls.clone3(0, signal.SIGCHLD, placement.cgroup_fd)
    if pid == 0:
        flags = sum(c.NAMESPACES[kind][0] for kind in namespaces if kind != "pid")
        _serve(identity(program), pidns_fd, init_pidfd, flags, placement.v1_tasks, theirs)
    return Launch(pid, pidfd, ours, {}), theirs


def ask(channel: socket.socket, request: Request, stdio: Sequence[int]) -> bool:
    """Have a program started; False if the request does not fit a message or the spawner is gone."""
    try:
        socket.send_fds(channel, [pickle.dumps(request)], list(stdio))
    except OSError:
        return False
    return True


def unread(theirs: socket.socket) -> list[int] | None:
    """The standard streams of the program that a dead spawner was asked for and knew nothing of; None if it did."""
    theirs.setblocking(False)  # not before: the spawner has the same open file. recv_fds ignores its flags
    try:
        return socket.recv_fds(theirs, _MESSAGE, 3)[1]
    except BlockingIOError:
        return None


def _serve(
    program: process.Program, pidns_fd: int, init_pidfd: int, flags: int, v1_tasks: tuple[int, ...],
    channel: socket.socket,
) -> NoReturn:  # fmt: skip
    progress = init.Progress()
    try:
        init.begin((), v1_tasks)
        progress.doing = "join the container"
        init.own_keyring()
        syscalls.setns(pidns_fd, c.CLONE_NEWPID)
        syscalls.setns(init_pidfd, flags)
        # A copy of the shim's descriptors would keep the namespaces of other pods alive.
        process.close_all_but((channel.fileno(), process.oom_score_fd()))
        become_root()
        syscalls.prctl(c.PR_SET_DUMPABLE, 0)
        os.setsid()
        process.take_identity(program, _HIGHEST_CAPABILITY, channel.fileno())
        _send(channel, {"ready": True})
        while True:
            message, fds, _, _ = socket.recv_fds(channel, _MESSAGE, 3)
            if not message:
                os._exit(0)
            for fd in fds:
                os.set_inheritable(fd, False)  # recv_fds does not pass on MSG_CMSG_CLOEXEC
            _run(pickle.loads(message), fds, program, channel)  # noqa: S301 - from the shim, over a socketpair
    except BaseException as error:  # noqa: BLE001 - it is told to who waits, and the process ends
        init.report(channel, error, progress)


def _run(request: Request, fds: list[int], program: process.Program, channel: socket.socket) -> None:
    try:
        process.enter_cwd(request.cwd, make=False)
        wanted = program._replace(args=request.args, env=request.env)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]

        def spawn(path: str, args: tuple[str, ...], env: dict[str, str]) -> int:
            return os.posix_spawn(path, args, env, file_actions=actions, setsid=True)

        pid = process.execute(wanted, spawn)
    except (OSError, Failure) as error:
        channel.send(init.encode_error(error, "start the program"), socket.MSG_NOSIGNAL)
        return
    finally:
        for fd in fds:
            os.close(fd)
    if request.announce:
        _send(channel, {"pid": pid})
    _, status, usage = os.wait4(pid, 0)
    used = {"user": usage.ru_utime, "system": usage.ru_stime, "max_rss": usage.ru_maxrss * 1024}
    _send(channel, {"returncode": os.waitstatus_to_exitcode(status), "usage": used})


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.send(init.encode(message), socket.MSG_NOSIGNAL)
