"""Sizes, shares, signals and other small notations, parsed from what people write.

Sizes count in binary units, as systemd and docker do: ``"1K"`` is 1024 bytes. Every function here raises
:class:`ValueError` or :class:`TypeError` with a text that reads well behind ``Class.field = value:``.
"""

from __future__ import annotations

import math
import re
import signal as signals

import attrs

#: Stored for "no limit at all".
UNLIMITED = -1

#: Sizes travel as signed 64 bit numbers (OCI runtime spec, config-linux.md, "Memory").
MAX_SIZE = 2**63 - 1

#: The first real-time signal a program may use: glibc keeps 32 and 33 for itself, see signal(7).
SIGRTMIN = 34
SIGRTMAX = 64

_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50, "E": 1 << 60}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTPE]?)(?:I?B)?", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)
_REALTIME = re.compile(r"RT(MIN|MAX)(?:([+-])([0-9]{1,2}))?", re.ASCII)
_UNLIMITED_WORDS = frozenset({"max", "unlimited", "infinity"})


@attrs.frozen
class Percent:
    """A share of something that only the host knows, such as its memory; ``Percent(10)`` is a tenth."""

    value: float

    def of(self, total: int) -> int:
        """The share of ``total``, rounded down."""
        return int(total * self.value / 100)

    def __str__(self) -> str:
        return f"{self.value:g}%"


def parse_size(value: str | float) -> int:
    """Bytes from ``4096``, ``"64M"``, ``"1.5G"``, ``"512 MiB"``; binary units."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError("expected a size such as 4096, '64M' or '1.5G'")
    if isinstance(value, str):
        return _size_from_text(value)
    if not math.isfinite(value) or value != int(value):
        raise ValueError("expected a whole number of bytes")
    return _in_range(int(value))


def _size_from_text(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            "must not be negative"
            if text.strip().startswith("-")
            else "not a size; write 4096, '64M' or '1.5G'"
        )
    number, unit = match.groups()
    factor = _FACTORS[unit.upper()]
    # whole numbers stay exact beyond 2**53
    return _in_range(int(number) * factor if number.isdigit() else int(float(number) * factor))


def _in_range(size: int) -> int:
    if size < 0:
        raise ValueError("must not be negative")
    if size > MAX_SIZE:
        raise ValueError("does not fit into 63 bits")
    return size


def parse_memory(value: str | float | Percent) -> int | Percent:
    """A size above zero, or a share of the host's memory: ``"10%"``."""
    if isinstance(value, Percent) or (isinstance(value, str) and value.strip().endswith("%")):
        return _share(value)
    size = parse_size(value)
    if size == 0:
        raise ValueError("must be more than 0")
    return size


def _share(value: str | Percent) -> Percent:
    share = value if isinstance(value, Percent) else Percent(parse_number(value.strip()[:-1]))
    if not 0 < share.value <= 100:
        raise ValueError("a share must be more than 0% and at most 100%")
    return share


def parse_swap(value: str | float | Percent) -> int | Percent:
    """Like :func:`parse_memory`; 0 is allowed and ``"max"`` or -1 mean no limit."""
    if _is_unlimited(value):
        return UNLIMITED
    if isinstance(value, Percent) or (isinstance(value, str) and value.strip().endswith("%")):
        return _share(value)
    return parse_size(value)


def _is_unlimited(value: object) -> bool:
    return (value == UNLIMITED and not isinstance(value, bool)) or (
        isinstance(value, str) and (value in _UNLIMITED_WORDS or value == str(UNLIMITED))
    )


def parse_number(text: str) -> float:
    """A plain decimal number; no signs, exponents or ``nan``."""
    if _NUMBER.fullmatch(text.strip()) is None:
        raise ValueError("not a number")
    return float(text)


def parse_cpus(value: str | float) -> float:
    """CPUs from ``1.5``, ``"1.5"``, ``"150%"`` (systemd) or ``"1500m"`` (Kubernetes)."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError("expected a number of CPUs such as 1.5, '150%' or '1500m'")
    cpus = _cpus_from_text(value.strip()) if isinstance(value, str) else float(value)
    # The kernel wants a quota of at least 1 ms in a period of at most 1 s (sched-bwc).
    if not math.isfinite(cpus) or not 0.01 <= cpus <= 10_000:
        raise ValueError("must be between 0.01 and 10000 CPUs")
    return cpus


def _cpus_from_text(text: str) -> float:
    try:
        if text.endswith("%"):
            return parse_number(text[:-1]) / 100
        return parse_number(text[:-1]) / 1000 if text.endswith("m") else parse_number(text)
    except ValueError:
        raise ValueError("not a number of CPUs; write 1.5, '150%' or '1500m'") from None


def parse_pids(value: str | int) -> int:
    """A number of processes, or ``"max"``."""
    if _is_unlimited(value):
        return UNLIMITED
    return parse_int(value, 1, 1 << 22)  # PID_MAX_LIMIT of a 64 bit kernel


def parse_int(value: str | int, low: int, high: int) -> int:
    """A whole number within bounds; digits in a string are fine."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value, re.ASCII):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected a whole number from {low} to {high}")
    if not low <= value <= high:
        raise ValueError(f"must be from {low} to {high}")
    return value


def parse_seconds(value: float) -> float:
    """A time span in seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("expected a number of seconds")
    if not math.isfinite(value) or value < 0:
        raise ValueError("must be a finite number of seconds, not negative")
    return float(value)


def parse_mode(value: str | int) -> int:
    """A file mode: ``0o755``, or octal digits in a string."""
    if isinstance(value, str):
        if re.fullmatch(r"(0o)?[0-7]{1,5}", value) is None:
            raise ValueError("not a file mode; write 0o755 or '755'")
        value = int(value.removeprefix("0o"), 8)
    return parse_int(value, 0, 0o7777)


def parse_umask(value: str | int) -> int:
    """A file mode creation mask, see umask(2): permission bits only."""
    mask = parse_mode(value)
    if mask > 0o777:
        raise ValueError("only permission bits (0o777) can be masked")
    return mask


def parse_signal(value: str | int) -> str:
    """The canonical name of a signal (``"SIGTERM"``, ``"SIGRTMIN+3"``); ``"TERM"`` and 15 are understood."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError("expected a signal such as 'SIGTERM', 'TERM' or 15")
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, int):
        return _signal_name(value)
    name = value.strip().upper().removeprefix("SIG")
    return _signal_name(_signal_from_name(name))


def _signal_from_name(name: str) -> int:
    if match := _REALTIME.fullmatch(name):
        base = SIGRTMIN if match[1] == "MIN" else SIGRTMAX
        return base + int(f"{match[2]}{match[3]}" if match[3] else 0)
    try:
        return signals.Signals[f"SIG{name}"].value
    except KeyError:
        raise ValueError("no such signal; see signal(7)") from None


def _signal_name(number: int) -> str:
    if SIGRTMIN <= number <= SIGRTMAX:
        return "SIGRTMIN" if number == SIGRTMIN else f"SIGRTMIN+{number - SIGRTMIN}"
    try:
        return signals.Signals(number).name
    except ValueError:
        raise ValueError("no such signal; see signal(7)") from None


def signal_number(value: str | int) -> int:
    """The number of a signal in any of the notations :func:`parse_signal` takes."""
    return _signal_from_name(parse_signal(value).removeprefix("SIG"))
