"""Units to make: what a transient scope or service is, declared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import Attribute, field, frozen

from .errors import InvalidProperty
from .properties import Property, from_python

__all__ = ["Scope", "Service", "unit_name"]

#: systemd.unit(5): what a name may have, and how long it may be.
_NAME = re.compile(r"[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]*)?\.([a-z]+)")
_LONGEST_NAME = 255


def unit_name(name: str, unit_type: str) -> str:
    """The name as it is. Raises :class:`InvalidProperty` if a unit of this type cannot be called that."""
    match = _NAME.fullmatch(name)
    detail = None
    if not name.endswith(f".{unit_type}"):
        detail = f"the name of a {unit_type} ends with .{unit_type}"
    elif match is None:
        detail = "letters, digits and :-_.\\ are allowed, and one @"
    elif len(name) > _LONGEST_NAME:
        detail = f"longer than {_LONGEST_NAME} characters"
    if detail is not None:
        hint = "systemd-escape(1) makes a name of any text"
        raise InvalidProperty(detail, operation="name unit", object=name, hint=hint)
    return name


def _is_name(unit_type: str) -> Any:
    def check(_: object, __: Attribute[str], value: str) -> None:
        unit_name(value, unit_type)

    return check


def _is_slice(_: object, __: Attribute[str | None], value: str | None) -> None:
    if value is not None:
        unit_name(value, "slice")


def _common(unit: Scope | Service) -> dict[str, Any]:
    """What every unit has; None leaves a property to systemd."""
    return {
        "Description": unit.description or None,
        "Documentation": list(unit.documentation) or None,
        "Slice": unit.slice,
        "Delegate": None if unit.delegate is False else unit.delegate,
        "RuntimeMaxSec": unit.runtime_max,
        "CollectMode": "inactive-or-failed" if unit.collect else None,
    }


@frozen(kw_only=True)
class Scope:
    """Processes that are there already, as a unit (systemd.scope(5)).

    >>> Scope(name="sandbox-1.scope", pids=[4711], delegate=True, properties={"TasksMax": 64}).to_properties()
    """

    #: ``something.scope``.
    name: str = field(validator=_is_name("scope"))
    #: The processes, by their numbers in the manager's PID namespace. Their children come along only when born later.
    pids: Sequence[int] = ()
    #: What ``systemctl status`` says it is.
    description: str = ""
    #: URIs: ``man:``, ``file:``, ``https:`` …
    documentation: Sequence[str] = ()
    #: The slice that it is in; None is the manager's default.
    slice: str | None = field(default=None, validator=_is_slice)
    #: True, or the controllers, if the processes look after the cgroups below it themselves.
    delegate: bool | Sequence[str] = False
    #: Seconds after which systemd ends it.
    runtime_max: float | None = None
    #: Forget it when it has ended, also when it has failed.
    collect: bool = True
    #: All else, by the names of systemd.scope(5), systemd.kill(5) and systemd.resource-control(5).
    properties: Mapping[str, Any] = field(factory=dict)

    def to_properties(self) -> list[Property]:
        """What StartTransientUnit is given. Raises :class:`InvalidProperty`."""
        values = {"PIDs": list(self.pids) or None, **_common(self), **self.properties}
        return from_python(values, "scope")


@frozen(kw_only=True)
class Service:
    """A command that systemd runs (systemd.service(5)).

    >>> Service(name="web.service", command=["/usr/bin/python3", "-m", "http.server"], properties={"PrivateTmp": True})
    """

    #: ``something.service``.
    name: str = field(validator=_is_name("service"))
    #: The program and its arguments, which are taken as they are: no ``$``, no ``%``, no quotes. Text is in systemd's syntax.
    command: Sequence[str] | str = ()
    #: When it counts as started (``Type=``): ``exec`` when the program could be executed, ``notify`` when it says so.
    type: str = "exec"
    description: str = ""
    documentation: Sequence[str] = ()
    slice: str | None = field(default=None, validator=_is_slice)
    delegate: bool | Sequence[str] = False
    runtime_max: float | None = None
    collect: bool = True
    environment: Mapping[str, str] = field(factory=dict)
    #: User name or number; None is the manager's own.
    user: str | None = None
    working_directory: str | None = None
    #: File descriptors of ours that become its standard streams; None leaves one to systemd.
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    #: All else, by the names of systemd.service(5), systemd.exec(5), systemd.kill(5), systemd.resource-control(5).
    properties: Mapping[str, Any] = field(factory=dict)

    def to_properties(self) -> list[Property]:
        """What StartTransientUnit is given. Raises :class:`InvalidProperty`."""
        values = {
            **_common(self),
            "Type": self.type,
            "Environment": self.environment or None,
            "User": self.user,
            "WorkingDirectory": self.working_directory,
            "StandardInputFileDescriptor": self.stdin,
            "StandardOutputFileDescriptor": self.stdout,
            "StandardErrorFileDescriptor": self.stderr,
            "ExecStart": self.command or None,
        }
        return from_python({**values, **self.properties}, "service")
