"""From the text after the = of an assignment to D-Bus properties, each the way that systemd-run goes.

A reader takes the name and the text and gives the properties that are sent, which may have other names than the assignment:
``RuntimeMaxSec`` is sent as ``RuntimeMaxUSec``, ``CPUQuota`` as ``CPUQuotaPerSecUSec``. It raises ValueError with a reason.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sandbox_systemd.bus import Variant

from . import _names as names, _numbers as numbers
from ._words import C_STYLE, PLAIN, WHITESPACE, Scanner, Syntax, split, unescape

Property = tuple[str, Variant]
Reader = Callable[[str, str], list[Property]]

#: What separates the parts of a word, where an empty part says something: ``id:path``.
_PARTS = Syntax(":", unquote=False, empty_words=True)
_QUOTED_PARTS = Syntax(":", empty_words=True)
#: Parts of a word whose own colons are written ``\\:``.
_ESCAPED_PARTS = Syntax(":", unquote=False, c_escapes=True, escaped_separators=True)
#: Words whose backslashes are for the parts.
_TUPLES = Syntax(keep_backslashes=True)
_BIND_PARTS = Syntax(":" + WHITESPACE, empty_words=True)
_MS_REC = 0x4000


def one(signature: str, read: Callable[[str], Any]) -> Reader:
    """A property of the same name with one value."""
    return lambda name, text: [(name, Variant(signature, read(text)))]


def many(signature: str, read: Callable[[str], Any], rename: str | None = None) -> Reader:
    """A property to which each assignment adds an element, and an empty one clears it."""

    def reader(name: str, text: str) -> list[Property]:
        return [(rename or name, Variant(f"a{signature}", [read(text)] if text else []))]

    return reader


def text(name: str, value: str) -> list[Property]:
    return [(name, Variant("s", value))]


boolean = one("b", numbers.boolean)
mode = one("u", numbers.mode)
i32 = one("i", lambda value: numbers.integer(value, -(2**31), 2**31 - 1))
u32 = one("u", lambda value: numbers.integer(value, 0, 2**32 - 1))
u64 = one("t", numbers.integer)
i64 = one("x", lambda value: numbers.integer(value, -(2**63), 2**63 - 1))
size = one("t", numbers.size)
words = one("as", split)
c_words = one("as", lambda value: split(value, C_STYLE))
signal = one("i", names.signal_number)


def between(low: int, high: int, signature: str = "i") -> Reader:
    return one(signature, lambda value: numbers.integer(value, low, high))


def named(
    table: Mapping[str, int] | Sequence[str], what: str, highest: int | None, signature: str = "i"
) -> Reader:
    return one(signature, lambda value: names.number_of(value, table, what, highest))


def span(name: str, value: str) -> list[Property]:
    """``…Sec``, sent as ``…USec``."""
    return [(f"{name.removesuffix('Sec')}USec", Variant("t", numbers.microseconds(value)))]


def span_or_unset(name: str, value: str) -> list[Property]:
    return span(name, value) if value else span(name, "infinity")


def spans(*targets: str) -> Reader:
    """One assignment for several properties."""
    return lambda _, value: [prop for target in targets for prop in span(target, value)]


# --- resource control (systemd.resource-control(5)) ----------------------------------


def weight(low: int, high: int, idle: int | None = None) -> Reader:
    """A weight; the empty text takes it away."""

    def read(value: str) -> int:
        if idle is not None and value == "idle":
            return idle
        return numbers.integer(value, low, high) if value else numbers.INFINITY

    return one("t", read)


def limit(empty: int, parse: Callable[[str], int] = numbers.size) -> Reader:
    """An amount, a share of what the machine has (sent as ``…Scale``), or infinity."""

    def reader(name: str, value: str) -> list[Property]:
        if value in {"", "infinity"}:
            return [(name, Variant("t", numbers.INFINITY if value else empty))]
        if value.endswith(("%", "‰", "‱")):
            return [(f"{name}Scale", Variant("u", numbers.scaled(numbers.share(value))))]
        return [(name, Variant("t", parse(value)))]

    return reader


def cpu_quota(_: str, value: str) -> list[Property]:
    if not value:
        return [("CPUQuotaPerSecUSec", Variant("t", numbers.INFINITY))]
    hundredths = numbers.permyriad(value)
    if hundredths == 0:
        raise ValueError("too small a quota")
    return [("CPUQuotaPerSecUSec", Variant("t", hundredths * 100))]


def cpu_set(value: str) -> bytes:
    """``0-3,8 10`` as a mask."""
    numbers_ = set[int]()
    for word in split(value, Syntax(WHITESPACE + ",")):
        low, dash, high = word.partition("-")
        first = numbers.integer(low, 0, 8191)
        last = numbers.integer(high, 0, 8191) if dash else first
        if first > last:
            raise ValueError(f"the range {word} is empty")
        numbers_.update(range(first, last + 1))
    return mask_of(numbers_)


def mask_of(members: Iterable[int]) -> bytes:
    """Little-endian, in whole words of 64 bits, as the kernel has it (sched_setaffinity(2))."""
    mask = sum(1 << number for number in set(members))
    return mask.to_bytes((mask.bit_length() + 63) // 64 * 8, "little")


def cpu_affinity(name: str, value: str) -> list[Property]:
    if value == "numa":
        return [("CPUAffinityFromNUMA", Variant("b", True))]
    return [(name, Variant("ay", cpu_set(value)))]


def numa_mask(value: str) -> bytes:
    return mask_of(names.all_numa_nodes()) if value == "all" else cpu_set(value)


def delegate(name: str, value: str) -> list[Property]:
    """A boolean, or the controllers to delegate."""
    try:
        return [(name, Variant("b", numbers.boolean(value)))]
    except ValueError:
        return [("DelegateControllers", Variant("as", split(value)))]


def device_and(parse: Callable[[str], Any], what: str) -> Callable[[str], tuple[str, Any]]:
    """A device (or a path on one), a space, and something about it."""

    def read(value: str) -> tuple[str, Any]:
        path, space, rest = value.partition(" ")
        if not space:
            raise ValueError(f"a path and {what} are meant, with a space between")
        return path, parse(rest)

    return read


def bandwidth(value: str) -> int:
    return numbers.INFINITY if value == "infinity" else numbers.size(value, 1000)


def device_latency(_: str, value: str) -> list[Property]:
    pair = device_and(numbers.microseconds, "a time span")(value)
    return [("IODeviceLatencyTargetUSec", Variant("a(st)", [pair]))]


def device_access(value: str) -> tuple[str, str]:
    path, _, access = value.partition(" ")
    return path, access


def bpf_program(value: str) -> tuple[str, str]:
    scanner = Scanner(value)
    kind = scanner.word(Syntax(":", unquote=False))
    return kind or "", scanner.after


# --- execution (systemd.exec(5)) --------------------------------------------------------


def environment_file(value: str) -> tuple[str, bool]:
    return value.removeprefix("-"), value.startswith("-")


def identifier(value: str) -> tuple[str, str]:
    """What stands before the first colon, and the rest. Raises ValueError if there is nothing before it."""
    scanner = Scanner(value)
    word = scanner.word(_PARTS)
    assert word is not None  # the reader is not called for the empty text
    if scanner.rest is None:
        return word, ""
    return word, scanner.rest


def load_credential(value: str) -> tuple[str, str]:
    """``id:path``; with the id alone, the credential of this name that the manager was given."""
    name, path = identifier(value)
    return name, path or value


def set_credential(value: str) -> tuple[str, bytes]:
    return _credential(value, lambda data: unescape(data, accept_nul=True))


def set_encrypted_credential(value: str) -> tuple[str, bytes]:
    return _credential(value, from_base64)


def _credential(value: str, decode: Callable[[str], bytes]) -> tuple[str, bytes]:
    scanner = Scanner(value)
    name = scanner.word(_PARTS)
    if scanner.rest is None or name is None:
        raise ValueError("a name, a colon and the data are meant")
    return name, decode(scanner.rest)


def from_base64(value: str) -> bytes:
    compact = re.sub(f"[{WHITESPACE}]", "", value)
    try:
        data = base64.b64decode(compact, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None
    if base64.b64encode(data).decode() != compact:
        raise ValueError("not base64: bits are left over")
    return data


def from_hex(value: str) -> bytes:
    try:
        return bytes.fromhex(re.sub(f"[{WHITESPACE}]", "", value))
    except ValueError:
        raise ValueError("not hexadecimal") from None


def standard_stream(name: str, value: str) -> list[Property]:
    """``null``, ``journal`` … as they are; ``fd:``, ``file:``, ``append:`` and ``truncate:`` have properties of their own."""
    suffixes = {
        "fd:": "FileDescriptorName",
        "file:": "File",
        "append:": "FileToAppend",
        "truncate:": "FileToTruncate",
    }
    for prefix, suffix in suffixes.items():
        if value.startswith(prefix):
            return text(name + suffix, value.removeprefix(prefix))
    return text(name, value)


def standard_input_text(_: str, value: str) -> list[Property]:
    """A line of text. systemd-run 252 sends it under its own name, which no manager knows."""
    return [("StandardInputData", Variant("ay", unescape(value) + b"\n"))]


def resource_limit(name: str, value: str) -> list[Property]:
    """``soft:hard``, or both in one (setrlimit(2))."""
    scanner = Scanner(value)
    read = _RLIMITS.get(name, numbers.integer)
    soft_text = scanner.word(_PARTS) or ""
    soft = _limit(soft_text, read)
    hard = soft if scanner.rest is None else _limit(scanner.rest, read)
    if soft > hard:
        raise ValueError("the soft limit is above the hard one")
    return [(name, Variant("t", hard)), (f"{name}Soft", Variant("t", soft))]


def _limit(value: str, read: Callable[[str], int]) -> int:
    return numbers.INFINITY if value == "infinity" else numbers.within(read(value), 0, numbers.U64_MAX)


def _whole_seconds(value: str) -> int:
    span_ = numbers.microseconds(value)
    return span_ if span_ == numbers.INFINITY else -(-span_ // 10**6)


def _nice_limit(value: str) -> int:
    """With a sign, what the user may set nice to; without, the kernel's own number (getrlimit(2), RLIMIT_NICE)."""
    if value.startswith("+"):
        return 20 - numbers.integer(value[1:], 0, 19)
    if value.startswith("-"):
        return 20 + numbers.integer(value[1:], 0, 20)
    return numbers.integer(value, 0, 40)


