"""What a list of assignments comes to, read the way systemd reads the ``[Service]`` section of a unit file.

Only what decides how far a service is shut in: scalars (the last valid one counts), and lists that add up, are reset by an
empty assignment and inverted by ``~`` (systemd.exec(5), systemd.resource-control(5)).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sandbox.errors import ModelError
from sandbox.linux.capabilities import NAMES
from sandbox.services.syscalls import IO_URING, members

__all__ = ["Assignment", "Settings", "assignments_of", "read_unit", "split_assignment", "text_of"]

#: A name and its text, as in ``Name=text``.
Assignment = tuple[str, str]

_TRUE = frozenset({"1", "yes", "y", "true", "t", "on"})
_FALSE = frozenset({"0", "no", "n", "false", "f", "off"})

ALL_CAPABILITIES = frozenset(NAMES)
NAMESPACES = frozenset({"cgroup", "ipc", "net", "mnt", "pid", "user", "uts"})
_ANY = {"0.0.0.0/0", "::/0"}
_LOCAL = {"127.0.0.0/8", "::1/128"}
_ADDRESS_WORDS = {
    "any": _ANY, "localhost": _LOCAL, "link-local": {"169.254.0.0/16", "fe80::/64"},
    "multicast": {"224.0.0.0/4", "ff00::/8"},
}  # fmt: skip


def text_of(value: Any) -> str:
    """A Python value as the right side of an assignment: True is ``yes``, a list its words, None resets.

    >>> text_of(["AF_UNIX", "AF_INET"])
    'AF_UNIX AF_INET'
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={text_of(item)}" for key, item in value.items())
    if isinstance(value, Sequence | frozenset | set) and not isinstance(value, str | bytes):
        return " ".join(text_of(item) for item in (value if isinstance(value, Sequence) else sorted(value)))
    return str(value)


