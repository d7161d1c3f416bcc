"""A process beside the shim that makes spares, because that takes longer than the shim should be away.

It is forked from the shim when the first spare is wanted. The spares that it makes are the shim's children (CLONE_PARENT).
"""

from __future__ import annotations

import contextlib
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
from sandbox.runtime import spare as spares
from sandbox.runtime.native import Launch
from sandbox.runtime.steps import Step

from .loop import Loop

_MESSAGE = 65536
_MOST_FDS = 16


class Order(NamedTuple):
    """A spare that is wanted: its steps, and the cgroup2 scope and container directory it is born in."""

    steps: tuple[Step, ...]
    container: str
    scope: str | None
    controllers: set[str]


class Nursery:
    """The shim's side."""

    def __init__(
        self, loop: Loop, scratch: str, idmap: IdMap, made: Callable[[Order, spares.Spare | None], None]
    ) -> None:  # fmt: skip
        self._loop, self._scratch, self._idmap, self._made = loop, scratch, idmap, made
        self._socket: socket.socket | None = None
        self._process = (-1, -1)
        self._order: Order | None = None
        self._broken = False

    def ask(self, order: Order) -> bool:
        """Have a spare made; ``made`` is called with it, or with None. False if there is no nursery any more."""
        if self._broken:
            return False
        if self._socket is None:
            self._start()
        assert self._socket is not None
        self._order = order
        self._socket.send(pickle.dumps(order))
        return True

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = syscalls.clone3(0, signal.SIGCHLD)
            if self._process[0] == 0:
                self._socket.close()
                _serve(theirs, self._scratch, self._idmap)
        self._loop.watch(self._socket.fileno(), self._heard)

    def _heard(self, events: int) -> None:
        assert self._socket is not None and self._order is not None
        message, fds, _, _ = socket.recv_fds(self._socket, _MESSAGE, _MOST_FDS)
        order, self._order = self._order, None
        if not message or (events & select.EPOLLHUP and not fds):
            self._broken = True
            self.close()
            self._made(order, None) if order else None
            return
        pid, kinds = pickle.loads(message)  # noqa: S301 - from a process of ours, over a socketpair
        if pid is None:
            self._made(order, None)
            return
        namespaces = dict(zip(kinds, fds[2:], strict=True))
        launch = Launch(pid, fds[0], socket.socket(fileno=fds[1]), namespaces)
        for fd in fds:
            os.set_inheritable(fd, False)
        self._made(order, spares.Spare(launch, order.steps))

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


def _serve(sock: socket.socket, scratch: str, idmap: IdMap) -> NoReturn:
    try:
        sys.meta_path.clear()
        keep = os.dup2(sock.fileno(), 3)
        syscalls.close_range(4)
        with socket.socket(fileno=keep) as shim:
            while message := shim.recv(_MESSAGE):
                _answer(shim, pickle.loads(message), scratch, idmap)  # noqa: S301 - from the shim, over a socketpair
    finally:
        os._exit(0)


def _answer(shim: socket.socket, order: Order, scratch: str, idmap: IdMap) -> None:
    try:
        spare = _make(order, scratch, idmap)
    except OSError:
        # No descriptors or processes left: the start that has to do without a spare will say so if it matters.
        if order.scope is not None:
            with contextlib.suppress(OSError):
                Cgroup(order.scope).remove()
        shim.send(pickle.dumps((None, ())))
        return
    launch = spare.launch
    fds = [launch.pidfd, launch.channel.fileno(), *launch.namespaces.values()]
    socket.send_fds(shim, [pickle.dumps((launch.pid, list(launch.namespaces)))], fds)
    launch.channel.close()
    for fd in (launch.pidfd, *launch.namespaces.values()):
        os.close(fd)


def _make(order: Order, scratch: str, idmap: IdMap) -> spares.Spare:
    if order.scope is None:
        return spares.make(order.steps, idmap=idmap, scratch=scratch, cgroup_fd=-1)
    scope = Cgroup(order.scope)
    scope.create()
    scope.enable(order.controllers)
    scope.child(order.container).create()
    main = scope.child(order.container).child("main")
    main.create()
    cgroup_fd = main.open_directory()
    try:
        return spares.make(order.steps, idmap=idmap, scratch=scratch, cgroup_fd=cgroup_fd)
    finally:
        os.close(cgroup_fd)
