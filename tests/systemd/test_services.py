"""Service sandboxes under the manager that is used by default: a private one, where the machine has none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import services_cases
from gate import requires

import sandbox
from sandbox import services
from sandbox.services import managers

pytestmark = requires("systemd.manager", "python")


class TestServices(services_cases.Services):
    pass


@requires("cgroup2.memory")
def test_out_of_memory_is_told_from_other_deaths() -> None:
    eat = [services_cases.PYTHON, "-c", "x = bytearray(1 << 30); x[::4096] = b'x' * (1 << 18)"]
    result = sandbox.service(eat, MemoryMax="32M", MemorySwapMax=0)
    assert result.oom_killed
    assert result.result == "oom-kill"
    killed = sandbox.service(["sh", "-c", "kill -9 $$"], MemoryMax="32M")
    assert not killed.oom_killed
    assert killed.returncode == -signal.SIGKILL


def test_no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setattr(managers, "_homes", {})
    for kind in ("user", "off", "nonsense"):
        with pytest.raises(services.NoManager) as caught:
            sandbox.service(["true"], manager=kind)
        assert caught.value.hint


CLIENT = """
import sandbox, sys, time
service = sandbox.start_service(["sleep", "inf"], PrivateTmp=True)
print(service.pid, service.unit, flush=True)
time.sleep(60)
"""


def test_a_service_goes_with_its_client() -> None:
    """Also when that is killed."""
    with subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        pid, unit = client.stdout.readline().split()
        assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
        assert len(private_directories(unit)) == 2
        os.kill(client.pid, signal.SIGKILL)
    services_cases.until(lambda: not Path(f"/proc/{pid}").exists())
    services_cases.until(lambda: not private_directories(unit))


def private_directories(unit: str) -> list[Path]:
    """Those that PrivateTmp= makes."""
    return [path for base in ("/tmp", "/var/tmp") for path in Path(base).glob(f"systemd-private-*-{unit}-*")]


@requires("systemd.private")
def test_a_manager_that_is_killed() -> None:
    code = """
import os, signal, sandbox
from sandbox.services import managers, NoManager
service = sandbox.start_service(["sleep", "inf"], manager="private")
pid = int(open(managers.home("private").cgroup + "/init.scope/cgroup.procs").readline())
os.kill(pid, signal.SIGKILL)
try: service.wait(10)
except NoManager as error: print("told:", error.detail)
for _ in range(50):
    try: print("another:", sandbox.service(["true"], manager="private").returncode); break
    except NoManager: pass  # its keeper has not seen it yet
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "told:" in done.stdout, done.stderr
    assert "another: 0\n" in done.stdout, done.stderr
