"""Programs that a container's spawner executes are like any other, and leave as little behind."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gate import requires

import sandbox
from sandbox import PodStateError
from sandbox.shim.client import own_shim

pytestmark = requires("root", "cgroup2")  # without a cgroup of its own a container has no spawner


@pytest.fixture
def pod() -> Iterator[sandbox.RunningPod]:
    with sandbox.start(image="host", command=["sleep", "inf"]) as running:
        for _ in range(3):  # the first exec is a copy of the shim, and asks for a spawner
            running.exec(["true"], check=True)
            time.sleep(0.05)
        yield running


def test_the_container_does_not_see_it(pod: sandbox.RunningPod) -> None:
    names = pod.exec(["sh", "-c", "cat /proc/[0-9]*/comm; true"]).stdout.split()
    assert "sleep" in names
    assert set(names) <= {"sleep", "sh", "cat"}


def test_what_differs_between_programs_is_their_own(pod: sandbox.RunningPod) -> None:
    seen = pod.exec(["sh", "-c", 'echo "$A $PWD"; cat; echo oops >&2; exit 3'], input="in", env={"A": "1"}, cwd="/usr")
    assert (seen.stdout, seen.stderr, seen.returncode) == ("1 /usr\nin", "oops\n", 3)
    assert pod.exec(["sh", "-c", 'echo "$A $PWD"']).stdout == " /\n"


def test_identity_and_confinement_are_those_of_a_first_exec() -> None:
    probe = ["sh", "-c", "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status; umask; ls /proc/self/fd"]
    with sandbox.start(image="host", command=["sleep", "inf"], user="1000:1000") as pod:
        first = pod.exec(probe).stdout
        time.sleep(0.1)
        assert [pod.exec(probe).stdout for _ in range(3)] == [first] * 3


def test_errors_are_the_same(pod: sandbox.RunningPod) -> None:
    for _ in range(2):
        with pytest.raises(sandbox.CommandNotFound, match="nope"):
            pod.exec(["nope"])
    with pytest.raises(sandbox.CommandNotExecutable):
        pod.exec(["/etc/passwd"])
    with pytest.raises(sandbox.SandboxError, match="working directory"):
        pod.exec(["true"], cwd="/proc/self/fd/3")


def test_a_timeout_kills_the_tree_and_the_container_still_ends(pod: sandbox.RunningPod) -> None:
    with pytest.raises(sandbox.TimeoutExpired):
        pod.exec(["sh", "-c", "sleep 60 & setsid sleep 60 & sleep 60"], timeout=0.2)
    deadline = time.monotonic() + 2
    while "sleep\x0060" in _command_lines(pod) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "sleep\x0060" not in _command_lines(pod)
    pod.kill()
    assert pod.wait(5) == -9


def _command_lines(pod: sandbox.RunningPod) -> str:
    return str(pod.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"]).stdout)


def test_what_a_program_leaves_running_is_left_alone(pod: sandbox.RunningPod) -> None:
    pod.exec(["sh", "-c", "sleep 50 >/dev/null 2>&1 &"])
    for _ in range(3):
        pod.exec(["true"], check=True)
        time.sleep(0.02)
    assert "sleep\x0050" in _command_lines(pod)
    with pytest.raises(sandbox.TimeoutExpired):
        pod.exec(["sleep", "60"], timeout=0.1)
    assert "sleep\x0050" in _command_lines(pod)


def test_two_at_once(pod: sandbox.RunningPod) -> None:
    slow = pod.popen(["sh", "-c", "sleep 0.3; echo slow"], stdout=sandbox.pods.PIPE)
    assert pod.exec(["echo", "quick"]).stdout == "quick\n"
    out, _ = slow.communicate(timeout=5)
    slow.close()
    assert out == "slow\n"


def test_tight_containers_do_without() -> None:
    with sandbox.start(image="host", command=["sleep", "inf"], pids=3) as pod:
        for _ in range(4):
            assert pod.exec(["true"]).returncode == 0
            time.sleep(0.02)
        assert pod.stats().pids.current == 1


def test_it_keeps_nothing_of_other_pods(pod: sandbox.RunningPod) -> None:
    with sandbox.start(image="host", command=["sleep", "inf"]) as other:
        for _ in range(2):
            other.exec(["true"])
            time.sleep(0.05)
        theirs = _namespaces(pod)
        assert theirs
        pod.close()
        assert not theirs & _namespaces_held_by_helpers()


def _namespaces(pod: sandbox.RunningPod) -> set[str]:
    listing = pod.exec(["sh", "-c", "readlink /proc/1/ns/net /proc/1/ns/mnt /proc/1/ns/user"])
    return set(listing.stdout.split())


def _namespaces_held_by_helpers() -> set[str]:
    """What children of the shim have descriptors of; the kernel gives the numbers of dead ones to new ones elsewhere."""
    monitor = own_shim()._monitor.pid
    shim = Path(f"/proc/{monitor}/task/{monitor}/children").read_text().strip()
    found = set()
    for child in Path(f"/proc/{shim}/task/{shim}/children").read_text().split():
        with contextlib.suppress(OSError):
            found |= {os.readlink(path) for path in Path(f"/proc/{child}/fd").iterdir()}
    return found


def test_a_container_that_is_just_ending_is_told_as_ended() -> None:
    """From then on the kernel makes no process there: "Cannot allocate memory"."""
    for _ in range(25):
        with sandbox.start(command=["sh", "-c", "while [ ! -e /tmp/go ]; do :; done"]) as pod:
            pod.exec(["true"])
            pod.exec(["true"])
            pod.write_text("/tmp/go", "")
            with contextlib.suppress(PodStateError):
                while pod.exec(["true"]).returncode == 0:
                    pass
