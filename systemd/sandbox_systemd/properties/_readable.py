"""Property values as Python values that read well: what :func:`from_python` takes, where it takes the property."""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sandbox_systemd.bus import Variant

from . import _names as names
from ._numbers import INFINITY, U32_MAX
from ._values import AllowList, Command


def readable(name: str, value: Variant) -> Any:
    """What :func:`to_python` gives."""
    convert = _BY_NAME.get(name) or _by_pattern(name) or _BY_SIGNATURE.get(value.signature)
    return value.value if convert is None else convert(value.value)


def _by_pattern(name: str) -> Callable[[Any], Any] | None:
    for pattern, convert in _PATTERNS:
        if pattern.fullmatch(name):
            return convert
    return None


# --- numbers --------------------------------------------------------------------------


def amount(value: int) -> float:
    """A limit: an int, or infinity."""
    return math.inf if value == INFINITY else value


def or_unset(value: int) -> int | None:
    return None if value == INFINITY else value


def seconds(value: int) -> float:
    return math.inf if value == INFINITY else value / 10**6


def seconds_of_nanoseconds(value: int) -> float | None:
    return None if value == INFINITY else value / 10**9


def moment(value: int) -> Any:
    """A datetime, or None for what has not happened."""
    import datetime as dt

    return None if value in {0, INFINITY} else dt.datetime.fromtimestamp(value / 10**6, dt.UTC)


def monotonic_moment(value: int) -> float | None:
    return None if value in {0, INFINITY} else value / 10**6


def fraction(value: int) -> float:
    return round(value / U32_MAX, 4)


# --- names ----------------------------------------------------------------------------


def name_in(table: Mapping[str, int] | Sequence[str]) -> Callable[[int], str | int | None]:
    found = (
        {number: name for name, number in table.items()}
        if isinstance(table, Mapping)
        else dict(enumerate(table))
    )
    return lambda value: None if value == -1 else found.get(value) or value


def signal_name(value: int) -> str | int:
    known = {number: f"SIG{name}" for name, number in names.SIGNALS.items()}
    return known.get(value, value)


def error_name(value: int) -> str | int:
    return "kill" if value == names.KILL else errno.errorcode.get(value, value)


def flags_in(table: Mapping[str, int]) -> Callable[[int], list[str]]:
    return lambda value: [name for name, flag in table.items() if value & flag]


def allowed_namespaces(value: int) -> bool | list[str]:
    """True if none is allowed, False if all are, else those that are."""
    if value == 0 or value & names.ALL_NAMESPACES == names.ALL_NAMESPACES:
        return value == 0
    return flags_in(names.NAMESPACES)(value)


# --- structures -----------------------------------------------------------------------


def members(value: bytes) -> list[int]:
    mask = int.from_bytes(bytes(value), "little")
    return [number for number in range(mask.bit_length()) if mask >> number & 1]


def environment(value: Sequence[str]) -> dict[str, str]:
    return {name: text for name, _, text in (item.partition("=") for item in value)}


def optional_paths(value: Sequence[tuple[str, bool]]) -> list[str]:
    return [f"-{path}" if optional else path for path, optional in value]


def networks(value: Sequence[tuple[int, bytes, int]]) -> list[Any]:
    """As ipaddress knows them."""
    import ipaddress

    return [ipaddress.ip_network((bytes(address), length), strict=False) for _, address, length in value]


def commands(value: Sequence[tuple[Any, ...]]) -> list[Command]:
    """Of ``ExecStart`` (with a boolean) and ``ExecStartEx`` (with names of flags) alike."""
    found = []
    for path, arguments, flags, *_ in value:
        named = (("ignore-failure",) if flags else ()) if isinstance(flags, bool) else tuple(flags)
        found.append(Command(path, tuple(arguments), named))
    return found


def conditions(value: Sequence[tuple[Any, ...]]) -> list[str]:
    return [
        f"{kind}={'|' * trigger}{'!' * negate}{parameter}" for kind, trigger, negate, parameter, *_ in value
    ]


def bind_paths(value: Sequence[tuple[str, str, bool, int]]) -> list[tuple[str, str, str]]:
    return [
        (f"-{source}" if optional else source, inside, "rbind" if flags else "norbind")
        for source, inside, optional, flags in value
    ]


