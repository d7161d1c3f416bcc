"""One exception for everything that the kernel refuses."""

from __future__ import annotations

import os
from typing import Any, Self, cast


class KernelError(OSError):
    """A system call failed.

    ``operation`` is the verb with its arguments in words (``mount overlay on``), ``object`` the thing it was done to.
    ``errno`` and ``strerror`` are those of :class:`OSError`, and it is an instance of the class that goes with its errno:
    ``except FileNotFoundError`` catches one with ENOENT.
    """

    def __new__(cls, errno: int, *_rest: Any) -> Self:
        """Of the class for ``errno``; :class:`OSError` does that only for itself."""
        reason = os.strerror(errno)
        return cast("Self", OSError.__new__(_kind(cls, type(OSError(errno, reason))), errno, reason))

    def __init__(self, errno: int, operation: str, object: str = "") -> None:
        super().__init__(errno, os.strerror(errno))
        self.operation = operation
        self.object = object

    def __str__(self) -> str:
        target = f" `{self.object}`" if self.object else ""
        return f"{self.operation}{target}: {self.strerror}"


_kinds: dict[tuple[type[KernelError], type[OSError]], type[KernelError]] = {}


def _kind(cls: type[KernelError], builtin: type[OSError]) -> type[KernelError]:
    if (cls, builtin) not in _kinds:
        both = cls if issubclass(cls, builtin) else type(cls.__name__, (cls, builtin), {})
        _kinds[cls, builtin] = both
    return _kinds[cls, builtin]
