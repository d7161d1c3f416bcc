"""What systemd-run says to a manager, word for word: the ground truth for how assignments are understood.

A socket takes the place of a user manager's own ($XDG_RUNTIME_DIR/systemd/private), listens to the one call that
systemd-run makes, and hangs up. Needs no manager, no bus and no privileges.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from jeepney.low_level import Parser

#: What the server says while the client authenticates (D-Bus specification, "Authentication Protocol").
_WELCOME = b"DATA\r\nOK 0123456789abcdef0123456789abcdef\r\nAGREE_UNIX_FD\r\n"


class Said(NamedTuple):
    """What came of one run: the properties of the unit (the timer, socket or path if there is one), or the refusal."""

    properties: list[tuple[str, tuple[str, Any]]]
    refusal: str


class Listener:
    """Takes the place of a manager."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="said-")
        place = Path(self._directory.name, "systemd")
        place.mkdir()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(place / "private"))
        self._socket.listen()
        self._socket.settimeout(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._directory.cleanup()

    def hear(self, *arguments: str) -> Said:
        """Run systemd-run (``--user`` and a command are added) and hear what it says."""
        command = ["systemd-run", "--user", "--no-block", *arguments, "--", "/bin/true"]
        environment = {
            "XDG_RUNTIME_DIR": self._directory.name,
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
        }
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = self._socket.accept()
            with connection:
                body = heard(connection)
            assert process.stderr is not None
            refusal = process.stderr.read()
        if body is None:
            return Said([], refusal or f"ended with {process.returncode}")
        return Said(body[2], "")

    def properties(
        self, assignments: Sequence[str], *options: str
    ) -> list[tuple[str, tuple[str, Any]]] | None:
        """What of the call is due to the assignments; None if they are refused."""
        said = self.hear(*options, *(word for text in assignments for word in ("-p", text)))
        if said.refusal:
            return None
        plain = self.hear(*options).properties
        lead = next(
            (i for i, (a, b) in enumerate(zip(plain, said.properties, strict=False)) if a != b), len(plain)
        )
        return said.properties[lead : len(said.properties) - (len(plain) - lead)]


def version() -> int:
    """Of systemd-run; 0 if there is none."""
    try:
        done = subprocess.run(
            ["systemd-run", "--version"], capture_output=True, text=True, check=False, timeout=30
        )
    except FileNotFoundError:
        return 0
    return int(done.stdout.split()[1])


def heard(connection: socket.socket) -> tuple[Any, ...] | None:
    """The body of the first call; None if there is none."""
    connection.settimeout(30)
    data, parser = b"", Parser()
    with contextlib.suppress(ConnectionError):  # it has refused something, and gone
        while b"BEGIN\r\n" not in data:
            if not (chunk := connection.recv(65536)):
                return None
            data += chunk
        connection.sendall(_WELCOME)
        parser.add_data(data.partition(b"BEGIN\r\n")[2])
        while (message := parser.get_next_message()) is None:
            if not (chunk := connection.recv(65536)):
                return None
            parser.add_data(chunk)
        body: tuple[Any, ...] = message.body
        return body
    return None
