"""The same under a system manager: as process 1, as root, and alive when we are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import services_cases

import sandbox
from sandbox.services import managers, unitfiles
from sandbox.services.roots import escape

pytestmark = pytest.mark.system_manager


class TestServices(services_cases.Services):
    pass


def test_it_is_the_systems() -> None:
    assert managers.home().manager.kind == "system"


CLIENT = """
import sandbox, sys, time
deaf = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
service = sandbox.start_service(["sh", "-c", deaf], TimeoutStopSec=0.2)
while not service.logs(): time.sleep(0.01)
print(service.pid, service.unit, flush=True)
time.sleep(60)
"""


def test_what_a_killed_client_leaves_is_ended_and_forgotten() -> None:
    with subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        pid, unit = client.stdout.readline().split()
        manager = managers.home().manager
        assert manager.exists(unit)
        os.kill(client.pid, signal.SIGKILL)
    services_cases.until(lambda: not Path(f"/proc/{pid}").exists())
    clients = f"sandbox-client-{client.pid}-*"
    services_cases.until(lambda: all(status.active_state != "active" for status in manager.list_units([clients])))
    services_cases.until(lambda: [status.active_state for status in manager.list_units([unit])] == ["failed"])
    other = managers.Home(manager, "system")  # whoever comes next clears up: it had to be killed, so it has failed
    assert other.manager is manager
    assert not manager.list_units([unit, clients])


def test_refused_by_polkit_or_the_bus() -> None:
    """Somebody who is not root, and asks the system's manager."""
    code = """
import os, sandbox
from sandbox.services import ManagerRefused
import sandbox.services.start, sandbox_systemd.managers, sandbox_systemd.jeepney_binding, sandbox_systemd.properties
os.setresuid(65534, 65534, 65534)
try: sandbox.service(["true"], profile=None, manager="system")
except ManagerRefused as error: print(error, error.hint, sep="\\n")
"""
    environment = {**os.environ, "SANDBOX_DBUS": "jeepney"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert "sandbox-client-" in done.stdout or "start service" in done.stdout, done.stderr
    assert "--sandbox-systemd=user" in done.stdout


def test_a_manager_that_is_executed_anew() -> None:
    """daemon-reexec in the life of a service: it goes on, and its end is seen."""
    with sandbox.start_service(["sh", "-c", "trap 'exit 7' USR1; echo ready; while :; do sleep 0.05; done"]) as service:
        services_cases.until(lambda: service.logs() == "ready\n")
        subprocess.run(["systemctl", "daemon-reexec"], check=True, timeout=60)
        assert service.poll() is None
        service.send_signal("USR1")
        assert service.wait(20) == 7


def test_a_firewall() -> None:
    send = [services_cases.PYTHON, "-c", "import socket; socket.socket(type=2).sendto(b'', ('127.0.0.1', 9))"]
    assert sandbox.service(send).returncode == 0
    refused = sandbox.service(send, IPAddressDeny="any")
    assert "Operation not permitted" in refused.stderr
    counted = sandbox.service(send, IPAccounting=True)
    assert counted.usage.ip_sent


class TestImages:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """A directory with a static shell in it."""
        for name in ("bin", "proc", "sys", "dev", "run", "tmp", "var/tmp", "etc"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "bin" / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
        (tmp_path / "bin" / "busybox").chmod(0o755)
        (tmp_path / "bin" / "sh").symlink_to("busybox")
        return tmp_path

    def test_a_directory(self, root: Path) -> None:
        code = "/bin/busybox ls /; echo x > /y; echo x > /tmp/x && echo tmp"
        result = sandbox.service(["/bin/sh", "-c", code], image=f"dir:{root}", profile="default")
        assert result.stdout.split() == ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "var", "tmp"]
        assert "Read-only file system" in result.stderr
        assert sorted(os.listdir(root)) == ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "var"]
        assert os.listdir(root / "tmp") == []

    def test_nothing_of_it_stays(self, root: Path) -> None:
        with sandbox.start_service(["/bin/sh", "-c", "/bin/busybox sleep 60"], image=f"dir:{root}"):
            assert managers.home().manager.list_units([f"{escape('/run/sandbox-roots')}*.mount"])
        services_cases.until(lambda: not managers.home().manager.list_units([f"{escape('/run/sandbox-roots')}*.mount"]))
        assert os.listdir("/run/sandbox-roots") == []

    def test_a_program_that_it_does_not_have(self, root: Path) -> None:
        with pytest.raises(sandbox.CommandNotFound, match="/bin/none"):
            sandbox.service(["/bin/none"], image=f"dir:{root}")

    def test_one_that_lacks_what_systemd_mounts_on(self, root: Path) -> None:
        (root / "proc").rmdir()
        with pytest.raises(sandbox.SandboxError, match=r"it has no directory /proc(.|\n)*mkdir -p proc"):
            sandbox.service(["/bin/sh"], image=f"dir:{root}")


def test_a_pod_from_a_file_as_a_service() -> None:
    for file in unitfiles.unit_files():
        unitfiles.write(file, replace=True)
    Path("/etc/sandbox").mkdir(exist_ok=True)
    talk = "echo told; trap 'echo asked; exit 0' TERM; while :; do sleep 0.1; done"
    Path("/etc/sandbox/shop.toml").write_text(f'image = "host"\ncommand = ["sh", "-c", "{talk}"]\nready = {{ log = "told" }}\n')

    def systemctl(*words: str) -> str:
        done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    systemctl("daemon-reload")
    systemctl("start", "sandbox@shop.service")  # returns when the pod is ready
    shown = dict(line.split("=", 1) for line in systemctl("show", "sandbox@shop.service").splitlines() if "=" in line)
    assert shown["ActiveState"] == "active"
    assert shown["Slice"] == "sandbox.slice"
    assert shown["StatusText"] == "1 containers run"
    ps = subprocess.run([sys.executable, "-m", "sandbox.cli", "ps", "--quiet"], capture_output=True, text=True, check=True)
    assert len(ps.stdout.split()) == 1
    systemctl("stop", "sandbox@shop.service")
    assert systemctl("show", "-P", "Result", "sandbox@shop.service") == "success\n"
    ps = subprocess.run([sys.executable, "-m", "sandbox.cli", "ps", "--quiet"], capture_output=True, text=True, check=True)
    assert ps.stdout == ""
    assert "Delegate=cpu" in systemctl("cat", "user@1000.service")
