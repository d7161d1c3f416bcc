"""What a translation needs to know about the host; gathered by the live side, never looked up here."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from sandbox.oci.runtime import LinuxIdMapping


@attrs.frozen
class DeviceNumbers:
    """A device node of the host: what stat(2) says about it.

    >>> DeviceNumbers("c", 10, 229)
    DeviceNumbers(type='c', major=10, minor=229)
    """

    #: ``"c"`` or ``"b"``.
    type: str
    major: int
    minor: int


@attrs.frozen(kw_only=True)
class Host:
    """The facts about a host, and the place a pod has on it.

    >>> Host(pod_id="p1", run_dir="/run/sandbox", machine="x86_64").volume_path("data")
    '/run/sandbox/pods/p1/volumes/data'
    """

    #: The caller is not root on the host: no idmapped mounts, ids come from /etc/subuid.
    rootless: bool = False
    #: The ids of the pod's user namespace, as in ``linux.uidMappings``.
    uid_mappings: tuple[LinuxIdMapping, ...] = (
        LinuxIdMapping(container_id=0, host_id=0x70000000, size=65536),
    )
    gid_mappings: tuple[LinuxIdMapping, ...] = (
        LinuxIdMapping(container_id=0, host_id=0x70000000, size=65536),
    )
    #: ``uname -m``.
    machine: str = "x86_64"
    #: Major and minor version of the kernel.
    kernel: tuple[int, int] = (5, 15)
    #: Bytes; what a share of the host's memory is a share of.
    memory_total: int = 0
    cpu_count: int = 1
    #: 2, or 1 for the legacy and hybrid layouts.
    cgroup_version: int = 2
    #: Under which cgroup those of the pods are, as a runtime without a manager wants it.
    cgroup_parent: str = "/sandbox"
    #: Where everything of running pods lives.
    run_dir: str = "/run/sandbox"
    pod_id: str = "pod"
    #: Device nodes that models refer to by path, for limits and rules that want numbers.
    devices: Mapping[str, DeviceNumbers] = attrs.field(factory=dict)

    def volume_path(self, name: str) -> str:
        """Where a volume of the pod is on the host."""
        return f"{self.run_dir}/pods/{self.pod_id}/volumes/{name}"
