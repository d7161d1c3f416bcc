"""Readers for what units of one type or all units have: commands, network rules, conditions, timers, sockets."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from sandbox_systemd.bus import Variant

from . import _names as names, _numbers as numbers
from ._readers import Property, Reader, many
from ._words import C_STYLE, Scanner, Syntax, split

#: Prefix of a command → its flag (systemd.service(5), "Special executable prefixes"), in the order they are sent.
COMMAND_FLAGS = ("ignore-failure", "privileged", "no-setuid", "ambient", "no-env-expand")


def command(name: str, value: str) -> list[Property]:
    """A command line with its prefixes. What only ``Exec…Ex`` can say is sent as that."""
    flags, explicit_path, line = _prefixes(value)
    scanner = Scanner(line)
    path = scanner.word(C_STYLE) if explicit_path else None
    if explicit_path and not scanner.rest:
        raise ValueError("after @ a path and the name the program is told are meant")
    arguments = split(scanner.after, C_STYLE)
    extended = name.endswith("Ex") or bool(flags - {"ignore-failure"})
    options = [flag for flag in COMMAND_FLAGS if flag in flags] if extended else "ignore-failure" in flags
    commands = [(path or arguments[0], arguments, options)] if arguments else []
    sent = name if name.endswith("Ex") or not extended else f"{name}Ex"
    return [(sent, Variant("a(sasas)" if extended else "a(sasb)", commands))]


def _prefixes(value: str) -> tuple[set[str], bool, str]:
    flags: set[str] = set()
    explicit_path = False
    for position, letter in enumerate(value):
        added = _flag_of(letter, flags)
        if letter == "@" and not explicit_path:
            explicit_path = True
        elif added is None:
            return flags, explicit_path, value[position:]
        else:
            flags.discard("no-setuid" if added == "ambient" else "")
            flags.add(added)
    return flags, explicit_path, ""


def _flag_of(letter: str, flags: set[str]) -> str | None:
    """What a prefix adds to those before it; None when it belongs to the command."""
    if letter == "-" and "ignore-failure" not in flags:
        return "ignore-failure"
    if letter == ":" and "no-env-expand" not in flags:
        return "no-env-expand"
    if letter == "+" and not flags & {"privileged", "no-setuid", "ambient"}:
        return "privileged"
    if letter == "!" and not flags & {"privileged", "ambient"}:
        return "ambient" if "no-setuid" in flags else "no-setuid"
    return None


def exit_statuses(value: str) -> tuple[list[int], list[int]]:
    """Exit statuses and signals, by name or number; a number is a status."""
    statuses, signals = [], []
    for word in split(value):
        try:
            statuses.append(names.exit_status(word))
        except ValueError:
            try:
                signals.append(names.signal_number(word))
            except ValueError:
                raise ValueError(f"neither an exit status nor a signal: {word}") from None
    return statuses, signals


# --- network ---------------------------------------------------------------------------

Prefix = tuple[int, bytes, int]
_V4, _V6 = int(socket.AF_INET), int(socket.AF_INET6)


def _prefix(address: str, length: int) -> Prefix:
    family = _V6 if ":" in address else _V4
    return family, socket.inet_pton(family, address), length


_ADDRESSES: dict[str, Sequence[Prefix]] = {
    "any": ((_V4, bytes(4), 0), (_V6, bytes(16), 0)),
    "localhost": (_prefix("127.0.0.0", 8), _prefix("::1", 128)),
    "link-local": (_prefix("169.254.0.0", 16), _prefix("fe80::", 64)),
    "multicast": (_prefix("224.0.0.0", 4), _prefix("ff00::", 8)),
}


def addresses(value: str) -> list[Prefix]:
    """Addresses with or without a prefix length, or one of the names for some."""
    if _is_localhost(value):
        value = "localhost"
    if value in _ADDRESSES:
        return list(_ADDRESSES[value])
    return [_address(word) for word in split(value, Syntax(unquote=False))]


def _is_localhost(value: str) -> bool:
    name = value.lower().removesuffix(".")
    return any(name == host or name.endswith(f".{host}") for host in ("localhost", "localhost.localdomain"))


def _address(word: str) -> Prefix:
    address, slash, length = word.partition("/")
    family = _V6 if ":" in address else _V4
    longest = 128 if family == _V6 else 32
    try:
        packed = socket.inet_pton(family, address)
    except OSError:
        raise ValueError(
            f"not an address: {word}; any, localhost, link-local, multicast stand alone"
        ) from None
    return family, packed, numbers.integer(length, 0, longest) if slash else longest


def bind_rule(value: str) -> tuple[int, int, int, int]:
    """``family:protocol:ports``, each of which may be left out, or ``any``."""
    families = {"ipv4": _V4, "ipv6": _V6}
    protocols = {"tcp": int(socket.IPPROTO_TCP), "udp": int(socket.IPPROTO_UDP)}
    parts = value.split(":")
    family = families[parts.pop(0)] if parts[0] in families else 0
    protocol = protocols[parts.pop(0)] if parts and parts[0] in protocols else 0
    if not parts and (family or protocol):
        return family, protocol, 0, 0
    if len(parts) != 1:
        raise ValueError("family:protocol:ports or any is meant")
    if parts[0] == "any":
        return family, protocol, 0, 0
    low, dash, high = parts[0].partition("-")
    first = numbers.integer(low, 1, 65535)
    last = numbers.integer(high, 1, 65535) if dash else first
    if first > last:
        raise ValueError("the range of ports is empty")
    return family, protocol, last - first + 1, first


def protocol(value: str) -> int:
    """An IP protocol by name or number (protocols(5))."""
    number = getattr(socket, f"IPPROTO_{value.upper()}", None)
    return int(number) if isinstance(number, int) else numbers.integer(value, 0, 255)


# --- units in general -----------------------------------------------------------------------


def condition(kind: str) -> Reader:
    """``Condition…`` and ``Assert…``: | makes one of several enough, ! turns it over."""
    target = "Conditions" if kind.startswith("Condition") else "Asserts"

    def read(name: str, value: str) -> list[Property]:
        triggering = value.startswith("|")
        rest = value.removeprefix("|")
        element = (name, triggering, rest.startswith("!"), rest.removeprefix("!"))
        return [(target, Variant("a(sbbs)", [element] if value else []))]

    return read


def action_exit_status(name: str, value: str) -> list[Property]:
    return [(name, Variant("i", numbers.integer(value, 0, 255) if value else -1))]


def listed(target: str, signature: str = "(ss)") -> Reader:
    """Assignments of several names that go to one list, with their names: PathExists → Paths."""
    return lambda name, value: many(signature, lambda text: (name, text), target)(name, value)


def monotonic_timer(name: str, value: str) -> list[Property]:
    element = [(name, numbers.microseconds(value))] if value else []
    return [("TimersMonotonic", Variant("a(st)", element))]


def listen(name: str, value: str) -> list[Property]:
    return [("Listen", Variant("a(ss)", [(name.removeprefix("Listen"), value)] if value else []))]