_RLIMITS: dict[str, Callable[[str], int]] = {
    "LimitCPU": _whole_seconds,
    "LimitRTTIME": lambda value: numbers.microseconds(value, 1),
    "LimitNICE": _nice_limit,
    **{
        f"Limit{name}": numbers.size
        for name in ("FSIZE", "DATA", "STACK", "CORE", "RSS", "AS", "MEMLOCK", "MSGQUEUE")
    },
}
RLIMITS = (*_RLIMITS, "LimitNOFILE", "LimitNPROC", "LimitLOCKS", "LimitSIGPENDING", "LimitRTPRIO")


def security_label(value: str) -> tuple[bool, str]:
    return value.startswith("-"), value.removeprefix("-")


def allow_list(value: str) -> tuple[bool, list[str]]:
    """Words that are allowed, or after ~ those that are not."""
    return not value.startswith("~"), split(value.removeprefix("~"))


def restrict_namespaces(value: str) -> int:
    try:
        return 0 if numbers.boolean(value) else names.ALL_NAMESPACES
    except ValueError:
        return names.namespaces(value)


def bind_paths(value: str) -> list[tuple[str, str, bool, int]]:
    """``-source:destination:norbind``, several of them."""
    found = []
    scanner = Scanner(value)
    while (source := scanner.word(_BIND_PARTS)) is not None:
        if not source:
            raise ValueError("a path is missing, or a blank is too much")
        inside, flags = source.removeprefix("-"), _MS_REC
        if _stopped_at_colon(value, scanner):
            inside = scanner.word(_BIND_PARTS) or ""
            if _stopped_at_colon(value, scanner):
                flags = _bind_flags(scanner.word(PLAIN) or "")
        found.append((source.removeprefix("-"), inside, source.startswith("-"), flags))
    return found


