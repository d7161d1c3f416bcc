"""Cgroups made directly in the file system: for root without systemd, and wherever a cgroup directory is writable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from sandbox.linux import cgroup
from sandbox.linux.errors import KernelError
from sandbox.linux.idmap import is_privileged

from .grant import Declaration, Grant, ShimClient

#: Version 1 controllers that limits of ours need.
_V1 = ("memory", "pids", "cpu", "blkio")
#: Version 2 controllers that limits of ours need.
_V2 = frozenset({"memory", "pids", "cpu", "cpuset", "io", "hugetlb"})


class CgroupfsGiver:
    """Directories below the root of version 2 (root), or below our own cgroup; in version 1 always below our own."""

    name = "cgroupfs"
    remedy = "run as root, or with a delegated cgroup; see `sandbox doctor`"

    @cached_property
    def _hierarchies(self) -> cgroup.Hierarchies:
        return cgroup.hierarchies()

    @cached_property
    def _own(self) -> dict[str, str]:
        """Our own cgroups: controller (or "" for version 2) → path in its hierarchy."""
        own: dict[str, str] = {}
        with open("/proc/self/cgroup") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                own.update(dict.fromkeys(controllers.split(","), path))
        return own

    @property
    def v2_mount(self) -> str | None:
        """Where version 2 is mounted."""
        return self._hierarchies.v2

    @cached_property
    def v2_base(self) -> str | None:
        """The version 2 directory below which we may make ours."""
        mount = self._hierarchies.v2
        if mount is None:
            return None
        base = mount if is_privileged() else f"{mount}{self._own.get('', '/')}".rstrip("/")
        return base if os.access(base, os.W_OK) and os.access(f"{base}/cgroup.procs", os.W_OK) else None

    @cached_property
    def v1_bases(self) -> dict[str, str]:
        """The same in version 1 hierarchies, by controller."""
        found = {}
        for controller in _V1:
            mount = self._hierarchies.v1.get(controller)
            if mount is None:
                continue
            own = f"{mount}{self._own.get(controller, '/')}".rstrip("/")
            base = own if os.path.isdir(own) else mount
            if os.access(base, os.W_OK):
                found[controller] = base
        return found

    def why_not(self) -> str | None:
        """No writable tree."""
        if self.v2_base or self.v1_bases:
            return None
        if self._hierarchies.v2 is None and not self._hierarchies.v1:
            return "no cgroup file system is mounted"
        return "no cgroup directory here is writable for this user"

    def controllers(self) -> frozenset[str]:
        """Of version 1 where it is mounted and writable, else of version 2 where they can be handed on."""
        v1 = {"io" if name == "blkio" else name for name in self.v1_bases}
        return frozenset(v1) | self._v2_controllers

    @cached_property
    def _v2_controllers(self) -> frozenset[str]:
        """At the root of the tree every controller can be handed on; elsewhere only those that are already."""
        if self.v2_base is None:
            return frozenset()
        handed_on = set((cgroup.read(f"{self.v2_base}/cgroup.subtree_control") or "").split())
        offered = set((cgroup.read(f"{self.v2_base}/cgroup.controllers") or "").split()) & _V2
        for controller in sorted(offered - handed_on):
            with contextlib.suppress(KernelError):
                cgroup.write(f"{self.v2_base}/cgroup.subtree_control", f"+{controller}")
                handed_on.add(controller)
        return frozenset(offered & handed_on)

    def grant(self, shim: ShimClient, pod_id: str) -> Grant | None:
        """``sandbox-<shim>/sandbox-<pod>.scope`` in every tree."""
        below = f"sandbox-{shim.id}/sandbox-{pod_id}.scope"
        v2 = None
        if self.v2_base:
            parent = f"{self.v2_base}/sandbox-{shim.id}"
            if not os.path.isdir(parent):
                os.mkdir(parent)
                cgroup.Cgroup(parent).enable(set(self._v2_controllers))
            v2 = f"{self.v2_base}/{below}"
        v1 = {name: f"{base}/{below}" for name, base in self.v1_bases.items()}
        return Grant(v2, v1, self._v2_controllers)

    def describe(self) -> str:
        """Where."""
        return f"below {self.v2_base or next(iter(self.v1_bases.values()))}"

    def declare(
        self, shim: ShimClient, grant: Grant | None, resources: Mapping[str, Any], description: str,  # noqa: ARG002
        *, later: bool = False,  # noqa: ARG002
    ) -> Declaration:  # fmt: skip
        """Nobody to tell."""
        return Declaration()

    def close(self) -> None:
        """The monitor removes what is left."""

    def traces(self, shim_id: str) -> list[str]:
        """The shim's directory in every tree."""
        bases = [self.v2_base, *self.v1_bases.values()]
        return [f"{base}/sandbox-{shim_id}" for base in dict.fromkeys(bases) if base]
