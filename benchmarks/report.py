"""The result as an aligned table and as JSON."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .measure import Effort, Row

_HEAD = ("measure", "peer", "ours", "theirs", "ours/theirs", "target", "met", "runs")
_LEFT = (0, 1)


def table(rows: Iterable[Row]) -> str:
    """One line for each row; notes below."""
    rows = list(rows)
    cells = [_HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
    lines = [_aligned(line, widths) for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    notes = [f"{row.measure}{row.peer and f' / {row.peer}'}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, "", *notes]).rstrip()


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    numbered = enumerate(zip(cells, widths, strict=True))
    padded = (cell.ljust(width) if column in _LEFT else cell.rjust(width) for column, (cell, width) in numbered)
    return "  ".join(padded).rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    bound = "" if row.target is None else f"≤ {row.target:g}" + ("" if row.ratio is not None else f" {row.unit}")
    met = {True: "yes", False: "NO", None: ""}[row.met]
    return (
        row.measure, row.peer, f"{_number(row.ours)} {row.unit}",
        "" if row.theirs is None else f"{_number(row.theirs)} {row.unit}",
        "" if row.ratio is None else f"{row.ratio:.3g}", bound, met, str(row.count or ""),
    )  # fmt: skip


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


def document(rows: Iterable[Row], missing: Mapping[str, str], effort: Effort, seconds: float) -> dict[str, Any]:
    """Everything, for a program to read; see docs/benchmarks.md for the members."""
    return {
        "version": 1,
        "machine": machine(),
        "effort": vars(effort),
        "seconds": round(seconds, 1),
        "rows": [row.to_json() for row in rows],
        "missing": dict(missing),
    }


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    return {
        "kernel": platform.release(), "architecture": platform.machine(), "cpus": os.cpu_count(),
        "load": os.getloadavg(), "python": platform.python_version(), "implementation": sys.implementation.name,
        "root": os.geteuid() == 0,
    }  # fmt: skip
