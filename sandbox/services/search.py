"""Finds the largest set of restrictions under which something still passes, with few tries.

Restrictions nearly always act on their own, and one that hurts alone hurts in company. So all are tried at once, what
fails is split in halves until the culprits stand alone, and independent halves are tried at the same time. What passed in
parts is tried together at the end, and if parts do not get along, one part after another is added. The result depends on
the order of the restrictions only, never on timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["Search"]

T = TypeVar("T")
#: Why it failed under these restrictions; None if it passed.
Try = Callable[[Sequence[T]], str | None]


class Search(Generic[T]):
    """A search over ``attempt``, which is told restrictions and says why it failed under them, or None.

    :param jobs: how many tries at a time

    >>> search = Search(lambda chosen: "no" if "b" in chosen else None)
    >>> search.best([("a",), ("b", "weaker"), ("c",)])
    ['a', 'c', 'weaker']
    >>> search.failed
    {'b': 'no'}
    """

    def __init__(self, attempt: Try[T], jobs: int = 1) -> None:
        self._attempt = attempt
        self._jobs = jobs
        self._known: dict[frozenset[T], str | None] = {}
        #: What was left out → why it failed, alone with what was accepted before.
        self.failed: dict[T, str] = {}

    @property
    def tries(self) -> int:
        """How often something was tried."""
        return len(self._known)

    def best(self, ladders: Iterable[Sequence[T]]) -> list[T]:
        """The strictest rung of each ladder that passes together with the others; order is priority."""
        accepted: list[T] = []
        waiting = [tuple(ladder) for ladder in ladders if ladder]
        while waiting:
            chosen = self.largest(accepted, [ladder[0] for ladder in waiting])
            accepted += chosen
            waiting = [ladder[1:] for ladder in waiting if ladder[0] not in chosen and len(ladder) > 1]
        return accepted

    def largest(self, base: Sequence[T], candidates: Sequence[T]) -> list[T]:
        """Those of the candidates that pass together with the base."""
        passing: list[list[T]] = []
        groups = [list(candidates)] if candidates else []
        while groups:
            failed = self._sieve(base, groups, passing)
            groups = [half for group in failed if len(group) > 1 for half in _halves(group)]
        passing.sort(key=lambda group: candidates.index(group[0]))
        together = [item for group in passing for item in group]
        if len(passing) < 2 or self._why_not([*base, *together]) is None:
            return together
        return self._one_by_one(base, passing)

    def _sieve(self, base: Sequence[T], groups: list[list[T]], passing: list[list[T]]) -> list[list[T]]:
        """Try each group on its own; those that fail."""
        with ThreadPoolExecutor(self._jobs) as pool:
            reasons = list(pool.map(lambda group: self._why_not([*base, *group]), groups))
        failed = []
        for group, reason in zip(groups, reasons, strict=True):
            if reason is None:
                passing.append(group)
            else:
                failed.append(group)
                self._blame(group, reason)
        return failed

    def _one_by_one(self, base: Sequence[T], groups: list[list[T]]) -> list[T]:
        chosen: list[T] = []
        for group in groups:
            chosen += self._fitting([*base, *chosen], group)
        return chosen

    def _fitting(self, base: Sequence[T], group: list[T]) -> list[T]:
        reason = self._why_not([*base, *group])
        if reason is None:
            return group
        self._blame(group, reason)
        if len(group) == 1:
            return []
        first, second = _halves(group)
        chosen = self._fitting(base, first)
        return chosen + self._fitting([*base, *chosen], second)

    def _blame(self, group: list[T], reason: str) -> None:
        if len(group) == 1:
            self.failed[group[0]] = reason

    def _why_not(self, chosen: Sequence[T]) -> str | None:
        key = frozenset(chosen)
        if key not in self._known:
            self._known[key] = self._attempt(chosen)
        return self._known[key]


def _halves(group: list[T]) -> tuple[list[T], list[T]]:
    middle = (len(group) + 1) // 2
    return group[:middle], group[middle:]
