"""Measuring: pairs of runs, medians, rows of the result."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

#: A run: does the thing once and tells the seconds it took.
Run = Callable[[], float]
#: Seconds between two runs, at least: as many as the run before took. Each side does some work after its run is over (we
#: make a spare for the next pod, a daemon removes a container), and the other side is not to pay for that.
PAUSE = 0.02


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured: counts, and bounds in seconds."""

    pairs: int
    #: Pairs with a peer that takes long.
    slow_pairs: int
    sequence: int
    at_once: int
    idle: int
    tests: int
    rounds: int
    #: No loop over pairs takes longer than this.
    patience: float


FULL = Effort(pairs=60, slow_pairs=12, sequence=500, at_once=200, idle=50, tests=100, rounds=20, patience=20.0)
QUICK = Effort(pairs=12, slow_pairs=4, sequence=100, at_once=50, idle=20, tests=30, rounds=5, patience=4.0)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. ``ours`` and ``theirs`` are medians in ``unit``."""

    measure: str
    ours: float
    unit: str = "ms"
    peer: str = ""
    theirs: float | None = None
    #: Median of the ratios of neighbouring runs, ours to theirs; or whatever ``target`` bounds.
    ratio: float | None = None
    #: The most that is allowed of the ratio, or where there is none of ``ours``.
    target: float | None = None
    count: int = 0
    #: 10th and 90th percentile of ``ours``.
    spread: tuple[float, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        value = self.ours if self.ratio is None else self.ratio
        return None if self.target is None else value <= self.target

    def to_json(self) -> dict[str, Any]:
        """All fields, and ``met``."""
        return {**dataclasses.asdict(self), "met": self.met}


def timed(action: Callable[[], object]) -> float:
    """Seconds that ``action`` takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def pairs(ours: Run, theirs: Run, count: int, patience: float) -> list[tuple[float, float]]:
    """Run both in turn, A B A B, so that whatever else the machine does hits both alike. The first does not count."""
    before = 0.0
    result: list[tuple[float, float]] = []
    for _ in range(2):
        before = _rested(theirs, _rested(ours, before))
    gc.collect()
    deadline = time.monotonic() + patience
    while len(result) < count and (len(result) < 3 or time.monotonic() < deadline):
        mine = _rested(ours, before)
        before = _rested(theirs, mine)
        result.append((mine, before))
    return result


def _rested(run: Run, before: float) -> float:
    """After a pause that is as long as the run before."""
    time.sleep(max(before, PAUSE))
    return run()


def block(run: Run, length: int) -> Run:
    """``length`` runs without a pause, as one; seconds for each."""
    return lambda: sum(run() for _ in range(length)) / length


def compared(
    measure: str, peer: str, found: Sequence[tuple[float, float]], target: float | None, note: str = ""
) -> Row:  # fmt: skip
    """The row of a list of pairs, in milliseconds."""
    mine = [a * 1e3 for a, _ in found]
    return Row(
        measure, statistics.median(mine), "ms", peer, statistics.median(b * 1e3 for _, b in found),
        statistics.median(a / b for a, b in found), target, len(found), percentiles(mine), note,
    )  # fmt: skip


def alone(
    measure: str, values: Sequence[float], unit: str = "ms", *, target: float | None = None, note: str = ""
) -> Row:  # fmt: skip
    """The row of something that has no peer; ``values`` are in ``unit``."""
    spread = percentiles(values)
    return Row(measure, statistics.median(values), unit, target=target, count=len(values), spread=spread, note=note)


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """The 10th and the 90th."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[round(last * 0.1)], ordered[round(last * 0.9)]
