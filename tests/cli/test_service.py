"""``sandbox service``, ``sandbox up`` and ``sandbox install-units`` as a user types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gate import requires

needs_manager = requires("systemd.manager")


@needs_manager
class TestRun:
    @pytest.mark.parametrize(
        ("arguments", "status"),
        [
            (["true"], 0), (["--", "sh", "-c", "exit 3"], 3), (["sh", "-c", "kill -9 $$"], 137), (["nonesuch"], 127),
            (["/etc/passwd"], 126), (["--timeout", "0.2", "sleep", "9"], 124), (["-p", "Nonsense=1", "true"], 125),
            (["-p", "MemoryMax", "true"], 125), (["--profile", "lax", "true"], 125), ([], 125),
            (["--manager", "off", "true"], 125), (["-w", "/nonexistent", "true"], 125),
        ],
    )  # fmt: skip
    def test_status(self, cli: Any, arguments: list[str], status: int) -> None:
        done = cli("service", "run", *arguments)
        assert done.returncode == status, done.stderr
        assert bool(done.stderr) == (status in {124, 125, 126, 127})
        assert "Traceback" not in done.stderr

    def test_streams(self, cli: Any) -> None:
        done = cli("service", "run", "--profile", "strict", "-e", "A=b", "sh", "-c", "cat; echo $A >&2", input="in")
        assert (done.stdout, done.stderr) == ("in", "b\n")

    def test_usage(self, cli: Any) -> None:
        assert cli("service", "run", "--usage", "true").stderr.startswith("sandbox: exit status 0, CPU ")

    def test_signals_are_passed_on(self, cli: Any) -> None:
        code = "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
        with cli.start("service", "run", "sh", "-c", code) as process:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "got\n"
            assert process.wait(10) == 5

    def test_killed_with_it(self, cli: Any) -> None:
        with cli.start("service", "run", "sh", "-c", "echo $$; exec sleep 60") as process:
            pid = process.stdout.readline().strip()
            assert Path(f"/proc/{pid}").exists()
            process.kill()
        deadline = time.monotonic() + 5
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


class TestReport:
    def test_table(self, cli: Any) -> None:
        done = cli("service", "report", "--profile", "strict")
        assert done.returncode == 0
        assert done.stdout.splitlines()[-1] == "exposure: 0.4 SAFE (4 of 82 open)"
        assert "IPAddressDeny=" in done.stdout
        assert "✓" not in done.stdout
        assert "no process of it has the host's network" in cli("service", "report", "-a", "-p", "PrivateNetwork=yes").stdout

    def test_a_unit_file_with_more_on_top(self, cli: Any, tmp_path: Path) -> None:
        unit = tmp_path / "x.service"
        unit.write_text("[Service]\nPrivateTmp=yes\nPrivateNetwork=yes\n")
        document = json.loads(cli("service", "report", "--json", "-p", "PrivateTmp=no", str(unit)).stdout)
        closed = {item["name"]: item["closed"] for item in document["items"]}
        assert closed["PrivateNetwork="] is True
        assert closed["PrivateTmp="] is False
        assert document["level"] == "UNSAFE"

    def test_threshold(self, cli: Any) -> None:
        assert cli("service", "report", "--threshold", "5").returncode == 1
        assert cli("service", "report", "--threshold", "5", "--profile", "strict").returncode == 0

    @pytest.mark.parametrize("arguments", [["/nonexistent.service"], ["a", "b"], ["--profile", "lax"], ["--threshold", "x"]])
    def test_mistakes(self, cli: Any, arguments: list[str]) -> None:
        done = cli("service", "report", *arguments)
        assert done.returncode in {1, 2}
        assert done.stderr.startswith("sandbox")
        assert "Traceback" not in done.stderr


@needs_manager
def test_find(cli: Any) -> None:
    done = cli("service", "find", "-v", "-p", "Nice=1", "--", "sh", "-c", "test $(umask) = 0022")
    assert done.returncode == 0, done.stderr
    assert "[Service]\n" in done.stdout
    assert "UMask" not in done.stdout.partition("[Service]")[2]
    assert "#   UMask=0077: exit status 1" in done.stdout
    assert done.stderr.startswith("1: 0 restrictions: passes\n")
    failed = cli("service", "find", "false")
    assert failed.returncode == 1
    assert "does not pass without any restriction" in failed.stderr


@pytest.mark.parametrize("arguments", [[], ["walk"], ["run", "--nonsense"]])
def test_wrong_words(cli: Any, arguments: list[str]) -> None:
    done = cli("service", *arguments)
    assert done.returncode in {2, 125}
    assert "--help" in done.stderr


def test_help_names_every_profile(cli: Any) -> None:
    from sandbox.services import PROFILES

    text = cli("service", "run", "--help").stdout
    assert all(name in text for name in PROFILES)
    assert cli("service", "--help").stdout.count("sandbox service ") > 6


POD = """
[containers.one]
command = ["sh", "-c", "echo first"]
[containers.two]
command = ["sh", "-c", "trap 'echo stopped; exit 4' TERM; echo second; while :; do sleep 0.05; done"]
"""


class TestUp:
    @pytest.fixture
    def pod(self, tmp_path: Path) -> Path:
        (tmp_path / "pod.toml").write_text(POD)
        return tmp_path / "pod.toml"

    def test_check(self, cli: Any, pod: Path) -> None:
        assert cli("up", "--check", str(pod)).stdout == f"{pod}: a pod of one, two\n"
        pod.write_text("image = 3")
        done = cli("up", "--check", str(pod))
        assert done.returncode == 1
        assert "Container.image = 3" in done.stderr

    @requires("userns", "overlay")
    def test_until_it_is_stopped(self, cli: Any, pod: Path) -> None:
        with cli.start("up", str(pod)) as process:
            lines = {process.stdout.readline(), process.stdout.readline()}
            assert lines == {"one | first\n", "two | second\n"}
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "two | stopped\n"
            assert process.wait(10) == 0

    @requires("userns", "overlay")
    def test_until_it_has_ended(self, cli: Any, tmp_path: Path) -> None:
        (tmp_path / "pod.json").write_text(json.dumps({"command": ["sh", "-c", "echo out; echo err >&2; exit 3"]}))
        done = cli("up", str(tmp_path / "pod.json"))
        assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")

    @requires("userns", "overlay")
    def test_it_tells_its_manager(self, tmp_path: Path, pod: Path) -> None:
        import socket

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(tmp_path / "notify"))
            manager.settimeout(20)
            command = [sys.executable, "-m", "sandbox.cli", "up", str(pod)]
            environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
                assert manager.recv(100) == b"READY=1\nSTATUS=2 containers run"
                process.terminate()
                assert manager.recv(100) == b"STOPPING=1"


class TestInstallUnits:
    def test_shows_and_writes(self, cli: Any, tmp_path: Path) -> None:
        dry = cli("install-units", "--dry-run", "--directory", str(tmp_path))
        assert "ExecStart=" in dry.stdout
        assert os.listdir(tmp_path) == []
        done = cli("install-units", "--directory", str(tmp_path))
        assert done.returncode == 0
        assert "systemctl daemon-reload" in done.stderr
        assert sorted(os.listdir(tmp_path)) == ["sandbox.slice", "sandbox@.service", "user@.service.d"]
        assert cli("install-units", "--directory", str(tmp_path)).stdout.count("(unchanged)") == 3

    def test_differences(self, cli: Any, tmp_path: Path) -> None:
        (tmp_path / "sandbox.slice").write_text("[Slice]\nMemoryMax=1G\n")
        done = cli("install-units", "--user", "--directory", str(tmp_path))
        assert "-MemoryMax=1G\n" in done.stdout
        assert done.returncode == 1
        assert "--replace" in done.stderr
        assert cli("install-units", "--user", "--replace", "--directory", str(tmp_path)).returncode == 0
