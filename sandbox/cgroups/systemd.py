"""Cgroups from systemd: each pod in a transient scope of its own, delegated to us (systemd.scope(5))."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from sandbox_systemd import managers
from sandbox_systemd.bus import Variant, available_bindings
from sandbox_systemd.errors import ManagerEnded, SystemdError
from sandbox_systemd.manager import Manager, Property

from sandbox.linux import cgroup
from sandbox.systemd_errors import made_public, public

from .cgroupfs import CgroupfsGiver
from .grant import Declaration, Grant, ShimClient
from .scopes import Scopes, enclose

#: What systemd hands to a delegated unit, of that which limits of ours need (systemd.resource-control(5), Delegate=).
_DELEGATED = frozenset({"cpu", "cpuset", "io", "memory", "pids"})
_IO = {"throttleReadBpsDevice": "IOReadBandwidthMax", "throttleWriteBpsDevice": "IOWriteBandwidthMax",
       "throttleReadIOPSDevice": "IOReadIOPSMax", "throttleWriteIOPSDevice": "IOWriteIOPSMax"}  # fmt: skip


class SystemdGiver:
    """A manager (the system's, the user's, a private one) and the scopes that it makes.

    On hybrid hosts the limits come from version 1 hierarchies as without systemd, which has none of them there.
    """

    name = "systemd"

    def __init__(self, kind: str = "auto") -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._scopes: dict[str, Scopes] = {}
        self._plain = CgroupfsGiver()

    @cached_property
    def _opened(self) -> Manager | SystemdError:
        try:
            return managers.open_manager(self._kind)
        except SystemdError as error:
            return error

    @property
    def manager(self) -> Manager:
        """Connected at the first use. Raises :class:`sandbox.SystemdError`."""
        if isinstance(self._opened, SystemdError):
            raise public(self._opened) from None
        return self._opened

    def why_not(self) -> str | None:
        """It was switched off, there is no manager, or it cannot be reached. A private one is started to find out."""
        if self._kind == "off":
            return "switched off"
        if self._plain.v2_mount is None:
            return "no cgroup2 file system is mounted"
        if isinstance(self._opened, SystemdError):
            return self._opened.cause or self._opened.detail
        return None

    @property
    def remedy(self) -> str:
        """That of the manager's own error."""
        hint = self._opened.hint if self._kind != "off" and isinstance(self._opened, SystemdError) else None
        return hint or "see `sandbox doctor`"

    def describe(self) -> str:
        """Which manager it is, for ``sandbox doctor``."""
        kinds = {"system": "the system's manager", "user": "the user's manager",
                 "private": "a private manager, started for this run"}  # fmt: skip
        return f"systemd {self.manager.version}, {kinds[self.manager.kind]}"

    @cached_property
    def _v2_controllers(self) -> frozenset[str]:
        """What the manager may hand on: that which its own cgroup has."""
        own = f"{self._plain.v2_mount}{self.manager.own('ControlGroup').value}".rstrip("/")
        return frozenset((cgroup.read(f"{own}/cgroup.controllers") or "").split()) & _DELEGATED

    def controllers(self) -> frozenset[str]:
        """Those of version 1 where we may write them, else those that the manager has."""
        v1 = {"io" if name == "blkio" else name for name in self._plain.v1_bases}
        return frozenset(v1) | self._v2_controllers

    def grant(self, shim: ShimClient, pod_id: str) -> Grant | None:  # noqa: ARG002 - the scope was made before the pod
        """A scope, ready or new."""
        with made_public():
            try:
                scope = self._of(shim).take()
            except ManagerEnded:
                self.close()  # somebody has killed it; its pods are gone, the next ones get another
                scope = self._of(shim).take()
        name = os.path.basename(scope.path)
        v1 = {controller: f"{base}/sandbox-{shim.id}/{name}" for controller, base in self._plain.v1_bases.items()}
        return Grant(scope.path, v1, self._v2_controllers, unit=scope.unit, processes=1)

    def declare(
        self, shim: ShimClient, grant: Grant | None, resources: Mapping[str, Any], description: str, *, later: bool = False
    ) -> Declaration:  # fmt: skip
        """Set the limits as properties of the scope, too, and say what it is. The next scope is made after that."""
        assert grant is not None
        assert grant.unit is not None
        return self._of(shim).declare(grant.unit, description, properties(resources), later=later)

    def _of(self, shim: ShimClient) -> Scopes:
        with self._lock:
            if shim.id not in self._scopes:
                if self.manager.kind == "user":
                    enclose(self.manager, shim)
                for scopes in self._scopes.values():
                    scopes.close()
                assert self._plain.v2_mount is not None
                made = Scopes(self.manager, self._plain.v2_mount, self._v2_controllers, shim)
                self._scopes = {shim.id: made}
            return self._scopes[shim.id]

    def traces(self, shim_id: str) -> list[str]:
        """In version 1 hierarchies; what is systemd's it removes itself."""
        return [f"{base}/sandbox-{shim_id}" for base in dict.fromkeys(self._plain.v1_bases.values())]

    def close(self) -> None:
        """The shim has ended: no more scopes; a private manager ends."""
        for scopes in self._scopes.values():
            scopes.close()
        self._scopes = {}
        if isinstance(self.__dict__.get("_opened"), Manager):
            self.manager.close()
            del self.__dict__["_opened"]


def bindings() -> dict[str, str | None]:
    """The libraries for D-Bus, and why each cannot be used; None if it can."""
    return available_bindings()


def properties(resources: Mapping[str, Any]) -> list[Property]:
    """Limits of ``linux.resources`` as unit properties (systemd.resource-control(5))."""
    found: list[Property] = []
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    limit, swap = memory.get("limit"), memory.get("swap")
    if limit is not None and limit >= 0:
        found.append(("MemoryMax", Variant("t", limit)))
        if swap is not None and swap >= 0:
            found.append(("MemorySwapMax", Variant("t", max(swap - limit, 0))))
    if (reservation := memory.get("reservation")) is not None and reservation >= 0:
        found.append(("MemoryLow", Variant("t", reservation)))
    if (quota := cpu.get("quota")) is not None and quota > 0:
        period = cpu.get("period") or 100_000
        found.append(("CPUQuotaPerSecUSec", Variant("t", quota * 1_000_000 // period)))
        found.append(("CPUQuotaPeriodUSec", Variant("t", period)))
    if weight := (resources.get("unified") or {}).get("cpu.weight"):
        found.append(("CPUWeight", Variant("t", int(weight))))
    elif shares := cpu.get("shares"):
        found.append(("CPUWeight", Variant("t", _weight(shares))))
    found += _io_properties(resources.get("blockIO") or {})
    if (pids := (resources.get("pids") or {}).get("limit")) is not None and pids >= 0:
        found.append(("TasksMax", Variant("t", pids)))
    return found


def _io_properties(block_io: Mapping[str, Any]) -> Iterator[Property]:
    if weight := block_io.get("weight"):
        yield "IOWeight", Variant("t", 1 + (weight - 10) * 9999 // 990)
    for member, name in _IO.items():
        if rows := block_io.get(member):
            limits = [(f"/dev/block/{row['major']}:{row['minor']}", row["rate"]) for row in rows]
            yield name, Variant("a(st)", limits)


def _weight(shares: int) -> int:
    """Version 1 shares (2 … 262144) as a version 2 weight (1 … 10000), as runtimes convert them."""
    return 1 + (shares - 2) * 9999 // 262142


__all__ = ["SystemdGiver", "bindings", "properties"]
