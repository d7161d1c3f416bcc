"""Running peers' commands and taking their time: here, or in namespaces as they want them.

Crun insists on cgroup2 at /sys/fs/cgroup. On hybrid hosts its commands are therefore run by a process that has a mount
namespace of its own with that; ours are run on the host as it is, cgroups included. And podman's bridge with its firewall
rules and leases is made in a network of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from sandbox.linux import cgroup, constants as c, syscalls


class PeerError(Exception):
    """A peer's command failed; the text is the last line of what it said."""


class Runner(Protocol):
    """Runs commands."""

    def run(self, argv: Sequence[str]) -> float:
        """Run to the end with output captured; seconds it took. Raises :class:`PeerError`."""
        ...

    def close(self) -> None:
        """No more commands."""
        ...


class Here:
    """In this process's namespaces."""

    def run(self, argv: Sequence[str]) -> float:
        """Run to the end."""
        return _checked(argv, timed_run(argv))

    def close(self) -> None:
        """Nothing is open."""


class Elsewhere:
    """In a process with a private mount namespace in which cgroup2 is mounted on /sys/fs/cgroup.

    ``network``: instead with a network that has nothing but loopback, and with nothing in /run and /var/lib.
    """

    def __init__(self, *, network: bool = False) -> None:
        command = [sys.executable, "-m", "benchmarks.elsewhere", *(["network"] if network else [])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        )  # fmt: skip

    def run(self, argv: Sequence[str]) -> float:
        """Run to the end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(list(argv)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise PeerError("the process that was to run it is gone")
        return _checked(argv, json.loads(answer))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


def runner_for_crun() -> Runner:
    """Here where cgroup2 is at /sys/fs/cgroup, else elsewhere. Raises :class:`PeerError` if that cannot be had."""
    if cgroup.hierarchies().v2 == "/sys/fs/cgroup":
        return Here()
    if os.geteuid():
        raise PeerError("it wants cgroup2 at /sys/fs/cgroup, and only root can mount that there")
    return Elsewhere()


def timed_run(argv: Sequence[str]) -> dict[str, Any]:
    """Seconds, exit status and error output of a command."""
    began = time.perf_counter()
    done = subprocess.run(argv, input=b"", capture_output=True, check=False)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "status": done.returncode, "stderr": done.stderr.decode(errors="replace")[-2000:]}


def _checked(argv: Sequence[str], outcome: dict[str, Any]) -> float:
    if outcome["status"]:
        said = outcome["stderr"].strip().splitlines() or [f"status {outcome['status']}"]
        raise PeerError(f"{argv[0]}: {said[-1]}")
    return float(outcome["seconds"])


def main() -> None:
    """The other process: commands as JSON on standard input, outcomes on standard output."""
    network = sys.argv[1:] == ["network"]
    syscalls.unshare(c.CLONE_NEWNS | (c.CLONE_NEWNET if network else 0))
    syscalls.mount(None, "/", None, c.MS_PRIVATE | c.MS_REC)
    if network:
        for place in ("/run", "/var/lib"):
            syscalls.mount("none", place, "tmpfs")
    else:
        syscalls.mount("none", "/sys/fs/cgroup", "cgroup2")
    for line in sys.stdin:
        print(json.dumps(timed_run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
