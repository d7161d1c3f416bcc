"""How the command line writes: columns, bold on terminals, errors in one place."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence


def is_terminal(fd: int) -> bool:
    """Whether a person looks at this descriptor."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def bold(text: str) -> str:
    """``text``, bold if standard output is a terminal (and NO_COLOR is not set, see no-color.org)."""
    plain = not is_terminal(1) or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[1m{text}\033[0m"


def write(text: str) -> None:
    """To standard output, at once; bytes that came out of file names as surrogates go back as they were."""
    data = memoryview(encoded(text))
    while data:
        data = data[os.write(1, data) :]


def encoded(text: str) -> bytes:
    """UTF-8; what names have as surrogates goes back to the bytes that it was, if it was bytes."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # out of a JSON document: not of any file's name
        return text.encode("utf-8", "backslashreplace")


def complain(text: str) -> None:
    """To standard error. Errors have names of strangers in them: control characters are not for the terminal."""
    shown = "".join(char if (char >= " " and char != "\x7f") or char in "\n\t" else repr(char)[1:-1] for char in text)
    try:
        os.write(2, encoded(f"{shown}\n"))
    except OSError:
        pass  # nobody listens; the exit status still tells


def columns(rows: Iterable[Sequence[str]], indent: str = "  ", gap: int = 2) -> str:
    """Rows with their cells aligned; the last one is as long as it is."""
    table = [list(row) for row in rows]
    widths = [max((len(cell) for cell in column), default=0) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [cell.ljust(width + gap) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append((indent + "".join(cells) + row[-1]).rstrip())
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for people; its header alone if there is nothing."""
    return columns([header, *rows], indent="", gap=3) + "\n"


def size(count: float) -> str:
    """Bytes in their largest decimal unit, as podman and ls -h --si show them."""
    if count < 1000:
        return f"{count:.0f} B"
    units = iter(("kB", "MB", "GB", "TB"))
    unit = next(units)
    count /= 1000
    while count >= 999.5 and unit != "TB":
        unit = next(units)
        count /= 1000
    return f"{count:.1f} {unit}" if count < 99.95 else f"{count:.0f} {unit}"


def document(value: object) -> None:
    """JSON to standard output."""
    import json

    write(json.dumps(value, indent=2) + "\n")


def hush() -> None:
    """The reader of our output has gone: let nothing that is written later complain about it."""
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives
