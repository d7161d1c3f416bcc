"""``kill -9`` at any moment, of any of the processes: nothing is left, and who is told hears the truth.

The three are the client (a script that does everything, again and again), its monitor and its shim. Each is killed at
random moments, from a seed that a failure names.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from gate import requires
from programs import patient
from snapshot import assert_as_before, snapshot

import sandbox
from sandbox import ShimDied
from sandbox.shim import client

pytestmark = [requires("userns", "overlay"), pytest.mark.serial]

BUSY = Path(__file__).parents[1] / "data" / "busy.py"
#: In CI and by hand; SANDBOX_KILLS asks for more.
KILLS = int(os.environ.get("SANDBOX_KILLS") or 25)
SEED = 20260101
#: Seconds of life of a client that does everything: what is killed is in the middle of one thing or another.
LONGEST_LIFE = 0.4


@contextlib.contextmanager
def busy_client(seed: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(BUSY), "loop", str(seed)]
    with (
        tempfile.TemporaryDirectory() as own,  # what the client itself makes, it cannot take away when it is killed
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env={**os.environ, "TMPDIR": own}) as process,
    ):  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
            yield process
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    """Of all threads of a process; none if it has gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def monitor_of(pid: int) -> int:
    """The child of a client that has a shim for a child; the keeper of a private systemd manager has one of its own."""
    (monitor,) = [child for child in children(pid) if any(map(is_shim, children(child)))]
    return monitor


def is_shim(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sandbox: shim")
    except OSError:
        return False


def shim_of(pid: int) -> int:
    (shim,) = children(monitor_of(pid))
    return shim


class TestABusyClient:
    @pytest.mark.parametrize("round_", range(5))
    def test_is_killed(self, round_: int) -> None:
        moments = random.Random(SEED + round_)
        for number in range(KILLS // 5):
            before = snapshot()
            with busy_client(seed := moments.randrange(1 << 30)) as process:
                time.sleep(moments.uniform(0, LONGEST_LIFE))  # the moment is the test
                process.kill()
            try:
                assert_as_before(before)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, kill {number} of round {round_}: {error}") from None

    @pytest.mark.parametrize("victim", ["shim", "monitor"])
    def test_loses_a_helper(self, victim: str) -> None:
        """It ends with ShimDied; what it was doing is the only thing that fails."""
        moments = random.Random(SEED)
        for _ in range(max(KILLS // 8, 1)):
            before = snapshot()
            with busy_client(seed := moments.randrange(1 << 30)) as process:
                pid = shim_of(process.pid) if victim == "shim" else monitor_of(process.pid)
                time.sleep(moments.uniform(0, LONGEST_LIFE))  # the moment is the test
                os.kill(pid, signal.SIGKILL)
                _, err = process.communicate(timeout=patient(20))
            assert "sandbox.errors.ShimDied: " in err, f"seed {seed}: {err}"
            assert_as_before(before)

    def test_is_killed_with_both(self) -> None:
        """Nobody is left who could clean up but the kernel: what it does not remove, the next start does."""
        before = snapshot()
        with busy_client(SEED) as process:
            monitor, shim = monitor_of(process.pid), shim_of(process.pid)
            time.sleep(0.1)  # in the middle of something
            for pid in (process.pid, monitor, shim):
                with contextlib.suppress(ProcessLookupError):  # it went with the one before
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        until_gone(shim)
        assert only_files_and_cgroups(before)
        subprocess.run([sys.executable, "-c", "import sandbox; sandbox.run(['true'])"], check=True, timeout=60)
        assert_as_before(before)


def until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.01)


def only_files_and_cgroups(before: Mapping[str, frozenset[str]]) -> bool:
    """Processes, namespaces and mounts need no sweeping."""
    patient = {kind: things for kind, things in before.items() if kind not in {"files", "cgroups"}}
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        now = snapshot()
        if all(not now[kind] - things for kind, things in patient.items()):
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def fresh_shim() -> Iterator[None]:
    """This process gets a shim for the test alone."""
    client.shutdown()
    yield
    client.shutdown()


@pytest.mark.usefixtures("fresh_shim")
class TestTheClientIsTold:
    @pytest.mark.parametrize("find", [shim_of, monitor_of])
    def test_that_the_helpers_were_killed(self, find: Callable[[int], int]) -> None:
        """Each goes with the other, and so do the pods. A private systemd manager stays: it is for the next ones too."""
        sandbox.run(["true"])
        client.shutdown()
        before = snapshot()
        pod = sandbox.start(command=["sleep", "inf"])
        process = pod.popen(["sleep", "inf"])
        os.kill(find(os.getpid()), signal.SIGKILL)
        with pytest.raises(ShimDied, match="killed by SIGKILL") as caught:
            process.wait(10)
        assert caught.value.exit_status == -signal.SIGKILL
        for action in (lambda: pod.exec(["true"]), lambda: pod.state, pod.close):
            with pytest.raises(ShimDied):
                action()
        process.close()
        assert_as_before(before)
        assert sandbox.run(["echo", "again"]).stdout == "again\n"

    def test_while_it_waits_for_a_run(self) -> None:
        sandbox.run(["true"])
        shim = shim_of(os.getpid())
        timer = threading.Timer(0.2, os.kill, (shim, signal.SIGKILL))
        timer.start()
        with pytest.raises(ShimDied, match="killed by SIGKILL"):
            sandbox.run(["sleep", "inf"], timeout=10)
        timer.join()
        assert sandbox.run(["echo", "again"]).stdout == "again\n"
