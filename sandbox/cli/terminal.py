"""A program's terminal joined to ours: raw mode, window size, and what goes back and forth."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import termios
import tty
from typing import Any, Self

from sandbox.cli import console

_CHUNK = 65536
#: Milliseconds to wait for output that is still on its way when the program has ended.
_LAST_WORDS = 20
#: What a terminal turns into the end of input.
_END_OF_INPUT = b"\x04"


def window() -> tuple[int, int] | None:
    """(rows, columns) of our terminal, if one of the standard streams is one."""
    for fd in (0, 1, 2):
        with contextlib.suppress(termios.error, OSError):
            rows, columns = termios.tcgetwinsize(fd)
            if rows and columns:
                return rows, columns
    return None


def set_window(process: dict[str, Any]) -> None:
    """Let a ``process`` of an OCI spec begin with the size and the type of our terminal."""
    size = window()
    if size is not None:
        process["consoleSize"] = {"height": size[0], "width": size[1]}
    if not any(line.startswith("TERM=") for line in process["env"]):
        process["env"].append(f"TERM={os.environ.get('TERM', 'xterm')}")


class Terminal:
    """Our standard streams and the master side of a program's terminal; a context manager for the raw mode."""

    def __init__(self, master: int, *, interactive: bool) -> None:
        self._master = master
        self._input = interactive
        self._pending = b""
        self._saved: list[Any] | None = None
        self._polled: dict[int, int] = {}
        os.set_blocking(master, False)

    def __enter__(self) -> Self:
        if self._input and console.is_terminal(0):
            self._saved = termios.tcgetattr(0)
            tty.setraw(0, termios.TCSADRAIN)
        self.resize()
        return self

    def __exit__(self, *_: object) -> None:
        self._show_rest()
        if self._saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._saved)
        self._close()

    def resize(self) -> None:
        """Give the program's terminal the size of ours."""
        size = window()
        if size is not None and self._master >= 0:
            with contextlib.suppress(termios.error):
                termios.tcsetwinsize(self._master, size)

    def arrange(self, poller: select.poll) -> None:
        """Register what there is to wait for now."""
        wanted = {}
        if self._input and len(self._pending) < _CHUNK:
            wanted[0] = select.POLLIN
        if self._master >= 0:
            wanted[self._master] = select.POLLIN | (select.POLLOUT if self._pending else 0)
        for fd in self._polled.keys() - wanted.keys():
            poller.unregister(fd)
        for fd, events in wanted.items():
            if self._polled.get(fd) != events:
                poller.register(fd, events)
        self._polled = wanted

    def serve(self, ready: set[int]) -> None:
        """Move what can be moved."""
        if 0 in ready and self._input:
            self._take_input()
        if self._pending and self._master >= 0:
            self._give_input()
        if self._master in ready:
            self._show()

    def _take_input(self) -> None:
        try:
            data = os.read(0, _CHUNK)
        except OSError:
            data = b""  # our terminal is gone
        if not data:
            self._input = False
            data = _END_OF_INPUT
        self._pending += data

    def _give_input(self) -> None:
        try:
            self._pending = self._pending[os.write(self._master, self._pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self._pending = b""

    def _show(self) -> bool:
        """Show what the program has written; False if there is nothing (any more)."""
        try:
            data = os.read(self._master, _CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""  # the last process that had it open has ended
        if not data:
            self._close()
            return False
        while data:
            data = data[os.write(1, data) :]
        return True

    def _show_rest(self) -> None:
        poller = select.poll()
        if self._master >= 0:
            poller.register(self._master, select.POLLIN)
        while self._master >= 0 and poller.poll(_LAST_WORDS) and self._show():
            pass

    def _close(self) -> None:
        if self._master >= 0:
            self._polled.pop(self._master, None)
            os.close(self._master)
            self._master = -1
