"""A directory tree that is not trusted: everything is looked up inside it, whatever its links say.

Standard library and :mod:`sandbox.linux` only, for the client (a build context) and for the helper (the root of a stage).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from typing import Self

from sandbox.build.ignore import Ignore, glob_to_regex
from sandbox.linux.constants import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from sandbox.linux.syscalls import openat2

__all__ = ["Tree"]

_INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_LINKS = 40  # as the kernel, path_resolution(7)
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_MAGIC = re.compile(r"[*?\[\\]")


class Tree:
    """The tree below a directory. Paths are relative to it and have no slash in front; ``""`` is the top.

    A context manager: leaving it closes the directory.
    """

    def __init__(self, top: str | int, ignore: Ignore | None = None) -> None:
        """Open a directory.

        :param top: its path, or a descriptor, which becomes the tree's own
        :param ignore: what of it does not exist for us
        """
        self.fd = top if isinstance(top, int) else os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._ignore = ignore

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def open(self, path: str, flags: int = _FILE) -> int:
        """A descriptor. Links on the way are followed inside the tree, one at the end is not.

        :raises OSError: as open(2)
        """
        return openat2(path or ".", flags | os.O_NOFOLLOW, resolve=_INSIDE, dir_fd=self.fd)

    def stat(self, path: str) -> os.stat_result:
        """What is there; a link at the end is not followed. Raises :class:`OSError`."""
        fd = self.open(path, os.O_PATH)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def look(self, path: str) -> os.stat_result | None:
        """As :meth:`stat`, but None where nothing is (or something that is no directory is on the way)."""
        try:
            return self.stat(path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise

    def read_link(self, path: str) -> str:
        """Where a symbolic link points."""
        fd = self.open(path, os.O_PATH)
        try:
            return os.readlink("", dir_fd=fd)
        finally:
            os.close(fd)

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def real(self, path: str, *, last: bool = True) -> str:
        """The path without links and ``..``, as far as it exists; the rest of it stays as it is.

        :param last: also follow a link at the very end
        :raises OSError: ELOOP for too many links
        """
        done: list[str] = []
        todo = [part for part in path.split("/") if part not in ("", ".")][::-1]
        links = 0
        while todo:
            name = todo.pop()
            if name == "..":
                done = done[:-1]
                continue
            here = "/".join([*done, name])
            state = self.look(here)
            if state is None or not stat.S_ISLNK(state.st_mode) or (not todo and not last):
                done.append(name)
                continue
            links += 1
            if links > _LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = self.read_link(here)
            if target.startswith("/"):
                done = []
            todo += [part for part in target.split("/") if part not in ("", ".")][::-1]
        return "/".join(done)

    def glob(self, pattern: str) -> list[str]:
        """The paths that a pattern of Go's ``filepath.Match`` fits, sorted; ignored ones are not there.

        A pattern without special characters is a path, and fits if something is there.

        :raises PatternError: it is malformed
        """
        parts = [part for part in os.path.normpath("/" + pattern).split("/") if part]
        found = [""]
        for part in parts:
            found = [f"{above}/{name}".lstrip("/") for above in found for name in self._fitting(above, part)]
        return [path for path in found if not self.ignored(path)]

    def _fitting(self, above: str, part: str) -> list[str]:
        if not _MAGIC.search(part):
            return [part] if self.look(f"{above}/{part}".lstrip("/")) else []
        rule = re.compile(glob_to_regex(part), re.DOTALL)
        try:
            names = self.names(self.real(above))
        except NotADirectoryError:
            return []
        return [name for name in names if rule.fullmatch(name)]

    def ignored(self, path: str) -> bool:
        """Whether it does not exist for us; a directory does if something in it may."""
        if self._ignore is None or not path:
            return False
        if not self._ignore.excludes(path):
            return False
        if not self._ignore.brings_back:
            return True
        state = self.look(path)
        if state is None or not stat.S_ISDIR(state.st_mode):
            return True
        return not any(not self.ignored(f"{path}/{name}") for name in self.names(path))

    def walk(self, path: str) -> Iterator[tuple[str, os.stat_result]]:
        """Everything below a directory, parents first, without what is ignored; names in their order."""
        for name, state in self._states(path):
            inner = f"{path}/{name}".lstrip("/")
            if self.ignored(inner):
                continue
            yield inner, state
            if stat.S_ISDIR(state.st_mode):
                yield from self.walk(inner)

    def _states(self, path: str) -> list[tuple[str, os.stat_result]]:
        """What is in a directory, links not followed; looked at from there, which is quick."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        found = []
        try:
            for name in sorted(os.listdir(fd)):
                with contextlib.suppress(FileNotFoundError):  # gone since
                    found.append((name, os.stat(name, dir_fd=fd, follow_symlinks=False)))
        finally:
            os.close(fd)
        return found
