"""Properties set by us read back from systemd the same as when systemd-run sets them: one row per assignment.

Every row makes two transient units, one by systemd-run, one by us; all properties of all their interfaces are compared.
Their jobs wait behind a unit that never finishes starting, so that nothing runs and nothing changes meanwhile.
"""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sandbox_systemd import managers
from sandbox_systemd.bus import MANAGER_PATH, PROPERTIES, SYSTEMD
from sandbox_systemd.errors import SystemdError
from sandbox_systemd.manager import Manager, unit_path
from sandbox_systemd.properties import Property, from_python, parse
from systemd_rows import NEUTRAL, REFUSED_BY_MANAGER, SCOPE, SERVICE, SLICE

pytestmark = pytest.mark.system_manager

HOLD = "hold.service"
#: What differs between two units that were made one after the other: when, and what was measured.
VOLATILE = re.compile(
    r".*Timestamp(Monotonic)?|InvocationID|Job|ControlGroupId|.*(Current|Available|Peak|UsageNSec)"
)
#: systemd-run looks a program up itself, but not for units with another root.
COMMAND = ("/usr/bin/sleep", "1000")
#: Sets, which are read in any order.
SETS = {
    "After", "Before", "BindsTo", "BoundBy", "ConflictedBy", "Conflicts", "ConsistsOf", "JoinsNamespaceOf", "Names",
    "OnFailure", "OnFailureOf", "OnSuccess", "OnSuccessOf", "PartOf", "PropagatesReloadTo", "PropagatesStopTo",
    "ReloadPropagatedFrom", "RequiredBy", "Requires", "RequiresMountsFor", "Requisite", "RequisiteOf", "SliceOf",
    "StopPropagatedFrom", "TriggeredBy", "Triggers", "UpheldBy", "Upholds", "WantedBy", "Wants",
}  # fmt: skip
#: Sent under one name, read under another.
RENAMED = {
    "ReadWriteDirectories": "ReadWritePaths", "ReadOnlyDirectories": "ReadOnlyPaths",
    "InaccessibleDirectories": "InaccessiblePaths", "DelegateControllers": "Delegate",
    "WatchdogUSec": "NotifyAccess",
    **{
        f"Standard{stream}{suffix}": f"Standard{stream}"
        for stream in ("Input", "Output", "Error")
        for suffix in ("File", "FileToAppend", "FileToTruncate", "FileDescriptorName")
    },
    **{
        f"Exec{moment}Ex": f"Exec{moment}"
        for moment in ("Condition", "StartPre", "Start", "StartPost", "Reload", "Stop", "StopPost")
    },
}  # fmt: skip
#: Properties that would get into each other's way: a unit gets only one of each kind.
APART = {
    "Type": "kind", "ExitType": "kind", "Restart": "kind", "RestartForceExitStatus": "kind",
    "SetCredential": "id", "SetCredentialEncrypted": "id", "LoadCredential": "id", "LoadCredentialEncrypted": "id",
    "RootHash": "hash", "RootHashSignature": "signature",
}  # fmt: skip
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def manager() -> Iterator[Manager]:
    with managers.system() as manager:
        systemd_run("--unit", HOLD, "--no-block", "-p", "Type=oneshot", "-p", "TimeoutStartSec=infinity")
        yield manager
        for number, unit, *_ in call(manager, "ListJobs")[0]:  # none of the units is to start
            if unit.startswith("row"):
                call(manager, "CancelJob", "u", (number,))
        subprocess.run(["systemctl", "stop", HOLD, "row*.slice"], check=True, timeout=30)
        subprocess.run(["systemctl", "reset-failed", HOLD], capture_output=True, check=False, timeout=30)
        assert [unit.name for unit in manager.list_units(["row*", HOLD])] == []


