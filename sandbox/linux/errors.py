"""One exception for everything that the kernel refuses."""

from __future__ import annotations

import os


class KernelError(OSError):
    """A system call failed.

    ``operation`` is the verb with its arguments in words (``mount overlay on``), ``object`` the thing it was done to.
    ``errno`` and ``strerror`` are those of :class:`OSError`, so ``except FileNotFoundError``-style handling by errno
    keeps working.
    """

    def __init__(self, errno: int, operation: str, object: str = "") -> None:
        super().__init__(errno, os.strerror(errno))
        self.operation = operation
        self.object = object

    def __str__(self) -> str:
        target = f" `{self.object}`" if self.object else ""
        return f"{self.operation}{target}: {self.strerror}"
