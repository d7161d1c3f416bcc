"""Staying with a program until it ends: signals go to it, and with a terminal what is typed and shown.

Without a terminal the program has our own standard streams, and nothing passes through here.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

from sandbox.cli import console

if TYPE_CHECKING:
    from typing import Protocol

    from sandbox.cli.terminal import Terminal
    from sandbox.shim.client import Conversation

    class Awaited(Protocol):
        """The end of a program: readable when it has come, then told."""

        def fileno(self) -> int: ...

        def answer(self) -> tuple[dict[str, Any], list[int]]: ...


#: What a person or a supervisor sends on purpose. Stopping and resuming (SIGTSTP …) concern this process itself.
_FORWARDED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGWINCH,
)  # fmt: skip
#: Milliseconds in which a program usually starts.
_START_PATIENCE = 200
#: Seconds after a first Ctrl-C until a person is told about the second.
_HINT_AFTER = 1.0


class Signals:
    """Signals as something to poll(2) for, between ``__enter__`` and ``__exit__``."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: dict[int, Any] = {}
        self._waiting = bytearray()

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._read

    def arrived(self) -> Iterator[int]:
        """The numbers of those that have, each once."""
        yield from self.waiting()
        self._waiting.clear()

    def waiting(self) -> bytes:
        """The numbers of those that nobody has dealt with yet."""
        with contextlib.suppress(BlockingIOError):
            self._waiting += os.read(self._read, 4096)
        return bytes(self._waiting)

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        realtime = range(signal.SIGRTMIN, signal.SIGRTMAX + 1)
        for number in (*_FORWARDED, *realtime):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup(1) means it
                self._before[number] = signal.signal(number, lambda _number, _frame: None)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)


def started(conversation: Conversation, signals: Signals) -> tuple[dict[str, Any], list[int]]:
    """The first answer to a request to start something.

    Signals that come meanwhile are for the program, unless it takes long to start: then they end this process, and with
    it the shim and everything that was begun.
    """
    poller = select.poll()
    poller.register(conversation, select.POLLIN)
    while not poller.poll(_START_PATIENCE):
        for number in signals.waiting():
            if number != signal.SIGWINCH:
                raise SystemExit(128 + number)
    return conversation.answer()


class Program:
    """A program that runs in a container, as seen from here.

    :param conversation: tells when it has ended
    :param send: sends a signal to it
    :param kill: kills it and everything it started
    """

    def __init__(self, conversation: Awaited, send: Callable[[int], object], kill: Callable[[], object]) -> None:
        self.conversation = conversation
        self.send = send
        self.kill = kill


class Attendant:
    """Waits for a program.

    :param timeout: seconds until it is killed; then :meth:`wait` raises :class:`TimeoutError`
    :param patience: seconds from SIGTERM (or the end of our terminal) until it is killed
    """

    def __init__(
        self, program: Program, signals: Signals, terminal: Terminal | None, *, timeout: float | None, patience: float
    ) -> None:  # fmt: skip
        self._program = program
        self._signals = signals
        self._terminal = terminal
        self._patience = patience
        self._timed_out = False
        self._interrupted = False
        #: (when, what to do), the earliest is done first.
        self._agenda: list[tuple[float, Callable[[], object]]] = []
        if timeout is not None:
            self._later(timeout, self._time_is_up)

    def wait(self) -> dict[str, Any]:
        """Until it has ended; what the shim says of it."""
        poller = select.poll()
        poller.register(self._signals, select.POLLIN)
        poller.register(self._program.conversation, select.POLLIN)
        for number in self._signals.arrived():  # while it was started
            self._signal(number)
        while not self._round(poller):
            pass
        answer, _ = self._program.conversation.answer()
        if self._timed_out:
            raise TimeoutError
        return answer

    def _round(self, poller: select.poll) -> bool:
        """Wait for one thing to happen and deal with it; True when the program has ended."""
        if self._terminal is not None:
            self._terminal.arrange(poller)
        ready = {fd for fd, _ in poller.poll(self._time_left())}
        for number in self._signals.arrived():
            self._signal(number)
        if self._terminal is not None:
            self._terminal.serve(ready)
        self._do_what_is_due()
        return self._program.conversation.fileno() in ready

    def _later(self, seconds: float, action: Callable[[], object]) -> None:
        self._agenda = sorted([*self._agenda, (time.monotonic() + seconds, action)], key=lambda entry: entry[0])

    def _time_left(self) -> float | None:
        return max(self._agenda[0][0] - time.monotonic(), 0) * 1000 if self._agenda else None

    def _do_what_is_due(self) -> None:
        while self._agenda and self._agenda[0][0] <= time.monotonic():
            self._agenda.pop(0)[1]()

    def _signal(self, number: int) -> None:
        if number == signal.SIGWINCH:
            if self._terminal is not None:
                self._terminal.resize()
            return
        if number == signal.SIGINT and self._interrupted:
            self._program.kill()
            return
        self._program.send(number)
        if number == signal.SIGINT:
            self._interrupted = True
            self._later(_HINT_AFTER, self._tell_how_to_kill)
        elif number == signal.SIGTERM or (number == signal.SIGHUP and not _has_terminal()):
            self._later(self._patience, self._program.kill)

    def _time_is_up(self) -> None:
        self._timed_out = True
        self._program.kill()

    def _tell_how_to_kill(self) -> None:
        if console.is_terminal(2):
            console.complain("sandbox: still running (process 1 ignores what it does not handle, see --init); "
                             "Ctrl-C once more kills it")  # fmt: skip


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def status_of(returncode: int) -> int:
    """The exit status that a shell would report."""
    return returncode if returncode >= 0 else 128 - returncode
