"""What holds for services whatever manager runs them: tests/systemd runs these against a private and a system manager."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import services
from sandbox.services import managers

PYTHON = "/usr/bin/python3"
#: Seconds in which Python has started and said something.
SOON = 10.0 if os.environ.get("SANDBOX_TESTBED") == "uml" else 1.0

#: Says what it was given by socket activation, then answers one connection.
ACTIVATED = """
import os, socket
assert os.environ["LISTEN_PID"] == str(os.getpid())
print(os.environ["LISTEN_FDS"], os.environ["LISTEN_FDNAMES"], flush=True)
peer, _ = socket.socket(fileno=3).accept()
peer.sendall(b"hello")
"""
#: Tells its manager things, sd_notify(3).
NOTIFIES = """
import os, socket, sys, time
address = os.environ["NOTIFY_SOCKET"]
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.connect("\\0" + address[1:] if address[0] == "@" else address)
def tell(text): manager.send(text.encode())
"""


def program(code: str, prelude: str = "") -> list[str]:
    return [PYTHON, "-c", prelude + textwrap.dedent(code)]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def units(pattern: str = "sandbox-service-*") -> list[str]:
    """What the manager has of ours."""
    token = managers.home().token
    return [status.name for status in managers.home().manager.list_units([pattern]) if token in status.name]


def until(condition: Any, seconds: float = 5.0) -> None:
    """Wait for what the manager does after it has answered."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Services:
    """Run, watch, change, end."""

    @pytest.fixture(autouse=True)
    def _nothing_stays(self) -> Iterator[None]:
        managers.home()
        before = open_files()
        yield
        until(lambda: units() == [])
        assert open_files() <= before + 2, "the first use of some things keeps them open"

    # -- run ----------------------------------------------------------------------------------------------------

    def test_streams_and_status(self) -> None:
        result = sandbox.service(["sh", "-c", "cat; echo err >&2; exit 3"], input="in", profile=None)
        assert (result.returncode, result.stdout, result.stderr) == (3, "in", "err\n")
        assert result.result == "exit-code"
        assert 0 < result.duration < 5
        assert result.usage.cpu > 0

    def test_a_signal(self) -> None:
        result = sandbox.service(["sh", "-c", "kill -USR1 $$"], profile=None)
        assert (result.returncode, result.result) == (-signal.SIGUSR1, "signal")

    def test_arguments_are_passed_on_as_they_are(self) -> None:
        words = ["$HOME", "${PATH}", "%n", "a b", "", "\\", '"', "'", "$$", ";", "-x", "ä"]
        code = "import sys; print(sys.argv[1:])"
        assert sandbox.service([PYTHON, "-c", code, *words]).stdout == f"{words!r}\n"

    def test_bytes_that_are_no_text(self) -> None:
        assert sandbox.service(["cat"], input=b"\xff\0", text=False).stdout == b"\xff\0"

    def test_much_of_both(self) -> None:
        data = "x" * 1_000_000
        result = sandbox.service(["tee", "/dev/stderr"], input=data)
        assert (result.stdout, result.stderr) == (data, data)

    def test_environment_and_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET", "x")
        result = sandbox.service(["sh", "-c", "echo $A; echo $SECRET; pwd"], env={"A": "b c"}, cwd="/usr")
        assert result.stdout == "b c\n\n/usr\n"
        assert sandbox.service("pwd").stdout == "/\n"

    def test_the_time_is_up(self) -> None:
        began = time.monotonic()
        with pytest.raises(sandbox.TimeoutExpired, match=r"timed out after 0\.3 s") as caught:
            sandbox.service(["sh", "-c", "echo out; trap '' TERM; sleep 60; sleep 60"], timeout=0.3, profile=None)
        assert caught.value.output == "out\n"
        assert time.monotonic() - began < 5

    def test_check(self) -> None:
        with pytest.raises(sandbox.CalledProcessError, match="exit status 4"):
            sandbox.service(["sh", "-c", "echo why >&2; exit 4"], check=True)

    def test_what_it_leaves_in_the_background_goes_too(self) -> None:
        code = "sleep 300 >/dev/null 2>&1 & echo $!"
        pid = int(sandbox.service(["sh", "-c", code], profile=None).stdout)
        until(lambda: not Path(f"/proc/{pid}").exists())

    def test_a_status_that_looks_like_systemds(self) -> None:
        assert sandbox.service(["sh", "-c", "exit 203"], profile=None).returncode == 203
        assert sandbox.service(["sh", "-c", "echo mine; exit 226"], profile=None).returncode == 226

    # -- profiles -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", services.PROFILES)
    def test_a_profile_runs_programs(self, name: str) -> None:
        result = sandbox.service(["sh", "-c", "echo x > /tmp/case && sort /tmp/case | gzip | gunzip"], profile=name)
        assert (result.stdout, result.stderr) == ("x\n", "")
        assert not Path("/tmp/case").exists()

    def test_what_the_strict_one_takes_away(self) -> None:
        looks = """
            import os, socket, subprocess
            def tries(name, action):
                try: action()
                except OSError as error: print(name, "no")
                else: print(name, "yes")
            tries("etc", lambda: open("/etc/x", "w"))
            tries("home", lambda: os.listdir("/home"))
            tries("inet", lambda: socket.socket())
            tries("unix", lambda: socket.socket(socket.AF_UNIX))
            tries("chroot", lambda: os.chroot("/"))
            tries("mount", lambda: subprocess.run(["mount", "-t", "tmpfs", "x", "/mnt"], check=True, stderr=-3))
            print("links", sorted(os.listdir("/sys/class/net")) if os.path.isdir("/sys/class/net") else [])
            print("route", len(open("/proc/net/dev").readlines()) if os.path.exists("/proc/net/dev") else 3)
        """
        code = textwrap.dedent(looks).replace("except OSError as error", "except (OSError, subprocess.CalledProcessError)")
        found = dict(line.split(" ", 1) for line in sandbox.service([PYTHON, "-c", code], profile="strict").stdout.splitlines())
        del found["links"]  # /sys shows the host's: a name is no access
        assert found == {"etc": "no", "home": "no", "inet": "no", "unix": "yes", "chroot": "no", "mount": "no", "route": "3"}

    @pytest.mark.parametrize("given", [{}, {"SystemCallFilter": ["@system-service", "@mount"]}], ids=["alone", "with another"])
    @pytest.mark.parametrize("name", services.PROFILES)
    def test_io_uring_is_refused_as_other_calls_are(self, name: str, given: dict[str, Any]) -> None:
        code = """
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            def fails(number):
                assert libc.syscall(number, 0, 0, 0, 0, 0, 0) == -1
                return ctypes.get_errno()
            print([fails(number) for number in (425, 426, 427)])  # io_uring_setup, _enter, _register: everywhere the same
        """
        assert sandbox.service(program(code), profile=name, **given).stdout == f"{[errno.EPERM] * 3}\n"

    @pytest.mark.parametrize("given", [{}, {"ReadOnlyPaths": "/usr", "TemporaryFileSystem": "/srv:ro"}], ids=["alone", "more"])
    @pytest.mark.parametrize("name", ["strict", "network-client", "network-server"])
    def test_the_confined_write_to_nothing_of_the_hosts(self, name: str, given: dict[str, Any]) -> None:
        """Every mount that they see is asked, and two places are tried where everybody may write on the host."""
        files = [Path(f"/dev/shm/sandbox-case-{os.getpid()}"), Path(f"/run/lock/sandbox-case-{os.getpid()}")]
        code = """
            import os, sys
            for file in sys.argv[1:]:
                try: open(file, "w")
                except OSError: pass
            print(os.readlink("/proc/self/ns/ipc"))
            for line in open("/proc/self/mountinfo"):
                place, kind = line.split()[4], line.partition(" - ")[2].split()[0]
                try: flags = os.statvfs(place).f_flag
                except OSError: continue  # below something that hides it
                if not flags & os.ST_RDONLY and not place.startswith(("/proc", "/dev")) and kind != "selinuxfs": print(place)
        """
        ipc, *mounts = sandbox.service([*program(code), *map(str, files)], profile=name, **given).stdout.splitlines()
        there = [file for file in files if file.exists()]
        for file in there:
            file.unlink()
        assert there == []
        assert ipc != os.readlink("/proc/self/ns/ipc")
        assert set(mounts) == {"/tmp", "/var/tmp"}, mounts

    def test_shared_memory_of_a_confined_one(self) -> None:
        """Its own; in the manager of an ordinary user there is none."""
        code = """
            from multiprocessing.shared_memory import SharedMemory
            memory = SharedMemory(create=True, size=4096)
            memory.buf[0] = 1
            memory.unlink()
        """
        done = sandbox.service(program(code), profile="strict")
        assert (done.returncode == 0) == managers.home().root, done.stderr
        own: dict[str, Any] = {"InaccessiblePaths": "", "TemporaryFileSystem": "/dev/shm:mode=1777"}
        assert sandbox.service(program(code), profile="strict", **own).returncode == 0

    def test_the_runtime_directory_of_a_confined_one(self) -> None:
        code = "import os; open(os.environ['RUNTIME_DIRECTORY'] + '/x', 'w')"
        # That of an ordinary user's service lies below /run/user, which ProtectHome=yes hides.
        home: dict[str, Any] = {} if managers.home().root else {"ProtectHome": "read-only"}
        done = sandbox.service(program(code), profile="network-server", RuntimeDirectory="sandbox-case", **home)
        assert done.returncode == 0, done.stderr

    def test_keywords_override_the_profile(self) -> None:
        code = ["sh", "-c", "test -r /home && echo there; umask"]
        assert sandbox.service(code, profile="strict").stdout == "0077\n"
        loose = sandbox.service(code, profile="strict", ProtectHome="read-only", lines=["UMask=0027"])
        assert loose.stdout == "there\n0027\n"

    # -- keep it running ----------------------------------------------------------------------------------------

    def test_state_and_logs(self) -> None:
        with sandbox.start_service(["sh", "-c", "echo out; echo err >&2; exec sleep inf"]) as service:
            until(lambda: service.logs() == "out\nerr\n")
            assert service.state == "running"
            assert service.poll() is None
            until(lambda: Path(f"/proc/{service.pid}/comm").read_text() == "sleep\n")
            assert service.stats().tasks == 1
            assert service.logs(tail=1) == "err\n"
            assert service.get("Description").startswith("sandbox: ")
            assert units() == [service.unit]
        assert service.returncode == -signal.SIGTERM
        assert service.logs(tail=1) == "err\n"

    def test_pipes(self) -> None:
        with sandbox.start_service(["cat"], stdin=sandbox.PIPE, stdout=sandbox.PIPE) as service:
            assert service.stdin is not None
            assert service.stdout is not None
            service.stdin.write("line\n")
            assert service.stdout.readline() == "line\n"
            service.stdin.close()
            assert service.wait(5) == 0
            assert service.result == "success"

    def test_signals(self) -> None:
        traps = "trap 'echo hup' HUP; trap 'echo usr; exit 5' USR1; echo ready; while :; do sleep 0.02; done"
        with sandbox.start_service(["sh", "-c", traps]) as service:
            until(lambda: service.logs() == "ready\n")
            service.send_signal("HUP")
            until(lambda: service.logs(tail=1) == "hup\n")
            service.send_signal(signal.SIGUSR1)
            assert service.wait(5) == 5
            service.send_signal("HUP")  # it has ended; nothing happens
            with pytest.raises(sandbox.PodStateError, match="it is stopped"):
                service.freeze()

    def test_stop_kills_what_does_not_listen(self) -> None:
        deaf = "trap '' TERM; echo ready; while :; do sleep 1; done"
        with sandbox.start_service(["sh", "-c", deaf]) as service:
            until(lambda: service.logs() == "ready\n")
            assert service.stop(timeout=0.2) == -signal.SIGKILL

    def test_freeze_and_thaw(self) -> None:
        with sandbox.start_service(["sh", "-c", "while :; do echo x; sleep 0.01; done"]) as service:
            service.freeze()
            size = len(service.logs())
            time.sleep(0.1)
            assert len(service.logs()) == size
            service.thaw()
            until(lambda: len(service.logs()) > size)

    def test_properties_at_run_time(self) -> None:
        with sandbox.start_service(["sleep", "inf"]) as service:
            with pytest.raises(services.PropertyError):
                service.set_properties(Nonsense=1)
            with pytest.raises(sandbox.SandboxError, match=r"PrivateTmp|set properties"):
                service.set_properties(PrivateTmp=False)
            service.set_properties(IPAccounting=True)
            assert service.get("IPAccounting") is True

    def test_stopped_by_somebody_else(self) -> None:
        with sandbox.start_service(["sleep", "inf"]) as service:
            managers.home().manager.stop(service.unit)
            assert service.wait(5) == -signal.SIGTERM

    # -- readiness and sockets ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("profile", ["strict", "network-client", None])
    def test_ready_when_it_says_so(self, profile: str | None) -> None:
        code = "time.sleep(0.1); print(time.monotonic(), flush=True); tell('READY=1\\nSTATUS=serving'); time.sleep(60)"
        with sandbox.start_service(program(code, NOTIFIES), Type="notify", profile=profile) as service:
            late = time.monotonic() - float(service.logs())
            assert 0 <= late < 2
            until(lambda: service.status == "serving")

    def test_never_ready(self) -> None:
        code = program("tell('STATUS=loading'); print('said', flush=True); time.sleep(60)", NOTIFIES)
        with pytest.raises(sandbox.ReadinessTimeout, match=rf"not ready after {SOON:g} s; last seen: loading") as caught:
            sandbox.start_service(code, Type="notify", ready_timeout=SOON)
        assert caught.value.logs == ("said",)

    @pytest.mark.parametrize(("end", "words"), [("sys.exit(3)", "exit status 3"), ("pass", "without having said READY=1")])
    def test_ended_before_it_was_ready(self, end: str, words: str) -> None:
        with pytest.raises(services.ServiceExited, match=words) as caught:
            sandbox.start_service(program(f"print('why', flush=True); {end}", NOTIFIES), Type="notify")
        assert caught.value.logs == ("why",)

    @pytest.mark.parametrize("profile", ["strict", "network-server", None])
    def test_listening_sockets(self, profile: str | None) -> None:
        with contextlib.ExitStack() as stack:
            web = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            other = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            service = stack.enter_context(
                sandbox.start_service(program(ACTIVATED), profile=profile, sockets={"web": web, "other": other})
            )
            address = web.getsockname()
            web.close()
            other.close()
            with socket.create_connection(address, timeout=5) as client:
                assert client.recv(10) == b"hello"
            assert service.wait(5) == 0
            assert service.logs() == "2 web:other\n"

    # -- what can go wrong --------------------------------------------------------------------------------------

    def test_a_program_that_the_service_does_not_see(self, tmp_path: Path) -> None:
        hidden = tmp_path / "daemon"
        hidden.write_text("#!/bin/sh\n")
        hidden.chmod(0o755)
        if not str(hidden).startswith("/tmp/"):
            pytest.fail("pytest's directory is not below /tmp")
        with pytest.raises(sandbox.CommandNotFound, match=r"PrivateTmp=yes hides (.|\n)*hint: show it with"):
            sandbox.service([hidden])

    def test_a_program_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("hello")
        with pytest.raises(sandbox.CommandNotExecutable, match="not marked executable"):
            sandbox.service([tmp_path / "text"], profile=None)

    @pytest.mark.parametrize(
        ("properties", "kind", "words"),
        [
            ({"Nonsense": "1"}, services.PropertyError, "Nonsense"),
            ({"PrivateTmp": "perhaps"}, services.PropertyError, "PrivateTmp"),
            ({"TimeoutStopSec": "soon"}, services.PropertyError, "TimeoutStopSec"),
            ({"BindReadOnlyPaths": "/nonexistent"}, services.ServiceSetupError, "names /nonexistent"),
            ({"RestrictFileSystems": "~tmpfs"}, services.NotEnforced, "BPF_FRAMEWORK"),
        ],
    )
    def test_bad_properties(self, properties: dict[str, Any], kind: type[Exception], words: str) -> None:
        with pytest.raises(kind, match=words) as caught:
            sandbox.service(["true"], **{"PrivateUsers": True, **properties})
        assert getattr(caught.value, "hint", None)

    def test_a_directory_that_is_not_there(self) -> None:
        with pytest.raises(services.ServiceSetupError, match=r"CHDIR(.|\n)*/nonexistent: no such file") as caught:
            sandbox.service(["true"], cwd="/nonexistent")
        assert (caught.value.step, caught.value.status) == ("CHDIR", 200)

    def test_a_limit_that_nobody_keeps(self) -> None:
        if "memory" in managers.home().controllers:
            assert sandbox.service(["true"], MemoryMax="64M").returncode == 0
            return
        with pytest.raises(sandbox.LimitNotEnforceable, match="no controller `memory`"):
            sandbox.service(["true"], MemoryMax="64M")
        assert sandbox.service(["true"], MemoryMax="64M", best_effort=True).returncode == 0

    def test_a_unit_of_that_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with sandbox.start_service(["sleep", "inf"]) as service:
            monkeypatch.setattr(managers.Home, "new_name", lambda home: service.unit)
            with pytest.raises(services.UnitClash, match=service.unit):
                sandbox.service(["true"])
            assert service.poll() is None

    def test_what_takes_too_long_to_start_is_not_left_behind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from sandbox.services import start

        monkeypatch.setattr(start, "_PATIENCE", 0.3)
        with pytest.raises(sandbox.SandboxError, match="no answer within"):
            sandbox.service(["true"], ExecStartPre=["/bin/sleep", "60"])

    # -- find ---------------------------------------------------------------------------------------------------

    def test_find(self, tmp_path: Path) -> None:
        needs = program(f"import socket; open('{tmp_path}/x', 'w'); socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)")
        found = services.find(needs, jobs=2)
        lines = dict(found.assignments)
        assert lines["ProtectSystem"] == "full", "the strict one makes /tmp read-only too"
        assert lines["RestrictAddressFamilies"] == "AF_NETLINK"
        assert lines["PrivateNetwork"] == "yes"
        assert "PrivateTmp" not in lines
        assert {str(item) for item in found.needed} >= {"PrivateTmp=yes", "RestrictAddressFamilies=~AF_NETLINK"}
        assert found.exposure.percent < 30
        written = [f"{name}={value}" for name, value in found.assignments]
        assert sandbox.service(needs, profile=None, lines=written).returncode == 0

    def test_find_wants_something_that_passes(self) -> None:
        with pytest.raises(services.ServiceError, match="does not pass without any restriction") as caught:
            services.find(["sh", "-c", "echo no >&2; false"])
        assert caught.value.cause == "exit status 1: no"
