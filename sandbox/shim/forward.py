"""Published ports: a process that listens on the host and connects inside a pod's network."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
from typing import NoReturn

from sandbox.linux import constants as c, syscalls
from sandbox.linux.errors import KernelError

from .loop import Loop

_CHUNK = 65536
#: Seconds without new clients when no descriptor is free for one.
_PAUSE = 0.1


def start(host: str, host_port: int, port: int, netns_fd: int | None) -> tuple[int, int, tuple[str, int]]:
    """Listen on ``host:host_port`` (0 for any free one) and forward to ``port`` in the network namespace.

    Returns (pid, pidfd, address). The port is held from before the process exists, so nobody else can take it.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, host_port))
            listener.listen(128)
        except OSError as error:
            raise KernelError(error.errno or 0, "listen on", f"{host}:{host_port}") from None
        pid, pidfd = syscalls.clone3(0, signal.SIGCHLD)
        if pid == 0:
            _serve(listener, port, netns_fd)
        return pid, pidfd, listener.getsockname()[:2]


def _serve(listener: socket.socket, port: int, netns_fd: int | None) -> NoReturn:
    try:
        sys.meta_path.clear()
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        if netns_fd is not None:
            syscalls.setns(netns_fd, c.CLONE_NEWNET)
        keep = os.dup2(listener.fileno(), 3)
        syscalls.close_range(4)
        loop = Loop()
        listening = socket.socket(fileno=keep)
        listening.setblocking(False)
        _listen(loop, listening, port)
        loop.run()
    finally:
        os._exit(1)


def _listen(loop: Loop, listener: socket.socket, port: int) -> None:
    loop.watch(listener.fileno(), lambda _events: _accept(loop, listener, port))


def _accept(loop: Loop, listener: socket.socket, port: int) -> None:
    try:
        client, _ = listener.accept()
    except BlockingIOError:
        return
    except OSError:  # no descriptor is free: the next client waits until one is
        loop.forget(listener.fileno())
        loop.later(_PAUSE, lambda: _listen(loop, listener, port))
        return
    _Dial(loop, client, port)


class _Dial:
    """A client whose server is being called. Others are served meanwhile: a full backlog may not answer for minutes."""

    def __init__(self, loop: Loop, client: socket.socket, port: int) -> None:
        self._loop, self._client, self._port = loop, client, port
        self._server: socket.socket | None = None
        self._places = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
        self._go_on()

    def _go_on(self) -> None:
        """Until a server has answered, or must be waited for."""
        while self._places:
            error = self._ask(*self._places[0])
            if error in {errno.EINPROGRESS, errno.EALREADY}:
                return
            if error in {0, errno.EISCONN} and self._server is not None:
                _Pair(self._loop, self._client, self._server)
                return
            self._hang_up()
            del self._places[0]
        # An abortive close: the client sees "connection reset", as if nobody listened.
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._client.close()

    def _ask(self, family: socket.AddressFamily, address: str) -> int:
        """The error number of connect(2), which says each time how far it is; events may be of the number's last bearer."""
        if self._server is None:
            try:
                self._server = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            except OSError as error:  # a kernel without IPv6, or no descriptor is free
                return error.errno or errno.EIO
            self._loop.watch(self._server.fileno(), lambda _events: self._go_on(), select.EPOLLOUT)
        return self._server.connect_ex((address, self._port))

    def _hang_up(self) -> None:
        if self._server is not None:
            self._loop.forget(self._server.fileno())
            self._server.close()
            self._server = None


class _Pair:
    """One connection, both ways; each side is closed for writing when the other has ended."""

    def __init__(self, loop: Loop, left: socket.socket, right: socket.socket) -> None:
        self._loop = loop
        self._peers = {left.fileno(): (left, right), right.fileno(): (right, left)}
        self._pending: dict[int, bytes] = {left.fileno(): b"", right.fileno(): b""}
        self._ended: set[int] = set()
        for sock in (left, right):
            sock.setblocking(False)
            self._watch(sock)

    def _watch(self, sock: socket.socket) -> None:
        """Read from a side only while what it said before has been passed on."""
        fd, (_, peer) = sock.fileno(), self._peers[sock.fileno()]
        events = select.EPOLLOUT if self._pending[fd] else 0
        if not self._pending[peer.fileno()] and fd not in self._ended:
            events |= select.EPOLLIN
        self._loop.watch(fd, lambda ready: self._ready(sock, peer, ready), events)

    def _ready(self, sock: socket.socket, peer: socket.socket, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._flush(sock)
            if events & (select.EPOLLIN | select.EPOLLHUP) and sock.fileno() not in self._ended:
                self._read(sock, peer)
            elif events & (select.EPOLLERR | select.EPOLLHUP) and not events & select.EPOLLOUT:
                self._close()
                return
        except OSError:
            self._close()
            return
        if len(self._ended) == 2 and not any(self._pending.values()):
            self._close()
            return
        self._watch(sock)
        self._watch(peer)

    def _read(self, sock: socket.socket, peer: socket.socket) -> None:
        try:
            data = sock.recv(_CHUNK)
        except BlockingIOError:  # the event was for a socket that had the same number
            return
        if data:
            self._pending[peer.fileno()] += data
            self._flush(peer)
            return
        self._ended.add(sock.fileno())
        if not self._pending[peer.fileno()]:
            peer.shutdown(socket.SHUT_WR)

    def _flush(self, sock: socket.socket) -> None:
        fd = sock.fileno()
        if self._pending[fd]:
            try:
                sent = sock.send(self._pending[fd])
            except BlockingIOError:
                return
            self._pending[fd] = self._pending[fd][sent:]
        peer = self._peers[fd][1]
        if not self._pending[fd] and peer.fileno() in self._ended:
            sock.shutdown(socket.SHUT_WR)

    def _close(self) -> None:
        for fd, (sock, _) in list(self._peers.items()):
            self._loop.forget(fd)
            sock.close()
        self._peers.clear()