def split_assignment(text: str) -> Assignment:
    """``"Name=text"`` in two. Raises ModelError."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isalnum():
        raise ModelError(
            "expected NAME=VALUE", class_name="service", field="property", value=text,
            hint="write it as in a unit file: `PrivateTmp=yes`",
        )  # fmt: skip
    return name.strip(), value.strip()


def assignments_of(values: Mapping[str, Any]) -> list[Assignment]:
    """Properties as keywords, as assignments."""
    return [(name, text_of(value)) for name, value in values.items()]


def read_unit(path: str | Path) -> list[Assignment]:
    """The assignments in the ``[Service]`` section of a unit file and of the drop-ins beside it (``FILE.d/*.conf``).

    DefaultDependencies= of ``[Unit]`` is among them: without those a service is part of early boot.

    :raises OSError: it cannot be read
    """
    file = Path(path)
    parts = [file, *sorted(file.parent.glob(f"{file.name}.d/*.conf"))]
    return [pair for part in parts for pair in _assignments(part.read_text("utf-8", "surrogateescape"))]


def _assignments(text: str) -> Iterable[Assignment]:
    section = ""
    for line in _logical_lines(text):
        if line.startswith("["):
            section = line
        elif "=" in line:
            name, value = (part.strip() for part in line.split("=", 1))
            if section == "[Service]" or (section, name) == ("[Unit]", "DefaultDependencies"):
                yield name, value


def _logical_lines(text: str) -> Iterable[str]:
    """Lines put together where a backslash ends them; comments in between are left out (systemd.syntax(7))."""
    pending = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith(("#", ";")):
            continue
        if line.endswith("\\"):
            pending += f"{line[:-1]} "
            continue
        if whole := (pending + line).strip():
            yield whole
        pending = ""
    if pending.strip():
        yield pending.strip()


class Settings:
    """Assignments, put together.

    >>> Settings([("PrivateTmp", "no"), ("DynamicUser", "yes")]).on("PrivateTmp")
    True
    """

    def __init__(self, assignments: Iterable[Assignment]) -> None:
        self.assignments = list(assignments)
        self._values: dict[str, list[str]] = {}
        for name, value in self.assignments:
            self._values.setdefault(name, []).append(value)

    @property
    def names(self) -> set[str]:
        """Everything that is set, to whatever."""
        return set(self._values)

    # -- scalars --------------------------------------------------------------------------------------------------

    def explicit(self, name: str) -> bool | None:
        """A switch as it was set; None if it was not, or not to anything valid."""
        for value in reversed(self._values.get(name, [])):
            if (word := value.lower()) in _TRUE | _FALSE:
                return word in _TRUE
        return None

    def on(self, name: str) -> bool:
        """A switch as it works: DynamicUser= turns some others on, whatever they say."""
        return (self.dynamic_user and name in _WITH_DYNAMIC_USER) or bool(self.explicit(name))

    def last(self, name: str, default: str = "") -> str:
        """The last value."""
        return self._values.get(name, [default])[-1] or default

    def choice(self, name: str, choices: Iterable[str], default: str) -> str:
        """The last value that is one of these; switches count by any of their spellings (as ``yes``, ``no``)."""
        allowed = set(choices)
        for value in reversed(self._values.get(name, [])):
            word = value.lower()
            spelled = "yes" if word in _TRUE else "no" if word in _FALSE else word
            if spelled in allowed:
                return spelled
        return default

    def given(self, name: str) -> bool:
        """Whether it is set to something that is not empty."""
        return bool(self.last(name))

    def words(self, name: str) -> list[str]:
        """A list: assignments add up, an empty one resets."""
        found: list[str] = []
        for value in self._values.get(name, []):
            found = found + value.split() if value else []
        return found

    # -- who it runs as -------------------------------------------------------------------------------------------

    @property
    def dynamic_user(self) -> bool:
        """It gets a user of its own for its lifetime."""
        return bool(self.explicit("DynamicUser"))

    @property
    def user(self) -> str:
        """The user's name or number; ``root`` if none was given."""
        return {"0": "root"}.get(user := self.last("User", "root"), user)

    @property
    def protect_system(self) -> str:
        """``no``, ``yes``, ``full`` or ``strict``."""
        return "strict" if self.dynamic_user else self.choice("ProtectSystem", ("no", "yes", "full", "strict"), "no")

    @property
    def protect_home(self) -> str:
        """``no``, ``yes``, ``read-only`` or ``tmpfs``."""
        value = self.choice("ProtectHome", ("no", "yes", "read-only", "tmpfs"), "no")
        return "read-only" if self.dynamic_user and value == "no" else value

    # -- lists that are allowed or denied -------------------------------------------------------------------------

    @property
    def capabilities(self) -> frozenset[str]:
        """The bounding set: what any process of it can ever have."""
        current = ALL_CAPABILITIES
        for value in self._values.get("CapabilityBoundingSet", []):
            named = frozenset(word.upper() for word in value.removeprefix("~").split())
            chosen = ALL_CAPABILITIES - named if value.startswith("~") else named
            if not value or current == ALL_CAPABILITIES:
                current = chosen
            else:
                current = current & chosen if value.startswith("~") else current | chosen
        return current - self._capabilities_taken()

    def _capabilities_taken(self) -> frozenset[str]:
        """Those that go with other settings."""
        return frozenset().union(*(names for switch, names in _TAKES_CAPABILITIES.items() if self.on(switch)))

    @property
    def namespaces(self) -> frozenset[str]:
        """The kinds of namespaces that it may make."""
        current = NAMESPACES
        for value in self._values.get("RestrictNamespaces", []):
            word = value.lower()
            if not value or word in _FALSE:
                current = NAMESPACES
            elif word in _TRUE:
                current = frozenset()
            else:
                named = NAMESPACES & set(word.removeprefix("~").split())
                if word.startswith("~"):
                    current = current - named
                else:
                    current = named if current == NAMESPACES else current | named
        return current

    @property
    def address_families(self) -> tuple[bool, frozenset[str]]:
        """(True, those allowed) or (False, those denied)."""
        return _listed(self._values.get("RestrictAddressFamilies", []), lambda word: frozenset({word}))

    @property
    def system_calls(self) -> tuple[bool, frozenset[str]]:
        """(True, those allowed) or (False, those denied)."""
        return _listed(self._values.get("SystemCallFilter", []), _system_calls)

    @property
    def io_uring(self) -> bool:
        """Whether any of its calls is allowed."""
        allow, calls = self.system_calls
        return any((call in calls) == allow for call in IO_URING)

    @property
    def io_uring_matters(self) -> bool:
        """Something is restricted that io_uring does nevertheless."""
        return self.on("RestrictSUIDSGID") or self.address_families != (False, frozenset())

    def addresses(self, name: str) -> set[str]:
        """Networks of IPAddressAllow= or IPAddressDeny=, in words that stand for some resolved."""
        return {net for word in self.words(name) for net in _ADDRESS_WORDS.get(word, {word})}

    @property
    def umask(self) -> int:
        """UMask=, 0022 by default."""
        try:
            return int(self.last("UMask", "0022"), 8)
        except ValueError:
            return 0o022


_WITH_DYNAMIC_USER = frozenset({"PrivateTmp", "RemoveIPC", "NoNewPrivileges", "RestrictSUIDSGID"})
_TAKES_CAPABILITIES = {
    "PrivateDevices": frozenset({"CAP_MKNOD", "CAP_SYS_RAWIO"}),
    "ProtectKernelModules": frozenset({"CAP_SYS_MODULE"}),
    "ProtectKernelLogs": frozenset({"CAP_SYSLOG"}),
    "ProtectClock": frozenset({"CAP_SYS_TIME", "CAP_WAKE_ALARM"}),
}


def _listed(values: Iterable[str], members_of: Any) -> tuple[bool, frozenset[str]]:
    """The first assignment decides whether it is a list of what is allowed; those of the other kind take away."""
    allow: bool | None = None
    current: frozenset[str] = frozenset()
    for value in values:
        if not value:
            allow, current = None, frozenset()
            continue
        if value == "none":
            allow, current = True, frozenset()
            continue
        inverted = value.startswith("~")
        if allow is None:
            allow = not inverted
        words = value.removeprefix("~").split()
        named = frozenset().union(*(members_of(w) for w in words if not (":" in w and not inverted)))
        current = current - named if inverted == allow else current | named
    return bool(allow), current


def _system_calls(word: str) -> frozenset[str]:
    """``@group`` or a system call, with or without what it fails with; what nobody knows is nothing."""
    name = word.partition(":")[0]
    try:
        return members(name)
    except KeyError:
        return frozenset()
