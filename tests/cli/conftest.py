"""The command line as a process, and a pod to look at."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sandbox

COMMAND = [sys.executable, "-m", "sandbox.cli"]


class Cli:
    """Runs ``sandbox …`` and waits (call it), or only starts it."""

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"capture_output": True, "text": True, "timeout": 60, **options}
        return subprocess.run([*COMMAND, *arguments], check=False, **options)

    @contextlib.contextmanager
    def start(self, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """A process of its own group, killed at the end whatever happens."""
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        with subprocess.Popen([*COMMAND, *arguments], text=True, **options) as process:
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture
def cli() -> Cli:
    return Cli()


@pytest.fixture
def shop() -> Iterator[sandbox.RunningPod]:
    """A pod of two containers, started by this process."""
    talk = "echo out; echo err >&2; echo done; exec sleep inf"
    pod = sandbox.Pod(
        [sandbox.Container("db", command=["sh", "-c", talk]), sandbox.Container("api", command=["sleep", "inf"])],
        name=f"shop{os.getpid()}", labels={"team": "blue"},
    )  # fmt: skip
    with sandbox.start(pod) as running:
        next(record for record in running["db"].log_records(follow=True) if record.line == "done")
        yield running


def until(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    """Wait for something that no event tells: what other processes leave behind."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return value


def processes_with(word: str) -> list[int]:
    """Processes of the machine with ``word`` among their arguments."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word.encode() in (directory / "cmdline").read_bytes().split(b"\0"):
                found.append(int(directory.name))
    return found


@pytest.fixture
def gone() -> Callable[[str], None]:
    """Wait until no process has this word among its arguments."""
    return lambda word: until(lambda: not processes_with(word))


@pytest.fixture
def started() -> Callable[[str], int]:
    """Wait for a process with this word among its arguments; its id."""

    def wait(word: str) -> int:
        found: list[int] = until(lambda: processes_with(word), 20)
        return found[0]

    return wait


@pytest.fixture
def unique() -> str:
    """A number of seconds that no other `sleep` of the machine has."""
    return f"{1000 + os.getpid()}.{time.monotonic_ns() % 10**9}"


