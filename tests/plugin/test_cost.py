"""A run that does not use the plugin does not pay for it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

#: Seconds by which `pytest --version` may get slower.
BUDGET = 0.020
#: What the first sandbox loads.
HEAVY = ("attrs", "attr", "cattrs", "pyseccomp", "sandbox.errors", "sandbox.models", "sandbox.pods", "sandbox.probes")


def test_nothing_is_loaded_for_a_run_without_sandboxes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    pytester.makeconftest(f"""
import sys

def pytest_unconfigure(config):
    assert config.pluginmanager.has_plugin("sandbox")
    print("loaded:", [name for name in {HEAVY} if name in sys.modules])
""")
    result = pytester.runpytest_subprocess("-p", "no:hypothesispytest", "--sandbox-ready-timeout=5")
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines([r"loaded: \[\]"])


@pytest.mark.serial
def test_pytest_does_not_start_slower() -> None:
    def once(*arguments: str) -> float:
        command = [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", *arguments, "--version"]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start

    once()
    times = [(once(), once("-p", "no:sandbox")) for _ in range(10)]
    with_us, without = (min(column) for column in zip(*times, strict=True))
    assert with_us - without < BUDGET
