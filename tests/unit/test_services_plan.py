"""Arguments → what a service will be; and the words for what can go wrong, without a manager."""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox.services import NotEnforced, PropertyError, causes
from sandbox.services.enforcement import refusals
from sandbox.services.plan import plan, split_command
from sandbox.services.settings import Settings, split_assignment
from sandbox.services.sockets import named_sockets
from sandbox.services.syscalls import IO_URING


def settings(*lines: str) -> Settings:
    return Settings(split_assignment(line) for line in lines)


class TestPlan:
    def test_later_kinds_take_the_place_of_earlier_ones(self) -> None:
        made = plan("true", lines=["ProtectHome=tmpfs", "PrivateTmp=no"], properties={"PrivateTmp": True, "User": "me"})
        found = made.settings
        assert found.last("ProtectHome") == "tmpfs"
        assert found.words("SystemCallFilter")[0] == "@system-service", "the profile's"
        assert [value for name, value in made.assignments if name == "PrivateTmp"] == ["yes"]
        assert "PrivateTmp=no" not in made.texts
        assert not any(text.startswith("User=") for text in made.texts), "values go to the bus as values"

    @pytest.mark.parametrize(
        "given", [{"lines": ["ReadOnlyPaths=/usr"]}, {"properties": {"ReadOnlyPaths": ["/usr"]}}], ids=["line", "keyword"]
    )
    def test_paths_that_are_closed_are_added_to_the_profiles(self, given: dict[str, Any]) -> None:
        made = plan("true", profile="strict", **given)
        assert made.settings.words("ReadOnlyPaths") == ["-/run", "/usr"]
        assert "ReadOnlyPaths=-/run" in made.texts
        covered = plan("true", profile="strict", properties={"TemporaryFileSystem": "/srv"}).settings
        assert covered.words("TemporaryFileSystem") == ["/dev/shm:mode=1777", "/srv"]

    @pytest.mark.parametrize(
        "given", [{"lines": ["ReadOnlyPaths="]}, {"properties": {"ReadOnlyPaths": None}}], ids=["line", "keyword"]
    )
    def test_an_empty_value_opens_them(self, given: dict[str, Any]) -> None:
        assert not plan("true", profile="strict", **given).settings.given("ReadOnlyPaths")

    @pytest.mark.parametrize("value", ["@system-service @mount", "~@clock", "", "~io_uring_setup"])
    def test_another_filter_of_system_calls_does_not_let_io_uring_in(self, value: str) -> None:
        for made in (plan("true", lines=[f"SystemCallFilter={value}"]), plan("true", properties={"SystemCallFilter": value})):
            assert not made.settings.io_uring
            assert made.assignments[-1][0] == "SystemCallFilter", "the first one says whether the list allows or denies"

    def test_io_uring_where_it_is_asked_for_or_goes_past_nothing(self) -> None:
        assert plan("true", lines=[f"SystemCallFilter=@system-service {' '.join(IO_URING)}"]).settings.io_uring
        past_nothing = ["SystemCallFilter=", "RestrictAddressFamilies=", "RestrictSUIDSGID=no"]
        assert not plan("true", lines=past_nothing).settings.given("SystemCallFilter")
        assert plan("true", profile=None, lines=["RestrictSUIDSGID=yes"]).settings.io_uring, "nobody has promised anything"

    def test_everything_is_counted_and_starts_at_the_root(self) -> None:
        found = plan("true", profile=None).settings
        assert found.on("CPUAccounting")
        assert (found.last("WorkingDirectory"), found.last("Type"), found.last("Slice")) == ("/", "exec", "sandbox.slice")
        assert plan("true", profile=None, lines=["CPUAccounting=no"]).settings.explicit("CPUAccounting") is False

    def test_the_environment_is_put_together(self) -> None:
        made = plan("true", env={"A": 1, "B": "c"}, properties={"Environment": {"A": "0", "D": "e"}})  # type: ignore[dict-item]
        assert made.keywords["Environment"] == {"A": "1", "B": "c", "D": "e"}

    def test_commands(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = tmp_path / "daemon"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        monkeypatch.chdir(tmp_path)
        assert plan("./daemon 'a b'").args == (str(program), "a b")
        assert plan([Path("daemon").absolute(), "$HOME"]).args == (str(program), "$HOME")
        assert plan(["sh"]).args[0].startswith("/")
        assert plan(["sh"], image="dir:/x").args == ("sh",), "systemd looks it up in the image"

    @pytest.mark.parametrize("command", ["", [], [""], "  "])
    def test_no_command(self, command: Any) -> None:
        with pytest.raises(sandbox.ModelError, match="the command has no words"):
            split_command(command)

    def test_a_nul_byte(self) -> None:
        with pytest.raises(sandbox.ModelError, match="NUL"):
            split_command(["echo", "a\0b"])

    @pytest.mark.parametrize("command", ["nonesuch", "./nonesuch", "/nonexistent/nonesuch"])
    def test_a_program_that_is_not_there(self, command: str) -> None:
        with pytest.raises(sandbox.CommandNotFound, match=r"start service `.*nonesuch`"):
            plan(command)

    @pytest.mark.parametrize(
        ("properties", "words"),
        [
            ({"ExecStart": "x"}, "set by sandbox itself"), ({"RemainAfterExit": True}, "set by sandbox itself"),
            ({"RootDirectory": "/x"}, "use image="), ({"StandardOutput": "null"}, "use stdout="),
            ({"Type": "oneshot"}, "exec, simple, notify"),
        ],
    )  # fmt: skip
    def test_what_is_not_for_the_caller_to_set(self, properties: dict[str, Any], words: str) -> None:
        with pytest.raises(PropertyError, match=words):
            plan("true", properties=properties)

    def test_an_image_is_read_only(self) -> None:
        assert plan("sh", image="dir:/x").settings.protect_system == "strict"
        with pytest.raises(PropertyError, match="an image is never written to"):
            plan("sh", image="dir:/x", lines=["ProtectSystem=full"])


class TestEnforcement:
    """Against managers that are made up; tests/systemd has real ones."""

    @staticmethod
    def refused(*lines: str, root: bool = True, firewall: bool = True, controllers: tuple[str, ...] = ()) -> list[Any]:
        home: Any = types.SimpleNamespace(root=root, controllers=frozenset(controllers), features=frozenset({"SECCOMP"}),
                                          cgroup="/sys/fs/cgroup/x")  # fmt: skip
        return list(refusals(settings(*lines), home, lambda: firewall))

    def test_limits_need_their_controller(self) -> None:
        (error,) = self.refused("MemoryMax=64M", "TasksMax=10", controllers=("pids",))
        assert isinstance(error, sandbox.LimitNotEnforceable)
        assert (error.controller, error.limit) == ("memory", "MemoryMax=64M")
        assert "controllers of /sys/fs/cgroup/x: pids" in str(error)
        assert self.refused("MemoryMax=infinity", "CPUQuota=") == []

    def test_what_systemd_was_not_built_with(self) -> None:
        (error,) = self.refused("RestrictFileSystems=~tmpfs", "SystemCallFilter=@system-service", "LockPersonality=yes")
        assert isinstance(error, NotEnforced)
        assert (error.property, error.feature) == ("RestrictFileSystems", "BPF_FRAMEWORK")

    def test_namespaces_of_ordinary_users(self) -> None:
        (error,) = self.refused("ProtectHome=yes", root=False)
        assert "add PrivateUsers=True" in str(error)
        assert self.refused("ProtectHome=yes", "PrivateUsers=yes", root=False) == []
        assert self.refused("ProtectHome=no", "PrivateTmp=", root=False) == []
        (error,) = self.refused("ProcSubset=pid", "PrivateUsers=yes", root=False)
        assert error.property == "ProcSubset"

    def test_packets(self) -> None:
        (error,) = self.refused("IPAddressDeny=any", firewall=False)
        assert "use PrivateNetwork=True" in str(error)
        assert self.refused("IPAddressDeny=any") == []


class TestCauses:
    """For exit statuses of systemd that every reader of a log has to look up."""

    def error(self, status: int, *lines: str, args: tuple[str, ...] = ("/bin/true",)) -> sandbox.SandboxError:
        error = causes.setup_error(status, args, settings(*lines), None)
        assert error is not None
        return error

    def test_hidden_programs(self) -> None:
        error = self.error(203, "ProtectHome=yes", args=("/home/me/daemon",))
        assert isinstance(error, sandbox.CommandNotFound)
        assert error.cause == "ProtectHome=yes hides /home/me/daemon"
        assert "BindReadOnlyPaths='/home/me'" in str(error)
        assert self.error(203, "PrivateTmp=yes", args=("/tmp/x",)).cause == "PrivateTmp=yes hides /tmp/x"

    def test_programs_that_cannot_be_executed(self, tmp_path: Path) -> None:
        script = tmp_path / "script"
        script.write_text("#!/nonexistent/interpreter\n")
        error = self.error(203, args=(str(script),))
        assert isinstance(error, sandbox.CommandNotExecutable)
        assert "not marked executable" in str(error.cause)
        script.chmod(0o755)
        assert "its interpreter /nonexistent/interpreter" in str(self.error(203, args=(str(script),)).cause)
        script.write_text("echo hello\n")
        assert "neither a program nor a script" in str(self.error(203, args=(str(script),)).cause)

    def test_a_command_that_is_fine_must_have_ended_so_by_itself(self) -> None:
        assert causes.setup_error(203, ("/bin/sh",), settings(), None) is None

    @pytest.mark.parametrize(
        ("status", "line", "cause"),
        [
            (200, "WorkingDirectory=/nonexistent", "/nonexistent: no such file or directory"),
            (226, "BindPaths=/nonexistent:/x", "BindPaths= names /nonexistent"),
            (217, "User=nobody-of-that-name", "there is no user 'nobody-of-that-name'"),
            (216, "Group=nobody-of-that-name", "there is no group 'nobody-of-that-name'"),
        ],
    )
    def test_probes(self, status: int, line: str, cause: str) -> None:
        error = self.error(status, line)
        assert cause in str(error.cause)
        assert f"(status {status}/" in str(error)
        assert error.hint

    def test_every_status_has_a_remedy(self) -> None:
        assert all(status.hint and status.doing for status in causes.STATUSES.values())
        assert "status 244/244" in str(self.error(244))


class TestSockets:
    def test_names(self) -> None:
        import socket

        with socket.socket() as one, socket.socket() as two:
            assert named_sockets([one, two.fileno()]) == [("listen", one.fileno()), ("listen", two.fileno())]
            assert named_sockets({"http": one}) == [("http", one.fileno())]
            for name in ("", "a:b", "x" * 256, 3):
                with pytest.raises(sandbox.ModelError, match="not a name for a socket"):
                    named_sockets({name: one})

    def test_what_is_no_socket(self) -> None:
        with open(os.devnull) as null, pytest.raises(sandbox.ModelError, match="not an open socket"):
            named_sockets([null])
