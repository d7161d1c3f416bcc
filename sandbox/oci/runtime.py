"""The OCI runtime specification, version 1.2: ``config.json``.

One class per object of the document, one field per member; docs of a member say what differs from its name. The
specification's own text (config.md, config-linux.md) tells the rest. Members of other systems (solaris, vm, windows,
zos) stay plain mappings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from sandbox.oci.converter import member
from sandbox.oci.resources import LinuxResources
from sandbox.oci.seccomp import LinuxSeccomp


def _extra() -> Any:
    """Members that the class has no field for, and explicit nulls."""
    return attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Box:
    """Size of a terminal, in characters."""

    height: int
    width: int
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class User:
    """Who the process is, by the container's ids."""

    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    additional_gids: tuple[int, ...] | None = None
    #: Windows only.
    username: str | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxCapabilities:
    """The five sets of capabilities(7)."""

    bounding: tuple[str, ...] | None = None
    effective: tuple[str, ...] | None = None
    inheritable: tuple[str, ...] | None = None
    permitted: tuple[str, ...] | None = None
    ambient: tuple[str, ...] | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class POSIXRlimit:
    """One limit of setrlimit(2)."""

    #: ``RLIMIT_NOFILE`` …
    type: str
    #: 2**64 - 1 for none.
    hard: int
    soft: int
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class Scheduler:
    """sched_setattr(2) for the process."""

    policy: str | None = None
    nice: int | None = None
    priority: int | None = None
    flags: tuple[str, ...] | None = None
    runtime: int | None = None
    deadline: int | None = None
    period: int | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxIOPriority:
    """ioprio_set(2) for the process."""

    #: ``IOPRIO_CLASS_BE`` …
    io_class: str | None = attrs.field(default=None, metadata=member("class"))
    priority: int | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class ExecCPUAffinity:
    """CPUs of an exec'd process before and after it joins the cgroup."""

    initial: str | None = None
    final: str | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class Process:
    """What runs.

    >>> Process(cwd="/", args=("true",), user=User(uid=0, gid=0)).args
    ('true',)
    """

    terminal: bool | None = None
    console_size: Box | None = None
    user: User | None = None
    args: tuple[str, ...] | None = None
    #: Windows only.
    command_line: str | None = None
    env: tuple[str, ...] | None = None
    cwd: str
    capabilities: LinuxCapabilities | None = None
    rlimits: tuple[POSIXRlimit, ...] | None = None
    no_new_privileges: bool | None = None
    apparmor_profile: str | None = None
    oom_score_adj: int | None = None
    scheduler: Scheduler | None = None
    selinux_label: str | None = None
    io_priority: LinuxIOPriority | None = None
    exec_cpu_affinity: ExecCPUAffinity | None = attrs.field(default=None, metadata=member("execCPUAffinity"))
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class Root:
    """The root file system."""

    #: Relative to the bundle, or absolute.
    path: str
    readonly: bool | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxIdMapping:
    """``size`` ids from ``container_id`` on are ``host_id`` and following outside.

    >>> LinuxIdMapping(container_id=0, host_id=100000, size=65536).size
    65536
    """

    container_id: int = attrs.field(metadata=member("containerID"))
    host_id: int = attrs.field(metadata=member("hostID"))
    size: int
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class Mount:
    """A mount, in the words of mount(8).

    >>> Mount(destination="/proc", type="proc", source="proc").destination
    '/proc'
    """

    destination: str
    type: str | None = None
    source: str | None = None
    options: tuple[str, ...] | None = None
    uid_mappings: tuple[LinuxIdMapping, ...] | None = None
    gid_mappings: tuple[LinuxIdMapping, ...] | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class Hook:
    """A program of the host that runs at a point of the container's life."""

    path: str
    args: tuple[str, ...] | None = None
    env: tuple[str, ...] | None = None
    #: Seconds.
    timeout: int | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class Hooks:
    """All hooks, by the point at which they run."""

    prestart: tuple[Hook, ...] | None = None
    create_runtime: tuple[Hook, ...] | None = None
    create_container: tuple[Hook, ...] | None = None
    start_container: tuple[Hook, ...] | None = None
    poststart: tuple[Hook, ...] | None = None
    poststop: tuple[Hook, ...] | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxNamespace:
    """A namespace to make, or to join if it has a path."""

    #: pid, network, mount, ipc, uts, user, cgroup, time.
    type: str
    path: str | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxDevice:
    """A device node to make."""

    path: str
    #: c, b, u or p, as mknod(1) has it.
    type: str
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxTimeOffset:
    """How far a clock of a time namespace is off."""

    secs: int | None = None
    nanosecs: int | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxIntelRdt:
    """Cache and memory bandwidth shares, see resctrl in the kernel's docs."""

    clos_id: str | None = attrs.field(default=None, metadata=member("closID"))
    l3_cache_schema: str | None = None
    mem_bw_schema: str | None = None
    enable_cmt: bool | None = attrs.field(default=None, metadata=member("enableCMT"))
    enable_mbm: bool | None = attrs.field(default=None, metadata=member("enableMBM"))
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxPersonality:
    """personality(2)."""

    domain: str | None = None
    flags: tuple[str, ...] | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class Linux:
    """What only Linux has.

    >>> Linux(namespaces=(LinuxNamespace(type="pid"),)).namespaces[0].type
    'pid'
    """

    uid_mappings: tuple[LinuxIdMapping, ...] | None = None
    gid_mappings: tuple[LinuxIdMapping, ...] | None = None
    sysctl: Mapping[str, str] | None = None
    resources: LinuxResources | None = None
    cgroups_path: str | None = None
    namespaces: tuple[LinuxNamespace, ...] | None = None
    devices: tuple[LinuxDevice, ...] | None = None
    seccomp: LinuxSeccomp | None = None
    #: ``private``, ``rprivate``, ``slave``, ``rslave``, ``shared``, ``unbindable``.
    rootfs_propagation: str | None = None
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None
    mount_label: str | None = None
    intel_rdt: LinuxIntelRdt | None = None
    personality: LinuxPersonality | None = None
    #: By clock: ``monotonic``, ``boottime``.
    time_offsets: Mapping[str, LinuxTimeOffset] | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class Spec:
    """The whole document.

    >>> Spec(oci_version="1.2.0", root=Root(path="rootfs")).root.path
    'rootfs'
    """

    oci_version: str
    process: Process | None = None
    root: Root | None = None
    hostname: str | None = None
    domainname: str | None = None
    mounts: tuple[Mount, ...] | None = None
    hooks: Hooks | None = None
    annotations: Mapping[str, str] | None = None
    linux: Linux | None = None
    solaris: Mapping[str, Any] | None = None
    windows: Mapping[str, Any] | None = None
    vm: Mapping[str, Any] | None = None
    zos: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = _extra()
