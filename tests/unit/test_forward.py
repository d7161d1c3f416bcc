"""A forwarder lives on, whatever becomes of one client."""

from __future__ import annotations

import errno
import select
import socket

from sandbox.shim import forward
from sandbox.shim.loop import Loop


def run(loop: Loop, seconds: float) -> None:
    loop.running = True
    loop.later(seconds, lambda: setattr(loop, "running", False))
    loop.run()


def test_an_event_for_the_socket_that_had_the_number_before() -> None:
    loop = Loop()
    (client, left), (right, server) = socket.socketpair(), socket.socketpair()
    with client, left, right, server:
        forward._Pair(loop, left, right)
        loop._callbacks[left.fileno()](select.EPOLLIN)
        client.sendall(b"still there")
        run(loop, 0.05)
        server.setblocking(False)
        assert server.recv(100) == b"still there"


class Full(socket.socket):
    """A listener of a process that has no descriptor left, once."""

    calls = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.calls += 1
        if self.calls == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_no_descriptor_for_a_client() -> None:
    loop = Loop()
    with Full() as listener, socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        forward._listen(loop, listener, server.getsockname()[1])
        client.connect(listener.getsockname())
        client.sendall(b"patient")
        run(loop, forward._PAUSE * 3)
        server.settimeout(1)
        with server.accept()[0] as connection:
            assert connection.recv(100) == b"patient"
        client.close()
        run(loop, 0.05)
