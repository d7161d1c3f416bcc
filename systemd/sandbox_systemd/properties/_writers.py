"""From Python values to the text of assignments, which the readers then understand.

A string is text in systemd's own syntax. Anything else means what it says: the words of a list and the parts of a tuple
are quoted, so that spaces, quotes, colons and dollars in them stand for themselves.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Any

from ._values import AllowList, Command
from ._words import WHITESPACE, escape, protect, quote

Writer = Callable[[Any], list[str]]


def scalar(value: Any) -> str:
    """One value as text. Raises ValueError for what has no text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, IntEnum):
        return str(value.value)
    if isinstance(value, float) and math.isinf(value):
        return "infinity"
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    raise ValueError(f"a value of type {type(value).__name__} does not fit")


def plain(value: Any) -> list[str]:
    return [scalar(value)]


def whole(value: Any) -> list[str]:
    """An amount; 2.0 is as good as 2, but there is no half of it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, float) and not math.isinf(value):
        raise ValueError("not a whole number")
    return [scalar(value)]


def seconds(value: Any) -> list[str]:
    """Seconds, or a timedelta."""
    if _is_timedelta(value):
        return [f"{(value.days * 86400 + value.seconds) * 10**6 + value.microseconds}us"]
    if isinstance(value, float) and math.isfinite(value):
        return [f"{round(value * 10**6)}us"]
    return [scalar(value)]


def _is_timedelta(value: Any) -> bool:
    """Asked without importing datetime, which takes longer than all of this."""
    return hasattr(value, "total_seconds")


def nanoseconds(value: Any) -> list[str]:
    """Seconds, as everywhere in Python, or a timedelta."""
    if _is_timedelta(value):
        value = value.total_seconds()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return [f"{round(value * 10**9)}ns"]
    return [scalar(value)]


def fraction(value: Any) -> list[str]:
    """A share as a float: 0.5 is 50 %, infinity is no limit."""
    if value == math.inf:
        return [""]
    if isinstance(value, float):
        return [f"{round(value * 10_000)}‱"]
    if not isinstance(value, str):
        raise TypeError("a percentage is meant: '50%' or 0.5")
    return [value]


def octal(value: Any) -> list[str]:
    if isinstance(value, int) and value < 0:
        raise ValueError("not a file mode")
    return [value if isinstance(value, str) else f"{value:o}"]


def words(value: Any) -> list[str]:
    """Words of one assignment: a sequence, or a mapping whose items are written ``key=value``."""
    if isinstance(value, Mapping):
        return [" ".join(quote(f"{scalar(key)}={scalar(item)}") for key, item in value.items())]
    if _is_many(value):
        return [" ".join(quote(scalar(item)) for item in value)]
    return plain(value)


def plain_words(value: Any) -> list[str]:
    """Words that have no quotes: names, addresses, numbers."""
    return [" ".join(map(scalar, value))] if _is_many(value) else plain(value)


def allow_list(value: Any) -> list[str]:
    """Names that are allowed; or an AllowList, which may also say that they are not."""
    if isinstance(value, AllowList):
        return [f"{'' if value.allow else '~'}{' '.join(value.names)}"]
    return plain_words(value)


def addresses(value: Any) -> list[str]:
    """Texts, or what ipaddress makes: one assignment for each."""
    return [str(item) for item in (value if _is_many(value) and not hasattr(value, "prefixlen") else [value])]


def numbers(value: Any) -> list[str]:
    """Numbers of CPUs or nodes."""
    return [",".join(map(scalar, sorted(value)))] if _is_many(value) else plain(value)


def items(join: Callable[..., str]) -> Writer:
    """One assignment for each item of a mapping or a list. A tuple is one item, in its parts; a text is in syntax."""

    def write(value: Any) -> list[str]:
        if isinstance(value, Mapping):
            value = list(value.items())
        elements = [value] if isinstance(value, tuple) or not _is_many(value) else value
        return [join(*item) if isinstance(item, tuple) else scalar(item) for item in elements]

    return write


def _is_many(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, os.PathLike, Mapping))


def spaced(path: Any, *rest: Any) -> str:
    """A device and something about it."""
    if any(letter in scalar(path) for letter in WHITESPACE):
        raise ValueError("a path with a space cannot be written")
    return " ".join(map(scalar, (path, *rest)))


def spaced_seconds(path: Any, span: Any) -> str:
    return spaced(path, seconds(span)[0])


def bind(source: Any, inside: Any = None, options: str = "") -> str:
    """A source, after - if it may be missing; where it is seen; and rbind or norbind."""
    path = scalar(source).removeprefix("-")
    optional = "-" if scalar(source).startswith("-") else ""
    text = f"{optional}{quote(path)}:{quote(path if inside is None else scalar(inside))}"
    return f"{text}:{options}" if options else text


def pair(path: Any, options: Any = "") -> str:
    """A path with options, as one word."""
    listed = ",".join(map(scalar, options)) if _is_many(options) else scalar(options)
    return quote(protect(scalar(path), ":") + (f":{listed}" if listed else ""))


def directory(name: Any, link: Any = "") -> str:
    link_text = scalar(link) if link else ""
    return quote(quote(scalar(name)) + (f":{quote(link_text)}" if link_text else ""))


def tuple_word(*parts: Any) -> str:
    """Parts of a word that has an escape for everything that could end it."""
    return ":".join(_escaped(scalar(part)) for part in parts)


def _escaped(part: str) -> str:
    special = set(WHITESPACE + "\"'\\:")
    return "".join(f"\\x{ord(letter):02x}" if letter in special else letter for letter in part)


def credential(name: Any, data: Any) -> str:
    content = data if isinstance(data, bytes) else scalar(data).encode()
    return f"{protect(scalar(name), ':')}:{escape(content)}"


def encrypted_credential(name: Any, data: Any) -> str:
    content = base64.b64encode(data).decode() if isinstance(data, bytes) else scalar(data)
    return f"{protect(scalar(name), ':')}:{content}"


def credential_source(name: Any, path: Any = "") -> str:
    return protect(scalar(name), ":") + (f":{scalar(path)}" if path else "")


def data(value: Any) -> list[str]:
    return [base64.b64encode(value).decode() if isinstance(value, bytes) else scalar(value)]


def hexadecimal(value: Any) -> list[str]:
    return [value.hex() if isinstance(value, bytes) else scalar(value)]


def assignments(value: Any) -> list[str]:
    """One assignment for each: ``NAME=text`` or an item of a mapping."""
    if isinstance(value, Mapping):
        return [f"{scalar(key)}={scalar(item)}" for key, item in value.items()]
    return list(map(scalar, value)) if _is_many(value) else plain(value)


def commands(value: Any) -> list[str]:
    """A command as a list of its arguments, which systemd takes as they are; or several of such lists.

    In text, systemd replaces ``$NAME``; what is in a list stands for itself.
    """
    if not _is_many(value):
        return plain(value)
    if isinstance(value, Command):
        return [_command_line(value)]
    arguments = list(value)
    if arguments and any(_is_many(argument) for argument in arguments):
        return [text for argument in arguments for text in commands(argument)]
    return [":" + " ".join(quote(scalar(argument)) for argument in arguments)]


_PREFIXES = {
    "ignore-failure": "-",
    "privileged": "+",
    "no-setuid": "!",
    "ambient": "!!",
    "no-env-expand": ":",
}


def _command_line(command: Command) -> str:
    unknown = set(command.flags) - set(_PREFIXES)
    if unknown:
        raise ValueError(f"no flag of a command: {', '.join(sorted(unknown))}")
    prefixes = "".join(_PREFIXES[flag] for flag in command.flags)
    return f"{prefixes}@{' '.join(quote(scalar(word)) for word in (command.path, *command.arguments))}"


def limits(value: Any) -> list[str]:
    """A soft and a hard limit, or one for both."""
    if isinstance(value, tuple):
        return [":".join(scalar(part) for part in value)]
    return plain(value)
