"""Ready when it says so: in its log (:class:`Log`), or to its supervisor (:class:`Notify`, sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import attrs

from sandbox import _units as u, _validators as v
from sandbox._output import LineSplitter, LogRecord
from sandbox.errors import PodStateError

from ._base import Probe, Watch

if TYPE_CHECKING:
    from sandbox._container import RunningContainer

#: A line without its end counts once nothing was added for so long, in seconds: a prompt, say.
_SETTLED = 0.002
#: How long to wait for the rest of a log whose writer has ended, in milliseconds.
_LAST_WORDS = 1000
_DATAGRAM = 1 << 16


def _pattern(value: str | re.Pattern[str]) -> re.Pattern[str]:
    try:
        return re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None


def _stream(value: str) -> str:
    return v.choice(value, "stdout", "stderr")


def _count(value: int) -> int:
    return u.parse_int(value, 1, 1_000_000)


@attrs.frozen(repr=False, field_transformer=v.named_errors)
class Log(Probe):
    """Ready when a line of its output matches, as soon as it is written. What it wrote before counts too.

    >>> Log("ready to accept connections", count=2)
    Log('ready to accept connections', count=2)
    """

    #: A regular expression, looked for anywhere in a line.
    pattern: re.Pattern[str] = attrs.field(converter=_pattern)
    #: ``"stdout"`` or ``"stderr"``. ``None``: both.
    stream: str | None = attrs.field(default=None, converter=attrs.converters.optional(_stream))
    #: How many lines have to match.
    count: int = attrs.field(default=1, converter=_count)

    def watch(self, container: RunningContainer) -> Watch:
        return _LogWatch(self, container)


class _LogWatch:
    told = None

    def __init__(self, probe: Log, container: RunningContainer) -> None:
        self._probe = probe
        self._lines = LineSplitter()
        self._matches = 0
        self._unfinished_since: float | None = None
        self._ended = False
        self._last: LogRecord | None = None
        self._conversation = container.shim.ask("container.logs", {**container.address, "follow": True})
        self._poller = select.poll()
        self._poller.register(self._conversation, select.POLLIN)

    @property
    def last_seen(self) -> str:
        if self._last is None:
            return "no output at all"
        some = f"{self._matches} of {self._probe.count} matching lines, and " if self._matches else ""
        return f"{some}the line {self._last.line[:200]!r}"

    def fds(self) -> Mapping[int, int]:
        return {} if self._ended else {self._conversation.fileno(): select.POLLIN}

    def delay(self) -> float | None:
        if self._unfinished_since is None:
            return None
        return max(self._unfinished_since + _SETTLED - time.monotonic(), 0.0)

    def step(self) -> bool:
        while not self._ended and self._poller.poll(0):
            self._hear()
        return self._matches >= self._probe.count or self._settled()

    def last_step(self) -> bool:
        """All of the log is with the shim by now, and its end comes after it."""
        while not self._ended and self._poller.poll(_LAST_WORDS):
            self._hear()
        return self.step()

    def _hear(self) -> None:
        message, _ = self._conversation.answer()
        self._ended = message.get("event") == "end"
        self._take(self._lines.feed(message.get("chunks") or ()))
        self._unfinished_since = time.monotonic() if any(self._lines.rest()) else None

    def _take(self, records: Iterable[LogRecord]) -> None:
        for record in records:
            self._last = record
            self._matches += self._fits(record)

    def _fits(self, record: LogRecord) -> bool:
        return self._probe.stream in {None, record.stream} and self._probe.pattern.search(record.line) is not None

    def _settled(self) -> bool:
        """Whether lines that have no end yet make up for what is missing, now that nothing was added for a while."""
        if self._unfinished_since is None or (not self._ended and self.delay()):
            return False
        self._unfinished_since = None
        unfinished = list(self._lines.rest())
        self._last = unfinished[-1]
        return self._matches + sum(map(self._fits, unfinished)) >= self._probe.count

    def close(self) -> None:
        self._conversation.close()


@attrs.frozen(repr=False)
class Notify(Probe):
    """Ready when it sends ``READY=1`` to its NOTIFY_SOCKET, as services with systemd's ``Type=notify`` do.

    What it sends as ``STATUS=`` is shown if it does not become ready; ``ERRNO=`` says why it never will.

    >>> Notify()
    Notify()
    """

    @property
    def wants_notify(self) -> bool:
        return True

    def watch(self, container: RunningContainer) -> Watch:
        if container.notify_socket is None:
            raise PodStateError(
                "the container was started without a NOTIFY_SOCKET", operation="wait for", object=repr(self),
                container=container.name, hint="pass notify=True, or ready=Notify()",
            )  # fmt: skip
        return _NotifyWatch(container.notify_socket)


class _NotifyWatch:
    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.last_seen = "no message on the NOTIFY_SOCKET"
        self.told: str | None = None

    def fds(self) -> Mapping[int, int]:
        return {self._socket.fileno(): select.POLLIN}

    def delay(self) -> float | None:
        return None

    def step(self) -> bool:
        ready = False
        with contextlib.suppress(BlockingIOError):
            while not ready:
                # Descriptors that come along are dropped, which is what a BARRIER=1 waits for.
                ready = self._take(self._socket.recv(_DATAGRAM, socket.MSG_DONTWAIT))
        return ready

    def last_step(self) -> bool:
        return self.step()

    def _take(self, datagram: bytes) -> bool:
        fields = dict(line.partition("=")[::2] for line in datagram.decode("utf-8", "replace").splitlines())
        if "STATUS" in fields:
            self.told = f"STATUS={fields['STATUS']}"
        if fields.get("ERRNO", "").isdecimal():
            self.told = f"{self.told or ''} ERRNO={fields['ERRNO']} ({os.strerror(int(fields['ERRNO']))})".strip()
        self.last_seen = self.told or f"{', '.join(fields)} on the NOTIFY_SOCKET, but not READY=1"
        return fields.get("READY") == "1"

    def close(self) -> None:
        """The socket is the container's."""
