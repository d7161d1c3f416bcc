"""Managers: which there are, what they do, and that a private one goes with the process that started it."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gate import requires
from programs import patient
from sandbox_systemd import errors, managers
from sandbox_systemd.bus import MANAGER_PATH, PROPERTIES, SYSTEMD, Address, Variant, connect
from sandbox_systemd.manager import Manager, Property, unit_path

pytestmark = requires("systemd.private")

TRUE: list[Property] = [("ExecStart", Variant("a(sasb)", [("/bin/true", ["true"], False)]))]
STAY: list[Property] = [*TRUE, ("RemainAfterExit", Variant("b", True))]


@pytest.fixture(scope="module")
def manager() -> Iterator[Manager]:
    with managers.private() as made:
        yield made


def eventually(condition: Callable[[], bool], patience: float = 5.0) -> bool:
    deadline = time.monotonic() + patient(patience)
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def service(command: str, *more: Property) -> list[Property]:
    return [("ExecStart", Variant("a(sasb)", [("/bin/sh", ["sh", "-c", command], False)])), *more]


class TestUnits:
    def test_start_returns_when_the_job_is_done(self, manager: Manager) -> None:
        manager.start_transient("stays.service", STAY)
        assert manager.get("stays.service", "Unit", "ActiveState").value == "active"
        assert manager.get_all("stays.service", "Service")["Result"] == Variant("s", "success")
        assert eventually(lambda: [unit.sub_state for unit in manager.list_units(["stays.*"])] == ["exited"])
        manager.stop("stays.service")
        assert not manager.exists("stays.service")

    def test_a_name_that_is_taken(self, manager: Manager) -> None:
        manager.start_transient("taken.service", STAY)
        with pytest.raises(errors.UnitExists, match=r"start unit `taken\.service`"):
            manager.start_transient("taken.service", STAY)
        manager.stop("taken.service")

    def test_a_unit_that_does_not_start(self, manager: Manager) -> None:
        with pytest.raises(errors.JobFailed, match=r"start unit `missing\.service`: it failed") as caught:
            manager.start_transient("missing.service", service("exit 7", ("Type", Variant("s", "oneshot"))))
        assert caught.value.result == "failed"
        assert caught.value.hint
        assert manager.get("missing.service", "Service", "ExecMainStatus").value == 7
        manager.reset_failed("missing.service")
        assert eventually(lambda: not manager.exists("missing.service"))

    def test_a_property_that_there_is_not(self, manager: Manager) -> None:
        with pytest.raises(errors.InvalidProperty, match="NoSuchThing"):
            manager.start_transient("wrong.service", [*TRUE, ("NoSuchThing", Variant("b", True))])
        assert not manager.exists("wrong.service")

    def test_a_unit_that_there_is_not(self, manager: Manager) -> None:
        with pytest.raises(errors.NoSuchUnit, match=r"stop unit `nonesuch\.service`"):
            manager.stop("nonesuch.service")
        with pytest.raises(errors.NoSuchUnit, match=r"get Result of `nonesuch\.service`"):
            manager.get("nonesuch.service", "Service", "Result")

    def test_kill_and_change(self, manager: Manager, tmp_path: Path) -> None:
        trapped = f"trap 'exit 5' USR1; touch {tmp_path}/trapped; while :; do sleep 0.01; done"
        manager.start_transient("lives.service", service(trapped))
        manager.set_properties("lives.service", [("Description", Variant("s", "changed")), ("TasksMax", Variant("t", 50))])
        assert manager.get("lives.service", "Unit", "Description").value == "changed"
        assert manager.get("lives.service", "Service", "TasksMax").value == 50
        assert eventually((tmp_path / "trapped").exists)
        manager.kill("lives.service", signal.SIGUSR1)
        assert eventually(lambda: manager.get("lives.service", "Service", "ExecMainStatus").value == 5)
        manager.reset_failed("lives.service")

    def test_no_answer_in_time(self, manager: Manager) -> None:
        slow = service("sleep 60", ("Type", Variant("s", "oneshot")))
        with pytest.raises(errors.BusTimeout, match="start unit"):
            manager.start_transient("slow.service", slow, timeout=0.1)
        manager.stop("slow.service")

    def test_results_of_others_are_not_kept(self, manager: Manager) -> None:
        for number in range(20):
            manager.start_transient(f"one-{number}.service", STAY)
            manager.stop(f"one-{number}.service")
        assert len(manager._results) < 5
        assert not manager._expected


class TestTheProcessHasOne:
    """In processes of their own: this one has one already."""

    def test_all_that_ask_get_the_same_and_the_last_ends_it(self) -> None:
        assert _said("""
            first, second = managers.open_manager("private"), managers.open_manager("private")
            assert first.name == second.name
            for _ in range(2):
                first.close()  # once or twice: it is one who leaves
            assert second.list_units()
            second.close()
            assert not os.path.exists(second.name)
            with managers.open_manager("private") as third:
                assert third.name != first.name
        """)

    def test_one_that_was_killed_is_not_given_again(self) -> None:
        assert _said("""
            with managers.open_manager("private") as old:
                for pid in filter(str.isdecimal, os.listdir("/proc")):
                    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
                        if f"XDG_RUNTIME_DIR={old.name}".encode() in file.read().split(bytes(1)):
                            os.kill(int(pid), 9)
                while os.path.exists(old.name):
                    time.sleep(0.01)
                with managers.open_manager("private") as new:
                    assert new.name != old.name
                    old.close()
                    assert new.list_units()
        """)

    def test_pods_and_services_are_in_it_together(self) -> None:
        assert _said("""
            import sandbox
            from sandbox.cgroups import choose
            from sandbox.pods import Options
            with sandbox.start(command=["sleep", "inf"], options=Options(systemd="private")):
                with sandbox.start_service(["sleep", "inf"], manager="private") as service:
                    units = choose("auto", "private").manager.list_units(["sandbox*"])
                    assert service.unit in [unit.name for unit in units]
        """)


def test_a_connection_that_nobody_reads_does_not_keep_news_from_others() -> None:
    """Of a manager with a thousand messages in its queue nobody hears any more (MANAGER_BUS_BUSY_THRESHOLD)."""
    with managers.private() as busy:
        there = Address(f"{busy.name}/systemd/private", message_bus=False)
        with Manager(lambda: connect(there), "private", busy.name):  # idle from now on
            for number in range(600):
                busy.start_transient(f"news-{number}.service", STAY)
                busy.stop(f"news-{number}.service")
            with busy.bus.subscribe(unit_path("last.service"), PROPERTIES, "PropertiesChanged") as news:
                busy.start_transient("last.service", STAY)
                while not news.get(timeout=10).mentions("exited"):
                    pass


def _said(script: str) -> bool:
    """Run a script that asserts something, and see that it got to its end."""
    text = f"import contextlib, os, time\nfrom sandbox_systemd import managers\n{textwrap.dedent(script)}\nprint('done')"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)
    assert not done.returncode, done.stderr
    return done.stdout == "done\n"


def test_paths_of_units() -> None:
    assert unit_path("a-1.scope") == f"{MANAGER_PATH}/unit/a_2d1_2escope"
    assert unit_path("1.slice") == f"{MANAGER_PATH}/unit/_31_2eslice"
    assert unit_path("ü.slice") == f"{MANAGER_PATH}/unit/_c3_bc_2eslice"


def test_a_manager_that_is_executed_anew_is_survived() -> None:
    with managers.private() as manager:
        manager.start_transient("before.service", STAY)
        with pytest.raises(errors.ConnectionLost):
            manager.bus.call(MANAGER_PATH, f"{SYSTEMD}.Manager", "Reexecute")
        assert manager.exists("before.service")
        manager.start_transient("after.service", STAY)
        assert len(manager.list_units(["before.*", "after.*"])) == 2


@pytest.mark.system_manager
def test_freeze_and_thaw() -> None:
    with managers.system() as manager:
        manager.start_transient("freezes.service", service("while :; do sleep 0.01; done"))
        manager.freeze("freezes.service")
        assert manager.get("freezes.service", "Unit", "FreezerState").value == "frozen"
        manager.thaw("freezes.service")
        assert manager.get("freezes.service", "Unit", "FreezerState").value == "running"
        manager.stop("freezes.service")


def test_a_manager_that_is_killed_in_mid_job() -> None:
    with managers.private() as manager:
        pending = manager.begin_transient("slow.service", service("sleep 60", ("Type", Variant("s", "oneshot"))))
        assert eventually(lambda: manager.exists("slow.service"))
        (pid,) = processes(manager, "/init.scope")
        cgroup, directory = directory_of(manager), manager.name
        os.kill(pid, signal.SIGKILL)
        with pytest.raises((errors.NoBus, errors.ConnectionLost)) as caught:
            pending.result(20)
        assert caught.value.hint
    assert not Path(cgroup).exists()
    assert not Path(directory).exists()


def lives(pid: int | str) -> bool:
    """Not when it only waits for process 1 to take notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def directory_of(manager: Manager) -> str:
    return Path(manager.name, "cgroup").read_text()


