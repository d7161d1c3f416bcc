"""A container's files, from the client's side: through an agent that lives in its namespaces (:mod:`sandbox.shim.files`)."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sandbox._copies import Sink, Source, sources
from sandbox.errors import SandboxError
from sandbox.shim import protocol

_COPIED = frozenset({"directory", "file", "symlink"})


class FileAgent:
    """Asks the agent of one container; one request at a time."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._lock = threading.Lock()

    def close(self) -> None:
        """The agent ends."""
        self._socket.close()

    def ask(self, op: str, fd: int | None = None, **fields: Any) -> tuple[dict[str, Any], list[int]]:
        """One request, one answer."""
        with self._lock:
            protocol.send(self._socket, {"op": op, **fields}, [] if fd is None else [fd])
            return self._answer(op, fields)

    def _answer(self, op: str, fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[int]]:
        message, fds = protocol.receive(self._socket)
        if message is None:
            raise SandboxError("the container is gone", operation=op, object=fields.get("path"))
        if "error" in message:
            raise SandboxError.from_dict(message["error"])
        return message, fds

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        """A descriptor of a regular file."""
        return self.ask("open", path=path, flags=flags, mode=mode)[1][0]

    def tree(self, path: str) -> Iterator[tuple[dict[str, Any], int]]:
        """(entry, descriptor or -1) of everything at and below ``path``, parents first."""
        with self._lock:
            protocol.send(self._socket, {"op": "tree", "path": path})
            while True:
                message, fds = self._answer("tree", {"path": path})
                if message.get("event") == "end":
                    return
                yield message, fds[0] if fds else -1

    def copy_in(self, source: Path, target: str) -> None:
        """Copy a file or a tree of the host to ``target`` itself, with modes, times and links as links."""
        directories: list[Source] = []
        for item in sources(source):
            self._put(item, target)
            if stat.S_ISDIR(item.state.st_mode):
                directories.append(item)
        for item in reversed(directories):  # their times changed with every entry that was made in them
            self._put(item, target)

    def _put(self, item: Source, target: str) -> None:
        facts: dict[str, Any] = {
            "mode": stat.S_IMODE(item.state.st_mode), "mtime_ns": item.state.st_mtime_ns, "parents": not item.name,
            "path": f"{target}/{item.name}" if item.name else target,
        }  # fmt: skip
        if item.target is not None:
            self.ask("put", type="symlink", target=item.target, **facts)
        elif item.fd >= 0:
            self.ask("put", item.fd, type="file", **facts)
        else:
            self.ask("put", type="directory", **facts)

    def copy_out(self, source: str, target: Path) -> None:
        """Copy a file or a tree of the container to ``target`` itself; sockets, FIFOs and devices are refused by name.

        Nothing the container does can make this write outside ``target`` (:mod:`sandbox._copies`).
        """
        entries = self.tree(source)
        try:
            with Sink(target) as sink:
                for entry, fd in entries:
                    try:
                        if entry["type"] not in _COPIED:
                            raise _refused(entry, source)
                        sink.add(entry, fd)
                    finally:
                        if fd >= 0:
                            os.close(fd)
        finally:
            for _, fd in entries:  # the agent sends the whole tree; its answers must not be taken for others'
                if fd >= 0:
                    os.close(fd)


def _refused(entry: Mapping[str, Any], source: str) -> SandboxError:
    path = f"{source}/{entry['name']}" if entry["name"] else source
    return SandboxError(f"it is a {entry['type']}", operation="copy out", path=path,
                        hint="copy the files beside it one by one")  # fmt: skip
