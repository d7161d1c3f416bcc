"""After everything that can be done with pods, well and badly, the machine is as it was before."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gate import requires
from programs import patient
from snapshot import assert_as_before, difference, snapshot

pytestmark = [requires("userns", "overlay"), pytest.mark.serial]

BUSY = Path(__file__).parents[1] / "data" / "busy.py"


def test_a_busy_session_leaves_nothing() -> None:
    before = snapshot()
    done = subprocess.run([sys.executable, str(BUSY), "once"], capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_as_before(before)


def test_without_cgroups_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_CGROUPS", "none")
    test_a_busy_session_leaves_nothing()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("sandbox.start(command=['sleep', 'inf'])", 0),  # never closed: the end of the process is enough
        ("sandbox.start(command=['sleep', 'inf']); raise SystemExit(3)", 3),
        ("sandbox.start(command=['sleep', 'inf']); os._exit(4)", 4),
        ("sandbox.start(command=['sleep', 'inf']); os.abort()", -6),
        ("p = sandbox.start(command=['sleep', 'inf']); os.execv('/bin/true', ['true'])", 0),
        ("sandbox.start(command=['sleep', 'inf']); os.fork(); os._exit(0)", 0),
        ("p = sandbox.start(command=['sleep', 'inf']); p.popen(['sleep', 'inf']); p.publish(80); p.exists('/')", 0),
        ("threading.Thread(target=sandbox.run, args=[['sleep', 'inf']], daemon=True).start(); time.sleep(0.3)", 0),
        ("p = sandbox.start(command=['sleep', 'inf']); p.freeze() if os.geteuid() == 0 else None; os._exit(0)", 0),
    ],
)
def test_however_the_client_ends(code: str, status: int) -> None:
    before = snapshot()
    script = f"import os, threading, time, warnings, sandbox; warnings.simplefilter('ignore')\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status, done.stderr
    assert_as_before(before)


class TestTheSnapshotSees:
    """A comparison that sees nothing would pass every test above."""

    def test_a_process_and_its_namespaces(self) -> None:
        before = snapshot()
        with subprocess.Popen(["unshare", "--user", "sleep", "1000"]) as process:
            try:
                while os.readlink(f"/proc/{process.pid}/ns/user") == os.readlink("/proc/self/ns/user"):
                    time.sleep(0.001)
                with pytest.raises(AssertionError, match=r"processes: left behind: \d+ .*sleep 1000"):
                    assert_as_before(before, patient(0.3))
                assert any(line.startswith("namespaces: left behind: user:[") for line in difference(before, snapshot()))
            finally:
                process.kill()
        assert_as_before(before)

    def test_a_file_in_the_runtime_directory(self) -> None:
        from sandbox.shim.rundir import base_directory

        before = snapshot()
        path = Path(base_directory(), "left-behind")
        path.touch()
        try:
            assert f"files: left behind: {path}" in difference(before, snapshot())
        finally:
            path.unlink()
        assert_as_before(before)

    @requires("root", "cgroup2")
    def test_a_cgroup(self) -> None:
        from sandbox import cgroups

        parent = cgroups.choose("cgroupfs").traces("x")[0].rpartition("/")[0]
        before = snapshot()
        path = Path(parent, "sandbox-left-behind")
        path.mkdir()
        try:
            assert difference(before, snapshot()) == [f"cgroups: left behind: {path}"]
        finally:
            path.rmdir()
        assert_as_before(before)

    @requires("root")
    def test_a_mount(self, tmp_path: Path) -> None:
        before = snapshot()
        subprocess.run(["mount", "-t", "tmpfs", "left-behind", tmp_path], check=True)
        try:
            assert any("left-behind" in line for line in difference(before, snapshot()))
        finally:
            subprocess.run(["umount", tmp_path], check=True)
        assert_as_before(before)
