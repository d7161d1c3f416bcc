"""The end of an exec's tree: all that it started is dead, and nothing else is, whatever the moment.

The programs are as short as their time-outs, so that the one ends while the other is told.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gate import requires

import sandbox
from sandbox.pods import PIPE, Options
from sandbox.shim.client import own_shim

pytestmark = requires("userns", "overlay")

#: Seconds for each of the loops that meet the moment by chance.
ROUNDS_TAKE = 2.5
_marks = itertools.count(1)


@pytest.fixture(params=["auto", "none"])
def pod(request: pytest.FixtureRequest) -> Iterator[sandbox.RunningPod]:
    with sandbox.start(image="host", command=["sleep", "inf"], options=Options(cgroups=request.param)) as running:
        running.exec(["true"], check=True)
        yield running


def rounds() -> Iterator[float]:
    """Time-outs around 20 ms, as many as there is time for."""
    moments = random.Random(1)
    end = time.monotonic() + ROUNDS_TAKE
    while time.monotonic() < end:
        yield 0.02 + moments.uniform(0, 0.006)


def ready(pod: sandbox.RunningPod) -> None:
    """After the end of a tree the next exec is a copy of the shim, and only those after it come from a spawner."""
    pod.exec(["true"], check=True)
    time.sleep(0.015)


def unique_seconds() -> str:
    """An argument for sleep(1) by which its process is found, and nobody else's."""
    return f"{1000 + next(_marks)}.{os.getpid()}"


def alive(argument: str) -> list[str]:
    """Processes of this machine with such an argument; a dead one has none."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and argument.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(entry.name)
    return found


def test_the_next_exec_is_not_hit_by_a_timeout(pod: sandbox.RunningPod) -> None:
    for timeout in rounds():
        ready(pod)
        with contextlib.suppress(sandbox.TimeoutExpired):
            pod.exec(["sleep", "0.02"], timeout=timeout)
        result = pod.exec(["echo", "b"])
        assert (result.returncode, result.stdout) == (0, "b\n")


def test_nor_by_a_kill_of_what_has_just_ended(pod: sandbox.RunningPod) -> None:
    for _ in rounds():
        ready(pod)
        with pod.popen(["true"]) as short:
            short.kill()
        with pod.popen(["sleep", "0.002"]) as process:
            assert process.wait(10) == 0


def test_nor_are_those_of_other_threads(pod: sandbox.RunningPod) -> None:
    wrong: list[sandbox.Result[str]] = []
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            result = pod.exec(["echo", "b"])
            if (result.returncode, result.stdout) != (0, "b\n"):
                wrong.append(result)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for timeout in rounds():
            with contextlib.suppress(sandbox.TimeoutExpired):
                pod.exec(["sleep", "0.02"], timeout=timeout)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_when_a_timeout_is_told_all_is_dead(pod: sandbox.RunningPod) -> None:
    """Or it is not told, for the program has ended in time; then what it has left behind is left alone."""
    expired = 0
    for timeout in rounds():
        mark = unique_seconds()
        left_behind = f"for i in 1 2 3 4 5; do setsid sleep {mark} >/dev/null 2>&1 & done; sleep 0.015"
        try:
            pod.exec(["sh", "-c", left_behind], timeout=timeout)
        except sandbox.TimeoutExpired:
            expired += 1
            assert not alive(mark)
    assert expired


#: On one processor, so that what was killed does not come to die before the shim has gone on.
ORDER = """
import os, signal, threading, time, sandbox
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from sandbox.pods import Options, PIPE
from sandbox.shim.client import own_shim
with sandbox.start(image="host", command=["sleep", "inf"], options=Options(cgroups="%s")) as pod:
    for _ in range(3):
        pod.exec(["true"], check=True)
        time.sleep(0.05)
    monitor = own_shim()._monitor.pid
    shim = int(open(f"/proc/{monitor}/task/{monitor}/children").read())
    for _ in range(5):
        short = pod.popen(["sleep", "0.1"])
        os.kill(shim, signal.SIGSTOP)
        killer = threading.Thread(target=short.kill)
        killer.start()
        time.sleep(0.05)  # its request is there first
        results = []
        following = threading.Thread(target=lambda: results.append(pod.exec(["echo", "b"])))
        following.start()
        time.sleep(0.2)  # the program has ended meanwhile
        os.kill(shim, signal.SIGCONT)
        following.join()
        killer.join()
        assert [(result.returncode, result.stdout) for result in results] == [(0, "b\\n")], results
        short.wait(10)
        short.close()
        for _ in range(2):
            pod.exec(["true"], check=True)
            time.sleep(0.05)
