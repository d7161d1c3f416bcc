"""Properties of units: what ``systemd-run -p`` takes, and Python values, as typed D-Bus properties; and back.

>>> parse(["MemoryMax=64M", "CPUQuota=50%", "PrivateTmp=yes"])
[('MemoryMax', Variant(signature='t', value=67108864)),
 ('CPUQuotaPerSecUSec', Variant(signature='t', value=500000)),
 ('PrivateTmp', Variant(signature='b', value=True))]
>>> from_python({"Environment": {"GREETING": "hello world"}, "ExecStart": ["/bin/echo", "$HOME"]})
[('Environment', Variant(signature='as', value=['GREETING=hello world'])),
 ('ExecStartEx', Variant(signature='a(sasas)', value=[('/bin/echo', ['/bin/echo', '$HOME'], ['no-env-expand'])]))]

An assignment means what it means to systemd-run; the tests ask systemd-run itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sandbox_systemd.bus import Variant
from sandbox_systemd.errors import InvalidProperty

from ._readers import Property
from ._table import TABLES, Kind
from ._values import AllowList, Command

__all__ = ["AllowList", "Command", "Property", "from_python", "names", "parse", "to_python"]

#: Properties that only a program can set: what ``-p`` has no words for.
PROGRAMMATIC = {
    "AddRef": "b",
    "Controller": "s",
    "ExtraFileDescriptors": "a(hs)",
    "PIDs": "au",
    "StandardErrorFileDescriptor": "h",
    "StandardInputFileDescriptor": "h",
    "StandardOutputFileDescriptor": "h",
}


def names(unit_type: str = "service") -> list[str]:
    """The names that :func:`parse` knows for a type of unit."""
    return sorted(_table(unit_type))


def parse(assignments: Iterable[str], unit_type: str = "service") -> list[Property]:
    """Assignments as systemd-run takes them with ``-p``, in their order.

    :param unit_type: ``service``, ``scope``, ``slice``, ``socket``, ``timer``, ``path``, ``mount``, ``automount``
    :raises InvalidProperty: naming the assignment, with the reason and a hint
    """
    _table(unit_type)
    found = []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InvalidProperty(
                "not an assignment", operation="set property", object=assignment, hint="write NAME=VALUE"
            )
        found += _read(_kind(name, unit_type, assignment), name, text, assignment)
    return found


def from_python(values: Mapping[str, Any], unit_type: str = "service") -> list[Property]:
    """Properties from Python values, by the names that systemd-run takes.

    A string is in systemd's syntax, ``"64M"``; anything else stands for itself: numbers, booleans, paths, seconds as
    float or timedelta, ``math.inf``, words as a list, ``Environment`` and things per device as a dict, a command as the
    list of its arguments. What may be assigned more than once, like BindPaths, is a list of texts or of tuples of
    their parts: ``[("/from", "/to"), "/etc/ssl:/ssl:norbind"]``. None leaves a property out, a :class:`Variant` goes as
    it is, whatever the name. Some names are for programs only: PIDs, AddRef, StandardInputFileDescriptor and the like.

    :raises InvalidProperty: naming the property and its value, with the reason and a hint
    """
    found: list[Property] = []
    for name, value in values.items():
        if isinstance(value, Variant):
            found.append((name, value))
        elif name in PROGRAMMATIC and value is not None:
            found.append((name, Variant(PROGRAMMATIC[name], list(value) if name == "PIDs" else value)))
        elif value is not None:
            found += _from_value(name, value, unit_type)
    return found


def to_python(name: str, value: Variant) -> Any:
    """The value of a property as Python knows such things.

    Time spans are seconds (``math.inf`` for none), points in time are datetimes, shares are fractions of one (1.5 is one
    and a half CPUs), masks are lists of names or numbers. None is "not set", or "not known" for what is measured. What
    has no better form stays as it is.

    >>> to_python("RuntimeMaxUSec", Variant("t", 1_500_000))
    1.5
    """
    from ._readable import readable

    return readable(name, value)


def _from_value(name: str, value: Any, unit_type: str) -> list[Property]:
    shown = f"{name}={value}"
    kind = _kind(name, unit_type, shown)
    try:
        texts = kind.write(value)
    except (TypeError, ValueError) as error:
        raise InvalidProperty(str(error), operation="set property", object=shown) from None
    return [prop for text in texts for prop in _read(kind, name, text, shown)]


def _read(kind: Kind, name: str, text: str, shown: str) -> list[Property]:
    if "\0" in text:
        raise InvalidProperty("there is a NUL in it", operation="set property", object=shown)
    try:
        return kind.read(name, text)
    except ValueError as error:
        raise InvalidProperty(str(error), operation="set property", object=shown) from None


# --- names ----------------------------------------------------------------------------


def _table(unit_type: str) -> Mapping[str, Kind]:
    if unit_type not in TABLES:
        raise ValueError(f"{unit_type!r} is no type of unit: {', '.join(TABLES)} are known")
    return TABLES[unit_type]


def _kind(name: str, unit_type: str, shown: str) -> Kind:
    table = _table(unit_type)
    if name in table:
        return table[name]
    detail = f"{unit_type} units have no property {name}"
    raise InvalidProperty(detail, operation="set property", object=shown, hint=_hint(name, unit_type))


def _hint(name: str, unit_type: str) -> str | None:
    import difflib

    others = [other for other, table in TABLES.items() if name in table]
    if others:
        return f"{name} is for {' and '.join(others)} units"
    if name.endswith("USec") and (written := f"{name.removesuffix('USec')}Sec") in TABLES[unit_type]:
        return f"write {written}=, in seconds"
    folded = {known.lower(): known for known in TABLES[unit_type]}
    near = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.7)
    return f"did you mean {' or '.join(folded[match] for match in near)}?" if near else None
