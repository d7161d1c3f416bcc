"""Options, ini values, environment; keeping the pods of failed tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gate import requires

import pytest_sandbox.options
from sandbox import cgroups
from sandbox.shim.client import own_shim

pytestmark = requires("userns", "overlay")

HOW = """
@pytest.mark.sandbox(command="sleep inf")
def test_it(sandbox):
    (pod,) = sandbox.shim.call("pod.list")["pods"]
    assert (pod["meta"]["engine"], pod["meta"]["cgroups"]) == ({engine!r}, {cgroups!r})
"""
NO_LIMIT = """
@pytest.mark.sandbox(command="sleep inf", memory="64M")
def test_it(sandbox): pass
"""


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SANDBOX_ENGINE", "SANDBOX_CGROUPS"):
        monkeypatch.delenv(name, raising=False)


def test_the_choices_are_those_of_the_library() -> None:
    assert list(pytest_sandbox.options._CGROUPS) == ["auto", *cgroups.GIVERS]


def test_no_cgroups(run: Any) -> None:
    result = run(HOW.format(engine="native", cgroups="none"), "--sandbox-cgroups=none")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["sandbox: *, engine native, cgroups none", "sandbox: cgroups from none (no limits), *"])
    result = run(NO_LIMIT, "--sandbox-cgroups=none")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E *LimitNotEnforceable: *memory*"])


def test_the_option_before_the_environment_before_the_ini_file(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ini = "sandbox_cgroups = none"
    run(HOW.format(engine="native", cgroups="none"), ini=ini).assert_outcomes(passed=1)
    found = cgroups.choose("auto").name
    run(HOW.format(engine="native", cgroups=found), "--sandbox-cgroups=auto", ini=ini).assert_outcomes(passed=1)
    monkeypatch.setenv("SANDBOX_CGROUPS", "auto")
    run(HOW.format(engine="native", cgroups=found), ini=ini).assert_outcomes(passed=1)
    run(HOW.format(engine="native", cgroups="none"), "--sandbox-cgroups=none").assert_outcomes(passed=1)


@pytest.mark.parametrize("engine", [pytest.param(name, marks=requires(name)) for name in ("crun", "runc")])
def test_another_engine(run: Any, engine: str) -> None:
    source = HOW.format(engine=engine, cgroups="none")
    run(source, f"--sandbox-engine={engine}", "--sandbox-cgroups=none").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("arguments", "ini", "environment", "words"),
    [
        (["--sandbox-engine=docker"], "", {}, "*--sandbox-engine: invalid choice: 'docker'*"),
        ([], "sandbox_engine = docker", {}, "*sandbox_engine: there is no 'docker'; choose from native, crun, runc"),
        ([], "", {"SANDBOX_CGROUPS": "mine"}, "*$SANDBOX_CGROUPS: there is no 'mine'; choose from auto, *none"),
        (["--sandbox-keep=always"], "", {}, "*--sandbox-keep: invalid choice: 'always'*"),
        (["--sandbox-ready-timeout=0"], "", {}, "*sandbox_ready_timeout: must be more than 0 seconds, not 0"),
        (["--sandbox-ready-timeout=nan"], "", {}, "*sandbox_ready_timeout: must be more than 0 seconds, not nan"),
        ([], "sandbox_ready_timeout = soon", {}, "*ini value sandbox_ready_timeout: 'soon' is not a number"),
        (["--sandbox-log-lines=-1"], "", {}, "*sandbox_log_lines: must be a number of lines, not -1"),
        ([], "sandbox_log_lines = 1.5", {}, "*sandbox_log_lines: must be a number of lines, not 1.5"),
    ],
)
def test_a_bad_value_is_told_before_any_test_runs(
    run: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], ini: str, environment: dict[str, str], words: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = run("def test_it(): pass", *arguments, ini=ini)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([words])


NEVER_READY = """
import time

@pytest.mark.sandbox(command="sleep inf", ready=Port(1))
def test_default(sandbox): pass

@pytest.mark.sandbox(command="sleep inf", ready=Port(1), ready_timeout=0.2)
def test_its_own(sandbox): pass
"""


@pytest.mark.parametrize(
    ("arguments", "ini"),
    [(["--sandbox-ready-timeout=0.1"], ""), (["--sandbox-start-timeout=0.1"], "sandbox_ready_timeout=9"),
     ([], "sandbox_ready_timeout=0.1")],
)  # fmt: skip
def test_how_long_to_wait(run: Any, arguments: list[str], ini: str) -> None:
    result = run(NEVER_READY, *arguments, ini=ini)
    result.assert_outcomes(errors=2)
    for seconds in (0.1, 0.2):
        result.stdout.fnmatch_lines([f"E *ReadinessTimeout: *not ready after {seconds} s*"])


# --- keeping ------------------------------------------------------------------------------------------------------

KEEP = """
@pytest.mark.sandbox(command="sleep inf")
def test_fails(sandbox):
    assert False

@pytest.mark.sandbox(command="sleep inf")
def test_passes(sandbox): pass

@pytest.mark.sandbox(command="sleep inf")
def test_skips(sandbox): pytest.skip("no")
"""
LOOK = """
from sandbox.shim.client import own_shim

@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    print("left:", [pod["meta"]["test"] for pod in own_shim().call("pod.list")["pods"]])
"""


def test_failed_pods_are_kept_until_the_run_ends(run_apart: Any) -> None:
    result = run_apart(KEEP, "--sandbox-keep=failed", conftest=LOOK)
    result.assert_outcomes(failed=1, passed=1, skipped=1)
    result.stdout.fnmatch_lines([
        "*left: ?'*::test_fails (setup)'?*", "*- sandbox kept -*", "sandbox exec -it pod-*/main sh",
        "*= sandboxes of failed tests =*", "*::test_fails: pod-*",
    ])  # fmt: skip


def test_kept_pods_go_with_the_run(run: Any) -> None:
    run(KEEP, "--sandbox-keep=failed").assert_outcomes(failed=1, passed=1, skipped=1)
    assert own_shim().call("pod.list")["pods"] == []


def test_by_default_none_is_kept(run: Any) -> None:
    result = run(KEEP, conftest=LOOK)
    result.stdout.re_match_lines([r".*left: \[\]"])
    assert "sandbox kept" not in result.stdout.str()


def test_under_xdist_the_report_tells_how_to_get_in(run_apart: Any) -> None:
    result = run_apart(KEEP, "--sandbox-keep=failed", "-n", "1")
    result.assert_outcomes(failed=1, passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*- sandbox kept -*", "sandbox exec -it pod-*/main sh"])


#: Takes the terminal on its standard input as its own, then becomes pytest: what a shell does.
IN_THE_FOREGROUND = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]])
"""


def test_at_a_terminal_it_waits(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\n" + KEEP)
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_THE_FOREGROUND, "-p", "no:hypothesispytest", "--sandbox-keep=failed"],
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    said = b""
    with process:
        while not said.endswith(b"Press Enter to remove it and go on. "):
            said += os.read(master, 4096)
        assert b"::test_fails failed, and its pod is still there." in said
        monitor = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert monitor, "its pods are alive"
        assert process.poll() is None
        os.write(master, b"\n")
        while process.poll() is None:
            try:
                said += os.read(master, 4096)
            except OSError:  # EIO: it has gone
                break
    os.close(master)
    assert b"1 failed, 1 passed, 1 skipped" in said
    assert b"sandboxes of failed tests" not in said, "it was removed"
