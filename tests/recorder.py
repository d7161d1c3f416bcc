"""A kernel made of a directory: records the system calls that go through ``sandbox.linux.syscalls.invoke``.

Opening below a root is done for real in a temporary directory; mounts, namespaces and identities are only written down. One
of the calls can be made to fail.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandbox.linux import syscalls
from sandbox.linux.errors import KernelError

_FD = re.compile(r"/proc/self/fd/(\d+)")
#: Bits of openat2's flags that make sense for a path of a fake root.
_ACCESS = os.O_PATH | os.O_RDONLY | os.O_WRONLY | os.O_DIRECTORY


class Executed(BaseException):
    """Stands for execve(2), which does not return."""


class Recorder:
    """Takes the place of ``invoke``."""

    def __init__(self, *, fail_at: int | None = None, error: int = errno.EPERM) -> None:
        #: What was called, in words: operation and object.
        self.calls: list[str] = []
        self.fail_at = fail_at
        self.error = error
        self._names: dict[int, str] = {}
        self._children = 0

    def note(self, text: str) -> None:
        """Record something that is no system call of ours; it may be the one that fails."""
        self.calls.append(text)
        if len(self.calls) - 1 == self.fail_at:
            operation, _, target = text.partition(" ")
            raise KernelError(self.error, operation, target or "-")

    def __call__(self, function: Callable[..., int], operation: str, target: str, *arguments: Any) -> int:
        words = f"{operation} {self._target(operation, target, arguments)}"
        words = _FD.sub(lambda match: self._names.get(int(match[1]), match[0]), words)
        self.calls.append(words)
        if len(self.calls) - 1 == self.fail_at:
            raise KernelError(self.error, operation, target)
        if operation == "open":
            return self._open(target, arguments)
        if operation == "open_tree":
            return self._copy(target, arguments[1])
        if operation == "pidfd_open":
            return os.open("/dev/null", os.O_RDONLY)
        if operation == "clone3":
            self._children += 1
            (pointer,) = struct.unpack_from("=8xQ", ctypes.string_at(arguments[1], 88))
            ctypes.c_int.from_address(pointer).value = os.open("/dev/null", os.O_RDONLY)
            return 4_000_000 + self._children
        return 0

    def _target(self, operation: str, target: str, arguments: tuple[Any, ...]) -> str:
        """A descriptor says more by the name that it was opened by."""
        if operation == "mount_setattr":
            return self._names.get(arguments[1], "?")
        if operation == "move_mount to":
            return f"{self._names.get(arguments[3], target)} from {self._names.get(arguments[1], '?')}"
        return target

    def _copy(self, path: str, directory: int) -> int:
        """What open_tree gives: a descriptor of the thing itself, or of the root for what is only pretended."""
        if not path:
            return self._keep(os.dup(directory), f"copy of {self._names[directory]}")
        return self._keep(os.open(path if os.path.exists(path) else "/", os.O_PATH | os.O_CLOEXEC), f"copy of {path}")

    def _open(self, path: str, arguments: tuple[Any, ...]) -> int:
        directory = arguments[1]
        (flags,) = struct.unpack_from("=Q", arguments[3])
        try:
            fd = os.open(path.lstrip("/") or ".", (flags & _ACCESS) | os.O_CLOEXEC, dir_fd=directory)
        except OSError as error:
            raise KernelError(error.errno or 0, "open", path) from None
        return self._keep(fd, path)

    def _keep(self, fd: int, name: str) -> int:
        self._names[fd] = name
        return fd


def install(monkeypatch: Any, recorder: Recorder) -> Recorder:
    """Make ``recorder`` what every system call goes through."""
    monkeypatch.setattr(syscalls, "invoke", recorder)
    return recorder


def open_descriptors() -> set[str]:
    """The descriptors of this process and what they are."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name}:{os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue  # the one that read the directory
    return found


def make_tree(root: Path, *paths: str) -> Path:
    """Empty directories (``a/``) and files (``a``) below ``root``."""
    for path in paths:
        place = root / path.strip("/")
        if path.endswith("/"):
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
    return root
