"""The testbed itself: a nested system manager comes, shows what fails in it, and goes, whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gate import requires
from machines import nested
from snapshot import assert_as_before, snapshot

pytestmark = requires("systemd.system")


def test_systemd_is_process_1_and_has_booted(system_manager: nested.Machine) -> None:
    assert (system_manager.root / "proc/1/comm").read_text() == "systemd\n"
    assert system_manager.run(["systemctl", "is-system-running"]).stdout == "running\n"


def test_the_bus_answers(system_manager: nested.Machine) -> None:
    done = system_manager.run(["busctl", "get-property", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
                               "org.freedesktop.systemd1.Manager", "Virtualization"])  # fmt: skip
    assert done.stdout == 's "container-other"\n'


def test_none_of_the_hosts_units_is_started(system_manager: nested.Machine) -> None:
    units = system_manager.run(
        ["systemctl", "list-units", "--type=service,timer,path", "--plain", "--no-legend"]
    )
    assert {line.split()[0] for line in units.stdout.splitlines()} <= {"dbus.service"}


def test_programs_and_packages_of_the_test_run_are_there(system_manager: nested.Machine) -> None:
    done = system_manager.python(
        "import os, attrs, sandbox; print(os.getpid() > 1, os.environ['SANDBOX_TESTBED'])"
    )
    assert done.stdout == "True nested\n"


def test_input_goes_in_and_results_come_out(system_manager: nested.Machine) -> None:
    done = system_manager.run(["sh", "-c", "cat; echo bad >&2; exit 7"], input="in", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "in", "bad\n")


def test_a_program_runs_in_a_scope_with_properties(system_manager: nested.Machine) -> None:
    done = system_manager.run(["sh", "-c", "tail -n1 /proc/self/cgroup"], properties=["Slice=some.slice"])
    assert done.stdout.startswith("0::/some.slice/payload-")


def test_what_is_written_stays_inside(system_manager: nested.Machine) -> None:
    system_manager.run(["sh", "-c", "echo x > /etc/nested-test; echo x > /usr/nested-test"])
    assert (system_manager.root / "etc/nested-test").read_text() == "x\n"
    assert not Path("/etc/nested-test").exists()
    assert not Path("/usr/nested-test").exists()


def test_the_hosts_kernel_is_out_of_reach(system_manager: nested.Machine) -> None:
    done = system_manager.run(["sh", "-c", "echo 1 > /proc/sys/kernel/domainname"], check=False)
    assert "Read-only" in done.stderr
    assert system_manager.run(["cat", "/sys/class/net/lo/operstate"]).stdout
    assert os.listdir(system_manager.root / "sys/class/net") == ["lo"]


def test_a_failure_shows_what_was_printed_and_the_console(system_manager: nested.Machine) -> None:
    with pytest.raises(nested.MachineFailed) as caught:
        system_manager.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert "ended with 3\n--- standard output\nout\n\n--- standard error\nerr\n" in str(caught.value)
    assert "Startup finished" in str(caught.value)


def test_what_takes_too_long_is_killed_with_its_children(system_manager: nested.Machine) -> None:
    with pytest.raises(nested.MachineFailed, match=r"took longer than 0\.5 s"):
        system_manager.run(["sh", "-c", "setsid sleep 4242 & sleep 4242"], timeout=0.5)
    done = system_manager.run(["pgrep", "-f", "sleep 424[2]"], check=False)
    assert done.stdout == ""


def test_a_machine_that_does_not_boot_says_why() -> None:
    slow = "[Service]\nType=oneshot\nExecStart=/bin/sleep 1000\n"
    with pytest.raises(nested.MachineFailed, match="did not finish booting within 1 s") as caught:
        with nested.boot(wants=["slow.service"], units={"slow.service": slow}, timeout=1):
            pass
    assert "Queued start job for default target nested.target" in str(caught.value)


def test_a_machine_whose_systemd_dies_says_so() -> None:
    with nested.boot() as machine:
        os.kill(machine.pid, signal.SIGKILL)
        with pytest.raises(nested.MachineFailed):
            machine.run(["true"])


@pytest.mark.serial
class TestNothingIsLeft:
    def test_after_use_and_failure(self) -> None:
        before = snapshot()
        with contextlib.suppress(nested.MachineFailed), nested.boot() as machine:
            machine.run(["systemd-run", "--quiet", "sleep", "1000"])
            machine.run(["false"])
        assert_as_before(before)

    @pytest.mark.parametrize("victim", ["test", "supervisor"])
    def test_after_kill_9(self, victim: str) -> None:
        before = snapshot()
        script = "from machines import nested\nwith nested.boot() as m: print(m.pid, flush=True); input()"
        with subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": str(nested.CHECKOUT / "tests")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(process.pid if victim == "test" else parent, signal.SIGKILL)
            process.stdin.close()
        deadline = time.monotonic() + 5
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with nested.boot():
            pass  # the next one sweeps
        assert_as_before(before)


def test_device_nodes_are_the_machines_own(system_manager: nested.Machine) -> None:
    """A service that gets a terminal gets the node with it; the host's is for everybody."""
    before = os.stat("/dev/tty")
    system_manager.run(["sh", "-c", "chmod 600 /dev/tty && chown 1:1 /dev/tty && echo x >/dev/null && head -c1 /dev/zero"])
    after = os.stat("/dev/tty")
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
