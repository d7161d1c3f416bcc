"""A process beside the shim that makes spares, because that takes longer than the shim should be away.

It is forked from the shim when the first spare is wanted. The spares that it makes are the shim's children (CLONE_PARENT).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from sandbox.linux import syscalls
from sandbox.linux.cgroup import Cgroup
from sandbox.linux.idmap import IdMap
from sandbox.linux.mounts import read_only_clone
from sandbox.runtime import finished, spare as spares, stub
from sandbox.runtime.failure import Failure
from sandbox.runtime.native import Launch
from sandbox.runtime.steps import Step

from .container import placement
from .loop import Loop

_MESSAGE = 65536
_MOST_FDS = 16
#: It was killed so often: somebody, or a bug of ours, does not want it.
_MOST_DEATHS = 3
#: The first descriptor after the standard streams.
_FIRST = 3


class Order(NamedTuple):
    """A spare that is wanted: its steps, and the cgroup2 scope and container's directories it is born in."""

    steps: tuple[Step, ...]
    container: str
    scope: str | None
    controllers: set[str]
    #: Version 1 directories of the container, by controller.
    v1: dict[str, str]
    #: The scope is there already, and is not ours to remove.
    held: bool = False
    #: What is to be finished ahead; None if a beginning is all that is wanted.
    finished: finished.Order | None = None

    @property
    def cgroup(self) -> Cgroup | None:
        """The container's cgroup."""
        return Cgroup(f"{self.scope}/{self.container}" if self.scope else None, self.v1) if self.scope or self.v1 else None


class Nursery:
    """The shim's side."""

    def __init__(
        self, loop: Loop, space: str, idmap: IdMap, userns_fd: int, made: Callable[[Order, spares.Spare | None], None]
    ) -> None:  # fmt: skip
        self._loop, self._space, self._idmap, self._userns_fd, self._made = loop, space, idmap, userns_fd, made
        self._socket: socket.socket | None = None
        self._process = (-1, -1)
        self._order: Order | None = None
        self._deaths = 0

    def ask(self, order: Order) -> bool:
        """Have a spare made; ``made`` is called with it, or with None. False if there is no nursery any more."""
        if self._deaths >= _MOST_DEATHS:
            return False
        if self._socket is None:
            self._start()
        assert self._socket is not None
        message = pickle.dumps(order)
        if len(message) > _MESSAGE:
            order = order._replace(finished=None)  # hundreds of layers
            message = pickle.dumps(order)
        self._order = order
        self._socket.send(message)
        return True

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            stub_fd = _write_stub(f"{self._space}/{stub.NAME}")
            self._process = syscalls.clone3(0, signal.SIGCHLD)
            if self._process[0] == 0:
                self._socket.close()
                _serve(theirs, f"{self._space}/scratch", self._idmap, self._userns_fd, stub_fd)
            if stub_fd >= 0:
                os.close(stub_fd)
        self._socket.setblocking(False)
        self._loop.watch(self._socket.fileno(), self._heard)

    def works_in(self, scope: str | None) -> bool:
        """True if a spare is being made in this scope."""
        return self._order is not None and scope is not None and self._order.scope == scope

    def finish(self) -> None:
        """Wait until it is made: milliseconds."""
        if self._socket is not None:
            select.select([self._socket], [], [])
            self._heard(0)

    def _heard(self, _events: int) -> None:
        if self._socket is None:
            return
        try:
            message, fds, _, _ = socket.recv_fds(self._socket, _MESSAGE, _MOST_FDS)
        except BlockingIOError:
            return  # it has been fetched already, by :meth:`finish`
        except ConnectionResetError:
            message, fds = b"", []  # it died before it had read the order
        order, self._order = self._order, None
        if not message or order is None:
            self.close()  # the next order starts another, but not for ever
            self._deaths += 1
            if order is not None:
                with contextlib.suppress(OSError):
                    remove_cgroups(order)
                self._made(order, None)
            return
        pid, kinds = pickle.loads(message)  # noqa: S301 - from a process of ours, over a socketpair
        if pid is None:
            self._made(order, None)
            return
        if len(fds) != 2 + len(kinds):
            self._lost(order, pid, fds)
            return
        namespaces = dict(zip(kinds, fds[2:], strict=True))
        launch = Launch(pid, fds[0], socket.socket(fileno=fds[1]), namespaces)
        for fd in fds:
            os.set_inheritable(fd, False)
        self._made(order, spares.Spare(launch, order.steps))

    def _lost(self, order: Order, pid: int, fds: list[int]) -> None:
        """We have no room for its descriptors (RLIMIT_NOFILE), so it is of no use."""
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for fd in fds:
            os.close(fd)
        remove_cgroups(order)
        self._made(order, None)

    def close(self) -> None:
        """End the process."""
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None
            pid, pidfd = self._process
            syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(pidfd)