def _stopped_at_colon(value: str, scanner: Scanner) -> bool:
    return scanner.rest is not None and value[: len(value) - len(scanner.rest)].endswith(":")


def _bind_flags(options: str) -> int:
    if options not in {"", "rbind", "norbind"}:
        raise ValueError(f"unknown option {options}: rbind or norbind is meant")
    return 0 if options == "norbind" else _MS_REC


def temporary_file_systems(value: str) -> list[tuple[str, str]]:
    """``path:options``, several of them."""
    found = []
    for word in split(value):
        scanner = Scanner(word)
        found.append((scanner.word(_PARTS) or "", scanner.after))
    return found


def root_image_options(value: str) -> list[tuple[str, str]]:
    """``partition:options``, or options of the root partition; several of them."""
    found = []
    for word in split(value, _TUPLES):
        parts = split(word, _ESCAPED_PARTS)
        if len(parts) > 2:
            raise ValueError(f"more than a partition and its options: {word}")
        if parts:
            found.append(("root", parts[0]) if len(parts) == 1 else (parts[0], parts[1]))
    return found


def _image_options(parts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [(parts[at], parts[at + 1]) for at in range(0, len(parts) - 1, 2)]
    return pairs + [("root", part) for part in parts[len(pairs) * 2 :]]


def mount_images(value: str) -> list[tuple[str, str, bool, list[tuple[str, str]]]]:
    """``-image:destination:partition:options``, several of them."""
    found = []
    for word in split(value, _TUPLES):
        parts = split(word, _ESCAPED_PARTS)
        if len(parts) == 1 or (parts and not parts[1]):
            raise ValueError(f"a destination is missing: {word}")
        if parts:
            source, destination, *options = parts
            pairs = _image_options(options)
            found.append((source.removeprefix("-"), destination, source.startswith("-"), pairs))
    return found


def extension_images(value: str) -> list[tuple[str, bool, list[tuple[str, str]]]]:
    """``-image:partition:options``, several of them."""
    return [
        (source.removeprefix("-"), source.startswith("-"), _image_options(options))
        for source, *options in filter(None, (split(word, _ESCAPED_PARTS) for word in split(value, _TUPLES)))
    ]


def directories(name: str, value: str) -> list[Property]:
    """``name`` or ``name:symlink``; the two kinds are two properties."""
    plain, links = [], []
    for word in split(value):
        source, *rest = [simplified(part) for part in split(word, _QUOTED_PARTS)[:2]]
        if rest and rest[0]:
            links.append((source, rest[0], 0))
        else:
            plain.append(source)
    found = [(name, Variant("as", plain))] if plain else []
    return found + ([(f"{name}Symlink", Variant("a(sst)", links))] if links else [])


def simplified(path: str) -> str:
    """Without double slashes, parts that are a dot, and a slash at the end."""
    start = "/" if path.startswith("/") else ""
    return start + "/".join(part for part in path.split("/") if part not in {"", "."})


def root_hash(name: str, value: str) -> list[Property]:
    if value.startswith("/"):
        return text(f"{name}Path", value)
    data = from_hex(value)
    if len(data) < 16:
        raise ValueError("too short a hash")
    return [(name, Variant("ay", data))]


def root_hash_signature(name: str, value: str) -> list[Property]:
    if value.startswith("/"):
        return text(f"{name}Path", value)
    if not value.startswith("base64:"):
        raise ValueError("neither a path nor base64:")
    return [(name, Variant("ay", from_base64(value.removeprefix("base64:"))))]
