"""The directory that COPY and ADD take files from, without what ``.dockerignore`` leaves out."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from sandbox.build.errors import BuildError
from sandbox.build.ignore import Ignore, PatternError, read_patterns
from sandbox.build.known_files import Content, content_of
from sandbox.build.tree import Tree

__all__ = ["Context", "find_dockerfile"]

_NAMES = ("Dockerfile", "Containerfile", "dockerfile")
_MAX_IGNORE = 4 << 20


def find_dockerfile(directory: Path) -> Path | None:
    """The Dockerfile of a directory, by its usual names."""
    return next((directory / name for name in _NAMES if (directory / name).is_file()), None)


class Context:
    """A build context: a directory, or nothing."""

    def __init__(self, directory: str | os.PathLike[str] | None, dockerfile: Path | None = None) -> None:
        """Nothing is read yet.

        :param dockerfile: ``<its name>.dockerignore`` beside it goes before the directory's ``.dockerignore``
        """
        self.directory = None if directory is None else Path(directory).absolute()
        self._dockerfile = dockerfile

    def need(self) -> Path:
        """The directory. Raises :class:`BuildError` where there is none."""
        if self.directory is None:
            raise BuildError("there is no build context", operation="build", hint="give a directory to copy from")
        if not self.directory.is_dir():
            raise BuildError("it is not a directory", operation="use the build context", path=self.directory)
        return self.directory

    @cached_property
    def ignore(self) -> list[str]:
        """The patterns of files that do not count."""
        if self.directory is None:
            return []
        own = [self._dockerfile.with_name(f"{self._dockerfile.name}.dockerignore")] if self._dockerfile else []
        for path in (*own, self.directory / ".dockerignore"):
            try:
                with path.open("rb") as file:
                    text = file.read(_MAX_IGNORE)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise BuildError(operation="read", path=path, errno=error.errno) from None
            try:
                return read_patterns(text.decode("utf-8", "surrogateescape"))
            except PatternError as error:
                raise BuildError(str(error), operation="read", path=path) from None
        return []

    def tree(self) -> Tree:
        """The files that count; the caller closes it."""
        return Tree(os.fspath(self.need()), Ignore(self.ignore) if self.ignore else None)

    def digest(
        self, patterns: Sequence[str], exclude: Iterable[str] = (), content: Content = content_of
    ) -> str:  # fmt: skip
        """What the files that patterns fit come to: names, kinds, modes, contents. Times and owners do not count.

        :param content: gives the SHA-256 of a regular file
        :raises BuildError: a file cannot be read
        """
        hashed = hashlib.sha256()
        leave_out = Ignore(exclude)
        with self.tree() as tree:
            try:
                for pattern in patterns:
                    for top in tree.glob(pattern):
                        self._add(tree, top, hashed, leave_out, content)
            except PatternError as error:
                raise BuildError(str(error), operation="copy") from None
            except OSError as error:
                path = self.need() / str(error.filename or getattr(error, "object", "") or "")
                raise BuildError(operation="read from the build context", path=path, errno=error.errno) from None
        return hashed.hexdigest()

    @staticmethod
    def _add(
        tree: Tree, top: str, hashed: hashlib._Hash, leave_out: Ignore, content: Content
    ) -> None:  # fmt: skip
        real = tree.real(top)
        state = tree.look(real)
        if state is None:
            return  # a link that leads nowhere: copying will say so
        _describe(tree, real, os.path.basename(top), state, hashed, content)
        if stat.S_ISDIR(state.st_mode):
            for path, inner in tree.walk(real):
                below = path[len(real) :].lstrip("/")
                if not leave_out.excludes(below):
                    _describe(tree, path, below, inner, hashed, content)


def _describe(
    tree: Tree, path: str, name: str, state: os.stat_result, hashed: hashlib._Hash, content: Content
) -> None:  # fmt: skip
    hashed.update(f"{name!r} {state.st_mode:o} ".encode("utf-8", "surrogateescape"))
    if stat.S_ISLNK(state.st_mode):
        hashed.update(repr(tree.read_link(path)).encode())
    elif stat.S_ISREG(state.st_mode):
        hashed.update(content(tree, path, state))
    hashed.update(b"\n")
