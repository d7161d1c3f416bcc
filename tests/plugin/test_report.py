"""What the report of a failed test says about its containers."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from gate import requires

from pytest_sandbox import report

pytestmark = requires("userns", "overlay")


def section(result: pytest.RunResult, title: str) -> list[str]:
    """The lines of a section of a report."""
    lines: list[str] = result.stdout.lines
    start = next(i for i, line in enumerate(lines) if re.fullmatch(rf"-+ {re.escape(title)} -+", line))
    rest = lines[start + 1 :]
    return rest[: next(i for i, line in enumerate([*rest, "==="]) if re.match(r"[-=_]{3}", line))]


def test_a_section_for_each_container(run: Any) -> None:
    result = run("""
db = Container("db", command=["sh", "-c", "echo out; sleep 0.01; echo err >&2; sleep inf"], ready=Log("err"))
api = Container("api", command=["sh", "-c", "echo api; exit 3"], after=["db"])

@pytest.mark.sandbox([db, api])
def test_it(sandbox):
    sandbox["api"].wait(timeout=5)
    assert False

@pytest.mark.sandbox(db)
def test_that_passes(sandbox): pass
""")
    result.assert_outcomes(failed=1, passed=1)
    db = section(result, "sandbox db")
    assert re.fullmatch(r"pod-\w+/db, image host: running", db[0])
    assert db[1].startswith("used: CPU 0.") or "no cgroup" in db[1]
    assert db[2] == "what it has written:"
    assert [line.split(maxsplit=1)[1] for line in db[3:5]] == ["stdout: out", "stderr: err"]
    assert re.match(r"  \d\d:\d\d:\d\d\.\d\d\d ", db[3])
    api = section(result, "sandbox api")
    assert api[0].endswith("/api, image host: stopped")
    assert api[1] == "exit: exit status 3"
    assert re.fullmatch(r"used: CPU \d+\.\d\d s, memory .* [KM]iB at most.*", api[2])
    assert result.stdout.str().count("- sandbox db -") == 1, "not for a test that passed"


def test_a_signal_is_named(run: Any) -> None:
    result = run("""
@pytest.mark.sandbox(command="sleep inf")
def test_it(sandbox):
    sandbox.kill("TERM")
    sandbox.kill("KILL")
    sandbox.wait(timeout=5)
    assert False
""")
    lines = section(result, "sandbox main")
    assert lines[1] == "exit: killed by SIGKILL"
    assert lines[-1] == "it has written nothing"


EAT = ["sh", "-c", "echo eating; x=0123456789; while :; do x=$x$x; done"]


@requires("memory.limit")
def test_out_of_memory_says_which_limit(run: Any) -> None:
    result = run(f"""
@pytest.mark.sandbox(command={EAT}, memory="32M")
def test_container(sandbox):
    sandbox.wait(timeout=30)
    assert False

@pytest.mark.sandbox(Pod([Container("greedy", command={EAT})], resources=Resources(memory="48M")))
def test_pod(sandbox):
    sandbox.wait(timeout=30)
    assert False

@pytest.mark.sandbox(Container("calm", command="sleep inf"), memory="32M")
def test_exec(sandbox):
    sandbox.exec({EAT}, timeout=30)
    assert False
""")
    result.assert_outcomes(failed=3)
    lines = section(result, "sandbox main")
    assert lines[1] == "exit: killed by the kernel: out of memory at its limit (memory=32 MiB)"
    assert "memory 32 MiB at most" in lines[2]
    assert lines[-1].endswith("stdout: eating")
    assert "out of memory at its limit (memory=48 MiB of the pod)" in section(result, "sandbox greedy")[1]
    calm = section(result, "sandbox calm")
    assert calm[0].endswith(": running")
    assert calm[1] == "out of memory: the kernel killed 1 process (memory=32 MiB)"


def test_restarts_are_counted(run: Any) -> None:
    result = run("""
@pytest.mark.sandbox(command=["sh", "-c", "echo again; exit 1"], restart="on-failure:2", ready=Log("again", count=3))
def test_it(sandbox):
    sandbox.wait(timeout=5)
    assert False
""")
    assert section(result, "sandbox main")[0].endswith(": stopped, restarted 2 times")


SEVEN = """
@pytest.mark.sandbox(command=["seq", "7"])
def test_it(sandbox):
    sandbox.wait(timeout=5)
    assert False