def call(manager: Manager, member: str, signature: str = "", arguments: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    return manager.bus.call(MANAGER_PATH, f"{SYSTEMD}.Manager", member, signature, arguments)


def systemd_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-run", "--quiet", *arguments]
    return subprocess.run([*command, *COMMAND], capture_output=True, text=True, check=False, timeout=30)


def read(manager: Manager, unit: str) -> dict[str, Any]:
    """All properties of a unit that say something about it, its own name replaced."""
    (found,) = manager.bus.call(unit_path(unit), PROPERTIES, "GetAll", "s", ("",))
    seen = {name: renamed(value, unit) for name, value in found.items() if not VOLATILE.fullmatch(name)}
    return {name: sorted(value[1]) if name in SETS else value for name, value in seen.items()}


def renamed(value: Any, unit: str) -> Any:
    stem = unit.partition(".")[0]
    if isinstance(value, str):
        return value.replace(stem, "UNIT")
    if isinstance(value, dict):
        return {key: renamed(item, unit) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [renamed(item, unit) for item in value]
    return value


def start(manager: Manager, unit: str, properties: list[Property]) -> None:
    """Make a unit without waiting for its job, which is held."""
    call(manager, "StartTransientUnit", "ssa(sv)a(sa(sv))", (unit, "fail", properties, []))


HELD = ("Description=held", f"After={HOLD}")


def by_systemd_run(manager: Manager, *rows: str) -> dict[str, Any]:
    unit = f"row-{next(NUMBERS)}.service"
    done = systemd_run(f"--unit={unit}", "--no-block", *(f"--property={text}" for text in (*HELD, *rows)))
    assert done.returncode == 0, done.stderr
    return read(manager, unit)


def by_us(manager: Manager, *rows: str) -> dict[str, Any]:
    unit = f"row-{next(NUMBERS)}.service"
    start(manager, unit, parse([*HELD, *rows, f"ExecStart={' '.join(COMMAND)}"]))
    return read(manager, unit)


@pytest.fixture(scope="module")
def bare(manager: Manager) -> dict[str, Any]:
    """A unit with none of the rows."""
    return by_systemd_run(manager)


def differing(left: dict[str, Any], right: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = left.keys() | right.keys()
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}


def shown_in(sent: str) -> str:
    """The property in which what was sent as ``sent`` can be read."""
    return RENAMED.get(sent, sent.removesuffix("Scale"))


def effects(row: str, unit_type: str) -> set[str]:
    """The properties that have to be others than without the row: at least one of them."""
    return {shown_in(name) for name, _ in parse([row], unit_type)}


def lots(rows: Sequence[str], unit_type: str) -> list[list[str]]:
    """Rows that a unit can have together, for no two of them are about the same property."""
    found: list[tuple[list[str], set[str]]] = []
    for row in rows:
        names = effects(row, unit_type) | {APART.get(row.partition("=")[0], row)}
        lot, taken = next((pair for pair in found if not pair[1] & names), ([], set()))
        if not lot:
            found.append((lot, taken))
        lot.append(row)
        taken |= names
    return [lot for lot, _ in found]


def assert_alike(
    theirs: dict[str, Any], ours: dict[str, Any], bare: dict[str, Any], lot: list[str], kind: str
) -> None:
    assert differing(theirs, ours) == {}
    changed = differing(bare, ours).keys()
    assert [row for row in lot if not effects(row, kind) & changed] == []


@pytest.mark.parametrize("lot", lots(SERVICE, "service"), ids=lambda lot: lot[0])
def test_services_read_back_the_same(manager: Manager, bare: dict[str, Any], lot: list[str]) -> None:
    assert_alike(by_systemd_run(manager, *lot), by_us(manager, *lot), bare, lot, "service")


@pytest.mark.parametrize("lot", lots(NEUTRAL, "service"), ids=lambda lot: lot[0])
def test_what_a_service_has_anyway_reads_back_so(manager: Manager, bare: dict[str, Any], lot: list[str]) -> None:
    ours = by_us(manager, *lot)
    assert differing(by_systemd_run(manager, *lot), ours) == {}
    assert differing(bare, ours) == {}


def test_there_are_enough_rows() -> None:
    assert len({*SERVICE}) >= 650


@pytest.mark.parametrize("row", REFUSED_BY_MANAGER)
def test_what_the_manager_refuses_it_refuses_from_us(manager: Manager, row: str) -> None:
    with pytest.raises(AssertionError, match="Failed to start transient"):
        by_systemd_run(manager, row)
    with pytest.raises(SystemdError) as caught:
        by_us(manager, row)
    assert caught.value.detail


# --- scopes: they have processes from the start, and their job is done when systemd-run goes on ----------------


def scope_by_systemd_run(manager: Manager, *rows: str) -> dict[str, Any]:
    unit = f"row-{next(NUMBERS)}.scope"
    options = [
        "systemd-run",
        "--quiet",
        "--scope",
        f"--unit={unit}",
        *(f"--property={text}" for text in rows),
    ]
    with subprocess.Popen(
        [*options, "sh", "-c", "echo ready; read end"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return read(manager, unit)


def scope_by_us(manager: Manager, *rows: str) -> dict[str, Any]:
    unit = f"row-{next(NUMBERS)}.scope"
    with subprocess.Popen(["sh", "-c", "read end"], stdin=subprocess.PIPE) as process:
        properties = from_python({"PIDs": [process.pid]}, "scope")
        manager.start_transient(unit, [*properties, *parse(rows, "scope")])
        return read(manager, unit)


@pytest.fixture(scope="module")
def bare_scope(manager: Manager) -> dict[str, Any]:
    return scope_by_systemd_run(manager, SCOPE_NAME)


SCOPE_NAME = "Description=a scope"


@pytest.mark.parametrize("lot", lots(SCOPE, "scope"), ids=lambda lot: lot[0])
def test_scopes_read_back_the_same(manager: Manager, bare_scope: dict[str, Any], lot: list[str]) -> None:
    theirs = scope_by_systemd_run(manager, SCOPE_NAME, *lot)
    assert_alike(theirs, scope_by_us(manager, SCOPE_NAME, *lot), bare_scope, lot, "scope")


# --- slices: systemd-run makes none, but systemctl set-property takes the same assignments ---------------------


@pytest.fixture
def slices(manager: Manager) -> list[str]:
    units = [f"row{next(NUMBERS)}.slice" for _ in range(3)]
    for unit in units:
        start(manager, unit, parse(["Description=a slice"], "slice"))
    return units


@pytest.mark.parametrize("lot", lots(SLICE, "slice"), ids=lambda lot: lot[0])
def test_slices_read_back_the_same(manager: Manager, slices: list[str], lot: list[str]) -> None:
    bare, theirs, ours = slices
    subprocess.run(["systemctl", "set-property", "--runtime", theirs, *lot], check=True, timeout=30)
    manager.set_properties(ours, parse(lot, "slice"))
    assert_alike(read(manager, theirs), read(manager, ours), read(manager, bare), lot, "slice")