"""


@pytest.mark.parametrize("cgroups", ["auto", "none"])
def test_a_kill_that_is_read_after_the_end_and_before_the_next_exec(cgroups: str) -> None:
    """The shim is stopped meanwhile, so it finds all three at once, in this order."""
    done = subprocess.run([sys.executable, "-c", ORDER % cgroups], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("cgroups", ["auto", "none"])
def test_an_exec_that_is_lost_is_killed(cgroups: str) -> None:
    """The client goes away while it runs: nothing is left of it, and others go on."""
    mark = unique_seconds()
    with sandbox.start(image="host", command=["sleep", "inf"], options=Options(cgroups=cgroups)) as pod:
        for _ in range(3):
            lost = pod.popen(["sh", "-c", f"setsid sleep {mark} & sleep {mark}"], kill_with_me=True)
            until(lambda: len(alive(mark)) == 2)
            lost._conversation.close()  # what happens when its process ends
            until(lambda: not alive(mark))
            lost.close()
            assert pod.exec(["echo", "b"]).stdout == "b\n"
            time.sleep(0.05)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    until(lambda: "State:\tT" in Path(f"/proc/{pid}/status").read_text())


def spawner_of(pod: sandbox.RunningPod) -> int:
    """The child of the shim that has joined the pod's network and no process namespace, and lives in the cgroup of an exec."""
    network = pod.exec(["readlink", "/proc/self/ns/net"]).stdout.strip()
    monitor = own_shim()._monitor.pid
    shim = Path(f"/proc/{monitor}/task/{monitor}/children").read_text().strip()
    for child in Path(f"/proc/{shim}/task/{shim}/children").read_text().split():
        with contextlib.suppress(OSError):
            joined = os.readlink(f"/proc/{child}/ns/net") == network
            outside = os.readlink(f"/proc/{child}/ns/pid") == os.readlink(f"/proc/{shim}/ns/pid")
            if joined and outside and "/exec-" in Path(f"/proc/{child}/cgroup").read_text():
                return int(child)
    return 0


@requires("root", "cgroup2")
class TestASpawnerThatDies:
    """By the hand of somebody else: the kernel's, for want of memory."""

    @pytest.fixture
    def pod(self) -> Iterator[sandbox.RunningPod]:
        with sandbox.start(image="host", command=["sleep", "inf"]) as running:
            self.until_there(running)
            yield running

    @staticmethod
    def until_there(pod: sandbox.RunningPod) -> int:
        def there() -> bool:
            pod.exec(["true"], check=True)
            time.sleep(0.02)
            return bool(spawner_of(pod))

        until(there)
        return spawner_of(pod)

    def test_before_it_has_read_what_to_start(self, pod: sandbox.RunningPod) -> None:
        """For certain that program was not started; so it is now."""
        for _ in range(3):
            spawner = self.until_there(pod)
            stop(spawner)
            with pod.popen(["cat"], stdin=PIPE, stdout=PIPE, quiet=True) as process:
                os.kill(spawner, signal.SIGKILL)
                assert process.communicate("in", timeout=10) == ("in", "")
                assert process.returncode == 0

    def test_and_the_exec_is_killed_as_well(self, pod: sandbox.RunningPod) -> None:
        spawner = self.until_there(pod)
        stop(spawner)
        mark = unique_seconds()
        with pytest.raises(sandbox.TimeoutExpired):
            pod.exec(["sleep", mark], timeout=0.05)
        assert not alive(mark)
        assert pod.exec(["echo", "b"]).stdout == "b\n"

    def test_with_a_program_that_runs(self, pod: sandbox.RunningPod) -> None:
        """Nobody could tell any more how that ends: it is killed, and told so."""
        spawner = self.until_there(pod)
        mark = unique_seconds()
        with pod.popen(["sleep", mark]) as process:
            os.kill(spawner, signal.SIGKILL)
            assert process.wait(10) == -signal.SIGKILL
        assert not alive(mark)

    def test_a_killed_one_is_replaced(self, pod: sandbox.RunningPod) -> None:
        first = self.until_there(pod)
        with pytest.raises(sandbox.TimeoutExpired):
            pod.exec(["sleep", "60"], timeout=0.05)
        assert self.until_there(pod) != first


def test_the_end_is_known_before_communicate(pod: sandbox.RunningPod) -> None:
    with pod.popen(["echo", "b"], stdout=PIPE) as process:
        assert process.wait(10) == 0
        assert process.kill() is False
        assert process.communicate(timeout=10)[0] == "b\n"