def statuses(value: tuple[Sequence[int], Sequence[int]]) -> list[int | str]:
    return [*value[0], *map(signal_name, value[1])]


def label(value: tuple[bool, str]) -> str:
    return f"-{value[1]}" if value[0] else value[1]


def spans(value: Sequence[tuple[Any, ...]]) -> list[tuple[str, float]]:
    """Monotonic timers, under the names they are written by."""
    return [
        (f"{base.removesuffix('USec').removesuffix('Sec')}Sec", seconds(span)) for base, span, *_ in value
    ]


def texts(value: Sequence[bytes]) -> list[str]:
    return [bytes(item).decode(errors="replace") for item in value]


def per_device(convert: Callable[[int], Any]) -> Callable[[Sequence[tuple[str, int]]], dict[str, Any]]:
    return lambda value: {path: convert(number) for path, number in value}


_CAPABILITIES = {name: 1 << number for number, name in enumerate(names.CAPABILITIES)}
_SIGNALS = ("KillSignal", "RestartKillSignal", "FinalKillSignal", "WatchdogSignal", "ReloadSignal")

_BY_NAME: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("CapabilityBoundingSet", "AmbientCapabilities"), flags_in(_CAPABILITIES)),
    **dict.fromkeys(_SIGNALS, signal_name),
    **dict.fromkeys(("SyslogLevel", "LogLevelMax"), name_in(names.LOG_LEVELS)),
    **dict.fromkeys(("LoadCredential", "LoadCredentialEncrypted", "TemporaryFileSystem"), dict),
    **dict.fromkeys(
        ("SetCredential", "SetCredentialEncrypted"), lambda value: {k: bytes(v) for k, v in value}
    ),
    **dict.fromkeys(("IODeviceWeight", "BlockIODeviceWeight"), per_device(int)),
    **dict.fromkeys(("Conditions", "Asserts"), conditions),
    "SyslogFacility": name_in(names.LOG_FACILITIES),
    "SecureBits": flags_in(names.SECURE_BITS),
    "CPUSchedulingPolicy": name_in(names.CPU_SCHEDULING),
    "IOSchedulingClass": name_in(names.IO_SCHEDULING),
    "NUMAPolicy": name_in(names.NUMA_POLICIES),
    "MountFlags": name_in({name: flag for name, flag in names.PROPAGATION.items() if name}),
    "SystemCallErrorNumber": error_name,
    "RestrictNamespaces": allowed_namespaces,
    "ManagedOOMMemoryPressureLimit": fraction,
    "Environment": environment,
    "IODeviceLatencyTargetUSec": per_device(seconds),
    "TimersMonotonic": spans,
}
_PATTERNS: Sequence[tuple[re.Pattern[str], Callable[[Any], Any]]] = tuple(
    (re.compile(pattern), convert)
    for pattern, convert in (
        (".*TimestampMonotonic", monotonic_moment),
        (".*Timestamp", moment),
        ("(Startup)?(CPUWeight|IOWeight|CPUShares|BlockIOWeight)", or_unset),
        (".*(Current|Peak|Available|Bytes|Packets|Operations)", or_unset),
        (".*NSec", seconds_of_nanoseconds),
        ("(NextElapse|LastTrigger)USec(Realtime)?", moment),
        ("(NextElapse|LastTrigger)USecMonotonic", monotonic_moment),
        (".*USec", seconds),
        ("(Default|Startup|DefaultStartup)?(Memory|Tasks).*(Max|High|Low|Min|Limit)", amount),
        ("Limit[A-Z]+(Soft)?", amount),
        (".*Scale", fraction),
        ("(IO|BlockIO)(Read|Write)(Bandwidth|IOPS).*", per_device(amount)),
        ("(Startup|Effective)?(Allowed)?(CPUs|MemoryNodes)|CPUAffinity|NUMAMask", members),
    )
)
_BY_SIGNATURE: dict[str, Callable[[Any], Any]] = {
    "(bas)": lambda value: AllowList(value[0], list(value[1])),
    "(bs)": label,
    "(aiai)": statuses,
    "a(iayu)": networks,
    "a(sasb)": commands,
    "a(sasas)": commands,
    "a(sasbttttuii)": commands,
    "a(sasasttttuii)": commands,
    "a(sb)": optional_paths,
    "a(ssbt)": bind_paths,
    "aay": texts,
    "ay": bytes,
}
