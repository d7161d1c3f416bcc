"""``python -m benchmarks``: a table, and with ``--json`` a file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sandbox.errors import SandboxError

from . import alone, builds, cases, images, material, registry, report, scopes, services
from .measure import FULL, QUICK, Effort, Row

#: The groups of measurements, in the order in which they are made.
GROUPS = ("memory", "peers", "many", "readiness", "kill", "pytest", "scopes", "registry", "services", "images",
          "builds")


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours and every peer found, in turn.")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything to FILE")
    parser.add_argument("--quick", action="store_true", help="fewer runs: under a minute")
    parser.add_argument("--only", metavar="GROUP", nargs="+", choices=GROUPS, default=GROUPS,
                        help=f"of: {' '.join(GROUPS)}")  # fmt: skip
    parser.add_argument("--peers", metavar="NAME", nargs="*", default=list(cases.PEERS), choices=list(cases.PEERS),
                        help=f"of: {', '.join(cases.PEERS)}")  # fmt: skip
    parser.add_argument("--scale", metavar="FACTOR", type=float, default=1.0, help="multiply all counts")
    return parser.parse_args(arguments)


def scaled(effort: Effort, factor: float) -> Effort:
    """All counts times ``factor``; at least 4 of each, for quarters and percentiles."""
    counts = {name: max(4, round(value * factor)) for name, value in vars(effort).items() if name != "patience"}
    return dataclasses.replace(effort, patience=effort.patience, **counts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    given = options(arguments)
    if material.busybox() is None:
        print("benchmarks: busybox is needed for the root file system (Debian: busybox-static)", file=sys.stderr)
        return 1
    effort = scaled(QUICK if given.quick else FULL, given.scale)
    work = Path(tempfile.mkdtemp(prefix="sandbox-bench-"))
    work.chmod(0o755)
    began = time.monotonic()
    try:
        rows, missing = measure(work, effort, given.only, given.peers)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        print("\r\033[K" if sys.stderr.isatty() else "", end="", file=sys.stderr)
    print(report.table(rows))
    for name, reason in missing.items():
        print(f"not measured: {name}: {reason}")
    if given.json:
        text = json.dumps(report.document(rows, missing, effort, time.monotonic() - began), indent=2)
        given.json.write_text(text + "\n", "utf-8")
    return 0


def measure(
    work: Path, effort: Effort, groups: Iterable[str], peers: Iterable[str]
) -> tuple[list[Row], dict[str, str]]:  # fmt: skip
    """The rows of these groups, and what could not be measured with the reason."""
    subject = cases.Subject(material.make_root(work / "root"))
    subject.run()
    rows: list[Row] = []
    missing: dict[str, str] = {}

    def against_peers() -> list[Row]:
        found, absent = cases.against_peers(subject, work, effort, peers, _tell)
        missing.update(absent)
        return [*found, cases.without_cgroups(subject, effort)]

    def with_images() -> list[Row]:
        found, absent = images.measure(work, effort, _tell)
        missing.update(absent)
        return found

    steps: dict[str, Callable[[], Iterable[Row]]] = {
        "memory": lambda: alone.memory(subject, effort),  # first: what many pods free, the kernel hands out again
        "peers": against_peers,
        "many": lambda: [*alone.sequence(subject, effort), *alone.at_once(subject, effort)],
        "readiness": lambda: alone.readiness(effort),
        "kill": lambda: alone.clean_up(subject, effort),
        "builds": lambda: builds.rows(work, work / "root", effort),
        "pytest": lambda: alone.pytest_overhead(subject, work, effort),
        "scopes": lambda: scopes.rows(subject, effort),
        "registry": lambda: registry.against_skopeo(work, effort, 50 if effort.slow_pairs >= FULL.slow_pairs else 10),
        "services": lambda: services.rows(effort),
        "images": with_images,
    }
    for name in (name for name in steps if name in groups):
        _tell(name)
        try:
            rows += steps[name]()
        except (OSError, SandboxError, subprocess.CalledProcessError) as error:
            missing[name] = str(error)
    return rows, missing


def _tell(what: str) -> None:
    """What is being measured, for somebody who waits."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what} …", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
