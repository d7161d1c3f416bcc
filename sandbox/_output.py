"""What containers wrote, and what they use, in public form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from sandbox.errors import ModelError


@attrs.frozen
class LogRecord:
    """One line of a container's output.

    >>> LogRecord(0.0, "stdout", "ready").line
    'ready'
    """

    #: When its beginning was read, in seconds since the epoch.
    time: float
    #: ``stdout`` or ``stderr``.
    stream: str
    #: The line without its end; bytes that are not UTF-8 show as escapes.
    line: str


class LineSplitter:
    """Puts chunks of two streams together to lines."""

    def __init__(self) -> None:
        self._partial: dict[str, tuple[float, bytes]] = {}

    def feed(self, chunks: Iterable[Any]) -> Iterator[LogRecord]:
        """Lines that are complete."""
        for _, time, stream, text in chunks:
            began, data = self._partial.pop(stream, (time, b""))
            *lines, rest = (data + text.encode("latin-1")).split(b"\n")
            for line in lines:
                yield _record(began, stream, line)
                began = time
            if rest:
                self._partial[stream] = (began, rest)

    def rest(self) -> Iterator[LogRecord]:
        """What came last and has no end of line."""
        for stream, (began, data) in self._partial.items():
            yield _record(began, stream, data)


def _record(time: float, stream: str, line: bytes) -> LogRecord:
    return LogRecord(time, stream, line.removesuffix(b"\r").decode("utf-8", "backslashreplace"))


@attrs.frozen
class CpuStats:
    """CPU time in seconds, and how often and long the quota held it back."""

    usage: float = 0.0
    user: float = 0.0
    system: float = 0.0
    throttled: int = 0
    throttled_time: float = 0.0


@attrs.frozen
class MemoryStats:
    """Bytes; None where the host has no memory controller for us."""

    current: int | None = None
    peak: int | None = None
    limit: int | None = None
    swap: int | None = None
    oom_kills: int = 0


@attrs.frozen
class PidsStats:
    """Numbers of processes and threads."""

    current: int | None = None
    peak: int | None = None
    limit: int | None = None


@attrs.frozen
class IoStats:
    """Bytes read from and written to block devices."""

    read: int | None = None
    write: int | None = None


@attrs.frozen
class Stats:
    """What a container uses now.

    >>> Stats().memory.peak is None
    True
    """

    cpu: CpuStats = CpuStats()
    memory: MemoryStats = MemoryStats()
    pids: PidsStats = PidsStats()
    io: IoStats = IoStats()
    #: Pressure stall information by resource (``cpu``, ``memory``, ``io``): ``{"some_avg10": 0.0, …}``, in percent.
    pressure: Mapping[str, Mapping[str, float]] = attrs.field(factory=dict)

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Stats:
        """From the shim's numbers."""
        s = message["stats"]
        used, user, system = (s.get(name, 0) / 1e6 for name in ("cpu_usec", "cpu_user_usec", "cpu_system_usec"))
        return cls(
            CpuStats(used, user, system, s.get("cpu_throttled", 0), s.get("cpu_throttled_usec", 0) / 1e6),
            MemoryStats(s.get("memory_current"), s.get("memory_peak"), s.get("memory_limit"), s.get("swap_current"),
                        message["oom_kills"]),
            PidsStats(s.get("pids_current"), s.get("pids_peak"), s.get("pids_limit")),
            IoStats(s.get("io_read_bytes"), s.get("io_write_bytes")), message["pressure"],
        )  # fmt: skip


def check_selection(stream: object, tail: object) -> None:
    """What ``logs`` of a container may be asked for. Raises :class:`ModelError`."""
    if stream not in {None, "stdout", "stderr"}:
        raise ModelError('must be "stdout", "stderr" or None', class_name="logs", field="stream", value=stream)
    if tail is not None and (not isinstance(tail, int) or tail < 0):
        raise ModelError("must be a number of lines, from 0", class_name="logs", field="tail", value=tail)
