"""Words for people: how errors, reports and the command line phrase things. Standard library only."""

from __future__ import annotations

import signal as signals
from collections.abc import Iterable, Sequence
from typing import Any

#: How many of the last log lines the text of an error shows; the ``logs`` attribute has them all.
SHOWN_LOG_LINES = 20

#: Longer values are cut in texts (never in attributes), so that a 4 KiB host name does not bury its own
#: message.
SHOWN_VALUE_CHARS = 120

#: A line of a program's output may be longer than a value: it is what the reader wants to see.
SHOWN_LINE_CHARS = 400

#: A program may have written gigabytes; so much of their end is looked at for its last lines.
_LOOKED_AT = 1 << 16


def describe_exit(returncode: int, oom_killed: bool = False) -> str:
    """How a process ended, in words; ``returncode`` is negative for a signal, as in :mod:`subprocess`."""
    if oom_killed:
        return "killed by the kernel: out of memory at its limit"
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"killed by {signals.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


def shorten(text: str) -> str:
    """``text`` on one line and cut in the middle if it is too long to be read in a message."""
    line = printable(text)
    if len(line) <= SHOWN_VALUE_CHARS:
        return line
    half = SHOWN_VALUE_CHARS // 2
    return f"{line[:half]}…{line[-half // 2 :]} ({len(text)} characters)"


def printable(text: str) -> str:
    """``text`` with escapes for what would do things to a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def command_text(cmd: str | Sequence[str]) -> str:
    """A command as one would say it; not quoted for a shell."""
    return cmd if isinstance(cmd, str) else " ".join(cmd)


def lines(text: str | bytes | Iterable[str] | None) -> tuple[str, ...]:
    """The lines of a log; bytes that are not UTF-8 show as escapes."""
    if text is None:
        return ()
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return tuple(text.splitlines() if isinstance(text, str) else text)


def log_lines(log: Sequence[str], title: str = "last log lines") -> list[str]:
    """A titled block of the last lines, or nothing."""
    shown = log[-SHOWN_LOG_LINES:]
    return [f"  {title}:", *(f"    {line}" for line in shown)] if shown else []


def output_lines(output: str | bytes | None, title: str) -> list[str]:
    """A titled block of the last lines that a program wrote, or nothing; bounded, and without escapes for a terminal."""
    said = lines(output[-_LOOKED_AT:] if output else None)
    shown = [_one_line(line) for line in said[-SHOWN_LOG_LINES:]]
    cut = len(shown) < len(said) or len(output or "") > _LOOKED_AT
    heading = f"{title} (its last {len(shown)} lines)" if cut else title
    return [f"  {heading}:", *(f"    {line}" for line in shown)] if shown else []


def _one_line(text: str) -> str:
    line = printable(text.expandtabs())
    return line if len(line) <= SHOWN_LINE_CHARS else f"{line[:SHOWN_LINE_CHARS]}… ({len(text)} characters)"


def indent(text: str) -> str:
    """The same text for an indented place."""
    return text.replace("\n", "\n    ")


def to_json(value: Any) -> Any:
    """``value`` in JSON terms; what JSON has no form for is told by its repr."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    return repr(value)
