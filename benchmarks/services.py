"""Service sandboxes against systemd-run: the same command, from the call until it has ended and its output is read.

Where systemd is not process 1, a nested system manager of the tests is (tests/machines/nested.py), and this file runs in
there: ``python -m benchmarks.services PAIRS PATIENCE`` prints pairs of seconds as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import sandbox
from sandbox.services import PROFILES

from .measure import Effort, Row, Run, compared, pairs, timed

_COMMAND = ["/bin/true"]
_TESTS = Path(__file__).parents[1] / "tests"
#: As the issue has it: so much of what systemd-run takes.
_TARGET = 0.7


def rows(effort: Effort) -> Iterator[Row]:
    """Plain, and with a profile. Raises :class:`OSError` where there is no system manager to be had."""
    found = _here(effort.pairs, effort.patience) if os.path.isdir("/run/systemd/system") else _nested(effort)
    name = "service, start to gone"
    yield compared(name, "systemd-run", found["plain"], _TARGET, "systemd-run --wait --pipe; no profile")
    note = "systemd-run is given the properties of the profile with -p"
    yield compared(f"{name}, profile strict", "systemd-run", found["strict"], None, note)


def _here(count: int, patience: float) -> dict[str, list[tuple[float, float]]]:
    def ours(profile: str | None) -> Run:
        return lambda: timed(lambda: sandbox.service(_COMMAND, profile=profile, manager="system", check=True))

    def theirs(*properties: str) -> Run:
        command = ["systemd-run", "--wait", "--pipe", "--quiet", "--collect", *properties, "--", *_COMMAND]
        return lambda: timed(lambda: subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True))

    strict = [f"--property={name}={value}" for name, value in PROFILES["strict"].assignments()]
    return {
        "plain": pairs(ours(None), theirs(), count, patience),
        "strict": pairs(ours("strict"), theirs(*strict), count, patience),
    }


def _nested(effort: Effort) -> dict[str, list[tuple[float, float]]]:
    sys.path.insert(0, str(_TESTS))
    try:
        from machines import nested
    finally:
        sys.path.remove(str(_TESTS))
    if os.geteuid() != 0:
        raise OSError("systemd is not process 1, and only root can boot one beside it")
    try:
        with nested.boot() as machine:
            command = [sys.executable, "-m", "benchmarks.services", str(effort.pairs), str(effort.patience)]
            done = machine.run(["env", f"--chdir={_TESTS.parent}", *command], timeout=120 + 2 * effort.patience)
    except nested.MachineFailed as error:
        raise OSError(f"no nested system manager: {error}") from None
    found: dict[str, list[tuple[float, float]]] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    print(json.dumps(_here(int(sys.argv[1]), float(sys.argv[2]))))
