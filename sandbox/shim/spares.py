"""Keeps a spare init ready (:mod:`sandbox.runtime.spare`), made like the container that was started last."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sandbox.linux.cgroup import Cgroup
from sandbox.linux.idmap import IdMap
from sandbox.runtime import spare as spares
from sandbox.runtime.plan import Plan

from .loop import Loop
from .nursery import Nursery, Order

#: A shim that starts one container will hardly start another; one that starts two goes on.
_STARTS_BEFORE = 2


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
    """At most one reserve at a time; the nursery makes it."""

    def __init__(self, loop: Loop, space: str, idmap: IdMap) -> None:
        self._loop = loop
        self._nursery = Nursery(loop, f"{space}/scratch", idmap, self._made)
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
        _drop(reserve)
        return None

    def learn(self, plan: Plan, container: str, scope: Cgroup | None, controllers: set[str]) -> None:
        """A pod's first container was started like this; the next may be alike."""
        self._starts += 1
        if self._starts < _STARTS_BEFORE or self._ready is not None or self._pending:
            return
        self._number += 1
        base = os.path.dirname(scope.v2) if scope and scope.v2 else None
        path = f"{base}/sandbox-spare{self._number}.scope" if base else None
        self._pending = self._nursery.ask(Order(spares.template(plan), container, path, controllers))

    def _made(self, order: Order, spare: spares.Spare | None) -> None:
        self._pending = False
        if spare is None:
            return
        self._ready = Reserve(spare, Cgroup(order.scope) if order.scope else None, order.container)

    def close(self) -> None:
        """No more spares are wanted."""
        self._pending = True
        self._nursery.close()
        if self._ready is not None:
            _drop(self._ready)
            self._ready = None


def _drop(reserve: Reserve) -> None:
    reserve.discard()
    if reserve.scope is not None:
        reserve.scope.remove()
