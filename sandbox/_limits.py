"""What a container may use and do, as values. Public as part of :mod:`sandbox.models`."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from sandbox import _units as u, _validators as v
from sandbox._validators import FrozenDict, model_error
from sandbox.oci import capabilities


def _count(value: str | int) -> int:
    return u.parse_int(value, 1, u.MAX_SIZE)


def _weight(value: str | int) -> int:
    return u.parse_int(value, 1, 10_000)


def _rate(value: str | int) -> int:
    return u.parse_int(u.parse_size(value), 1, u.MAX_SIZE)


@attrs.frozen(kw_only=True, repr=False, field_transformer=v.named_errors)
class IoLimit:
    """Most input and output per second on one block device.

    >>> IoLimit(write_bps="10M")
    IoLimit(write_bps=10485760)
    """

    #: Bytes read per second.
    read_bps: int | None = attrs.field(default=None, converter=attrs.converters.optional(_rate))
    #: Bytes written per second.
    write_bps: int | None = attrs.field(default=None, converter=attrs.converters.optional(_rate))
    #: Read operations per second.
    read_iops: int | None = attrs.field(default=None, converter=attrs.converters.optional(_count))
    #: Write operations per second.
    write_iops: int | None = attrs.field(default=None, converter=attrs.converters.optional(_count))

    __repr__ = v.short_repr


def _io(value: Mapping[str, IoLimit | Mapping[str, Any]]) -> FrozenDict[str, IoLimit]:
    if not isinstance(value, Mapping):
        raise TypeError("expected a mapping of block device to IoLimit")
    return FrozenDict({_device(key): _io_limit(item) for key, item in value.items()})


def _device(key: str) -> str:
    major, colon, minor = v.text(key).partition(":")
    if not key.startswith("/dev/") and not (colon and major.isdecimal() and minor.isdecimal()):
        raise ValueError(f"{key!r} is not a block device; write '/dev/sda' or '8:0'")
    return key


def _io_limit(value: IoLimit | Mapping[str, Any]) -> IoLimit:
    return value if isinstance(value, IoLimit) else IoLimit(**value)


def _hugepages(value: Mapping[str, str | int]) -> FrozenDict[str, int]:
    if not isinstance(value, Mapping):
        raise TypeError("expected a mapping of page size to bytes")
    return FrozenDict({_page_size(key): u.parse_size(item) for key, item in value.items()})


def _page_size(key: str) -> str:
    """The kernel's way to write a page size: 2MB, 1GB."""
    size = u.parse_size(key)
    for unit, factor in (("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    raise ValueError(f"{key!r} is not the size of a huge page")


@attrs.frozen(kw_only=True, repr=False, field_transformer=v.named_errors)
class Resources:
    """Limits on what a container, or a whole pod, takes from the host.

    A limit that the host cannot enforce is an error when the pod starts, unless ``best_effort`` is set.

    >>> Resources(memory="512M", cpus="150%", pids=256)
    Resources(memory=536870912, cpus=1.5, pids=256)
    """

    #: Most memory in bytes (``"64M"``), or a share of the host's (``"10%"``). Above it the kernel kills.
    memory: int | u.Percent | None = attrs.field(
        default=None, converter=attrs.converters.optional(u.parse_memory)
    )
    #: Most swap *in addition to* ``memory``: 0 for none, ``"max"`` (-1) for no limit. ``None`` leaves it to
    #: the kernel.
    swap: int | u.Percent | None = attrs.field(
        default=None, converter=attrs.converters.optional(u.parse_swap)
    )
    #: Most CPU time per time: 1.5 (CPUs), ``"150%"`` or ``"1500m"``.
    cpus: float | None = attrs.field(default=None, converter=attrs.converters.optional(u.parse_cpus))
    #: Share of contended CPU time against siblings, 1 to 10000; cgroup2's cpu.weight, whose default is 100.
    cpu_weight: int | None = attrs.field(default=None, converter=attrs.converters.optional(_weight))
    #: Most processes and threads; ``"max"`` (-1) for no limit. If neither container nor pod set one: 4096.
    pids: int | None = attrs.field(default=None, converter=attrs.converters.optional(u.parse_pids))
    #: Input/output limits by block device: ``{"/dev/sda": IoLimit(...)}`` or by number: ``"8:0"``.
    io: FrozenDict[str, IoLimit] = attrs.field(default=FrozenDict(), converter=_io)
    #: Most bytes of the writable layer over the image (a tmpfs), or a share of the host's memory.
    ephemeral_storage: int | u.Percent | None = attrs.field(
        default=None, converter=attrs.converters.optional(u.parse_memory)
    )
    #: Most bytes of huge pages by page size: ``{"2M": "64M"}``.
    hugepages: FrozenDict[str, int] = attrs.field(default=FrozenDict(), converter=_hugepages)
    #: Leave out a limit that this host cannot enforce (with a warning) instead of refusing to start.
    best_effort: bool = attrs.field(default=False, converter=v.flag)

    __repr__ = v.short_repr

    def __attrs_post_init__(self) -> None:
        if self.swap is not None and self.memory is None:
            raise model_error(self, "swap", self.swap, "limits swap beyond a memory limit, and there is none")


def _capabilities(value: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(capabilities.canonical(item) for item in v.texts(value)))


def _seccomp(value: str | os.PathLike[str] | Mapping[str, Any]) -> str | FrozenDict[str, Any]:
    if isinstance(value, Mapping):
        if "defaultAction" not in value:
            raise ValueError("a seccomp profile in the runtime spec's form has a defaultAction")
        frozen: FrozenDict[str, Any] = v.freeze(value)
        return frozen
    return "unconfined" if value == "unconfined" else v.host_path(value)


@attrs.frozen(kw_only=True, repr=False, field_transformer=v.named_errors)
class Security:
    """What programs in a container may do. The defaults are meant to be left alone.

    >>> Security(cap_add=["net_admin"], read_only_root=True)
    Security(cap_add=('CAP_NET_ADMIN',), read_only_root=True)
    """

    #: Exactly these capabilities instead of the default set, see :data:`sandbox.oci.capabilities.DEFAULT`.
    capabilities: tuple[str, ...] | None = attrs.field(
        default=None, converter=attrs.converters.optional(_capabilities)
    )
    #: Capabilities in addition; ``"ALL"`` is understood.
    cap_add: tuple[str, ...] = attrs.field(default=(), converter=_capabilities)
    #: Capabilities taken away; ``"ALL"`` is understood.
    cap_drop: tuple[str, ...] = attrs.field(default=(), converter=_capabilities)
    #: ``None`` (the default profile), ``"unconfined"`` (none), the path of a profile, or ``linux.seccomp``
    #: itself as a mapping.
    seccomp: str | FrozenDict[str, Any] | None = attrs.field(
        default=None, converter=attrs.converters.optional(_seccomp)
    )
    #: The root file system cannot be written to; mounts and volumes can.
    read_only_root: bool = attrs.field(default=False, converter=v.flag)
    #: Set-user-ID programs and file capabilities give nothing (prctl(2), PR_SET_NO_NEW_PRIVS).
    no_new_privileges: bool = attrs.field(default=True, converter=v.flag)
    #: All capabilities, no seccomp, nothing masked: for containers that hold containers or systemd. The user
    #: namespace stays: its root is still nobody on the host.
    privileged: bool = attrs.field(default=False, converter=v.flag)
    #: Paths that show as empty, instead of the default ones.
    masked_paths: tuple[str, ...] | None = attrs.field(
        default=None, converter=attrs.converters.optional(v.absolutes)
    )
    #: Paths that cannot be written to, instead of the default ones.
    readonly_paths: tuple[str, ...] | None = attrs.field(
        default=None, converter=attrs.converters.optional(v.absolutes)
    )

    __repr__ = v.short_repr

    def effective_capabilities(self) -> tuple[str, ...]:
        """The capabilities that a program started as root has, in the kernel's order."""
        if self.privileged:
            return _effective(("ALL",), (), self.cap_drop)
        return _effective(self.capabilities, self.cap_add, self.cap_drop)


#: Asked twice for each container that is started, which nearly all have the same ones.
_effective = functools.lru_cache(maxsize=64)(capabilities.resolve)
