"""From a model's mounts to the runtime spec's: the standard ones, and those that were asked for. Pure."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sandbox.errors import UnsupportedFeature
from sandbox.oci.host import Host
from sandbox.oci.limits import amount
from sandbox.oci.runtime import LinuxIdMapping, Mount

if TYPE_CHECKING:
    from sandbox import models

#: Paths in /proc and /sys that tell about the host or reach its hardware; they show as empty.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
#: Paths in /proc that set what is not namespaced.
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

#: The group of terminals, as every distribution has it.
_TTY_GROUP = 5
#: Idmapped mounts came with this kernel (mount_setattr(2)).
_IDMAP_KERNEL = (5, 12)
_PROPAGATIONS = frozenset({"shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate"})


def mapped(ident: int, mappings: tuple[LinuxIdMapping, ...]) -> bool:
    """Whether an id of the container exists in its user namespace."""
    for m in mappings:  # noqa: SIM110 - asked several times for each start, of one or two ranges
        if m.container_id <= ident < m.container_id + m.size:
            return True
    return False


def mounts(container: models.Container, host: Host, *, host_network: bool) -> tuple[Mount, ...]:
    """All mounts of a container, in the order in which they are made: parents before children."""
    terminals = mapped(_TTY_GROUP, host.gid_mappings)
    standard = _standard(terminals, host_network, container.security.privileged)
    asked = [_asked(mount, host) for mount in container.mounts] + [
        _device(item) for item in container.devices
    ]
    if not asked:
        return standard
    targets = {mount.destination for mount in asked}
    kept = (mount for mount in standard if mount.destination not in targets)
    # Stable: what was asked for later and lies equally deep comes later.
    return (*kept, *sorted(asked, key=lambda mount: mount.destination.count("/")))


@functools.cache
def _standard(terminals: bool, host_network: bool, privileged: bool) -> tuple[Mount, ...]:
    """The file systems that every Linux program expects (config-linux.md, "Default Filesystems").

    :param terminals: whether their group exists in the pod's user namespace
    """
    return tuple(_make_standard(terminals, host_network, privileged))


def _make_standard(terminals: bool, host_network: bool, privileged: bool) -> Iterator[Mount]:
    yield _make("/proc", "proc", "nosuid", "noexec", "nodev")
    yield _make("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k")
    yield _make("/dev/pts", "devpts", "nosuid", "noexec", *_pts_options(terminals))
    yield _make("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k", source="shm")
    yield _make("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev")
    yield _sys(host_network, privileged)
    access = "rw" if privileged else "ro"
    yield _make("/sys/fs/cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", access)


def _make(target: str, kind: str, *options: str, source: str | None = None) -> Mount:
    return Mount(destination=target, type=kind, source=source or kind, options=options)


def _pts_options(terminals: bool) -> list[str]:
    group = [f"gid={_TTY_GROUP}"] if terminals else []
    return ["newinstance", "ptmxmode=0666", "mode=0620", *group]


def _sys(host_network: bool, privileged: bool) -> Mount:
    """A new sysfs shows the network namespace of who mounts it, and needs one of its own; else the host's shows."""
    if host_network:
        options = ("rbind", "nosuid", "noexec", "nodev", "rprivate", "ro")
        return Mount(destination="/sys", type="bind", source="/sys", options=options)
    return _make("/sys", "sysfs", "nosuid", "noexec", "nodev", "rw" if privileged else "ro")


def _asked(mount: models.Mount, host: Host) -> Mount:
    if mount.type == "tmpfs":
        return _tmpfs(mount, host)
    source = mount.source if mount.type == "bind" else host.volume_path(str(mount.source))
    options = [*_bind_options(mount)]
    if mount.type == "bind" and _idmapped(mount, host):
        options.append("idmap")
    return Mount(destination=mount.target, type="bind", source=source, options=tuple(options))


def _bind_options(mount: models.Mount) -> Iterator[str]:
    """Devices and set-user-ID programs do not come in with a directory, unless asked for by name."""
    yield "rbind"
    yield "ro" if mount.read_only else "rw"
    yield from (option for option in ("nosuid", "nodev") if option.removeprefix("no") not in mount.options)
    if not _PROPAGATIONS & set(mount.options):
        yield "rprivate"
    yield from mount.options


def _idmapped(mount: models.Mount, host: Host) -> bool:
    can = not host.rootless and host.kernel >= _IDMAP_KERNEL
    if mount.idmapped and not can:
        raise UnsupportedFeature(
            operation="mount",
            object=f"{mount.source}:{mount.target}",
            feature="idmapped mounts",
            cause="they need root on the host" if host.rootless else "they came with Linux 5.12",
            hint="leave idmapped out: your own files belong to the container's root anyway"
            if host.rootless
            else None,
        )
    return can and mount.idmapped is not False


def _tmpfs(mount: models.Mount, host: Host) -> Mount:
    options = ["nosuid", "nodev", f"mode={0o1777 if mount.mode is None else mount.mode:o}"]
    options = [option for option in options if option.removeprefix("no") not in mount.options]
    if mount.size is not None:
        options.append(f"size={amount(mount.size, host)}")
    if mount.read_only:
        options.append("ro")
    return _make(mount.target, "tmpfs", *options, *mount.options)


def _device(device: str) -> Mount:
    """A device node of the host, bound: in a user namespace nobody can make one."""
    source, _, target = device.partition(":")
    return Mount(destination=target, type="bind", source=source, options=("bind", "nosuid", "noexec"))
