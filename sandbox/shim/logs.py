"""What a container wrote: kept apart by stream, time-stamped, bounded, followable."""

from __future__ import annotations

import itertools
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from .loop import Loop

#: Bytes kept of each stream unless the container says otherwise.
DEFAULT_LIMIT = 1 << 20
_CHUNK = 65536


class Chunk(NamedTuple):
    """Bytes as they were read: ``time`` in seconds since the epoch, ``stream`` "stdout" or "stderr"."""

    number: int
    time: float
    stream: str
    data: bytes


#: What keeping one chunk costs beside its bytes; charged, so that a million tiny writes stay bounded too.
_OVERHEAD = 128


class LogStore:
    """The last ``limit`` bytes of each stream; older ones are dropped, and counted."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._chunks: dict[str, deque[Chunk]] = {"stdout": deque(), "stderr": deque()}
        self._sizes = {"stdout": 0, "stderr": 0}
        self._next = 0
        self._listeners: list[Callable[[], None]] = []
        self.dropped = {"stdout": 0, "stderr": 0}
        self._open = 0
        self._sealed = False

    @property
    def finished(self) -> bool:
        """True when nothing more can come."""
        return self._sealed and self._open == 0

    @property
    def next_number(self) -> int:
        """The number that the next chunk will have."""
        return self._next

    def seal(self) -> None:
        """The container is gone for good; when its streams end, followers end."""
        self._sealed = True
        self._tell()

    def listen(self, callback: Callable[[], None]) -> None:
        """Call back whenever something was added, and at the end."""
        self._listeners.append(callback)

    def unlisten(self, callback: Callable[[], None]) -> None:
        """No more calls."""
        self._listeners.remove(callback)

    def since(self, number: int) -> list[Chunk]:
        """Chunks from ``number`` on that are still there, in the order in which they were read."""
        recent: list[Chunk] = []
        for chunks in self._chunks.values():
            recent += itertools.takewhile(lambda chunk: chunk.number >= number, reversed(chunks))
        return sorted(recent)

    def attach(self, loop: Loop, fd: int, stream: str) -> Callable[[], None]:
        """Read ``fd`` into ``stream`` until its end, then close it. Returns a function that reads what is there now."""
        os.set_blocking(fd, False)
        self._open += 1
        reader = _Reader(self, loop, fd, stream)
        loop.watch(fd, reader.ready)
        return reader.drain

    def add(self, stream: str, data: bytes) -> None:
        """Append; makes room by dropping the oldest of the same stream."""
        self._chunks[stream].append(Chunk(self._next, time.time(), stream, data))
        self._next += 1
        self._sizes[stream] += len(data) + _OVERHEAD
        while self._sizes[stream] > self._limit and len(self._chunks[stream]) > 1:
            oldest = self._chunks[stream].popleft()
            self._sizes[stream] -= len(oldest.data) + _OVERHEAD
            self.dropped[stream] += len(oldest.data)
        self._tell()

    def detached(self) -> None:
        """One stream has ended."""
        self._open -= 1
        self._tell()

    def _tell(self) -> None:
        for callback in list(self._listeners):
            callback()


class _Reader:
    """One pipe or terminal."""

    def __init__(self, store: LogStore, loop: Loop, fd: int, stream: str) -> None:
        self._store, self._loop, self._fd, self._stream = store, loop, fd, stream

    def ready(self, events: int) -> None:
        """One read each time, so that a flood from one container does not keep the others waiting."""
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self._read()

    def drain(self) -> None:
        """Read on until nothing is there; bounded, because the writer may still be writing."""
        for _ in range(64):
            if self._fd < 0 or not self._read():
                return

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # EIO: the last process left the terminal
        if data:
            self._store.add(self._stream, data)
            return True
        self._loop.forget(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._store.detached()
        return False
