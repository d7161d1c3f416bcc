"""Service sandboxes: commands as transient systemd services, shut in by unit properties.

* :func:`service` runs a command as one, :func:`start_service` keeps it running;
* :data:`PROFILES` are named sets of properties, each with what it blocks;
* :func:`exposure` tells what is still open, from the properties alone;
* :func:`find` tries out how much can be taken away from a command.

Importing this package loads nothing; every name comes from its module at its first use.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from sandbox.services.assessment import Exposure as Exposure, Finding as Finding, exposure as exposure
    from sandbox.services.ending import ServiceResult as ServiceResult, ServiceUsage as ServiceUsage
    from sandbox.services.errors import (
        ManagerRefused as ManagerRefused,
        NoManager as NoManager,
        NotEnforced as NotEnforced,
        PropertyError as PropertyError,
        ServiceError as ServiceError,
        ServiceExited as ServiceExited,
        ServiceSetupError as ServiceSetupError,
        UnitClash as UnitClash,
    )
    from sandbox.services.finder import Found as Found, find as find
    from sandbox.services.profiles import PROFILES as PROFILES, Profile as Profile
    from sandbox.services.running import LOG as LOG, RunningService as RunningService
    from sandbox.services.settings import read_unit as read_unit
    from sandbox.services.start import service as service, start_service as start_service

_NAMES_OF = {
    "ending": ("ServiceResult", "ServiceUsage"),
    "errors": (
        "ManagerRefused", "NoManager", "NotEnforced", "PropertyError", "ServiceError", "ServiceExited",
        "ServiceSetupError", "UnitClash",
    ),
    "assessment": ("Exposure", "Finding", "exposure"),
    "finder": ("Found", "find"),
    "profiles": ("PROFILES", "Profile"),
    "running": ("LOG", "RunningService"),
    "settings": ("read_unit",),
    "start": ("service", "start_service"),
}  # fmt: skip
_HOME = {name: module for module, names in _NAMES_OF.items() for name in names}

__all__ = [*_HOME]  # noqa: PLE0604 - they are strings; the table above is the one list


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Fetch a name from its module, and keep it here for the next time."""
        from importlib import import_module

        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=None)
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        return value
