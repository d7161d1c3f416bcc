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
#: Each costs the kernel half a megabyte, most of it for its network namespace.
_MOST = 3
#: Then nothing more is finished ahead: there is something here that does not let it be done.
_MOST_FAILURES = 3


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

    def is_beside(self, scope: str | None, *, held: bool) -> bool:
        """Whether it lies where such pods do."""
        return self.held == held and (held or os.path.dirname(self.scope or "") == os.path.dirname(scope or ""))

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
    """A reserve for the next pod, and a few where pods follow one another faster than they are made; the nursery makes them.

    Where pods are held in systemd scopes, a reserve is made in a scope that has been placed and not taken yet; elsewhere
    in a directory beside the last pod's.
    """

    def __init__(self, loop: Loop, space: str, idmap: IdMap, userns_fd: int) -> None:
        self._loop = loop
        self._nursery = Nursery(loop, space, idmap, userns_fd, self._made)
        self._ready: list[Reserve] = []
        #: How many are wanted at a time.
        self._most = 1
        self._starts = 0
        self._number = 0
        self._pending = False
        #: So many that were finished have died by themselves, one after the other.
        self._failures = 0
        self._places: list[str] = []
        self._last: Shape | None = None
        #: What the next ones are to be like; ``scope`` is that of the pod that they are like.
        self._wish: Order | None = None

    def take(self, grant: Mapping[str, Any] | None, *, held: bool = False) -> Reserve | None:
        """A reserve whose cgroup lies where ``grant`` wants the pod's; ``held``: in that very scope."""
        wanted = (grant or {}).get("v2")
        if held and self._nursery.works_in(wanted):
            self._nursery.finish()  # or two would make the same container's directories
        if wanted in self._places:
            self._places.remove(wanted)
        for stranger in [reserve for reserve in self._ready if not reserve.is_beside(wanted, held=held)]:
            self._ready.remove(stranger)
            stranger.drop()
        reserve = next((reserve for reserve in self._ready if not held or reserve.scope == wanted), None)
        if reserve is None:
            if self._wish is not None:
                self._most = min(self._most + 1, _MOST)
            return None
        self._ready.remove(reserve)
        if reserve.spare.alive:
            self._failures = 0
            return reserve
        self._failures += reserve.finished
        reserve.drop()
        return None

    def learn(
        self, container: Container, scope: str | None, controllers: set[str], v1: Mapping[str, str], *, held: bool
    ) -> None:  # fmt: skip
        """A pod has this as its first container, and it runs; the next may be alike. ``v1``: where pods get directories."""
        order = Order(spares.template(container.plan), container.name, scope, controllers, dict(v1), held)
        # A container that needs further version 1 cgroups has to enter them by itself.
        plain = set(container.cgroup.v1 if container.cgroup else ()) == set(v1) and not container.notify
        self._loop.when_idle(lambda: self._learn(order, container, plain=plain))

    def _learn(self, order: Order, container: Container, *, plain: bool) -> None:
        self._starts += 1
        before, self._last = self._last, finished.shape_of(container.plan, container.rootfs)
        if self._starts < _STARTS_BEFORE:
            return
        if self._last != before:
            self._most = 1
        elif plain and self._failures < _MOST_FAILURES:  # the third may well be like the first two
            order = order._replace(finished=finished.order(container.plan, container.rootfs))
        self._wish = order
        self._make()

    def place(self, scope: str) -> None:
        """There is a scope for the next pod."""
        self._places.append(scope)
        self._make()

    def _make(self) -> None:
        wish = self._wish
        if wish is None or self._pending or len(self._ready) >= self._most:
            return
        if wish.held:
            if not self._places:
                return
            scope: str | None = self._places.pop(0)
            name = os.path.basename(str(scope))
        else:
            self._number += 1
            name = f"sandbox-spare{self._number}.scope"
            scope = f"{os.path.dirname(wish.scope)}/{name}" if wish.scope else None
        self._pending = self._nursery.ask(wish._replace(scope=scope, v1=_beside(wish.v1, name, wish.container)))

    def _made(self, order: Order, spare: spares.Spare | None) -> None:
        self._pending = False
        if spare is None:
            self._wish = None  # until a container has been started without one
            return
        self._ready.append(Reserve(spare, order))
        self._make()

    def close(self) -> None:
        """No more spares are wanted."""
        self._pending = True
        self._nursery.close()
        for reserve in self._ready:
            reserve.drop()
        self._ready.clear()


def _beside(v1: Mapping[str, str], name: str, container: str) -> dict[str, str]:
    """The version 1 directories of ``container`` in the pod ``name``, a neighbour of the pod that ``v1`` is of."""
    return {controller: f"{os.path.dirname(pod)}/{name}:{container}" for controller, pod in v1.items()}
