"""One systemd manager: its units and jobs (org.freedesktop.systemd1(5))."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, Self, TypeVar

from .bus import MANAGER_PATH, PROPERTIES, SYSTEMD, TIMEOUT, Bus, Pending, Signal, Variant
from .errors import ConnectionLost, JobFailed, ManagerEnded, NoBus, NoSuchUnit, SystemdError

__all__ = ["Kind", "Manager", "Property", "Start", "UnitStatus", "unit_path"]

Kind = Literal["system", "user", "private"]
#: A unit property as the bus has it: its name and its typed value.
Property = tuple[str, Variant]
T = TypeVar("T")

_MANAGER = f"{SYSTEMD}.Manager"
#: Times and seconds in between that a manager which is executed anew is given.
_RECONNECTS, _RECONNECT_PAUSE = 40, 0.05


class UnitStatus(NamedTuple):
    """A row of ListUnits."""

    name: str
    description: str
    load_state: str
    active_state: str
    sub_state: str
    following: str
    path: str
    job_id: int
    job_type: str
    job_path: str


def unit_path(unit: str) -> str:
    """The object path of a unit (sd_bus_path_encode(3)).

    >>> unit_path("a-1.scope")
    '/org/freedesktop/systemd1/unit/a_2d1_2escope'
    """
    plain = "".join(
        chr(byte) if chr(byte).isalnum() and byte < 128 and not (index == 0 and chr(byte).isdigit()) else f"_{byte:02x}"
        for index, byte in enumerate(unit.encode())
    )
    return f"{MANAGER_PATH}/unit/{plain or '_'}"


class Manager:
    """A connection to a manager, made anew where it breaks. Safe to use from any thread."""

    def __init__(
        self, open_bus: Callable[[], Bus], kind: Kind, name: str, when_closed: Callable[[], None] | None = None
    ) -> None:  # fmt: skip
        #: ``system``, ``user`` or ``private``.
        self.kind: Kind = kind
        #: Where it was reached.
        self.name = name
        self._open = open_bus
        self._when_closed = when_closed
        self._lock = threading.Lock()
        self._closed = False
        self._results: dict[str, str] = {}
        self._expected: dict[str, int] = {}
        self.bus = self._connect()

    def _connect(self) -> Bus:
        bus = self._open()
        try:
            bus.subscribe(MANAGER_PATH, _MANAGER, "JobRemoved", self._job_removed)
            bus.call(MANAGER_PATH, _MANAGER, "Subscribe")
        except SystemdError:
            bus.close()
            raise
        return bus

    def _job_removed(self, signal: Signal) -> None:
        _, job, unit, result = signal.body
        if unit in self._expected:
            self._results[job] = result

    def _again(self, broken: Bus) -> Bus:
        """The connection after ``broken``: another thread may have made it already."""
        with self._lock:
            if self.bus is not broken or self._closed:
                return self.bus
            broken.close()
            for left in range(_RECONNECTS, 0, -1):
                try:
                    self.bus = self._connect()
                    break
                except ManagerEnded:
                    raise
                except (NoBus, ConnectionLost):
                    if left == 1:
                        raise
                    threading.Event().wait(_RECONNECT_PAUSE)
            return self.bus

    def _ask(self, path: str, interface: str, member: str, signature: str = "", arguments: Sequence[Any] = (),
             timeout: float | None = TIMEOUT) -> tuple[Any, ...]:  # fmt: skip
        """A call that may be made twice, because the second changes nothing more."""
        bus = self.bus
        try:
            return bus.call(path, interface, member, signature, arguments, timeout=timeout)
        except ConnectionLost:
            if self._closed:
                raise
            return self._again(bus).call(path, interface, member, signature, arguments, timeout=timeout)

    # -- units ----------------------------------------------------------------------------------------------------

    def start_transient(
        self, unit: str, properties: Sequence[Property], *, auxiliary: Sequence[tuple[str, Sequence[Property]]] = (),
        mode: str = "fail", timeout: float | None = TIMEOUT,
    ) -> None:  # fmt: skip
        """Make a transient unit and start it; returns when its job is done.

        :param auxiliary: further units that it needs, which are made with it: a socket's service
        :raises UnitExists: the name is taken
        :raises InvalidProperty: of its name and what systemd says of it
        :raises JobFailed: it did not start
        """
        self.begin_transient(unit, properties, auxiliary=auxiliary, mode=mode).result(timeout)

    def begin_transient(
        self, unit: str, properties: Sequence[Property], *, auxiliary: Sequence[tuple[str, Sequence[Property]]] = (),
        mode: str = "fail",
    ) -> Start:  # fmt: skip
        """The same without waiting."""
        arguments = (unit, mode, list(properties), [(name, list(rows)) for name, rows in auxiliary])
        return Start(self, unit, arguments)

    def stop(self, unit: str, *, mode: str = "replace", timeout: float | None = TIMEOUT) -> None:
        """Stop a unit; returns when its job is done. Raises :class:`NoSuchUnit`, :class:`JobFailed`."""
        with self.expecting(unit):
            try:
                (job,) = self._ask(MANAGER_PATH, _MANAGER, "StopUnit", "ss", (unit, mode), timeout)
                self.await_job("stop unit", unit, job, timeout)
            except SystemdError as error:
                raise error.about("stop unit", unit) from None

    def kill(self, unit: str, signal: int, *, who: str = "all") -> None:
        """Send a signal to the processes of a unit: ``all``, ``main`` or ``control``."""
        self._of_unit("kill unit", "KillUnit", unit, "ssi", who, int(signal))

    def freeze(self, unit: str) -> None:
        """Stop its processes where they are (cgroup.freeze); returns when they have."""
        self._of_unit("freeze unit", "FreezeUnit", unit, "s")

    def thaw(self, unit: str) -> None:
        """Let them go on."""
        self._of_unit("thaw unit", "ThawUnit", unit, "s")

    def reset_failed(self, unit: str) -> None:
        """Forget that it failed, so that it is unloaded."""
        self._of_unit("reset unit", "ResetFailedUnit", unit, "s")

    def set_properties(self, unit: str, properties: Sequence[Property], *, runtime: bool = True) -> None:
        """Change properties of a unit that runs; ``runtime``: until the next boot."""
        self._of_unit("set properties of", "SetUnitProperties", unit, "sba(sv)", runtime, list(properties))

    def begin_set_properties(self, unit: str, properties: Sequence[Property]) -> Pending:
        """The same without waiting, for this time only."""
        return self.bus.begin(MANAGER_PATH, _MANAGER, "SetUnitProperties", "sba(sv)", (unit, True, list(properties)))

    def _of_unit(self, operation: str, member: str, unit: str, signature: str, *arguments: Any) -> None:
        try:
            self._ask(MANAGER_PATH, _MANAGER, member, signature, (unit, *arguments))
        except SystemdError as error:
            raise error.about(operation, unit) from None

    # -- reading --------------------------------------------------------------------------------------------------

    def get(self, unit: str, interface: str, name: str) -> Variant:
        """A property of a unit that is loaded; ``interface`` as in :meth:`get_all`."""
        try:
            path = self.loaded(unit)
            (value,) = self._ask(path, PROPERTIES, "Get", "ss", (_interface(interface), name))
        except SystemdError as error:
            raise error.about(f"get {name} of", unit) from None
        assert isinstance(value, Variant)
        return value

    def get_all(self, unit: str, interface: str) -> dict[str, Variant]:
        """All properties of a unit that is loaded.

        :param interface: ``Unit``, ``Service``, ``Scope`` …, or the whole name of one
        :raises NoSuchUnit: it is not loaded
        """
        try:
            (values,) = self._ask(self.loaded(unit), PROPERTIES, "GetAll", "s", (_interface(interface),))
        except SystemdError as error:
            raise error.about("get properties of", unit) from None
        found: dict[str, Variant] = values
        return found

    def loaded(self, unit: str) -> str:
        """Its object path. Raises :class:`NoSuchUnit`: asking the object itself would load what there is not."""
        path: str = self._ask(MANAGER_PATH, _MANAGER, "GetUnit", "s", (unit,))[0]
        return path

    def exists(self, unit: str) -> bool:
        """True if a unit of this name is loaded."""
        try:
            self.loaded(unit)
        except NoSuchUnit:
            return False
        return True

    def own(self, name: str) -> Variant:
        """A property of the manager itself: ``Version``, ``ControlGroup``, ``Features`` and others."""
        (value,) = self._ask(MANAGER_PATH, PROPERTIES, "Get", "ss", (_MANAGER, name))
        assert isinstance(value, Variant)
        return value

    @property
    def version(self) -> int:
        """Systemd's version: 252."""
        digits = "".join(ch if ch.isdigit() else " " for ch in str(self.own("Version").value)).split()
        return int(digits[0]) if digits else 0

    def list_units(self, patterns: Iterable[str] = ()) -> list[UnitStatus]:
        """The units that are loaded, those whose names match if there are patterns (glob(7))."""
        (rows,) = self._ask(MANAGER_PATH, _MANAGER, "ListUnitsByPatterns", "asas", ([], list(patterns)))
        return [UnitStatus(*row) for row in rows]

    # -- jobs -----------------------------------------------------------------------------------------------------

    def expecting(self, unit: str) -> _Expecting:
        """As long as this is entered, results of this unit's jobs are kept for :meth:`await_job`."""
        return _Expecting(self._expected, unit)

    def await_job(self, operation: str, unit: str, job: str, timeout: float | None = TIMEOUT) -> None:
        """Until JobRemoved tells of ``job``. Raises :class:`JobFailed`."""
        result = self.bus.wait_for(lambda: self._results.pop(job, None), timeout)
        if result != "done":
            detail = _RESULTS.get(result, f"its job ended as `{result}`")
            raise JobFailed(detail, result=result, operation=operation, object=unit)

    def close(self) -> None:
        """End the connection; a private manager ends with it."""
        self._closed = True
        self.bus.close()
        if self._when_closed is not None:
            self._when_closed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Start:
    """A transient unit on its way."""

    def __init__(self, manager: Manager, unit: str, arguments: tuple[Any, ...]) -> None:
        self._manager, self._unit, self._arguments = manager, unit, arguments
        self._expecting = manager.expecting(unit)
        self._bus = manager.bus
        try:
            self._pending = self._send()
        except ConnectionLost:
            self._bus = manager._again(self._bus)  # noqa: SLF001 - a part of the manager
            self._pending = self._send()

    def _send(self) -> Pending:
        return self._bus.begin(MANAGER_PATH, _MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", self._arguments)

    def result(self, timeout: float | None = TIMEOUT) -> None:
        """Until its job is done."""
        with self._expecting:
            try:
                self._wait(timeout)
            except SystemdError as error:
                raise error.about("start unit", self._unit) from None

    def _wait(self, timeout: float | None) -> None:
        try:
            (job,) = self._pending.result(timeout)
            self._manager.await_job("start unit", self._unit, job, timeout)
        except ConnectionLost:
            # Nobody knows how far it came. What a manager that was executed anew has is told by the unit itself.
            self._bus = self._manager._again(self._bus)  # noqa: SLF001
            if not self._manager.exists(self._unit):
                (job,) = self._send().result(timeout)
                self._manager.await_job("start unit", self._unit, job, timeout)


class _Expecting:
    """Counts who waits for jobs of a unit."""

    def __init__(self, counts: dict[str, int], unit: str) -> None:
        self._counts, self._unit = counts, unit
        counts[unit] = counts.get(unit, 0) + 1

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._counts[self._unit] -= 1
        if not self._counts[self._unit]:
            del self._counts[self._unit]


_RESULTS = {
    "canceled": "its job was cancelled",
    "timeout": "its job took too long",
    "failed": "it failed",
    "dependency": "a unit that it needs failed",
    "skipped": "its job does not apply to the unit as it is now",
    "assert": "an Assert…= of it does not hold",
    "unsupported": "this kind of unit is not supported here",
    "collected": "it was unloaded meanwhile",
    "once": "it was started once already",
}


def _interface(name: str) -> str:
    """``Unit`` → ``org.freedesktop.systemd1.Unit``; whole names stay."""
    return name if "." in name else f"{SYSTEMD}.{name}"
