"""Hello: a test gets a machine of its own.

The marker says what to start, the fixture `sandbox` is the running pod. Here it is the image `host`: this machine's own
programs, over a file system that is thrown away. Inside, the test is root, alone, and without a network; outside, nothing
of it is left. There is no daemon and nothing to install, and it takes milliseconds.
"""

from __future__ import annotations

import os
import socket
import time

import pytest

import sandbox as sb


def test_a_command(tell):
    """For a single command there is `sandbox.run`, which is like subprocess.run."""
    sb.run("true")  # the first one starts the helper process that holds the pods
    start = time.perf_counter()
    result = sb.run(["sh", "-c", "echo I am $(id -un), process $$"])
    milliseconds = (time.perf_counter() - start) * 1000
    assert result.stdout == "I am root, process 1\n"
    tell(f"made a pod, ran a command, removed the pod: {milliseconds:.0f} ms")


@pytest.mark.sandbox(command="sleep inf", hostname="playground")
def test_a_machine_of_its_own(sandbox, tell):
    assert sandbox.exec("hostname").stdout == "playground\n"
    assert socket.gethostname() != "playground"

    devices = sandbox.exec("cat /proc/net/dev").stdout.splitlines()[2:]
    interfaces = [line.split(":")[0].strip() for line in devices]
    assert interfaces == ["lo"], "no way out"

    processes = [name for name in sandbox.listdir("/proc") if name.isdecimal()]
    tell(f"inside there are the processes {', '.join(processes)} and the network interface {interfaces[0]}")


@pytest.mark.sandbox(command="sleep inf")
class TestFiles:
    """A marker on the class holds for its tests, and each of them gets a pod of its own all the same."""

    def test_write(self, sandbox):
        sandbox.write_text("/etc/motd", "I was here\n")
        assert sandbox.exec(["cat", "/etc/motd"]).stdout == "I was here\n"

    def test_somebody_elses_writing_is_not_there(self, sandbox):
        assert not sandbox.exists("/etc/motd") or "I was here" not in sandbox.read_text("/etc/motd")

    def test_homes_are_hidden(self, sandbox, tell):
        home = os.path.expanduser("~")
        assert os.listdir(home)
        assert not sandbox.exists(home) or sandbox.listdir(home) == []
        tell(f"{home} is empty inside, or not there at all")
