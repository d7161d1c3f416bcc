"""The contract of a bus, the same for both bindings, on a real manager's own socket and on a real message bus.

pydbus comes from the distribution, for the distribution's Python: where ours cannot import it, that one runs this file.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gate import DISTRIBUTION_PYTHON, requires
from sandbox_systemd import errors, managers
from sandbox_systemd.bus import (
    BINDINGS,
    MANAGER_PATH,
    PROPERTIES,
    SYSTEMD,
    Address,
    Bus,
    Variant,
    available_bindings,
    connect,
    system_address,
    types,
)
from sandbox_systemd.manager import Manager, unit_path

MANAGER = f"{SYSTEMD}.Manager"
HERE = available_bindings()
USABLE = [name for name in BINDINGS if HERE[name] is None]


@pytest.fixture(scope="module")
def manager() -> Iterator[Manager]:
    with managers.private() as made:
        yield made


@pytest.fixture(params=USABLE)
def bus(request: pytest.FixtureRequest, manager: Manager) -> Iterator[Bus]:
    made = connect(manager.bus.address, request.param)
    assert made.binding == request.param
    yield made
    made.close()


@requires("systemd.private")
class TestCalls:
    def test_a_property_comes_with_its_type(self, bus: Bus) -> None:
        (version,) = bus.call(MANAGER_PATH, PROPERTIES, "Get", "ss", (MANAGER, "Version"))
        assert isinstance(version, Variant)
        assert version.signature == "s"
        assert version.value

    def test_values_of_all_kinds_come_as_plain_python(self, bus: Bus) -> None:
        (values,) = bus.call(MANAGER_PATH, PROPERTIES, "GetAll", "s", (MANAGER,))
        kinds = {value.signature: type(value.value) for value in values.values()}
        assert kinds.items() >= {"s": str, "t": int, "u": int, "b": bool, "as": list, "d": float}.items()
        (rows,) = bus.call(MANAGER_PATH, MANAGER, "ListUnits")
        assert all(isinstance(row, tuple) and len(row) == 10 for row in rows)

    def test_a_structure_goes_there_and_comes_back(self, bus: Bus) -> None:
        words = ["/bin/sh", "-c", "exit 0", "ümlaut", ""]
        properties = [
            ("ExecStart", Variant("a(sasb)", [("/bin/sh", words, False)])), ("RemainAfterExit", Variant("b", True)),
            ("AllowedCPUs", Variant("ay", b"\x01")), ("Environment", Variant("as", [])),
            ("CollectMode", Variant("s", "inactive-or-failed")),
        ]  # fmt: skip
        unit = f"contract-{bus.binding}.service"
        (job,) = bus.call(MANAGER_PATH, MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", (unit, "fail", properties, []))
        assert job.startswith(f"{MANAGER_PATH}/job/")
        (values,) = bus.call(unit_path(unit), PROPERTIES, "GetAll", "s", (f"{SYSTEMD}.Service",))
        assert values["ExecStart"].value[0][:3] == ("/bin/sh", words, False)
        assert values["AllowedCPUs"].value.rstrip(b"\0") == b"\x01"
        assert values["Environment"] == Variant("as", [])
        assert values["CPUQuotaPerSecUSec"] == Variant("t", 2**64 - 1)

    def test_file_descriptors_are_passed(self, bus: Bus) -> None:
        read_end, write_end = os.pipe()
        properties = [
            ("ExecStart", Variant("a(sasb)", [("/bin/echo", ["echo", "through the pipe"], False)])),
            ("StandardOutputFileDescriptor", Variant("h", write_end)),
        ]  # fmt: skip
        arguments: tuple[object, ...] = (f"pipe-{bus.binding}.service", "fail", properties, [])
        bus.call(MANAGER_PATH, MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", arguments)
        os.close(write_end)
        with os.fdopen(read_end) as stream:
            assert stream.read() == "through the pipe\n"

    def test_from_many_threads(self, bus: Bus) -> None:
        def ask(number: int) -> list[str]:
            name = f"thread-{number}.service"
            return [bus.call(MANAGER_PATH, MANAGER, "LoadUnit", "s", (name,))[0] for _ in range(10)]

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(32)))
        assert answers == [[unit_path(f"thread-{number}.service")] * 10 for number in range(32)]

    def test_several_on_their_way_at_once(self, bus: Bus) -> None:
        waiting = [bus.begin(MANAGER_PATH, PROPERTIES, "Get", "ss", (MANAGER, name)) for name in ("Version", "NNames")]
        assert [pending.result()[0].signature for pending in waiting[::-1]] == ["u", "s"]


@requires("systemd.private")
class TestErrors:
    def test_no_such_unit(self, bus: Bus) -> None:
        with pytest.raises(errors.NoSuchUnit, match=r"nonesuch\.service") as caught:
            bus.call(MANAGER_PATH, MANAGER, "GetUnit", "s", ("nonesuch.service",))
        assert caught.value.name == "org.freedesktop.systemd1.NoSuchUnit"
        assert caught.value.hint

    @pytest.mark.parametrize("name", ["NoSuchThing", "MemoryMax"])
    def test_a_property_that_there_is_not(self, bus: Bus, name: str) -> None:
        arguments: tuple[object, ...] = ("wrong.service", "fail", [(name, Variant("s", "x"))], [])
        with pytest.raises(errors.InvalidProperty):
            bus.call(MANAGER_PATH, MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", arguments)

    def test_an_error_without_a_class_keeps_its_name(self, bus: Bus) -> None:
        with pytest.raises(errors.SystemdError) as caught:
            bus.call(MANAGER_PATH, MANAGER, "NoSuchMethod")
        assert type(caught.value) is errors.SystemdError
        assert caught.value.name == "org.freedesktop.DBus.Error.UnknownMethod"


@requires("systemd.private")
class TestSignals:
    def test_are_fetched(self, bus: Bus) -> None:
        with bus.subscribe(MANAGER_PATH, MANAGER, "UnitNew") as news:
            bus.call(MANAGER_PATH, MANAGER, "Subscribe")
            bus.call(MANAGER_PATH, MANAGER, "LoadUnit", "s", (f"fresh-{bus.binding}.service",))
            while (came := news.get(5)).body[0] != f"fresh-{bus.binding}.service":
                pass
        assert (came.path, came.interface, came.member) == (MANAGER_PATH, MANAGER, "UnitNew")

    def test_none_comes(self, bus: Bus) -> None:
        news = bus.subscribe(MANAGER_PATH, MANAGER, "NoSuchSignal")
        with pytest.raises(errors.BusTimeout, match=r"within 0\.05 s"):
            news.get(0.05)
        bus.call(MANAGER_PATH, PROPERTIES, "Get", "ss", (MANAGER, "Version"))  # the bus goes on


@pytest.mark.parametrize("binding", USABLE)
class TestConnections:
    def test_nobody_listens(self, binding: str, tmp_path: Path) -> None:
        path = str(tmp_path / "bus")
        with pytest.raises(errors.NoBus, match=path):
            connect(Address(path), binding)
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.bind(path)
            with pytest.raises(errors.NoBus, match=path):
                connect(Address(path), binding)

    def test_somebody_listens_who_says_nothing(self, binding: str, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as mute:
            mute.bind(str(tmp_path / "bus"))
            mute.listen()
            with pytest.raises(errors.BusTimeout, match="bus"):
                connect(Address(str(tmp_path / "bus")), binding)

    @requires("systemd.private")
    def test_a_closed_connection_is_lost(self, binding: str) -> None:
        with managers.private() as manager:
            bus = connect(manager.bus.address, binding)
            bus.close()
            bus.close()
            with pytest.raises(errors.ConnectionLost):
                bus.call(MANAGER_PATH, MANAGER, "ListUnits")

    @requires("systemd.private")
    def test_who_waits_is_told_when_the_manager_dies(self, binding: str) -> None:
        with managers.private() as manager:
            bus = connect(manager.bus.address, binding)
            news = bus.subscribe(MANAGER_PATH, MANAGER, "NoSuchSignal")
            (pid,) = _processes(f"{manager.own('ControlGroup').value}/init.scope")
            threading.Timer(0.1, os.kill, (pid, signal.SIGKILL)).start()
            start = time.monotonic()
            with pytest.raises(errors.ConnectionLost):
                news.get(20)
            assert time.monotonic() - start < 10
            bus.close()


@pytest.mark.system_manager
@pytest.mark.parametrize("binding", USABLE)
def test_over_a_message_bus(binding: str) -> None:
    bus = connect(system_address(), binding)
    (unit,) = bus.call(MANAGER_PATH, MANAGER, "GetUnit", "s", ("-.slice",))
    assert unit == unit_path("-.slice")
    with bus.subscribe(MANAGER_PATH, MANAGER, "JobRemoved") as news:
        bus.call(MANAGER_PATH, MANAGER, "Subscribe")
        rows = [("ExecStart", Variant("a(sasb)", [("/bin/true", ["true"], False)]))]
        arguments: tuple[object, ...] = (f"over-{binding}.service", "fail", rows, [])
        (job,) = bus.call(MANAGER_PATH, MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", arguments)
        while (came := news.get(10)).body[1] != job:
            pass
    assert came.body[2:] == (f"over-{binding}.service", "done")
    with pytest.raises(errors.NoBus, match=r"org\.example\.Nobody"):
        bus.call("/", MANAGER, "Subscribe", destination="org.example.Nobody")
    bus.close()


@requires("pydbus", "systemd.private")
def test_pydbus_under_the_python_of_the_distribution() -> None:
    """All of the above but what needs a machine, none of it skipped."""
    if HERE["pydbus"] is None:
        return  # done above
    paths = [path for path in sys.path if path and Path(path).is_dir() and "/lib-dynload" not in path and _is_pure(path)]
    done = subprocess.run(
        [DISTRIBUTION_PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:sandbox", "--noconftest", "-q",
         "-W", "default", "--override-ini=addopts=", "-rs", "-m", "not system_manager", __file__, "-k", "not distribution"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "SANDBOX_DBUS": "pydbus"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "SKIPPED" not in done.stdout
    names = subprocess.run([DISTRIBUTION_PYTHON, "-c", "import sandbox_systemd.bus as b; print(b.available_bindings())"],
                           env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True,
                           check=True)  # fmt: skip
    assert "'pydbus': None" in names.stdout


def _is_pure(path: str) -> bool:
    return "site-packages" in path or Path(path, "sandbox_systemd").is_dir() or path.endswith("/tests")


def _processes(cgroup: str) -> list[int]:
    with open("/proc/self/mountinfo") as file:
        mount = [line.split(" ")[4] for line in file if " - cgroup2 " in line][-1]
    return [int(pid) for pid in Path(f"{mount}{cgroup}/cgroup.procs").read_text().split()]


@pytest.mark.parametrize(
    ("signature", "parts"),
    [("", []), ("s", ["s"]), ("sa(sv)a{sv}ay", ["s", "a(sv)", "a{sv}", "ay"]), ("a(sa(sv))u", ["a(sa(sv))", "u"])],
)
def test_types_of_a_signature(signature: str, parts: list[str]) -> None:
    assert list(types(signature)) == parts


def test_the_binding_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SANDBOX_DBUS", "dbus-python")
    with pytest.raises(errors.NoBus, match="pydbus, jeepney"):
        connect(Address(str(tmp_path)))
