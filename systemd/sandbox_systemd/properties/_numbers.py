"""Numbers as systemd reads them: booleans, integers, sizes, percentages, time spans (systemd.syntax(7), systemd.time(7)).

All functions raise ValueError with a reason that reads well after "MemoryMax=64X: ".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ._words import WHITESPACE

U32_MAX = 2**32 - 1
U64_MAX = 2**64 - 1
#: What "infinity", "no limit" and "not set" are in properties of type ``t``.
INFINITY = U64_MAX
_I32_MAX = 2**31 - 1

_TRUE = frozenset({"1", "yes", "y", "true", "t", "on"})
_FALSE = frozenset({"0", "no", "n", "false", "f", "off"})

#: Prefix → base; a leading 0 alone means octal, as in C.
_INTEGER = re.compile(
    r"(?P<sign>[+-]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|(?P<octal>0[0-7]*)|(?P<decimal>[1-9][0-9]*))"
)
_PREFIXED = re.compile(r"0(?:[bB](?P<binary>[01]+)|[oO](?P<octal>[0-7]+))")
_BASES = {"hex": 16, "octal": 8, "decimal": 10, "binary": 2}


def boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("not a boolean: yes or no is meant")


def integer(text: str, low: int = 0, high: int = U64_MAX) -> int:
    """A whole number in decimal, or after 0x, 0o (or 0) or 0b in another base, between two limits."""
    stripped = text.lstrip(WHITESPACE)
    match = _PREFIXED.fullmatch(stripped) or _INTEGER.fullmatch(stripped)
    if match is None:
        raise ValueError("not a whole number")
    groups = match.groupdict()
    value = next(int(groups[name], base) for name, base in _BASES.items() if groups.get(name))
    if groups.get("sign") == "-":
        value = -value
    return within(value, low, high)


def within(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ValueError(f"not between {low} and {high}")
    return value


def mode(text: str) -> int:
    """A file mode in octal."""
    stripped = text.lstrip(WHITESPACE)
    if not re.fullmatch("[0-7]+", stripped):
        raise ValueError("not a file mode: up to four octal digits are meant")
    return within(int(stripped, 8), 0, 0o7777)


# --- sizes ------------------------------------------------------------------------

_TOO_LARGE = "too large a size"
_SIZE_SUFFIXES = ("E", "P", "T", "G", "M", "K", "B", "")
_SIZE = re.compile(rf"[{WHITESPACE}]*\+?([0-9]+)(?:\.([0-9]*))?[{WHITESPACE}]*")


def size(text: str, base: int = 1024) -> int:
    """Bytes: one or more numbers with suffixes in falling order, ``1G 512M``; B or none is bytes."""
    total, position, first = 0, 0, 0
    while True:
        match = _SIZE.match(text, position)
        if match is None:
            raise ValueError("not a size: a number of bytes with K, M, G, T, P or E is meant")
        left = text[match.end() :]
        found = next((i for i in range(first, 8) if left.startswith(_SIZE_SUFFIXES[i])), None)
        if found is None:
            raise ValueError("the suffixes of a size do not fall")
        total += _part(match[1], match[2] or "", base ** max(6 - found, 0))
        if total > U64_MAX:
            raise ValueError(_TOO_LARGE)
        position, first = match.end() + len(_SIZE_SUFFIXES[found]), found + 1
        if position == len(text):
            return total


def _part(whole: str, fraction: str, factor: int) -> int:
    share = float(int(fraction)) if fraction else 0.0
    for _ in fraction:
        share /= 10
    if int(whole) + (share > 0) > U64_MAX // factor:
        raise ValueError(_TOO_LARGE)
    return int(whole) * factor + int(share * factor)


# --- shares -----------------------------------------------------------------------


def permyriad(text: str) -> int:
    """A share in hundredths of a per cent: ``12.34%``, ``5.5‰`` or ``7‱``."""
    for symbol, places in (("‱", 0), ("‰", 1), ("%", 2)):
        if text.endswith(symbol):
            return _share(text.removesuffix(symbol), places)
    raise ValueError("not a percentage")


def _share(text: str, places: int) -> int:
    whole, dot, fraction = text.partition(".")
    if dot and not re.fullmatch(rf"[0-9]{{1,{places}}}" if places else "(?!)", fraction):
        raise ValueError(f"a percentage has at most {places} digits after the point here")
    value = integer(whole, -_I32_MAX - 1, _I32_MAX) * 10**places + int(fraction.ljust(places, "0") or "0")
    return within(value, 0, _I32_MAX)


def share(text: str) -> int:
    """A share of at most 100 %, in hundredths of a per cent."""
    return within(permyriad(text), 0, 10_000)


def scaled(hundredths: int) -> int:
    """A share as systemd passes it on: 2³²-1 is all of it."""
    return (hundredths * U32_MAX + 5_000) // 10_000


# --- time spans ----------------------------------------------------------------------

_USEC = (
    ("seconds", 10**6), ("second", 10**6), ("sec", 10**6), ("s", 10**6),
    ("minutes", 60 * 10**6), ("minute", 60 * 10**6), ("min", 60 * 10**6),
    ("months", 2_629_800 * 10**6), ("month", 2_629_800 * 10**6), ("M", 2_629_800 * 10**6),
    ("msec", 10**3), ("ms", 10**3), ("m", 60 * 10**6),
    ("hours", 3600 * 10**6), ("hour", 3600 * 10**6), ("hr", 3600 * 10**6), ("h", 3600 * 10**6),
    ("days", 86400 * 10**6), ("day", 86400 * 10**6), ("d", 86400 * 10**6),
    ("weeks", 7 * 86400 * 10**6), ("week", 7 * 86400 * 10**6), ("w", 7 * 86400 * 10**6),
    ("years", 31_557_600 * 10**6), ("year", 31_557_600 * 10**6), ("y", 31_557_600 * 10**6),
    ("usec", 1), ("us", 1), ("µs", 1), ("μs", 1),
)  # fmt: skip
_NSEC = (*((name, factor * 1000) for name, factor in _USEC), ("nsec", 1), ("ns", 1))
_SPAN = re.compile(rf"[{WHITESPACE}]*(\+?[0-9]*)(?:(\.)([0-9]*))?")


def microseconds(text: str, default: int = 10**6) -> int:
    """A time span like ``1min 30s`` or ``2.5``; a number without a unit counts ``default`` (seconds)."""
    return _span(text, default, _USEC)


def nanoseconds(text: str) -> int:
    """A time span; a number without a unit counts nanoseconds."""
    return _span(text, 1, _NSEC)


def _span(text: str, default: int, units: Sequence[tuple[str, int]]) -> int:
    if text.lstrip(WHITESPACE).rstrip(WHITESPACE) == "infinity":
        return INFINITY
    total, position, seen = 0, 0, False
    while text[position:].strip(WHITESPACE):
        match = _SPAN.match(text, position)
        assert match is not None  # it matches the empty text too
        whole, dot, fraction = match.groups()
        if not (whole.strip("+") or dot) or (dot and not fraction):
            raise ValueError("not a time span: 90, 1min 30s, 500ms, infinity are some")
        after = text[match.end() :]
        left = after.lstrip(WHITESPACE)
        unit, factor = next(
            ((name, factor) for name, factor in units if left.startswith(name)), ("", default)
        )
        if not unit and left == after and left:
            raise ValueError(f"not a unit of time: {left.split()[0]}")
        count = int(whole or "0")
        total += count * factor + _decimals(fraction or "", factor)
        if count >= INFINITY // factor or total >= INFINITY:
            raise ValueError("too long a time span")
        position, seen = len(text) - len(left) + len(unit), True
    if not seen:
        raise ValueError("a time span is missing")
    return total


def _decimals(digits: str, factor: int) -> int:
    total = 0
    for digit in digits:
        factor //= 10
        total += int(digit) * factor
    return total
