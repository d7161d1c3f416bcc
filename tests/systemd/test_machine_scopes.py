"""Pods in scopes of a real manager that has all controllers: what systemd says of them, and what the kernel does.

For a machine that systemd has booted, with cgroup v2 alone: the User-mode Linux machine in CI (tools/machine.py), as
root with the system's manager and as an ordinary user with their own. systemd is asked through systemctl.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gate import requires
from programs import patient, program

import sandbox
from sandbox import SandboxError
from sandbox.pods import Options, RunningPod

pytestmark = requires("systemd.booted", "systemd.scopes", "userns", "overlay", "python")

SYSTEMCTL = ["systemctl"] if os.geteuid() == 0 else ["systemctl", "--user"]
#: Not left to `auto`: that something else would do is not what is tested here.
SYSTEMD = Options(cgroups="systemd")
#: hypothesis imports all of itself at the end of a session, which takes longer than the session.
PLAIN = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--sandbox-cgroups=systemd")


def systemctl(*arguments: str) -> str:
    return subprocess.run([*SYSTEMCTL, *arguments], capture_output=True, text=True, check=True).stdout


def scopes() -> set[str]:
    """All of ours that systemd has, with their descriptions."""
    lines = systemctl("list-units", "--all", "--plain", "--no-legend", "sandbox-*.scope").splitlines()
    return {line.strip() for line in lines}


def unit_of(pod_id: str) -> str:
    (line,) = [line for line in scopes() if pod_id in line]
    return line.split()[0]


def properties(unit: str, *names: str) -> dict[str, str]:
    text = systemctl("show", unit, f"--property={','.join(names)}")
    return dict(line.split("=", 1) for line in text.splitlines())


def cgroup_of(unit: str) -> Path:
    return Path("/sys/fs/cgroup" + properties(unit, "ControlGroup")["ControlGroup"])


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + patient(seconds)
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def limited() -> Iterator[RunningPod]:
    with sandbox.start(
        command="sleep inf", memory="64M", pids=32, cpus=0.5, cpu_weight=50, options=SYSTEMD
    ) as pod:
        yield pod


# --- what is declared ---------------------------------------------------------------------------------------------


def test_auto_takes_the_manager(limited: RunningPod) -> None:
    with sandbox.start(command="sleep inf") as pod:
        assert unit_of(pod.id).endswith(".scope")


def test_systemd_has_the_declared_properties() -> None:
    pod = sandbox.Pod([sandbox.Container("main", command="sleep inf")],
                      resources=sandbox.Resources(memory="64M", pids=32, cpus=0.5))  # fmt: skip
    with sandbox.start(pod, options=SYSTEMD) as running:
        unit = unit_of(running.id)
        found = properties(unit, "ActiveState", "MemoryMax", "TasksMax", "CPUQuotaPerSecUSec", "Delegate", "Slice",
                           "CollectMode")  # fmt: skip
        assert found == {
            "ActiveState": "active", "MemoryMax": str(64 << 20), "TasksMax": "33", "CPUQuotaPerSecUSec": "500ms",
            "Delegate": "yes", "Slice": "sandbox.slice", "CollectMode": "inactive-or-failed",
        }  # fmt: skip
        assert properties(unit, "RuntimeMaxUSec")["RuntimeMaxUSec"] != "infinity"
        cgroup = cgroup_of(unit)
        assert (cgroup / "memory.max").read_text() == f"{64 << 20}\n"
        assert (cgroup / "pids.max").read_text() == "33\n"
        assert (cgroup / "cpu.max").read_text() == "50000 100000\n"


def test_the_scope_says_which_test_it_is(limited: RunningPod) -> None:
    description = properties(unit_of(limited.id), "Description")["Description"]
    assert limited.id in description
    assert "test_the_scope_says_which_test_it_is" in description


def test_the_containers_limits_are_below(limited: RunningPod) -> None:
    container = cgroup_of(unit_of(limited.id)) / "main"
    found = {name: (container / name).read_text().strip() for name in ("memory.max", "pids.max", "cpu.max", "cpu.weight")}
    assert found == {"memory.max": str(64 << 20), "pids.max": "32", "cpu.max": "50000 100000", "cpu.weight": "50"}


def test_every_cgroup_with_children_has_no_processes(limited: RunningPod) -> None:
    """The rule of cgroups(7) without which no controllers could be handed on."""
    limited.exec(["true"])
    seen = 0
    for directory, children, _ in os.walk(cgroup_of(unit_of(limited.id))):
        if children:
            assert Path(directory, "cgroup.procs").read_text() == "", directory
            seen += 1
    assert seen >= 2


# --- what bites ---------------------------------------------------------------------------------------------------


def test_out_of_memory_is_in_the_report(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest
        @pytest.mark.sandbox(command="sleep inf", memory="32M")
        def test_eats(sandbox):
            done = sandbox.exec(["/usr/bin/python3", "-c", "x = b'x' * (200 << 20)"])
            assert done.returncode == 0
        @pytest.mark.sandbox(command=["/usr/bin/python3", "-c", "import time; time.sleep(1); x = b'x' * (200 << 20)"],
                             memory="32M")
        def test_dies(sandbox):
            sandbox.wait(timeout=60)
            assert False
    """)
    result = pytester.runpytest_subprocess(*PLAIN)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "sandbox: cgroups from systemd (*memory*",
            "out of memory: the kernel killed 1 process (memory=32 MiB)",
            "exit: killed by the kernel: out of memory at its limit (memory=32 MiB)",
        ]
    )


