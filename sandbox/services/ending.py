"""How a service ended and what it used, read from its unit before that goes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from sandbox._process import Result, Text, Usage

if TYPE_CHECKING:
    from sandbox_systemd.bus import Pending

    from sandbox.services.running import Watched

__all__ = ["Ending", "ServiceResult", "ServiceUsage", "gather"]

_SERVICE = "org.freedesktop.systemd1.Service"
_MANAGER = "org.freedesktop.systemd1.Manager"
#: What systemd says for "not counted".
_UNSET = (1 << 64) - 1
#: How a process ended (siginfo's si_code, waitid(2)).
_CLD_EXITED = 1
_COUNTERS = ("CPUUsageNSec", "IOReadBytes", "IOWriteBytes", "IPIngressBytes", "IPEgressBytes")
_CGROUP_FILES = {"memory_peak": "memory.peak", "pids_peak": "pids.peak"}


@attrs.frozen
class ServiceUsage(Usage):
    """What a service has used, as its unit counts it; None where the host does not count.

    >>> ServiceUsage(cpu=0.25, ip_received=1500).ip_received
    1500
    """

    #: Bytes of IP packets (with IPAccounting=, and a manager that may load BPF programs).
    ip_received: int | None = None
    ip_sent: int | None = None
    #: Processes and threads now; None once it has ended.
    tasks: int | None = None
    #: Memory used now, in bytes.
    memory_current: int | None = None

    @classmethod
    def read(cls, watched: Watched) -> ServiceUsage:
        """Ask the manager, and the control group."""
        files = _from_cgroup(watched)
        told = _answers(_begin(watched, (*_COUNTERS, "MemoryCurrent")))
        return cls.from_numbers({**told, "TasksCurrent": files.get("tasks")}, files)

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, int | None], files: Mapping[str, int | None]) -> ServiceUsage:
        """From systemd's counters, and those of the control group."""
        return cls(
            cpu=(numbers.get("CPUUsageNSec") or 0) / 1e9, user=(files.get("user") or 0) / 1e6,
            system=(files.get("system") or 0) / 1e6, memory_peak=files.get("memory_peak"),
            pids_peak=files.get("pids_peak"), io_read=numbers.get("IOReadBytes"), io_write=numbers.get("IOWriteBytes"),
            ip_received=numbers.get("IPIngressBytes"), ip_sent=numbers.get("IPEgressBytes"),
            tasks=numbers.get("TasksCurrent"), memory_current=numbers.get("MemoryCurrent"),
        )  # fmt: skip


@attrs.frozen
class Ending:
    """The end of a service."""

    returncode: int
    #: systemd's word for it.
    result: str
    usage: ServiceUsage
    #: Seconds from its start to its end.
    duration: float


@attrs.frozen
class ServiceResult(Result[Text]):
    """How a service ended, like :class:`subprocess.CompletedProcess`.

    >>> ServiceResult(["true"], 0, "", "").result
    'success'
    """

    #: What it used, and what the unit has counted besides.
    usage: ServiceUsage = ServiceUsage()
    #: systemd's word for it: success, exit-code, signal, core-dump, oom-kill, timeout, watchdog … (systemd.service(5)).
    result: str = "success"
    #: The name the unit had.
    unit: str = ""


def gather(watched: Watched) -> Ending:
    """Read how it ended, and let systemd forget it: it stays loaded until somebody has asked."""
    files = _from_cgroup(watched)
    asked = _begin(watched, _COUNTERS)
    watched.close()
    # Calls are served in their order: what was asked for is read before the unit goes.
    _forget(watched, wait=bool(files.get("tasks")))
    values = watched.values
    started, ended = (values.get(f"ExecMain{edge}TimestampMonotonic", 0) for edge in ("Start", "Exit"))
    return Ending(
        _returncode(values), values.get("Result", "success"), ServiceUsage.from_numbers(_answers(asked), files),
        max(ended - started, 0) / 1e6,
    )  # fmt: skip


def _returncode(values: Mapping[str, Any]) -> int:
    status = int(values.get("ExecMainStatus", 0))
    return status if values.get("ExecMainCode", _CLD_EXITED) == _CLD_EXITED else -status


def _begin(watched: Watched, names: tuple[str, ...]) -> list[tuple[str, Pending]]:
    """Ask for properties, all at once."""
    from sandbox_systemd.bus import PROPERTIES

    return [(name, watched.bus.begin(watched.path, PROPERTIES, "Get", "ss", (_SERVICE, name))) for name in names]


def _answers(asked: list[tuple[str, Pending]]) -> dict[str, int | None]:
    """What came; None for what is not counted, or of a unit that is gone."""
    from sandbox_systemd.errors import SystemdError

    found: dict[str, int | None] = {}
    for name, call in asked:
        with contextlib.suppress(SystemdError):
            (value,) = call.result()
            found[name] = None if value.value == _UNSET else value.value
    return found


def _forget(watched: Watched, *, wait: bool) -> None:
    """One that ended well is active until it is stopped, which also ends what it has left behind; one that failed is not.

    :param wait: until that has ended
    """
    from sandbox_systemd.bus import MANAGER_PATH
    from sandbox_systemd.errors import NoSuchUnit

    manager = watched.home.manager
    with contextlib.suppress(NoSuchUnit):
        if watched.state == "exited" and wait:
            manager.stop(watched.unit)
        elif watched.state == "exited":
            watched.bus.call(MANAGER_PATH, _MANAGER, "StopUnit", "ss", (watched.unit, "replace"))
        elif watched.state == "failed":
            manager.reset_failed(watched.unit)


def _from_cgroup(watched: Watched) -> dict[str, int | None]:
    """What systemd 252 does not tell; nothing if the control group is gone, or has no controller."""
    path = watched.cgroup
    if path is None:
        return {}
    found: dict[str, int | None] = {name: _read(f"{path}/{file}") for name, file in _CGROUP_FILES.items()}
    with contextlib.suppress(OSError), open(f"{path}/cpu.stat") as file:
        times = dict(line.split() for line in file)
        found |= {"user": int(times["user_usec"]), "system": int(times["system_usec"])}
    with contextlib.suppress(OSError), open(f"{path}/cgroup.threads") as file:
        found["tasks"] = len(file.readlines())
    return found


def _read(path: str) -> int | None:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
