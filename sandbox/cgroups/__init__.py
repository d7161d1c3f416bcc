"""Who gives a pod its cgroup: :class:`Giver` is the Protocol, :func:`choose` picks one.

There are ``systemd`` (a transient scope for each pod), ``cgroupfs`` (a writable cgroup tree) and ``none``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sandbox.errors import SandboxError

from .cgroupfs import CgroupfsGiver
from .grant import Declaration, Grant, ShimClient


class Giver(Protocol):
    """Gives cgroups to pods."""

    #: How it is named in options and by ``sandbox doctor``.
    name: str

    def why_not(self) -> str | None:
        """Why it cannot be used here, as found by a probe; None if it can."""
        ...

    @property
    def remedy(self) -> str:
        """What helps where it cannot be used."""
        ...

    def describe(self) -> str:
        """What exactly it is, for ``sandbox doctor``; only where it can be used."""
        ...

    def controllers(self) -> frozenset[str]:
        """The limits it can enforce, by controller: ``memory``, ``pids``, ``cpu``, ``io``."""
        ...

    def grant(self, shim: ShimClient, pod_id: str) -> Grant | None:
        """A cgroup for a new pod; None where the giver has none to give. The shim makes the rest below it."""
        ...

    def declare(
        self, shim: ShimClient, grant: Grant | None, resources: Mapping[str, Any], description: str, *, later: bool = False
    ) -> Declaration:  # fmt: skip
        """Tell who keeps the cgroup what is in it and may be used by it (``linux.resources``).

        ``later``: not before the start is over, and if it is over soon after that, not at all.
        """
        ...

    def traces(self, shim_id: str) -> list[str]:
        """Directories that are left if a shim is killed, to be removed by its monitor."""
        ...

    def close(self) -> None:
        """The shim has ended; nothing more is wanted."""
        ...


class NoneGiver:
    """No cgroups: no limits, no freezing; processes are still found and killed through their namespaces."""

    name = "none"
    remedy = ""

    def why_not(self) -> str | None:
        """Always there."""
        return None

    def describe(self) -> str:
        """Nothing."""
        return "no limits"

    def controllers(self) -> frozenset[str]:
        """Nothing can be enforced."""
        return frozenset()

    def grant(self, shim: ShimClient, pod_id: str) -> Grant | None:  # noqa: ARG002
        """Nothing."""
        return None

    def declare(
        self, shim: ShimClient, grant: Grant | None, resources: Mapping[str, Any], description: str,  # noqa: ARG002
        *, later: bool = False,  # noqa: ARG002
    ) -> Declaration:  # fmt: skip
        """Nobody to tell."""
        return Declaration()

    def traces(self, shim_id: str) -> list[str]:  # noqa: ARG002
        """Nothing."""
        return []

    def close(self) -> None:
        """Nothing."""


def _systemd(kind: str) -> Giver:
    from .systemd import SystemdGiver

    return SystemdGiver(kind)


#: In the order in which ``auto`` tries them; each is made for a kind of systemd manager.
GIVERS: Mapping[str, Callable[[str], Giver]] = {
    "systemd": _systemd, "cgroupfs": lambda _kind: CgroupfsGiver(), "none": lambda _kind: NoneGiver(),
}  # fmt: skip
#: Which systemd manager gives scopes; ``off``: none.
MANAGERS = ("auto", "system", "user", "private", "off")

_chosen: dict[tuple[str, str], Giver] = {}
_made: dict[tuple[str, str], Giver] = {}
_lock = threading.RLock()


def choose(name: str = "auto", systemd: str = "auto") -> Giver:
    """The giver called ``name``, or for ``auto`` the first that works here. Raises :class:`SandboxError` if it cannot.

    :param systemd: the manager that gives scopes, see :data:`MANAGERS`; one that was named is never gone without
    """
    with _lock:
        if (name, systemd) not in _chosen:
            _check(name, systemd)
            chosen = _first_usable(systemd) if name == "auto" else _named(name, systemd)
            _chosen[name, systemd] = chosen
        return _chosen[name, systemd]


def ahead(name: str = "auto", systemd: str = "auto") -> None:
    """Begin to choose while something else is done: a private manager takes a moment to start."""
    if (name, systemd) not in _chosen and name in ("auto", "systemd") and systemd != "off":
        threading.Thread(target=_try_to_choose, args=(name, systemd), name="sandbox-cgroups", daemon=True).start()


def _try_to_choose(name: str, systemd: str) -> None:
    try:
        choose(name, systemd)
    except SandboxError:
        pass  # who wants it chooses again, and is told


def _check(name: str, systemd: str) -> None:
    if name != "auto" and name not in GIVERS:
        raise SandboxError("there is no such giver", operation="use cgroups from", object=name,
                           hint=f"known: auto, {', '.join(GIVERS)}")  # fmt: skip
    if systemd not in MANAGERS:
        raise SandboxError("there is no such manager", operation="use scopes from the systemd manager", object=systemd,
                           hint=f"known: {', '.join(MANAGERS)}")  # fmt: skip


def _giver(name: str, systemd: str) -> Giver:
    """One for each, so that a manager is connected to once."""
    if (name, systemd) not in _made:
        _made[name, systemd] = GIVERS[name](systemd)
    return _made[name, systemd]


def _first_usable(systemd: str) -> Giver:
    if systemd not in ("auto", "off"):
        return _named("systemd", systemd)
    givers = (_giver(name, systemd) for name in GIVERS if not (name == "systemd" and systemd == "off"))
    return next(giver for giver in givers if giver.why_not() is None)


def _named(name: str, systemd: str) -> Giver:
    giver = _giver(name, systemd)
    if (reason := giver.why_not()) is not None:
        raise SandboxError(operation="use cgroups from", object=name, cause=reason, hint=giver.remedy)
    return giver


def facts(systemd: str = "auto") -> dict[str, Any]:
    """What every giver says of itself, for ``sandbox doctor``."""
    found = {}
    for name in GIVERS:
        giver = _giver(name, systemd)
        reason = giver.why_not()
        found[name] = {
            "why_not": reason, "controllers": [] if reason else sorted(giver.controllers()),
            "what": None if reason else giver.describe(),
        }  # fmt: skip
    return found


def close() -> None:
    """The shim of this process has ended: give back what was opened for it."""
    with _lock:
        for giver in _made.values():
            giver.close()
        _made.clear()
        _chosen.clear()


def _after_fork() -> None:
    """Connections and threads are the parent's."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
    _chosen.clear()
    _made.clear()


os.register_at_fork(after_in_child=_after_fork)
__all__ = [
    "GIVERS", "MANAGERS", "Declaration", "Giver", "Grant", "NoneGiver", "ShimClient", "ahead", "choose", "close", "facts",
]  # fmt: skip