BOMB = """
import os, time
while True:
    try:
        if os.fork() == 0:
            time.sleep(1000)
    except OSError:
        print("held", flush=True)
        time.sleep(1000)
"""


def test_a_fork_bomb_stops_at_tasks_max() -> None:
    pod = sandbox.Pod([sandbox.Container("main", command=program(BOMB))], resources=sandbox.Resources(pids=24))
    with sandbox.start(pod, options=SYSTEMD) as running:
        assert next(iter(running.log_records(follow=True))).line == "held"
        unit = unit_of(running.id)
        assert properties(unit, "TasksCurrent", "TasksMax") == {"TasksCurrent": "25", "TasksMax": "25"}
    assert until(lambda: not [line for line in scopes() if running.id in line])


def test_the_cpu_quota_holds() -> None:
    pod = sandbox.Pod([sandbox.Container("main", command=program("while True: pass"))],
                      resources=sandbox.Resources(cpus=0.25))  # fmt: skip
    with sandbox.start(pod, options=SYSTEMD) as running:
        unit = unit_of(running.id)

        def used() -> tuple[float, int]:
            value = properties(unit, "CPUUsageNSec")["CPUUsageNSec"]
            return time.monotonic(), int(value)

        assert until(lambda: used()[1] > 200_000_000)  # it runs, and has been held back once
        start, before = used()
        time.sleep(4)  # of which it has a quarter
        end, after = used()
    share = (after - before) / 1e9 / (end - start)
    assert share == pytest.approx(0.25, rel=0.1)


def test_freezing_and_statistics(limited: RunningPod) -> None:
    assert limited.stats().memory.limit == 64 << 20
    limited.freeze()
    assert "frozen 1" in (cgroup_of(unit_of(limited.id)) / "main" / "cgroup.events").read_text()
    limited.thaw()
    assert limited.exec(["echo", "on"], timeout=60).stdout == "on\n"


# --- what is left -------------------------------------------------------------------------------------------------

CLIENT = """
import os, sys, sandbox
from sandbox.pods import Options
options = Options(cgroups="systemd")
pods = [sandbox.start(command="sleep inf", memory="64M", options=options) for _ in range(3)]
print(*[pod.id for pod in pods], flush=True)
{then}
"""


def client(then: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CLIENT.format(then=then)], stdout=subprocess.PIPE, text=True)


@pytest.mark.serial
class TestAllIsGone:
    @pytest.mark.parametrize(
        ("then", "status"),
        [("", 0), ("for pod in pods: pod.close()", 0), ("os._exit(3)", 3), ("os.abort()", -signal.SIGABRT)],
        ids=["the end", "closed", "_exit", "abort"],
    )
    def test_when_the_client_ends(self, then: str, status: int) -> None:
        before = scopes()
        with client(then) as process:
            assert process.stdout is not None
            assert len(process.stdout.readline().split()) == 3
            assert process.wait(patient(30)) == status
        assert until(lambda: scopes() <= before), scopes() - before

    def test_after_kill_9_of_pytest(self, pytester: pytest.Pytester) -> None:
        before = scopes()
        pytester.makepyfile("""
            import pytest
            @pytest.mark.sandbox(command="sleep inf", memory="64M")
            def test_waits(sandbox):
                print("here", sandbox.id, flush=True)
                sandbox.exec(["sleep", "inf"])
        """)
        command = [sys.executable, "-m", "pytest", "-s", *PLAIN]
        with subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            pod_id = next(line.split("here ")[1].strip() for line in process.stdout if "here " in line)
            cgroup = cgroup_of(unit_of(pod_id))
            assert cgroup.is_dir()
            process.kill()
        assert until(lambda: scopes() <= before), scopes() - before
        assert not cgroup.exists()

    def test_nothing_failed_is_kept(self) -> None:
        assert "sandbox-" not in systemctl("list-units", "--failed", "--plain", "--no-legend")


class TestStoppedFromOutside:
    def test_a_script_is_told(self, limited: RunningPod) -> None:
        unit = unit_of(limited.id)
        systemctl("stop", unit)
        assert until(lambda: limited.state == "stopped")
        with pytest.raises(SandboxError, match="stopped"):
            limited.exec(["true"])
        exited = limited["main"].inspect()["exit"]
        assert "its scope was stopped from outside" in exited["cause"]
        assert unit not in systemctl("list-units", "--all", "--plain", "--no-legend", "sandbox-*.scope")

    def test_others_go_on(self, limited: RunningPod) -> None:
        with sandbox.start(command="sleep inf", options=SYSTEMD) as other:
            systemctl("stop", unit_of(other.id))
            assert until(lambda: other.state == "stopped")
        assert limited.exec(["echo", "alive"]).stdout == "alive\n"
        assert sandbox.run(["echo", "new"], options=SYSTEMD).stdout == "new\n"

    def test_a_test_is_told(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(f"""
            import subprocess, pytest
            @pytest.mark.sandbox(command="sleep inf")
            def test_loses_its_pod(sandbox):
                lines = subprocess.check_output({[*SYSTEMCTL, "list-units", "--plain", "--no-legend"]!r}, text=True)
                (unit,) = [line.split()[0] for line in lines.splitlines() if sandbox.id in line]
                subprocess.check_call({SYSTEMCTL!r} + ["stop", unit])
                sandbox.wait(timeout=60)
                assert False
        """)
        result = pytester.runpytest_subprocess(*PLAIN)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*its scope was stopped from outside (systemctl stop*"])

    def test_what_was_killed_in_it_is_told(self, limited: RunningPod) -> None:
        systemctl("kill", "--signal=KILL", unit_of(limited.id))
        assert limited.wait(patient(10)) == -signal.SIGKILL