def _write_stub(path: str) -> int:
    """A descriptor of the stub's program, -1 where there is none."""
    if stub.HERE is None:
        return -1
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o755)
    try:
        os.write(fd, stub.program(stub.HERE))
    finally:
        os.close(fd)
    # Read-only: containers that run as the caller own this file, and find it as /proc/self/exe.
    protected = read_only_clone(path)
    try:
        return os.open(f"/proc/self/fd/{protected}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(protected)


def _serve(sock: socket.socket, scratch: str, idmap: IdMap, userns_fd: int, stub_fd: int) -> NoReturn:
    try:
        sys.meta_path.clear()
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        keep = [sock.fileno(), *(fd for fd in (userns_fd, stub_fd) if fd >= 0)]
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST + len(keep)) for fd in keep]
        own = [os.dup2(fd, number, inheritable=False) for number, fd in enumerate(moved, _FIRST)]
        syscalls.close_range(_FIRST + len(keep))
        userns_fd = own[1] if userns_fd >= 0 else -1
        workshop = _Workshop(scratch, idmap, userns_fd, own[-1] if stub_fd >= 0 else -1)
        with socket.socket(fileno=own[0]) as shim:
            while message := shim.recv(_MESSAGE):
                _answer(shim, pickle.loads(message), workshop)  # noqa: S301 - from the shim, over a socketpair
    except BaseException:  # noqa: BLE001 - the shim's error output is kept, and the process ends
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


class _Workshop(NamedTuple):
    """What is needed for every spare."""

    scratch: str
    idmap: IdMap
    userns_fd: int
    stub_fd: int


def _answer(shim: socket.socket, order: Order, workshop: _Workshop) -> None:
    try:
        spare = _make(order, workshop)
    except (OSError, Failure):
        # No descriptors or processes left, or a root that has gone: who starts without a spare will say so if it matters.
        with contextlib.suppress(OSError):
            remove_cgroups(order)
        shim.send(pickle.dumps((None, ())))
        return
    launch = spare.launch
    fds = [launch.pidfd, launch.channel.fileno(), *launch.namespaces.values()]
    socket.send_fds(shim, [pickle.dumps((launch.pid, list(launch.namespaces)))], fds)
    launch.channel.close()
    for fd in (launch.pidfd, *launch.namespaces.values()):
        os.close(fd)


def _make(order: Order, workshop: _Workshop) -> spares.Spare:
    if order.scope is not None and not order.held:
        scope = Cgroup(order.scope)
        scope.create()
        scope.enable(order.controllers)
    with contextlib.ExitStack() as stack:
        where = placement(make_cgroups(order), stack)
        if order.finished is None:
            return spares.make(order.steps, idmap=workshop.idmap, scratch=workshop.scratch, placement=where)
        return finished.make(order.finished, **workshop._asdict(), placement=where)


def make_cgroups(order: Order) -> Cgroup | None:
    """The container's cgroup with its leaf; returns where the init goes."""
    cgroup = order.cgroup
    if cgroup is None:
        return None
    cgroup.create()
    main = cgroup.child("main").v2_only()
    main.create()
    return Cgroup(main.v2, cgroup.v1)


def remove_cgroups(order: Order) -> None:
    """What :func:`make_cgroups` made, and the scope if it is ours."""
    if order.cgroup is not None:
        order.cgroup.remove()
    if order.scope is not None and not order.held:
        Cgroup(order.scope).remove()
