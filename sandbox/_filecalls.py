"""What can be done with the files of a running container; :class:`sandbox.pods.RunningContainer` inherits it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox import _arguments as arguments
from sandbox._arguments import inside
from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from sandbox._container import RunningContainer


class FileCalls:
    """The operations on the files of one container. Paths are paths in the container."""

    def _one(self) -> RunningContainer:
        raise NotImplementedError  # pragma: no cover - whoever inherits this has it

    def read_bytes(self, path: str | os.PathLike[str]) -> bytes:
        """The contents of a regular file. Links lead nowhere but into the container's own root.

        Not for ``/proc/self``: the reader is no process of the container; ``exec(["cat", …])`` is.
        """
        with os.fdopen(self._one().files.open(inside(path, "read_bytes"), os.O_RDONLY), "rb") as file:
            return file.read()

    def read_text(self, path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
        """The contents of a text file."""
        return self.read_bytes(path).decode(encoding)

    def write_bytes(
        self, path: str | os.PathLike[str], data: bytes, *, mode: int | None = None, user: str | int | None = None,
        append: bool = False,
    ) -> None:  # fmt: skip
        """Write a file; directories that are missing are made.

        :param mode: its permission bits; 0644, or what they were
        :param user: whom it belongs to if not root, by name or number, optionally with a group; looked up in the container as
            it is now. The group of a number is the same number, that of a name the one in ``/etc/passwd``
        :param append: write at its end
        """
        target, mode = inside(path, "write_bytes"), arguments.mode("write_bytes", mode)
        owner = arguments.user("write_bytes", user)
        agent = self._one().files
        ids = {} if owner is None else agent.ask("user", user=owner)[0]
        agent.ask("mkdir", path=os.path.dirname(target) or "/", parents=True, mode=0o755)
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
        with os.fdopen(agent.open(target, flags, 0o644 if mode is None else mode), "wb") as file:
            file.write(data)
        if mode is not None or ids:
            agent.ask("own", path=target, mode=mode, **ids)

    def write_text(self, path: str | os.PathLike[str], text: str, encoding: str = "utf-8", **options: Any) -> None:
        """Write a text file; ``options`` as for :meth:`write_bytes`."""
        self.write_bytes(path, text.encode(encoding), **options)

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """True if there is something at ``path`` (a link that leads nowhere is nothing)."""
        try:
            self._one().files.ask("stat", path=inside(path, "exists"))
        except SandboxError as error:
            if error.errno is None:
                raise
            return False
        return True

    def stat(self, path: str | os.PathLike[str], *, follow: bool = True) -> dict[str, Any]:
        """``type`` (file, directory, symlink …), ``mode``, ``uid``, ``gid``, ``size``, ``mtime_ns``, ``target``."""
        return self._one().files.ask("stat", path=inside(path, "stat"), follow=bool(follow))[0]

    def listdir(self, path: str | os.PathLike[str] = "/") -> list[str]:
        """The names in a directory, sorted."""
        names: list[str] = self._one().files.ask("list", path=inside(path, "listdir"))[0]["names"]
        return names

    def mkdir(self, path: str | os.PathLike[str], mode: int = 0o755, *, parents: bool = False) -> None:
        """Make a directory; with ``parents`` also those above it, and it may exist."""
        bits = arguments.mode("mkdir", mode)
        self._one().files.ask("mkdir", path=inside(path, "mkdir"), mode=0o755 if bits is None else bits, parents=bool(parents))

    def remove(self, path: str | os.PathLike[str], *, recursive: bool = False) -> None:
        """Remove a file or an empty directory, or with ``recursive`` a whole tree."""
        self._one().files.ask("remove", path=inside(path, "remove"), recursive=bool(recursive))

    def copy_in(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        """Copy a file or a tree of the host into the container, keeping modes and times; owners become root.

        Like cp: if ``target`` is a directory, the copy is made in it under its own name.
        """
        path, destination = arguments.on_host(source, "copy_in", "source"), inside(target, "copy_in", "target")
        agent = self._one().files
        if os.fspath(target).endswith("/") or self._is_directory(destination):
            destination = f"{destination.rstrip('/')}/{path.resolve().name}"
        if not path.exists():
            raise SandboxError("it does not exist on the host", operation="copy in", path=path)
        agent.copy_in(path, destination)

    def copy_out(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
        """Copy a file or a tree of the container to the host, keeping modes and times; returns where it is.

        Like cp: if ``target`` is a directory, the copy is made in it under its own name. Everything is copied, or there is an
        error, and nothing is left of a ``target`` that was not there before.
        """
        path = inside(source, "copy_out", "source")
        destination = arguments.on_host(target, "copy_out", "target")
        if destination.is_dir():
            destination /= os.path.basename(path.rstrip("/")) or self._one().name
        self._one().files.copy_out(path, destination)
        return destination

    copy_into_container = copy_in
    copy_from_container = copy_out

    def _is_directory(self, path: str) -> bool:
        try:
            return bool(self.stat(path)["type"] == "directory")
        except SandboxError:
            return False
