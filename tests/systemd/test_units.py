"""Scopes and services as they are declared, made by a real system manager; and what is read of them."""

from __future__ import annotations

import datetime as dt
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sandbox_systemd import managers
from sandbox_systemd.errors import JobFailed
from sandbox_systemd.properties import Command, to_python
from sandbox_systemd.units import Scope, Service

if TYPE_CHECKING:
    from sandbox_systemd.manager import Manager

pytestmark = pytest.mark.system_manager


@pytest.fixture(scope="module")
def manager() -> Iterator[Manager]:
    with managers.system() as manager:
        yield manager


def readable(manager: Manager, unit: str, interface: str) -> dict[str, Any]:
    return {name: to_python(name, value) for name, value in manager.get_all(unit, interface).items()}


def test_a_scope_holds_its_processes(manager: Manager) -> None:
    with subprocess.Popen(["sh", "-c", "read end"], stdin=subprocess.PIPE) as process:
        scope = Scope(
            name="units-1.scope", pids=[process.pid], description="a scope of a test", runtime_max=90.5,
            documentation=["man:systemd.scope(5)"], slice="units.slice", delegate=True, properties={"TasksMax": 7},
        )  # fmt: skip
        manager.start_transient(scope.name, scope.to_properties())
        cgroup = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()[-1]
        assert cgroup == "0::/units.slice/units-1.scope"
        unit, read = readable(manager, scope.name, "Unit"), readable(manager, scope.name, "Scope")
        assert unit["Description"] == "a scope of a test"
        assert unit["Documentation"] == ["man:systemd.scope(5)"]
        assert unit["CollectMode"] == "inactive-or-failed"
        assert (read["RuntimeMaxUSec"], read["TasksMax"], read["MemoryMax"]) == (90.5, 7, math.inf)
        assert (read["Slice"], read["Delegate"]) == ("units.slice", True)
        assert abs(unit["ActiveEnterTimestamp"] - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)
        manager.stop(scope.name)
    assert not manager.exists(scope.name)


def test_a_service_gets_its_arguments_as_they_are(manager: Manager, tmp_path: Path) -> None:
    arguments = ["$HOME", "${PATH}", "$$", "%n", "a  b", "\\x41", '"q"', ";", "", "ü", "@x"]
    show = ["/bin/sh", "-c", 'printf "%s\\n" "$@"', "name", *arguments]
    service = Service(
        name="units-1.service", command=show, type="oneshot",
        properties={"StandardOutput": f"file:{tmp_path}/out", "RemainAfterExit": True},
    )  # fmt: skip
    manager.start_transient(service.name, service.to_properties())
    assert (tmp_path / "out").read_text().splitlines() == arguments
    read = readable(manager, service.name, "Service")
    assert read["ExecStartEx"] == [Command("/bin/sh", tuple(show), ("no-env-expand",))]
    manager.stop(service.name)


def test_a_service_is_what_it_was_declared(manager: Manager, tmp_path: Path) -> None:
    environment = {"GREETING": 'hello  "world"', "PERCENT": "%n", "LINES": "a\nb"}
    script = 'printf "%s|%s|%s|" "$GREETING" "$PERCENT" "$LINES"; id -un; pwd; umask; cat; echo bad >&2'
    (tmp_path / "in").write_text("from a descriptor\n")
    with (tmp_path / "in").open() as stdin, (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        service = Service(
            name="units-2.service", command=["/bin/sh", "-c", script], type="oneshot", environment=environment,
            user="nobody", working_directory="/usr", stdin=stdin.fileno(), stdout=out.fileno(), stderr=err.fileno(),
            properties={"UMask": 0o027, "PrivateTmp": True, "TemporaryFileSystem": {"/srv": "ro"}},
        )  # fmt: skip
        manager.start_transient(service.name, service.to_properties())
    seen = (tmp_path / "out").read_text()
    assert seen == 'hello  "world"|%n|a\nb|nobody\n/usr\n0027\nfrom a descriptor\n'
    assert (tmp_path / "err").read_text() == "bad\n"


def test_a_service_that_fails_says_how(manager: Manager) -> None:
    service = Service(name="units-3.service", command=["/bin/sh", "-c", "exit 7"], type="oneshot", collect=False)
    with pytest.raises(JobFailed):
        manager.start_transient(service.name, service.to_properties())
    read = readable(manager, service.name, "Service")
    assert (read["Result"], read["ExecMainStatus"]) == ("exit-code", 7)
    manager.reset_failed(service.name)


def test_everything_that_can_be_read_can_be_read_well(manager: Manager) -> None:
    """Of all units that there are, on all their interfaces."""
    for unit in manager.list_units():
        for interface in ("Unit", unit.name.rpartition(".")[2].title()):
            for name, value in manager.get_all(unit.name, interface).items():
                read = to_python(name, value)
                assert read != 2**64 - 1, f"{unit.name} {name}: infinity or not set?"
