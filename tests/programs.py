"""Programs: to run in containers, written in the host's Python; and what programs of ours look like."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

#: A program of the host; what runs the tests may lie in a home, which containers do not see.
PYTHON = "/usr/bin/python3"
#: From the event to the news of it, in seconds. The budget is 5 ms; tests share their machine with others.
SOON = 0.05

#: What the kernel calls a shim's own processes: copies of it, and a container that was finished ahead.
SERVANTS = ("python", "sandbox-spare")

PRELUDE = "import os, signal, socket, sys, time\n"
NOTIFY = PRELUDE + """
def notify(text):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.sendto(text.encode(), "\\0" + os.environ["NOTIFY_SOCKET"][1:])
"""


def program(code: str, **values: object) -> list[str]:
    return [PYTHON, "-I", "-S", "-c", code.format(**values) if values else code]


def patient(seconds: float) -> float:
    """``seconds``, or longer where programs start slowly: what a program has to be started in must not run out first."""
    return seconds * _slowness()


@functools.cache
def _slowness() -> float:
    """How many times longer Python takes to start than 20 ms; 1 if it does not."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-I", "-S", "-c", ""], check=True)
    return max(1.0, (time.monotonic() - start) / 0.02)


def descendants(pid: int) -> Iterator[int]:
    """The processes that it has started, and those that they have."""
    for child in _read(f"/proc/{pid}/task/{pid}/children").split():
        yield int(child)
        yield from descendants(int(child))


def name_of(pid: int) -> str:
    """What the kernel calls the program of a process; nothing if it has ended."""
    return _read(f"/proc/{pid}/comm").strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_holder(pid: int) -> bool:
    """True for the program that holds a systemd scope, of a pod or of one that is made ahead (sandbox.shim.holders)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\0002147483647\0"
    except (FileNotFoundError, ProcessLookupError):
        return False