"""


def test_logs_are_bounded(run: Any) -> None:
    assert sum("stdout: " in line for line in section(run(SEVEN), "sandbox main")) == 7
    lines = section(run(SEVEN, "--sandbox-log-lines=3"), "sandbox main")
    assert "the last 3 of 7 lines:" in lines
    assert [line.split()[-1] for line in lines[-3:]] == ["5", "6", "7"]
    assert sum("stdout: " in line for line in section(run(SEVEN, ini="sandbox_log_lines = 2"), "sandbox main")) == 2
    assert not any("lines" in line for line in section(run(SEVEN, "--sandbox-log-lines=0"), "sandbox main"))


def test_a_log_cannot_play_with_the_terminal(run: Any) -> None:
    result = run(r"""
@pytest.mark.sandbox(command=["printf", r"\033[31mred\033[0m \033]0;title\007 \033[2J \303\244 \377 a\tb\n"])
def test_it(sandbox):
    sandbox.wait(timeout=5)
    assert False
""")
    (line,) = [line for line in section(result, "sandbox main") if "stdout: " in line]
    assert " ".join(line.partition("stdout: ")[2].split()) == r"red \x1b]0;title\x07 \x1b[2J ä \xff a b"


def test_a_shared_pod_tells_what_it_wrote_since_the_test_began(run: Any) -> None:
    result = run(
        """
def test_before(shared):
    shared.exec(["sh", "-c", "echo before > /proc/1/fd/1"])

def test_it(shared):
    import time
    shared.exec(["sh", "-c", "echo during > /proc/1/fd/1"])
    Log("during").wait(shared, timeout=5)
    assert False
""",
        conftest="""
@pytest.fixture(scope="session")
def shared(sandbox_session_factory):
    return sandbox_session_factory(Container("shared", command="sleep inf"))
""",
    )
    result.assert_outcomes(passed=1, failed=1)
    lines = section(result, "sandbox shared")
    assert "what it has written since the test began:" in lines
    assert [line.split()[-1] for line in lines if "stdout:" in line] == ["during"]


def test_a_pod_that_the_test_removed(run: Any) -> None:
    result = run("""
@pytest.mark.sandbox(command="sleep inf")
def test_it(sandbox):
    sandbox.close()
    assert False
""")
    assert section(result, "sandbox main") == ["it was removed before the test failed"]


def test_a_shim_that_died_does_not_hide_the_failure(run_apart: Any) -> None:
    result = run_apart("""
import os, pathlib, signal

@pytest.mark.sandbox(command="sleep inf")
def test_it(sandbox):
    monitor = sandbox.shim._monitor.pid
    shim = pathlib.Path(f"/proc/{monitor}/task/{monitor}/children").read_text()
    os.kill(int(shim), signal.SIGKILL)
    sandbox.shim._monitor.wait(5)
    with pytest.raises(ShimDied):
        sandbox.exec("true")
    assert False, "this is the reason"

@pytest.mark.sandbox(command="sleep inf")
def test_next(sandbox):
    assert sandbox.exec("true").returncode == 0
""")
    result.stdout.fnmatch_lines(["E *this is the reason*", "*nothing can be told: *"])
    result.assert_outcomes(failed=1, errors=1, passed=1)


def test_an_error_in_another_fixture_has_the_sections(run: Any) -> None:
    result = run("""
@pytest.fixture
def loaded(sandbox):
    sandbox.exec("false", check=True)

@pytest.mark.sandbox(command="sleep inf")
def test_it(loaded): pass
""")
    result.assert_outcomes(errors=1)
    assert section(result, "sandbox main")[0].endswith(": running")


def test_an_expected_failure_has_none(run: Any) -> None:
    result = run("""
@pytest.mark.xfail(strict=True)
@pytest.mark.sandbox(command="sleep inf")
def test_it(sandbox):
    assert False
""", "-rA")  # fmt: skip
    result.assert_outcomes(xfailed=1)
    assert "sandbox main" not in result.stdout.str()


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, None), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64 MiB"), (5 << 40, "5120 GiB")],
)
def test_sizes_are_for_people(size: int | None, text: str | None) -> None:
    assert report._size(size) == text


@requires("rootless")
def test_without_a_cgroup_the_usage_is_not_known(run: Any) -> None:
    result = run("""
@pytest.mark.sandbox(command="sleep inf")
def test_it(sandbox):
    assert False
""", "--sandbox-cgroups=none")  # fmt: skip
    assert "used: not known, the container has no cgroup of its own" in section(result, "sandbox main")
    assert os.geteuid() != 0
