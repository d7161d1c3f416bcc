"""Our side of socket activation: hands listening sockets to :mod:`sandbox.services.activation`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from sandbox.errors import ModelError
from sandbox.services import activation

__all__ = ["Giver", "named_sockets"]

_UCRED = struct.Struct("3i")


def named_sockets(sockets: Mapping[str, Any] | Iterable[Any] | None) -> list[tuple[str, int]]:
    """(name, descriptor) of each; a list gets the name ``listen``, as ``sd_listen_fds_with_names(3)`` would have others.

    :raises ModelError: something that is no socket, or a name that cannot be passed on
    """
    if sockets is None:
        return []
    pairs = sockets.items() if isinstance(sockets, Mapping) else (("listen", sock) for sock in sockets)
    found = [(_name(name), _descriptor(sock)) for name, sock in pairs]
    if len(found) > activation.MOST:
        raise _error(len(found), f"more than {activation.MOST} sockets", "pass fewer")
    return found


def _name(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name) < 256 or ":" in name or not name.isprintable():
        raise _error(name, "not a name for a socket", "use up to 255 printable characters, without `:`")
    return name


def _descriptor(sock: Any) -> int:
    fd = sock if isinstance(sock, int) else sock.fileno()
    try:
        with socket.socket(fileno=os.dup(fd)):
            return int(fd)
    except OSError as error:
        raise _error(sock, f"not an open socket ({error.strerror})", "pass a socket that listens") from None


def _error(value: Any, detail: str, hint: str) -> ModelError:
    return ModelError(detail, class_name="service", field="sockets", value=value, hint=hint)


class Giver:
    """Waits for the helper of one service, and gives it the sockets."""

    def __init__(self, sockets: list[tuple[str, int]]) -> None:
        self._names = [name for name, _ in sockets]
        # Copies: the caller may close its own as soon as the service is started.
        self._fds = [os.dup(fd) for _, fd in sockets]
        self._directory = tempfile.mkdtemp(prefix="sandbox-sockets-")
        self._path = f"{self._directory}/socket"
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(self._path)
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def command(self) -> list[str]:
        """What systemd has to run first."""
        return [sys.executable, "-I", "-S", activation.__file__, self._path]

    def _serve(self) -> None:
        try:
            while True:  # a service that is restarted asks again
                peer, _ = self._listening.accept()
                with peer:
                    if _uid(peer) in {0, os.geteuid()}:
                        socket.send_fds(peer, [json.dumps(self._names).encode()], self._fds)
        except OSError:
            return  # closed

    def close(self) -> None:
        """Nobody is given anything any more."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()
        for fd in self._fds:
            os.close(fd)
        shutil.rmtree(self._directory, ignore_errors=True)


def _uid(peer: socket.socket) -> int:
    data = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(data)[1])
