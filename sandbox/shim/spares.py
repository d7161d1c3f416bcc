"""Keeps a container ready that was begun (:mod:`sandbox.runtime.spare`) or finished (:mod:`sandbox.runtime.finished`) ahead."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sandbox.linux.cgroup import Cgroup
from sandbox.linux.idmap import IdMap
from sandbox.runtime import finished, init, spare as spares
from sandbox.runtime.plan import Plan, Shape
from sandbox.runtime.rootfs import Rootfs

from .container import Container
from .loop import Loop
from .nursery import Nursery, Order, remove_cgroups

#: A shim that starts one container will hardly start another; one that starts two goes on.
_STARTS_BEFORE = 2


class Reserve:
    """A spare with the cgroup that it was born in, which becomes the pod's."""

    def __init__(self, spare: spares.Spare, order: Order) -> None:
        self.spare = spare
        self.container = order.container
        #: The pod's cgroup2 directory.
        self.scope = order.scope
        #: The container's cgroup; the init is in its leaf ``main``.
        self.cgroup = order.cgroup
        #: The scope is systemd's, and stays if the spare is dropped.
        self.held = order.held
        self._order = order

    def fits(self, plan: Plan, rootfs: Rootfs) -> bool:
        """Whether it can become this container."""
        if self._order.finished is None:
            return self.spare.fits(plan)
        return finished.fits(self._order.finished, plan, rootfs)

    def hand_over(self, order: init.Order) -> bool:
        """Tell it what it is to become; False if it cannot."""
        if self._order.finished is None:
            return spares.hand_over(self.spare, order)
        return finished.hand_over(self.spare, self._order.finished, order)

    @property
    def finished(self) -> bool:
        """Whether all is done but what its program needs."""
        return self._order.finished is not None

    def discard(self) -> None:
        """Kill the spare; the pod's cgroup stays, the container's goes."""
        self.spare.discard()
        if self.cgroup is not None:
            remove_cgroup(self.cgroup)

    def drop(self) -> None:
        """Kill the spare and remove all its cgroups."""
        self.spare.discard()
        remove_cgroups(self._order)


def remove_cgroup(cgroup: Cgroup) -> None:
    """Remove a container's cgroup and the leaf of its init; nothing is left in them, as a rule."""
    if not (cgroup.child("main").v2_only().remove_empty() and cgroup.remove_empty()):
        cgroup.remove()


class Spares:
    """At most one reserve at a time; the nursery makes it.

    Where pods are held in systemd scopes, a reserve is made in a scope that has been placed and not taken yet; elsewhere
    in a directory beside the last pod's.
    """

    def __init__(self, loop: Loop, space: str, idmap: IdMap, userns_fd: int) -> None:
        self._loop = loop
        self._nursery = Nursery(loop, space, idmap, userns_fd, self._made)
        self._last: Shape | None = None
        self._ready: Reserve | None = None
        self._starts = 0
        self._number = 0
        self._pending = False
        self._places: list[str] = []
        #: What the next reserve in a scope is to be like: all but the scope.
        self._wish: Order | None = None

    def take(self, grant: Mapping[str, Any] | None, *, held: bool = False) -> Reserve | None:
        """The reserve, if its cgroup lies where ``grant`` wants the pod's; ``held``: in that very scope."""
        wanted = (grant or {}).get("v2")
        if held and self._nursery.works_in(wanted):
            self._nursery.finish()  # or two would make the same container's directories
        if wanted in self._places:
            self._places.remove(wanted)
        reserve, self._ready = self._ready, None
        if reserve is None:
            return None
        if held or reserve.held:
            here = wanted == reserve.scope
        else:
            here = os.path.dirname(wanted or "") == os.path.dirname(reserve.scope or "")
        if here and reserve.spare.alive:
            return reserve
        reserve.drop()
        return None

    def learn(
        self, container: Container, scope: str | None, controllers: set[str], v1: Mapping[str, str], *, held: bool
    ) -> None:  # fmt: skip
        """A pod has this as its first container, and it runs; the next may be alike. ``v1``: where pods get directories."""
        self._loop.when_idle(lambda: self._learn(container, scope, controllers, v1, held=held))

    def _learn(
        self, container: Container, scope: str | None, controllers: set[str], v1: Mapping[str, str], *, held: bool
    ) -> None:  # fmt: skip
        self._starts += 1
        shape, self._last = self._last, finished.shape_of(container.plan, container.rootfs)
        if self._starts < _STARTS_BEFORE or self._ready is not None or self._pending:
            return
        order = Order(spares.template(container.plan), container.name, None, controllers, dict(v1), held)
        if self._last == shape and not container.notify:  # the third may well be like the first two
            order = order._replace(finished=finished.order(container.plan, container.rootfs))
        if held:
            self._wish = order
            self._make_in_place()
            return
        self._number += 1
        name = f"sandbox-spare{self._number}.scope"
        path = f"{os.path.dirname(scope)}/{name}" if scope else None
        self._pending = self._nursery.ask(order._replace(scope=path, v1=_beside(v1, name, container.name)))

    def place(self, scope: str) -> None:
        """There is a scope for the next pod."""
        self._places.append(scope)
        self._make_in_place()

    def _make_in_place(self) -> None:
        if self._wish is None or not self._places or self._ready is not None or self._pending:
            return
        scope, wish, self._wish = self._places.pop(0), self._wish, None
        v1 = _beside(wish.v1, os.path.basename(scope), wish.container)
        self._pending = self._nursery.ask(wish._replace(scope=scope, v1=v1))

    def _made(self, order: Order, spare: spares.Spare | None) -> None:
        self._pending = False
        if spare is None:
            return
        self._ready = Reserve(spare, order)

    def close(self) -> None:
        """No more spares are wanted."""
        self._pending = True
        self._nursery.close()
        if self._ready is not None:
            self._ready.drop()
            self._ready = None


def _beside(v1: Mapping[str, str], name: str, container: str) -> dict[str, str]:
    """The version 1 directories of ``container`` in the pod ``name``, a neighbour of the pod that ``v1`` is of."""
    return {controller: f"{os.path.dirname(pod)}/{name}:{container}" for controller, pod in v1.items()}
