"""Keeps a spare init ready (:mod:`sandbox.runtime.spare`), made like the container that was started last."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sandbox.linux.cgroup import Cgroup
from sandbox.linux.errors import KernelError
from sandbox.linux.idmap import IdMap
from sandbox.runtime import spare as spares
from sandbox.runtime.plan import Plan

from .loop import Loop

#: A shim that starts one container will hardly start another; one that starts two goes on.
_STARTS_BEFORE = 2
#: Seconds after a start in which the shim does nothing else, so that the next request does not have to wait.
_IDLE = 0.0002


class Reserve:
    """A spare with the cgroup that it was born in, which becomes the pod's."""

    def __init__(self, spare: spares.Spare, scope: Cgroup | None, container: str) -> None:
        self.spare = spare
        #: The pod's cgroup; the init is in its leaf ``<container>/main``.
        self.scope = scope
        self.container = container

    def discard(self) -> None:
        """Kill the spare; the cgroup stays, empty."""
        self.spare.discard()
        if self.scope is not None:
            leaf = self.scope.child(self.container)
            leaf.child("main").remove_empty()
            leaf.remove_empty()


class Spares:
    """At most one reserve at a time."""

    def __init__(self, loop: Loop, space: str, idmap: IdMap) -> None:
        self._loop, self._space, self._idmap = loop, space, idmap
        self._ready: Reserve | None = None
        self._starts = 0
        self._number = 0
        self._pending = False

    def take(self, grant: Mapping[str, Any] | None) -> Reserve | None:
        """The reserve, if its cgroup lies where ``grant`` wants the pod's."""
        reserve, self._ready = self._ready, None
        if reserve is None:
            return None
        wanted = os.path.dirname((grant or {}).get("v2") or "")
        found = os.path.dirname(reserve.scope.v2 or "") if reserve.scope else ""
        if wanted == found and reserve.spare.alive:
            return reserve
        self._drop(reserve)
        return None

    def learn(self, plan: Plan, container: str, scope: Cgroup | None, controllers: set[str]) -> None:
        """A pod's first container was started like this; make a spare for the next when there is time."""
        self._starts += 1
        if self._starts < _STARTS_BEFORE or self._ready is not None or self._pending:
            return
        steps = spares.template(plan)
        base = os.path.dirname(scope.v2) if scope and scope.v2 else None
        self._pending = True
        self._loop.later(_IDLE, lambda: self._make(steps, container, base, controllers))

    def close(self) -> None:
        """No more spares are wanted."""
        self._pending = True
        if self._ready is not None:
            self._drop(self._ready)
            self._ready = None

    def _make(self, steps: tuple[Any, ...], container: str, base: str | None, controllers: set[str]) -> None:
        self._pending = False
        self._number += 1
        scope = Cgroup(f"{base}/sandbox-spare{self._number}.scope") if base else None
        cgroup_fd = -1
        try:
            if scope is not None:
                scope.create()
                scope.enable(controllers)
                scope.child(container).create()
                main = scope.child(container).child("main")
                main.create()
                cgroup_fd = main.open_directory()
            spare = spares.make(
                steps, idmap=self._idmap, scratch=f"{self._space}/scratch", cgroup_fd=cgroup_fd
            )  # fmt: skip
            self._ready = Reserve(spare, scope, container)
        except (KernelError, OSError):
            # No descriptors or processes left: the start that has to do without will say so if it matters.
            if scope is not None:
                scope.remove()
        finally:
            if cgroup_fd >= 0:
                os.close(cgroup_fd)

    def _drop(self, reserve: Reserve) -> None:
        reserve.discard()
        if reserve.scope is not None:
            reserve.scope.remove()
