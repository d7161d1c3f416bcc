"""What a person sees of a pull or push: bars on a terminal, lines elsewhere, nothing if it is quick or unwanted."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Bars", "Lines", "Progress", "Silent", "for_stream", "size_text"]

_BAR = 24
_REDRAW = 0.1
#: Seconds between two lines about the same transfer.
_LINE_EVERY = 10.0
#: Seconds after which something that was expected to be quick says what it is doing.
PATIENCE = 3.0


class Progress(Protocol):
    """Told of what happens, by any thread."""

    def begin(self, name: str, size: int, done: int) -> None:
        """A transfer of ``size`` bytes begins, or begins anew; ``done`` of them are there."""

    def advance(self, name: str, count: int) -> None:
        """So many more bytes."""

    def end(self, name: str) -> None:
        """It is complete."""

    def say(self, text: str) -> None:
        """A line that matters: a wait, another endpoint."""

    def close(self) -> None:
        """Nothing follows."""


class Silent:
    """Says nothing."""

    def begin(self, name: str, size: int, done: int) -> None: ...

    def advance(self, name: str, count: int) -> None: ...

    def end(self, name: str) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class _Counting:
    """Keeps the numbers."""

    def __init__(self, title: str, write: Callable[[str], None]) -> None:
        self._title = title
        self._write = write
        self._guard = threading.Lock()
        #: name → (bytes in all, bytes there)
        self._state: dict[str, tuple[int, int]] = {}
        self._began = time.monotonic()

    def begin(self, name: str, size: int, done: int) -> None:
        with self._guard:
            self._state[name] = (size, done)
            self._changed(name)

    def advance(self, name: str, count: int) -> None:
        with self._guard:
            size, done = self._state.get(name, (count, 0))
            self._state[name] = (size, done + count)
            self._changed(name)

    def end(self, name: str) -> None:
        with self._guard:
            if name in self._state:
                self._state[name] = (self._state[name][0],) * 2
                self._changed(name)

    def say(self, text: str) -> None:
        with self._guard:
            self._write(f"{self._title}: {text}\n")

    def close(self) -> None:
        """Nothing follows."""

    def _changed(self, name: str) -> None:
        raise NotImplementedError

    @property
    def _total(self) -> str:
        size, done = (sum(each[part] for each in self._state.values()) for part in (0, 1))
        return f"{size_text(done)} of {size_text(size)}"


class Lines(_Counting):
    """A line now and then, for logs: the first after ``after`` seconds."""

    def __init__(self, title: str, write: Callable[[str], None], after: float = 2.0) -> None:
        super().__init__(title, write)
        self._due = self._began + after
        self._silent_until = self._due

    def say(self, text: str) -> None:
        if time.monotonic() >= self._silent_until:
            super().say(text)

    def _changed(self, name: str) -> None:  # noqa: ARG002 - one line is about all
        if (now := time.monotonic()) >= self._due:
            self._due = now + _LINE_EVERY
            self._write(f"{self._title}: {self._total}\n")


class Bars(_Counting):
    """A bar for each transfer, redrawn in place."""

    def __init__(self, title: str, write: Callable[[str], None]) -> None:
        super().__init__(title, write)
        self._drawn = 0
        self._due = 0.0

    def say(self, text: str) -> None:
        with self._guard:
            self._write(f"{self._up()}{self._title}: {text}\n")
            self._drawn = 0
            self._draw()

    def close(self) -> None:
        with self._guard:
            if self._state:
                self._draw()

    def _changed(self, name: str) -> None:
        size, done = self._state[name]
        now = time.monotonic()
        if now >= self._due or done >= size:
            self._due = now + _REDRAW
            self._draw()

    def _up(self) -> str:
        """To where the bars began, and clear from there."""
        return f"\033[{self._drawn}A\r\033[J" if self._drawn else ""

    def _draw(self) -> None:
        columns, rows = shutil.get_terminal_size()
        shown = list(self._state.items())[-max(rows - 2, 1) :]
        lines = [_bar(name, size, done)[: columns - 1] for name, (size, done) in shown]
        lines.append(f"{self._title}: {self._total}"[: columns - 1])
        self._write(self._up() + "".join(f"{line}\n" for line in lines))
        self._drawn = len(lines)


def _bar(name: str, size: int, done: int) -> str:
    full = _BAR if size <= 0 else min(_BAR, done * _BAR // size)
    label = name.partition(":")[2][:12] or name[:12]
    return f"  {label:12} [{'=' * full}{' ' * (_BAR - full)}] {size_text(done):>9} / {size_text(size)}"


def size_text(count: float) -> str:
    """Bytes in the largest unit, 1000 to the next as registries and disks have it."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def for_stream(title: str, descriptor: int = 2, *, quiet: bool = False) -> Progress:
    """What suits an open file: bars on a terminal that can move its cursor, else lines."""
    if quiet:
        return Silent()
    write = _writer(descriptor)
    terminal = os.isatty(descriptor) and os.environ.get("TERM", "dumb") != "dumb"
    return Bars(title, write) if terminal else Lines(title, write)


def when_slow(title: str, descriptor: int = 2) -> Progress:
    """For programs that did not ask for a pull: silent, unless somebody would wonder what takes so long."""
    return Lines(title, _slow_writer or _writer(descriptor), after=PATIENCE)


#: Where :func:`when_slow` writes, if not to standard error; see :func:`set_slow_writer`.
_slow_writer: Callable[[str], None] | None = None


def set_slow_writer(write: Callable[[str], None] | None) -> None:
    """Let lines about slow pulls go elsewhere: a program that captures standard error knows a better place."""
    global _slow_writer  # noqa: PLW0603 - one for the process, as standard error is
    _slow_writer = write


def _writer(descriptor: int) -> Callable[[str], None]:
    def write(text: str) -> None:
        try:
            os.write(descriptor, text.encode("utf-8", "replace"))
        except OSError:
            pass  # nobody looks; the work goes on

    return write
