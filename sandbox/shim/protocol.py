"""Messages between client and shim: JSON objects over SOCK_SEQPACKET, file descriptors beside them.

A request carries the socket for its answers as its first descriptor. So answers need no numbers, any number of threads may
ask at once, and an asker that goes away is noticed.

Request ``{"op": "container.start", …}`` → one or more answers: ``{"event": "started", …}``, or ``{"error": {…}}`` with the
facts of :meth:`sandbox.errors.SandboxError.to_dict`.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

#: Changes when a client and a shim of different versions would misunderstand each other.
VERSION = 1
#: Larger messages travel in a memfd; a SEQPACKET message must fit the socket buffer (about 200 KiB by default).
_INLINE_LIMIT = 64 * 1024
_MAX_FDS = 16
_LARGE = b"\0memfd"


def encode(message: dict[str, Any]) -> bytes:
    """Compact JSON; bytes that are not UTF-8 in paths survive as surrogates."""
    return json.dumps(message, separators=(",", ":")).encode()


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message; blocks if the socket does."""
    data = encode(message)
    if len(data) <= _INLINE_LIMIT:
        _sendmsg(sock, data, fds)
        return
    large = os.memfd_create("sandbox-message", os.MFD_CLOEXEC)
    try:
        _write_all(large, data)
        _sendmsg(sock, _LARGE, [*fds, large])
    finally:
        os.close(large)


def _sendmsg(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message and its descriptors (close-on-exec); ``(None, [])`` at the end of the connection."""
    data, ancillary, flags, _ = sock.recvmsg(
        _INLINE_LIMIT + 4096, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
    )  # fmt: skip
    fds = _descriptors(ancillary)
    if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        for fd in fds:
            os.close(fd)
        raise OSError("a message or its file descriptors were cut off (descriptor limit reached?)")
    if not data and not fds:
        return None, []
    if data == _LARGE:
        large = fds.pop()
        with os.fdopen(large, "rb") as file:
            file.seek(0)
            data = file.read()
    return json.loads(data), fds


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
