"""What can go wrong between us and systemd, typed by D-Bus error name (sd-bus-errors(3), org.freedesktop.systemd1(5)).

An error keeps its facts as attributes and composes its text from them: what was done, to what, why it was refused, and
one remedy.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "AccessDenied",
    "BusTimeout",
    "ConnectionLost",
    "InvalidProperty",
    "JobFailed",
    "ManagerEnded",
    "NoBus",
    "NoSuchUnit",
    "SystemdError",
    "UnitExists",
    "from_reply",
]


class SystemdError(Exception):
    """The base of them all.

    :param detail: what went wrong, in systemd's or our own words
    :param operation: what was tried, a verb first: ``"start unit"``
    :param object: what it was tried on: ``"sandbox-1.scope"``
    :param name: the D-Bus error name, ``org.freedesktop.systemd1.NoSuchUnit``
    :param cause: why, as found by a probe
    :param hint: one remedy
    """

    #: Said where nobody knows a better remedy.
    remedy: str | None = None

    def __init__(
        self, detail: str, *, operation: str | None = None, object: str | None = None, name: str | None = None,
        cause: str | None = None, hint: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(detail)
        self.detail = detail
        self.operation = operation
        self.object = object
        self.name = name
        self.cause = cause
        self.hint = hint or self.remedy

    def __str__(self) -> str:
        subject = " ".join(filter(None, (self.operation, f"`{self.object}`" if self.object else "")))
        head = f"{subject}: {self.detail}" if subject else self.detail
        rest = [f"  {label}: {text}" for label, text in (("cause", self.cause), ("hint", self.hint)) if text]
        return "\n".join([head, *rest])

    def __reduce__(self) -> tuple[object, ...]:
        return (_restore, (type(self), self.detail, dict(self.__dict__)))

    def about(self, operation: str, object: str) -> SystemdError:
        """The same error, saying what it was about; what it already says stays."""
        self.operation = self.operation or operation
        self.object = self.object or object
        return self


def _restore(cls: type[SystemdError], detail: str, facts: Mapping[str, object]) -> SystemdError:
    error = cls(detail)
    error.__dict__.update(facts)
    return error


class NoBus(SystemdError):
    """Nobody listens at the address, or nobody there is systemd."""

    remedy = "`sandbox doctor` tells which managers can be reached"


class ManagerEnded(NoBus):
    """The private manager has ended, so there is no use in waiting for it to come back."""

    remedy = "start another one"


class ConnectionLost(SystemdError):
    """The connection broke, or the manager went away, before the answer was there."""

    remedy = "try again: a manager that is executed anew (systemctl daemon-reexec) is back in a moment"


class BusTimeout(SystemdError):
    """No answer in time."""

    remedy = "see what the manager is busy with: systemctl list-jobs"


class AccessDenied(SystemdError):
    """The manager does not let this user do that (polkit, or the rules of the bus)."""

    remedy = "use the manager of your own user (--sandbox-systemd=user), or root's as root"


class NoSuchUnit(SystemdError):
    """No unit of this name is loaded."""

    remedy = "it may have ended and been unloaded: list what there is with systemctl list-units --all"


class UnitExists(SystemdError):
    """A unit of this name is there already, or its file is."""

    remedy = "take another name, or stop the unit and reset it (systemctl reset-failed)"


class InvalidProperty(SystemdError):
    """There is no such property for this kind of unit, or it cannot have this value."""

    remedy = "see systemd.exec(5), systemd.resource-control(5) and systemd.service(5) for names and values"


class JobFailed(SystemdError):
    """The job was done, and its result is not ``done``.

    :ivar result: ``canceled``, ``timeout``, ``failed``, ``dependency``, ``skipped`` (org.freedesktop.systemd1(5))
    """

    remedy = "the manager's journal says why: journalctl -u UNIT"

    def __init__(self, detail: str, *, result: str = "failed", **facts: str | None) -> None:
        super().__init__(detail, **facts)
        self.result = result


_DBUS = "org.freedesktop.DBus.Error."
_SYSTEMD = "org.freedesktop.systemd1."
#: D-Bus error name → class. What is not listed is a plain :class:`SystemdError` that carries its name.
CLASSES: Mapping[str, type[SystemdError]] = {
    f"{_SYSTEMD}NoSuchUnit": NoSuchUnit,
    f"{_SYSTEMD}UnitExists": UnitExists,
    f"{_DBUS}AccessDenied": AccessDenied,
    f"{_DBUS}InteractiveAuthorizationRequired": AccessDenied,
    f"{_DBUS}AuthFailed": AccessDenied,
    f"{_DBUS}PropertyReadOnly": InvalidProperty,
    f"{_DBUS}UnknownProperty": InvalidProperty,
    f"{_DBUS}InvalidArgs": InvalidProperty,
    f"{_DBUS}InvalidSignature": InvalidProperty,
    "System.Error.ENXIO": InvalidProperty,
    "System.Error.EINVAL": InvalidProperty,
    f"{_DBUS}ServiceUnknown": NoBus,
    f"{_DBUS}NameHasNoOwner": NoBus,
    f"{_DBUS}NoServer": NoBus,
    f"{_DBUS}FileNotFound": NoBus,
    f"{_DBUS}NoReply": BusTimeout,
    f"{_DBUS}Timeout": BusTimeout,
    f"{_DBUS}TimedOut": BusTimeout,
    f"{_DBUS}Disconnected": ConnectionLost,
    "System.Error.ECONNRESET": ConnectionLost,
}


def from_reply(name: str, text: str) -> SystemdError:
    """The error for an error reply: its name, and the words that came with it."""
    kind = CLASSES.get(name, SystemdError)
    hint = None
    if name.endswith("InteractiveAuthorizationRequired"):
        hint = f"polkit wants to ask somebody, and nobody is there; {AccessDenied.remedy}"
    return kind(text.rstrip(".") or name, name=name, hint=hint)
