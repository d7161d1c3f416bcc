"""One request's way back: the socket on which its answers go."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any

from . import protocol
from .loop import Loop


class Answers:
    """Sends the answers to one request; knows when the asker has gone away."""

    def __init__(self, loop: Loop, fd: int) -> None:
        self._loop = loop
        self._socket: socket.socket | None = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._watched = False

    @property
    def open(self) -> bool:
        """False once it is finished."""
        return self._socket is not None

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> bool:
        """Send one answer. False if the asker is gone, or slower than its socket's buffer holds."""
        if self._socket is None:
            return False
        try:
            protocol.send(self._socket, message, fds)
        except OSError:
            return False
        return True

    def finish(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send the last answer and close."""
        self.send(message, fds)
        self.close()

    def on_gone(self, callback: Callable[[], object]) -> None:
        """Call back, once, if the asker closes its end before the last answer."""
        assert self._socket is not None
        self._watched = True
        fd = self._socket.fileno()

        def gone(_events: int) -> None:
            self._loop.forget(fd)
            callback()

        self._loop.watch(fd, gone, select.EPOLLRDHUP)

    def when_writable(self, callback: Callable[[], None], gone: Callable[[], None]) -> None:
        """Call back once there is room for another answer."""
        assert self._socket is not None
        self._watched = True

        def ready(events: int) -> None:
            if events & (select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP):
                gone()
                return
            if self._socket is not None:
                self._loop.watch(self._socket.fileno(), lambda _events: gone(), select.EPOLLRDHUP)
            callback()

        self._loop.watch(self._socket.fileno(), ready, select.EPOLLOUT | select.EPOLLRDHUP)

    def close(self) -> None:
        """No more answers."""
        if self._socket is not None:
            if self._watched:
                self._loop.forget(self._socket.fileno())
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None
