"""Our standard streams, as they are given to programs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def standard_streams(*, interactive: bool) -> Iterator[list[int]]:
    """The descriptors themselves, so that nothing is copied; /dev/null for input that was not asked for."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield [fd if _is_open(fd) and (fd or interactive) else null for fd in (0, 1, 2)]
    finally:
        os.close(null)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
