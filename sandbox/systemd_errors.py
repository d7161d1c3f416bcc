"""What systemd refuses, as errors of ours: :mod:`sandbox_systemd` stands alone and has its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from typing import Unpack

    from sandbox_systemd.errors import SystemdError as Refusal

    from sandbox.errors import Facts

__all__ = [
    "JobFailed", "ManagerRefused", "ManagerTimeout", "NoManager", "NoSuchUnit", "PropertyRefused", "SystemdError",
    "UnitClash",
]  # fmt: skip


class SystemdError(SandboxError):
    """A systemd manager did not do what was wanted.

    :ivar name: the D-Bus error name, ``org.freedesktop.systemd1.NoSuchUnit``; None where it is not systemd's word
    """

    facts = (*SandboxError.facts, "name")

    def __init__(self, detail: str | None = None, *, name: str | None = None, **facts: Unpack[Facts]) -> None:
        super().__init__(detail, **facts)
        self.name = name


class NoManager(SystemdError, ConnectionError):
    """There is no systemd manager to be used, or it has gone."""


class ManagerTimeout(SystemdError, TimeoutError):
    """The manager did not answer in time."""


class ManagerRefused(SystemdError, PermissionError):
    """The manager, or polkit for it, does not let this user do that."""


class UnitClash(SystemdError, FileExistsError):
    """A unit of this name is there already (``object`` is the name)."""


class NoSuchUnit(SystemdError, FileNotFoundError):
    """There is no unit of this name, or not any more."""


class PropertyRefused(SystemdError, ValueError):
    """There is no such property for this kind of unit, or it cannot have this value."""


class JobFailed(SystemdError):
    """systemd tried, and the unit did not start or stop."""


#: Class of sandbox_systemd.errors → class here.
_PUBLIC: Mapping[str, type[SystemdError]] = {
    "NoBus": NoManager, "ConnectionLost": NoManager, "BusTimeout": ManagerTimeout, "AccessDenied": ManagerRefused,
    "UnitExists": UnitClash, "NoSuchUnit": NoSuchUnit, "InvalidProperty": PropertyRefused, "JobFailed": JobFailed,
}  # fmt: skip


def public(error: Refusal) -> SystemdError:
    """The same error, for who uses the library."""
    kind = next((_PUBLIC[base.__name__] for base in type(error).__mro__ if base.__name__ in _PUBLIC), SystemdError)
    return kind(
        error.detail, operation=error.operation, object=error.object, cause=error.cause, hint=error.hint, name=error.name
    )  # fmt: skip


@contextlib.contextmanager
def made_public() -> Iterator[None]:
    """Raise what comes out of :mod:`sandbox_systemd` as an error of ours."""
    from sandbox_systemd.errors import SystemdError as Refused

    try:
        yield
    except Refused as error:
        raise public(error) from error
