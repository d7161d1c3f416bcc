"""Limits: how much a test may take, and a report that says when it took too much.

`memory=`, `cpus=` and `pids=` are kept by the kernel (cgroups). If a program is killed for its memory, the result says so,
and the report of a failed test names the limit. A limit that this machine cannot keep is an error before anything starts:
it is never dropped in silence. `sandbox doctor` tells what is missing.
"""

from __future__ import annotations

import pytest

import sandbox as sb

#: A shell that doubles a string until somebody stops it.
GREEDY = ["sh", "-c", "echo I am hungry; x=0123456789; while :; do x=$x$x; done"]


@pytest.fixture
def limited(sandbox_factory):
    """Start a pod with limits, or skip with the reason why this machine cannot keep them."""

    def start(**fields):
        try:
            return sandbox_factory(**fields)
        except sb.LimitNotEnforceable as error:
            pytest.skip(str(error))

    return start


def test_out_of_memory(limited, tell):
    pod = limited(command=GREEDY, memory="64M")
    assert pod.wait(timeout=60) == -9
    usage = pod["main"].usage
    assert usage.memory_peak <= 64 << 20
    assert pod.stats().memory.oom_kills >= 1
    tell(f"killed at {usage.memory_peak >> 20} MiB, after {usage.cpu:.2f} s of CPU time")


def test_a_command_that_is_out_of_memory(limited, tell):
    """Only the greedy command dies; the container goes on."""
    pod = limited(command="sleep inf", memory="64M")
    result = pod.exec(GREEDY, timeout=60)
    assert result.oom_killed
    assert pod.exec("true").returncode == 0
    tell("the command was killed, the container lives on")


def test_too_many_processes(limited, tell):
    pod = limited(command="sleep inf", pids=20)
    script = "i=0; while [ $i -lt 50 ]; do sleep 100 & i=$((i + 1)); done; echo all fifty"
    result = pod.exec(["sh", "-c", script], timeout=20)
    assert "all fifty" not in result.stdout
    assert pod.stats().pids.peak <= 20
    tell(f"20 processes and no more: {result.stderr.strip().splitlines()[-1]}")


REPORT = """
import pytest

@pytest.mark.sandbox(command={greedy}, memory="64M")
def test_it(sandbox):
    assert sandbox.wait(timeout=60) == 0
"""


def test_the_report_names_the_limit(limited, tmp_path, tell):
    """What pytest prints for a test whose container was out of memory."""
    limited(command="true", memory="64M")
    file = tmp_path / "test_greedy.py"
    file.write_text(REPORT.format(greedy=GREEDY))
    printed = _run_pytest(file)
    (line,) = [line for line in printed.splitlines() if line.startswith("exit:")]
    assert line == "exit: killed by the kernel: out of memory at its limit (memory=64 MiB)"
    tell(f"the report has a section `sandbox main` with the line: {line}")


def _run_pytest(file):
    import subprocess
    import sys

    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", file.parent, file]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=file.parent).stdout
