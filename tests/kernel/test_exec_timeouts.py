"""A process that is killed on its way into a container: only it is."""

from __future__ import annotations

import subprocess
import sys

import pytest
from gate import requires

pytestmark = requires("userns", "overlay")

#: On one processor, so that the shim goes on before the process has come far.
CLIENT = """
import contextlib, os, sandbox
from sandbox.pods import Options
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
options = Options(cgroups="%s")
with sandbox.start(command="sleep inf", options=options) as pod:
    for moment in range(60):
        with contextlib.suppress(sandbox.TimeoutExpired):
            pod.exec(["sleep", "inf"], timeout=moment / 10_000)
        assert pod.state == "running", f"after {moment / 10} ms"
    assert pod.exec(["echo", "alive"], timeout=20).stdout == "alive\\n"
"""


@pytest.mark.parametrize("cgroups", ["auto", "none"])
def test_at_every_moment_of_its_start(cgroups: str) -> None:
    """First it is in the namespaces of the shim, then in those of the container: both go on."""
    command = [sys.executable, "-c", CLIENT % cgroups]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
