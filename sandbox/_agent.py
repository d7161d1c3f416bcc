"""A container's files, from the client's side: through an agent that lives in its namespaces (:mod:`sandbox.shim.files`)."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sandbox._copies import Sink, Source, sources
from sandbox.errors import SandboxError
from sandbox.shim import protocol

_COPIED = frozenset({"directory", "file", "symlink"})


class FileAgent:
    """Asks the agent of one container; one request at a time, from whatever thread.

    Nothing tells which request an answer belongs to but its turn. So a connection on which an answer is still to come, because
    an exception was raised in between (Ctrl-C, a time-out), is of no use any more: the next request starts another agent.
    So does the first one after a fork(2), in the child.
    """

    def __init__(self, connect: Callable[[], int]) -> None:
        """``connect`` starts an agent and returns a descriptor of a socket to it."""
        self._connect = connect
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._unfinished = False
        _agents.add(self)

    def close(self) -> None:
        """The agent ends; so does a request of another thread, with an error."""
        sock, self._socket = self._socket, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer
            sock.close()

    def _forked(self) -> None:
        """In a new child: the connection is its parent's, and so is a thread that may hold the lock."""
        self._lock = threading.Lock()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, op: str, fd: int | None = None, **fields: Any) -> tuple[dict[str, Any], list[int]]:
        """One request, one answer."""
        answers: list[tuple[dict[str, Any], list[int]]] = []

        def take(message: dict[str, Any], fds: list[int]) -> bool:
            answers.append((message, fds))
            return True

        self._exchange({"op": op, **fields}, [] if fd is None else [fd], take)
        return answers[0]

    def _exchange(
        self, request: dict[str, Any], fds: list[int], take: Callable[[dict[str, Any], list[int]], bool]
    ) -> None:  # fmt: skip
        """One request; its answers go to ``take`` until that returns true, or until one is an error, which is raised."""
        with self._lock:
            if self._unfinished:
                self.close()
            self._unfinished = True
            try:
                error = self._converse(self._send(request, fds), request, take)
                self._unfinished = False
            finally:
                if self._unfinished:
                    self.close()
        if error is not None:
            raise SandboxError.from_dict(error)

    def _send(self, request: dict[str, Any], fds: list[int]) -> socket.socket:
        """Send it to the agent, or to a new one if that is gone; only a request that was never read is sent again."""
        while True:
            sock, fresh = self._socket, False
            if sock is None:
                sock, fresh = socket.socket(fileno=self._connect()), True
                self._socket = sock
            try:
                protocol.send(sock, request, fds)
                return sock
            except (BrokenPipeError, ConnectionResetError):
                self.close()
                if fresh:
                    raise _ended(request) from None

    def _converse(
        self, sock: socket.socket, request: Mapping[str, Any], take: Callable[[dict[str, Any], list[int]], bool]
    ) -> Mapping[str, Any] | None:  # fmt: skip
        """Hand on answers until the last; an error that the agent told is returned, for it was an answer too."""
        while True:
            try:
                message, fds = protocol.receive(sock)
            except OSError as error:
                if error.errno is None:
                    raise  # not the kernel's: descriptors were cut off, or somebody's signal handler raised TimeoutError
                raise _ended(request) from None
            if message is None:
                raise _ended(request)
            if "error" in message:
                found: Mapping[str, Any] = message["error"]
                return found
            if take(message, fds):
                return None

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        """A descriptor of a regular file."""
        return self.ask("open", path=path, flags=flags, mode=mode)[1][0]

    def tree(self, path: str, visit: Callable[[dict[str, Any], int], None]) -> None:
        """Call ``visit`` with (entry, descriptor or -1) of everything at and below ``path``, parents first.

        The descriptor is closed afterwards. What ``visit`` raises ends the walk.
        """

        def take(message: dict[str, Any], fds: list[int]) -> bool:
            try:
                if message.get("event") == "end":
                    return True
                visit(message, fds[0] if fds else -1)
                return False
            finally:
                for fd in fds:
                    os.close(fd)

        self._exchange({"op": "tree", "path": path}, [], take)

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
        with _writing(target, "the directory that it is to lie in has to be there"):
            sink = Sink(target)
        with sink:

            def visit(entry: dict[str, Any], fd: int) -> None:
                if entry["type"] not in _COPIED:
                    raise _refused(entry, source)
                with _writing(target / entry["name"]):
                    sink.add(entry, fd)

            self.tree(source, visit)


@contextlib.contextmanager
def _writing(path: Path, hint: str | None = None) -> Iterator[None]:
    """What the host's kernel refuses, with the whole path; calls that take a descriptor tell only its last part."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise  # not the kernel's: the TimeoutError of somebody's signal handler
        raise SandboxError(operation="copy out to", path=path, errno=error.errno, hint=hint) from error


def _ended(request: Mapping[str, Any]) -> SandboxError:
    return SandboxError(
        "the process that serves the container's files has ended before it answered", operation=request["op"],
        object=request.get("path"), hint="if the container is still there, the next call starts another one",
    )  # fmt: skip


def _refused(entry: Mapping[str, Any], source: str) -> SandboxError:
    path = f"{source}/{entry['name']}" if entry["name"] else source
    return SandboxError(f"it is a {entry['type']}", operation="copy out", path=path,
                        hint="copy the files beside it one by one")  # fmt: skip


#: Those that a fork(2) has to part from their connections.
_agents: weakref.WeakSet[FileAgent] = weakref.WeakSet()


def _after_fork() -> None:
    for agent in list(_agents):
        agent._forked()  # noqa: SLF001 - our own


os.register_at_fork(after_in_child=_after_fork)
