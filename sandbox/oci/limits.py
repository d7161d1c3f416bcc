"""From a model's resources to ``linux.resources``. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandbox.errors import SandboxError
from sandbox.oci.host import Host
from sandbox.oci.resources import (
    LinuxBlockIO,
    LinuxCPU,
    LinuxHugepageLimit,
    LinuxMemory,
    LinuxPids,
    LinuxResources,
    LinuxThrottleDevice,
)

if TYPE_CHECKING:
    from sandbox.models import Percent, Resources

#: Microseconds in which a CPU quota is given out; the kernel's own default.
CPU_PERIOD = 100_000
#: The kernel's smallest quota (sched-bwc).
_MIN_QUOTA = 1_000
#: Most processes of a container for which nobody set a limit: a fork bomb stays in its room.
DEFAULT_PIDS = 4096
_UNLIMITED = -1


def resources_to_oci(resources: Resources, host: Host, *, pids: int | None = None) -> LinuxResources | None:
    """``linux.resources`` for these limits, or ``None`` if there are none.

    :param pids: the limit on processes if ``resources`` has none
    :raises SandboxError: a share of the host's memory, or a block device, that ``host`` knows nothing about
    """
    pids = pids if resources.pids is None else resources.pids
    found: dict[str, Any] = {}
    if resources.memory is not None:
        found["memory"] = _memory(resources.memory, resources, host)
    if cpu := _cpu(resources, host):
        found["cpu"] = cpu
    if pids is not None:
        found["pids"] = LinuxPids(limit=pids)
    if resources.io:
        found["block_io"] = _block_io(resources, host)
    if resources.hugepages:
        found["hugepage_limits"] = tuple(
            LinuxHugepageLimit(page_size=size, limit=limit) for size, limit in resources.hugepages.items()
        )
    if resources.cpu_weight is not None and host.cgroup_version != 1:
        # In cgroup2's own words: the legacy members cannot say it exactly.
        found["unified"] = {"cpu.weight": str(resources.cpu_weight)}
    return LinuxResources(**found) if found else None


def amount(value: int | Percent, host: Host) -> int:
    """Bytes; a share is one of the host's memory."""
    if isinstance(value, int):
        return value
    if not host.memory_total:
        raise SandboxError(
            f"a share of the host's memory ({value}) was asked for, and how much it has is not known",
            operation="translate resources",
            hint="give a number of bytes such as '512M'",
        )
    return value.of(host.memory_total)


def _memory(memory: int | Percent, resources: Resources, host: Host) -> LinuxMemory:
    limit = amount(memory, host)
    if resources.swap is None:
        return LinuxMemory(limit=limit)
    if resources.swap == _UNLIMITED:
        return LinuxMemory(limit=limit, swap=_UNLIMITED)
    return LinuxMemory(limit=limit, swap=limit + amount(resources.swap, host))


def _cpu(resources: Resources, host: Host) -> LinuxCPU | None:
    found: dict[str, Any] = {}
    if resources.cpus is not None:
        found = {"quota": max(round(resources.cpus * CPU_PERIOD), _MIN_QUOTA), "period": CPU_PERIOD}
    if resources.cpu_weight is not None and host.cgroup_version == 1:
        # The defaults of both hierarchies, 100 and 1024, mean the same.
        found["shares"] = max(2, round(resources.cpu_weight * 1024 / 100))
    return LinuxCPU(**found) if found else None


def _block_io(resources: Resources, host: Host) -> LinuxBlockIO:
    return LinuxBlockIO(
        throttle_read_bps_device=_throttles(resources, host, "read_bps"),
        throttle_write_bps_device=_throttles(resources, host, "write_bps"),
        throttle_read_iops_device=_throttles(resources, host, "read_iops"),
        throttle_write_iops_device=_throttles(resources, host, "write_iops"),
    )


def _throttles(resources: Resources, host: Host, kind: str) -> tuple[LinuxThrottleDevice, ...] | None:
    found = []
    for device, limit in resources.io.items():
        rate = getattr(limit, kind)
        if rate is not None:
            major, minor = _numbers(device, host)
            found.append(LinuxThrottleDevice(major=major, minor=minor, rate=rate))
    return tuple(found) or None


def _numbers(device: str, host: Host) -> tuple[int, int]:
    if device in host.devices:
        return host.devices[device].major, host.devices[device].minor
    major, _, minor = device.partition(":")
    if not (major.isdecimal() and minor.isdecimal()):
        raise SandboxError(
            "the host has no such block device", operation="limit input and output", object=device
        )
    return int(major), int(minor)