def processes(manager: Manager, below: str = "") -> list[int]:
    return [int(pid) for pid in Path(directory_of(manager) + below, "cgroup.procs").read_text().split()]


class TestTheEndOfAPrivateManager:
    def test_closed(self) -> None:
        manager = managers.private()
        manager.start_transient("lives.service", service("exec sleep 999"))
        (pid,) = processes(manager, "/app.slice/lives.service")
        cgroup = directory_of(manager)
        manager.close()
        manager.close()
        assert not Path(cgroup).exists()
        assert not Path(manager.name).exists()
        assert not lives(pid)
        with pytest.raises(errors.ConnectionLost):
            manager.list_units()

    @pytest.mark.parametrize("how", ["kill -9 of the client", "exit"])
    def test_with_the_process_that_started_it(self, how: str) -> None:
        code = f"""
import os, signal
from sandbox_systemd import managers
from sandbox_systemd.bus import Variant
manager = managers.private()
manager.start_transient("lives.service", [("ExecStart", Variant("a(sasb)", [("/bin/sleep", ["sleep", "999"], False)]))])
print(manager.name, open(manager.name + "/cgroup").read(), manager.get("lives.service", "Service", "MainPID").value,
      flush=True)
if {how != "exit"}:
    os.kill(os.getpid(), signal.SIGKILL)
"""
        client = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
        assert client.returncode == (0 if how == "exit" else -9), client.stderr
        directory, cgroup, pid = client.stdout.split()
        assert eventually(lambda: not Path(directory).exists() and not Path(cgroup).exists())
        assert not lives(pid)

    def test_what_is_left_when_everybody_is_killed_goes_with_the_next(self) -> None:
        manager = managers.private()
        manager.start_transient("lives.service", service("exec sleep 999"))
        (pid,) = processes(manager, "/app.slice/lives.service")
        (systemd,) = processes(manager, "/init.scope")
        keeper = int(Path(f"/proc/{systemd}/status").read_text().partition("PPid:")[2].split()[0])
        cgroup = directory_of(manager)
        os.kill(keeper, signal.SIGKILL)
        assert eventually(lambda: not lives(systemd))
        assert lives(pid)
        managers.private().close()
        assert eventually(lambda: not Path(cgroup).exists())
        assert not lives(pid)
        manager.close()


class TestChoice:
    def test_what_is_not_there_says_why(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
        with pytest.raises(errors.NoBus, match="there is no bus of this user") as caught:
            managers.open_manager("user")
        assert "logind" in str(caught.value.hint)

    def test_a_kind_that_there_is_not(self) -> None:
        with pytest.raises(errors.NoBus, match="auto, system, user, private"):
            managers.open_manager("global")

    def test_errors_survive_pickling(self) -> None:
        error = errors.JobFailed("it failed", result="timeout", operation="start unit", object="x.service")
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.result) == (str(error), "timeout")
