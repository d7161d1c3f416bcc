"""Who gives a pod its cgroup: :class:`Giver` is the Protocol, :func:`choose` picks one.

So far there are ``cgroupfs`` (a writable cgroup tree) and ``none``; systemd's managers will come before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sandbox.errors import SandboxError

from .cgroupfs import CgroupfsGiver
from .grant import Grant


class Giver(Protocol):
    """Gives cgroups to pods."""

    #: How it is named in options and by ``sandbox doctor``.
    name: str

    def why_not(self) -> str | None:
        """Why it cannot be used here, as found by a probe; None if it can."""
        ...

    def controllers(self) -> frozenset[str]:
        """The limits it can enforce, by controller: ``memory``, ``pids``, ``cpu``, ``io``."""
        ...

    def grant(self, shim_id: str, pod_id: str) -> Grant | None:
        """A cgroup for a new pod; None where the giver has none to give. The shim makes the rest below it."""
        ...

    def traces(self, shim_id: str) -> list[str]:
        """Directories that are left if a shim is killed, to be removed by its monitor."""
        ...


class NoneGiver:
    """No cgroups: no limits, no freezing; processes are still found and killed through their namespaces."""

    name = "none"

    def why_not(self) -> str | None:
        """Always there."""
        return None

    def controllers(self) -> frozenset[str]:
        """Nothing can be enforced."""
        return frozenset()

    def grant(self, shim_id: str, pod_id: str) -> Grant | None:  # noqa: ARG002
        """Nothing."""
        return None

    def traces(self, shim_id: str) -> list[str]:  # noqa: ARG002
        """Nothing."""
        return []


#: In the order in which ``auto`` tries them.
GIVERS: Mapping[str, type[Giver]] = {"cgroupfs": CgroupfsGiver, "none": NoneGiver}
_chosen: dict[str, Giver] = {}


def choose(name: str = "auto") -> Giver:
    """The giver called ``name``, or for ``auto`` the first that works here. Raises :class:`SandboxError` if it cannot."""
    if name not in _chosen:
        _chosen[name] = _first_usable() if name == "auto" else _named(name)
    return _chosen[name]


def _first_usable() -> Giver:
    return next(giver for giver in (kind() for kind in GIVERS.values()) if giver.why_not() is None)


def _named(name: str) -> Giver:
    if name not in GIVERS:
        raise SandboxError("there is no such giver", operation="use cgroups from", object=name,
                           hint=f"known: auto, {', '.join(GIVERS)}")  # fmt: skip
    giver = GIVERS[name]()
    if (reason := giver.why_not()) is not None:
        raise SandboxError(operation="use cgroups from", object=name, cause=reason, hint="see `sandbox doctor`")
    return giver


def facts() -> dict[str, Any]:
    """What every giver says of itself, for ``sandbox doctor``."""
    givers = [kind() for kind in GIVERS.values()]
    return {g.name: {"why_not": g.why_not(), "controllers": sorted(g.controllers())} for g in givers}


__all__ = ["GIVERS", "Giver", "Grant", "NoneGiver", "choose", "facts"]
