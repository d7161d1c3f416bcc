"""The host's side of copies in and out of containers.

The place on the host may be one that the container has too, through a bind mount, and what is in there may turn into
something else at any moment. So everything below the path that the caller gave is reached through descriptors of the
directories above it, and links are never followed: a swap makes the copy fail or incomplete, not lead elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from sandbox.errors import SandboxError

_COPY = 1 << 20
#: What is opened may have become a FIFO since it was looked at, and must not hold us up.
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Source(NamedTuple):
    """One thing of the host to be copied: its path below the top ("" for the top itself) and what it is."""

    name: str
    state: os.stat_result
    #: Of a symbolic link.
    target: str | None
    #: Of a regular file, for reading; closed by whoever made it.
    fd: int


def sources(top: Path) -> Iterator[Source]:
    """Everything at and below ``top``, parents first. A link is followed at the top only.

    Raises :class:`SandboxError` for what is neither a file, a directory nor a link.
    """
    fd = os.open(top, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        state = os.fstat(fd)
        if stat.S_ISREG(state.st_mode):
            yield Source("", state, None, fd)
        elif stat.S_ISDIR(state.st_mode):
            yield Source("", state, None, -1)
            yield from _below(fd, "")
        else:
            raise _odd(str(top))
    finally:
        os.close(fd)


def _below(directory: int, prefix: str) -> Iterator[Source]:
    for name in sorted(os.listdir(directory)):
        try:
            state = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISLNK(state.st_mode):
                yield Source(prefix + name, state, os.readlink(name, dir_fd=directory), -1)
                continue
            if not stat.S_ISREG(state.st_mode) and not stat.S_ISDIR(state.st_mode):
                raise _odd(prefix + name)
            fd = os.open(name, os.O_RDONLY | _SAFE, dir_fd=directory)
        except FileNotFoundError:
            continue  # gone since: others work here too
        try:
            yield from _opened(fd, prefix + name)
        finally:
            os.close(fd)


def _opened(fd: int, name: str) -> Iterator[Source]:
    """What was opened, not what was there before."""
    state = os.fstat(fd)
    if stat.S_ISDIR(state.st_mode):
        yield Source(name, state, None, -1)
        yield from _below(fd, f"{name}/")
    elif stat.S_ISREG(state.st_mode):
        yield Source(name, state, None, fd)
    else:
        raise _odd(name)


def _odd(path: str) -> SandboxError:
    return SandboxError("neither a file, a directory nor a link", operation="copy", path=path)


class Sink:
    """Where a tree of a container is written on the host. Entries come parents first, as a walk yields them.

    A context manager: leaving it gives the directories that are still open their modes and times. Leaving it with an error
    removes what was made, unless there was something before.
    """

    def __init__(self, target: Path) -> None:
        self._base = os.open(target.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._top = target.name
        self._target = target
        #: Something lay there, which is not ours to take away.
        self._before = os.path.lexists(target)
        #: The directories from the top down to where we are: name below the top, descriptor, entry.
        self._chain: list[tuple[str, int, Mapping[str, Any]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        try:
            try:
                while self._chain:
                    self._leave()
            finally:
                if error is not None:
                    self._undo(error)
        finally:
            os.close(self._base)

    def _undo(self, error: BaseException) -> None:
        if self._before:
            error.add_note(f"what was copied until then is in {self._target}, which was there before")
            return
        try:
            if stat.S_ISDIR(os.stat(self._top, dir_fd=self._base, follow_symlinks=False).st_mode):
                _make_writable(self._top, self._base)
                for _, directories, _, fd in os.fwalk(self._top, dir_fd=self._base):
                    for name in directories:
                        _make_writable(name, fd)
                shutil.rmtree(self._top, dir_fd=self._base)  # by descriptors: it follows no links
            else:
                os.unlink(self._top, dir_fd=self._base)
        except FileNotFoundError:
            pass  # nothing was made yet
        except (OSError, RecursionError) as left:
            error.add_note(f"what was copied until then is in {self._target} and cannot be removed: {left}")

    def add(self, entry: Mapping[str, Any], fd: int) -> None:
        """Write one entry; ``fd`` is that of a regular file's contents. Raises :class:`OSError`."""
        parent, name = self._place(entry["name"])
        if entry["type"] == "directory":
            self._enter(parent, name, entry)
        elif entry["type"] == "file":
            _save(fd, parent, name, entry)
        else:
            os.symlink(entry["target"], name, dir_fd=parent)

    def _place(self, name: str) -> tuple[int, str]:
        """The directory that holds ``name``, and its last part."""
        if not name:
            return self._base, self._top
        above, _, last = name.rpartition("/")
        while self._chain[-1][0] != above:
            self._leave()
        return self._chain[-1][1], last

    def _enter(self, parent: int, name: str, entry: Mapping[str, Any]) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if entry["name"]:
                raise
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _SAFE, dir_fd=parent)
        self._chain.append((entry["name"], fd, entry))

    def _leave(self) -> None:
        """Mode and times come last: the one might forbid to write, the others change with every entry."""
        _, fd, entry = self._chain.pop()
        try:
            _finish(fd, entry)
        finally:
            os.close(fd)


def _make_writable(name: str, parent: int) -> None:
    """A directory that may have been given its mode already, which an ordinary user has to respect."""
    with contextlib.suppress(OSError):  # removing it will tell
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
        finally:
            os.close(fd)


def _save(source: int, parent: int, name: str, entry: Mapping[str, Any]) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | _SAFE, 0o600, dir_fd=parent)
    with open(source, "rb", closefd=False) as contents, open(fd, "wb") as sink:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SandboxError("something that is no file is there already", operation="copy out to", path=name)
        os.ftruncate(fd, 0)
        shutil.copyfileobj(contents, sink, _COPY)
        sink.flush()
        _finish(fd, entry)


def _finish(fd: int, entry: Mapping[str, Any]) -> None:
    os.fchmod(fd, entry["mode"] & 0o777)
    os.utime(fd, ns=(entry["mtime_ns"], entry["mtime_ns"]))


__all__ = ["Sink", "Source", "sources"]
