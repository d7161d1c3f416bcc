"""What can go wrong with a service, in more detail than :mod:`sandbox.errors` has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox._text import describe_exit
from sandbox.errors import ModelError, SandboxError, SetupError, UnsupportedFeature
from sandbox.systemd_errors import ManagerRefused, NoManager, UnitClash

if TYPE_CHECKING:
    from typing import Unpack

    from sandbox.errors import Facts

__all__ = [
    "ManagerRefused", "NoManager", "NotEnforced", "PropertyError", "ServiceError", "ServiceExited", "ServiceSetupError",
    "UnitClash",
]  # fmt: skip


class PropertyError(ModelError):
    """A property that services do not have, or that cannot have this value; ``field`` is its name."""


class NotEnforced(UnsupportedFeature):
    """The manager would take a property and do nothing about it: systemd only warns in its journal.

    :ivar property: the property, ``"ProtectHome"``
    """

    facts = (*UnsupportedFeature.facts, "property")

    def __init__(self, detail: str, *, property: str, **facts: Unpack[Facts]) -> None:
        super().__init__(detail, **facts)
        self.property = property

    def _subject(self) -> str:
        return f"{self.operation or 'keep'} `{self.property}=`"


class ServiceError(SandboxError):
    """A service did not do what was wanted.

    :ivar result: systemd's word for how it ended: ``exit-code``, ``signal``, ``oom-kill``, ``timeout`` …
    """

    facts = (*SandboxError.facts, "result")

    def __init__(self, detail: str | None = None, *, result: str | None = None, **facts: Unpack[Facts]) -> None:
        super().__init__(detail, **facts)
        self.result = result


class ServiceExited(ServiceError):
    """A service ended before it was ready.

    :ivar returncode: the exit status, negative for a signal
    :ivar oom_killed: the kernel killed it because of a memory limit
    """

    facts = (*ServiceError.facts, "returncode", "oom_killed")

    def __init__(
        self, detail: str | None = None, *, returncode: int | None = None, oom_killed: bool = False,
        result: str | None = None, **facts: Unpack[Facts],
    ) -> None:  # fmt: skip
        super().__init__(detail, result=result, **facts)
        self.returncode = returncode
        self.oom_killed = oom_killed

    def _reason(self) -> str:
        end = describe_exit(self.returncode, self.oom_killed) if self.returncode is not None else "it ended"
        return ": ".join(part for part in (super()._reason(), end) if part)


class ServiceSetupError(SetupError):
    """systemd could not make the surroundings of a service: ``step`` is its word for it, ``NAMESPACE``.

    :ivar status: the exit status that says so, 200 to 245 (systemd.exec(5), "Process Exit Codes")
    """

    facts = (*SetupError.facts, "status")

    def __init__(
        self, detail: str | None = None, *, status: int | None = None, step: str | None = None, **facts: Unpack[Facts]
    ) -> None:  # fmt: skip
        super().__init__(detail, step=step, **facts)
        self.status = status
