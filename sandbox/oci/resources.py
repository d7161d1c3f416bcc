"""The OCI runtime specification's ``linux.resources`` (config-linux.md, "Control groups")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from sandbox.oci.converter import member


def _extra() -> Any:
    """Members that the class has no field for, and explicit nulls."""
    return attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class LinuxDeviceCgroup:
    """A rule of the device controller; the last that fits counts."""

    allow: bool
    type: str | None = None
    #: ``None``: any.
    major: int | None = None
    minor: int | None = None
    #: Letters of ``rwm``.
    access: str | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxMemory:
    """Bytes; -1 for no limit."""

    limit: int | None = None
    reservation: int | None = None
    #: Memory and swap together.
    swap: int | None = None
    kernel: int | None = None
    kernel_tcp: int | None = attrs.field(default=None, metadata=member("kernelTCP"))
    swappiness: int | None = None
    disable_oom_killer: bool | None = attrs.field(default=None, metadata=member("disableOOMKiller"))
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxCPU:
    """Times in microseconds."""

    #: The legacy hierarchy's weight, 2 to 262144.
    shares: int | None = None
    quota: int | None = None
    burst: int | None = None
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: str | None = None
    mems: str | None = None
    idle: int | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxPids:
    """Processes and threads; 0 or less for no limit."""

    limit: int
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxWeightDevice:
    """A weight of its own for one block device."""

    major: int
    minor: int
    weight: int | None = None
    leaf_weight: int | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxThrottleDevice:
    """A rate per second for one block device."""

    major: int
    minor: int
    rate: int
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxBlockIO:
    """Weights and rates of block devices."""

    weight: int | None = None
    leaf_weight: int | None = None
    weight_device: tuple[LinuxWeightDevice, ...] | None = None
    throttle_read_bps_device: tuple[LinuxThrottleDevice, ...] | None = None
    throttle_write_bps_device: tuple[LinuxThrottleDevice, ...] | None = None
    throttle_read_iops_device: tuple[LinuxThrottleDevice, ...] | None = attrs.field(
        default=None, metadata=member("throttleReadIOPSDevice")
    )
    throttle_write_iops_device: tuple[LinuxThrottleDevice, ...] | None = attrs.field(
        default=None, metadata=member("throttleWriteIOPSDevice")
    )
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxHugepageLimit:
    """Bytes of huge pages of one size."""

    #: ``2MB``, ``1GB``.
    page_size: str
    limit: int
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxInterfacePriority:
    """Priority of the traffic through one interface."""

    name: str
    priority: int
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxNetwork:
    """The net_cls and net_prio controllers."""

    class_id: int | None = attrs.field(default=None, metadata=member("classID"))
    priorities: tuple[LinuxInterfacePriority, ...] | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxRdma:
    """Handles and objects of one RDMA device."""

    hca_handles: int | None = None
    hca_objects: int | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxResources:
    """Everything a cgroup limits.

    >>> LinuxResources(pids=LinuxPids(limit=64)).pids.limit
    64
    """

    devices: tuple[LinuxDeviceCgroup, ...] | None = None
    memory: LinuxMemory | None = None
    cpu: LinuxCPU | None = None
    pids: LinuxPids | None = None
    block_io: LinuxBlockIO | None = attrs.field(default=None, metadata=member("blockIO"))
    hugepage_limits: tuple[LinuxHugepageLimit, ...] | None = None
    network: LinuxNetwork | None = None
    rdma: Mapping[str, LinuxRdma] | None = None
    #: Files of cgroup2 and what to write to them.
    unified: Mapping[str, str] | None = None
    extra: Mapping[str, Any] = _extra()
