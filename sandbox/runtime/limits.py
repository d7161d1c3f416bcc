"""Resource limits of an OCI spec (config-linux.md#control-groups) as writes to cgroup files. No I/O."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from .failure import Failure, unsupported

#: What the document calls unlimited.
_UNLIMITED = -1
_DEFAULT_PERIOD = 100_000
#: Bytes; a process on its way to a program has no more than a few of these millions.
_TIGHT = 16 << 20


class Setting(NamedTuple):
    """One file to write: ``controller`` has it, ``version`` says in which hierarchy."""

    controller: str
    version: int
    file: str
    value: str


def settings(resources: Mapping[str, Any], v1: Collection[str], v2: Collection[str]) -> list[Setting]:
    """The writes for ``resources`` on a host with version 1 controllers ``v1`` and version 2 controllers ``v2``.

    Raises :class:`Failure` of type LimitNotEnforceable that names the controller which the host lacks.
    """
    result: list[Setting] = []
    for member, translate in _TRANSLATORS.items():
        if resources.get(member):
            result += translate(resources[member], _Host(v1, v2))
    for name in resources:
        # Device rules are moot in a user namespace: nodes cannot be made there, only those bound in are reachable.
        if resources[name] and name not in _TRANSLATORS and name != "devices":
            raise unsupported(f"linux.resources.{name}", "the native engine does not have it")
    return result


class _Host(NamedTuple):
    v1: Collection[str]
    v2: Collection[str]

    def version(self, controller: str, limit: str) -> int:
        if controller in self.v1:
            return 1
        if controller in self.v2:
            return 2
        raise not_enforceable(controller, limit)


def not_enforceable(controller: str, limit: str, cause: str | None = None) -> Failure:
    """The error for a limit that nobody here can keep."""
    return Failure("LimitNotEnforceable", controller=controller, limit=limit, cause=cause,
                   hint="run as root or with a delegated cgroup that has this controller (see `sandbox doctor`), "
                        "or pass best_effort=True to go without the limit")  # fmt: skip


def refused(setting: Setting, number: int, in_use: str | None) -> Failure:
    """The error for a limit that the kernel would not take, errno ``number``; ``in_use``: what it counts there by now."""
    limit = f"{setting.file}={setting.value}"
    if number in (errno.EACCES, errno.EPERM):
        return not_enforceable(setting.controller, limit, f"the kernel refused it: {os.strerror(number)}")
    busy = number == errno.EBUSY and in_use is not None
    cause = f"{in_use} bytes are in use there already" if busy else None
    hint = f"ask for more than {in_use}" if busy else "ask for a value that this kernel takes (cgroups(7))"
    return Failure("LimitNotEnforceable", controller=setting.controller, limit=limit, errno=number,
                   detail="the kernel refused it", cause=cause, hint=hint)  # fmt: skip


def tight(resources: Mapping[str, Any]) -> bool:
    """Whether so little memory is allowed that what was made ahead, and how, decides what becomes of the program."""
    memory = resources.get("memory") or {}
    return any(0 <= memory[member] < _TIGHT for member in ("limit", "swap") if memory.get(member) is not None)


def _quantity(value: int) -> str:
    return "max" if value == _UNLIMITED else str(value)


def _memory(memory: Mapping[str, Any], host: _Host) -> Iterator[Setting]:
    for member in memory:
        if memory[member] is not None and member not in ("limit", "swap", "reservation"):
            if memory[member] is False or member in ("disableOOMKiller", "checkBeforeUpdate", "useHierarchy"):
                continue
            raise unsupported(f"linux.resources.memory.{member}", "the native engine does not have it")
    limit, swap, reservation = (memory.get(name) for name in ("limit", "swap", "reservation"))
    if limit is None and swap is None and reservation is None:
        return
    if host.version("memory", f"memory={limit if limit is not None else swap or reservation}") == 1:
        yield from _memory_v1(limit, swap, reservation)
        return
    if limit is not None:
        yield Setting("memory", 2, "memory.max", _quantity(limit))
        yield Setting("memory", 2, "memory.oom.group", "0")
    if swap is not None:
        both = swap == _UNLIMITED or limit in (None, _UNLIMITED)
        yield Setting("memory", 2, "memory.swap.max", _quantity(swap) if both else str(max(swap - (limit or 0), 0)))
    if reservation is not None:
        yield Setting("memory", 2, "memory.low", _quantity(reservation))


def _memory_v1(limit: int | None, swap: int | None, reservation: int | None) -> Iterator[Setting]:
    if limit is not None:
        yield Setting("memory", 1, "memory.limit_in_bytes", str(limit))
    if swap is not None:
        yield Setting("memory", 1, "memory.memsw.limit_in_bytes", str(swap))
    if reservation is not None:
        yield Setting("memory", 1, "memory.soft_limit_in_bytes", str(reservation))


def _cpu(cpu: Mapping[str, Any], host: _Host) -> Iterator[Setting]:
    quota, period, shares = cpu.get("quota"), cpu.get("period") or _DEFAULT_PERIOD, cpu.get("shares")
    if quota is not None or shares:
        version = host.version("cpu", f"cpus={quota / period:g}" if quota else f"cpu_weight={shares}")
        if quota is not None and version == 1:
            yield Setting("cpu", 1, "cpu.cfs_period_us", str(period))
            yield Setting("cpu", 1, "cpu.cfs_quota_us", str(quota))
        elif quota is not None:
            yield Setting("cpu", 2, "cpu.max", f"{'max' if quota <= 0 else quota} {period}")
        if shares and version == 1:
            yield Setting("cpu", 1, "cpu.shares", str(shares))
        elif shares:
            # The usual linear map of 2…262144 to 1…10000.
            yield Setting("cpu", 2, "cpu.weight", str(1 + (shares - 2) * 9999 // 262142))
    for member, file in (("cpus", "cpuset.cpus"), ("mems", "cpuset.mems")):
        if cpu.get(member):
            yield Setting("cpuset", host.version("cpuset", f"cpu.{member}={cpu[member]}"), file, cpu[member])
    for member in ("realtimeRuntime", "realtimePeriod", "burst", "idle"):
        if cpu.get(member):
            raise unsupported(f"linux.resources.cpu.{member}", "the native engine does not have it")


def _pids(pids: Mapping[str, Any], host: _Host) -> Iterator[Setting]:
    limit = pids.get("limit")
    if limit is not None and limit != 0:
        yield Setting("pids", host.version("pids", f"pids={limit}"), "pids.max", "max" if limit < 0 else str(limit))


_THROTTLES = {
    "throttleReadBpsDevice": ("rbps", "blkio.throttle.read_bps_device"),
    "throttleWriteBpsDevice": ("wbps", "blkio.throttle.write_bps_device"),
    "throttleReadIOPSDevice": ("riops", "blkio.throttle.read_iops_device"),
    "throttleWriteIOPSDevice": ("wiops", "blkio.throttle.write_iops_device"),
}


def _block_io(block: Mapping[str, Any], host: _Host) -> Iterator[Setting]:
    for member, value in block.items():
        if not value:
            continue
        if member == "weight":
            if "io" not in host.v2:
                raise not_enforceable("io", f"io weight={value}")
            yield Setting("io", 2, "io.weight", f"default {1 + (value - 10) * 9999 // 990}")
        elif member in _THROTTLES:
            key, file = _THROTTLES[member]
            yield from (_throttle(row, key, file, host) for row in value)
        else:
            raise unsupported(f"linux.resources.blockIO.{member}", "the native engine does not have it")


def _throttle(row: Mapping[str, Any], key: str, file: str, host: _Host) -> Setting:
    device = f"{row['major']}:{row['minor']}"
    if "blkio" in host.v1:
        return Setting("blkio", 1, file, f"{device} {row['rate']}")
    if "io" in host.v2:
        return Setting("io", 2, "io.max", f"{device} {key}={row['rate']}")
    raise not_enforceable("io", f"{key} {device}={row['rate']}")


def _hugepages(rows: Any, host: _Host) -> Iterator[Setting]:
    for row in rows:
        version = host.version("hugetlb", f"hugepages {row['pageSize']}")
        suffix = "limit_in_bytes" if version == 1 else "max"
        yield Setting("hugetlb", version, f"hugetlb.{row['pageSize']}.{suffix}", str(row["limit"]))


def _unified(files: Mapping[str, str], host: _Host) -> Iterator[Setting]:
    for file, value in files.items():
        controller = file.partition(".")[0]
        if "/" in file or not controller:
            raise unsupported(f"linux.resources.unified {file}", "not the name of a cgroup2 file")
        if controller != "cgroup" and controller not in host.v2:
            raise not_enforceable(controller, f"{file}={value}")
        yield Setting(controller, 2, file, value)


_TRANSLATORS: dict[str, Callable[[Any, _Host], Iterator[Setting]]] = {
    "memory": _memory,
    "cpu": _cpu,
    "pids": _pids,
    "blockIO": _block_io,
    "hugepageLimits": _hugepages,
    "unified": _unified,
}
