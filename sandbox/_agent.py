"""A container's files, from the client's side: through an agent that lives in its namespaces (:mod:`sandbox.shim.files`)."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sandbox.errors import SandboxError
from sandbox.shim import protocol

_COPY = 1 << 20


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
        self._put(source, target, top=True)
        if source.is_dir():
            directories = [(source, target)]
            for directory, names, files in os.walk(source):
                for name in sorted(names + files):
                    path = Path(directory, name)
                    inside = f"{target}/{path.relative_to(source)}"
                    self._put(path, inside, top=False)
                    if name in names and not path.is_symlink():
                        directories.append((path, inside))
            for path, inside in reversed(directories):  # their times changed with every entry that was made in them
                self._put(path, inside, top=path == source)

    def _put(self, source: Path, target: str, *, top: bool) -> None:
        state = source.stat() if top else source.lstat()
        facts: dict[str, Any] = {
            "mode": stat.S_IMODE(state.st_mode), "mtime_ns": state.st_mtime_ns, "parents": top, "path": target
        }  # fmt: skip
        if stat.S_ISDIR(state.st_mode):
            self.ask("put", type="directory", **facts)
        elif stat.S_ISLNK(state.st_mode):
            self.ask("put", type="symlink", target=os.readlink(source), **facts)
        elif stat.S_ISREG(state.st_mode):
            with source.open("rb") as file:
                self.ask("put", file.fileno(), type="file", **facts)
        else:
            raise SandboxError("neither a file, a directory nor a link", operation="copy", path=source)

    def copy_out(self, source: str, target: Path) -> None:
        """Copy a file or a tree of the container to ``target`` itself; sockets, FIFOs and devices are refused by name.

        Nothing the container does can make this write outside ``target``: names are single components below
        directories that were made here, and links are made last.
        """
        directories: list[tuple[Path, dict[str, Any]]] = []
        links: list[tuple[Path, str]] = []
        entries = self.tree(source)
        try:
            for entry, fd in entries:
                path = target / entry["name"] if entry["name"] else target
                if entry["type"] == "directory":
                    path.mkdir(0o700, exist_ok=not entry["name"])
                    directories.append((path, entry))
                elif entry["type"] == "file":
                    _save(fd, path, entry)
                elif entry["type"] == "symlink":
                    links.append((path, entry["target"]))
                else:
                    raise SandboxError(f"it is a {entry['type']}", operation="copy out", path=f"{source}/{entry['name']}",
                                       hint="copy the files beside it one by one")  # fmt: skip
        finally:
            for _, fd in entries:  # the agent sends the whole tree; its answers must not be taken for others'
                if fd >= 0:
                    os.close(fd)
        for path, destination in links:
            path.symlink_to(destination)
        for path, entry in reversed(directories):
            path.chmod(entry["mode"] & 0o777)
            os.utime(path, ns=(entry["mtime_ns"], entry["mtime_ns"]))


def _save(fd: int, path: Path, entry: Mapping[str, Any]) -> None:
    """Write a file. A link in its place, made by an earlier copy of what the container had then, is not followed."""
    with os.fdopen(fd, "rb") as source, open(path, "wb", opener=_open_here) as sink:
        shutil.copyfileobj(source, sink, _COPY)
        sink.flush()
        os.fchmod(sink.fileno(), entry["mode"] & 0o777)
        os.utime(sink.fileno(), ns=(entry["mtime_ns"], entry["mtime_ns"]))


def _open_here(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
