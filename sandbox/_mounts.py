"""Mounts and volumes, as values. Public as part of :mod:`sandbox.models`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from sandbox import _units as u, _validators as v
from sandbox._validators import model_error
from sandbox.errors import ModelError

#: Mount options that have a field of their own.
_FLAGS = {
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "idmap": ("idmapped", True),
    "noidmap": ("idmapped", False),
}


def _mount_options(value: str | Iterable[str]) -> tuple[str, ...]:
    options = v.texts(value)
    for option in options:
        if not option or "," in option:
            raise ValueError("each option stands alone and without commas")
        if option in {"z", "Z"}:
            raise ValueError("relabelling for SELinux is not supported; label the source yourself (chcon)")
        if option in _FLAGS or option in {"bind", "rbind"}:
            raise ValueError(f"{option!r} has a field of its own: read_only, idmapped or type")
    return options


def _mount_type(value: str) -> str:
    return v.choice(value, "bind", "tmpfs", "volume")


@attrs.frozen(repr=False, field_transformer=v.named_errors)
class Mount:
    """Something that appears in a container's file system.

    >>> Mount.bind("/srv/data", "/data", read_only=True)
    Mount(target='/data', source='/srv/data', read_only=True)
    >>> Mount.parse("cache:/var/cache")
    Mount(target='/var/cache', source='cache', type='volume')
    """

    #: Where: an absolute path in the container, without ``..``. Made if it is missing.
    target: str = attrs.field(converter=v.absolute)
    #: What: a path on the host (bind), one of the pod's volumes (volume), nothing (tmpfs).
    source: str | None = attrs.field(default=None, converter=attrs.converters.optional(v.any_path))
    #: ``"bind"``, ``"tmpfs"`` or ``"volume"``.
    type: str = attrs.field(default="bind", kw_only=True, converter=_mount_type)
    #: Programs in the container cannot write to it.
    read_only: bool = attrs.field(default=False, kw_only=True, converter=v.flag)
    #: bind: whether owners are translated between host and container. ``None``: wherever that is needed
    #: and the kernel can (mounts made by root); ``True`` demands it; ``False`` shows the host's owners.
    idmapped: bool | None = attrs.field(
        default=None, kw_only=True, converter=attrs.converters.optional(v.flag)
    )
    #: tmpfs: most bytes it takes, or a share of the host's memory.
    size: int | u.Percent | None = attrs.field(
        default=None, kw_only=True, converter=attrs.converters.optional(u.parse_memory)
    )
    #: tmpfs: the mode of its root directory; 0o1777 if not given.
    mode: int | None = attrs.field(
        default=None, kw_only=True, converter=attrs.converters.optional(u.parse_mode)
    )
    #: More options in the words of mount(8): ``"noexec"``, ``"nosuid"``, ``"rslave"`` …
    options: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=_mount_options)
    #: bind: make the source directory if it is missing, as ``docker -v`` does, instead of refusing.
    create: bool = attrs.field(default=False, kw_only=True, converter=v.flag)

    __repr__ = v.short_repr

    def __attrs_post_init__(self) -> None:
        if self.target == "/":
            raise model_error(self, "target", self.target, "the root itself comes from the image")
        if (self.type == "tmpfs") != (self.source is None):
            need = "has no source" if self.type == "tmpfs" else "needs a source"
            raise model_error(self, "source", self.source, f"a {self.type} mount {need}")
        self._check_only("tmpfs", size=self.size, mode=self.mode)
        self._check_only("bind", create=self.create or None, idmapped=self.idmapped)
        self._settle_source()

    def _check_only(self, kind: str, **fields: object) -> None:
        for field, value in fields.items():
            if value is not None and self.type != kind:
                raise model_error(self, field, value, f"only a {kind} mount has it")

    def _settle_source(self) -> None:
        """Check a volume's name; make a relative path absolute now, before anyone changes directory."""
        if self.type == "bind" and self.source is not None:
            object.__setattr__(self, "source", v.host_path(self.source))
        if self.type == "volume":
            try:
                v.name(self.source)
            except ValueError as error:
                raise model_error(self, "source", self.source, f"as the name of a volume: {error}") from None

    @classmethod
    def bind(cls, source: str | os.PathLike[str], target: str | os.PathLike[str], **fields: Any) -> Mount:
        """A file or directory of the host."""
        return cls(target, source, type="bind", **fields)

    @classmethod
    def tmpfs(cls, target: str | os.PathLike[str], **fields: Any) -> Mount:
        """An empty directory in memory, gone with the container."""
        return cls(target, type="tmpfs", **fields)

    @classmethod
    def volume(cls, name: str, target: str | os.PathLike[str], **fields: Any) -> Mount:
        """One of the pod's volumes: shared by its containers, gone with the pod."""
        return cls(target, name, type="volume", **fields)

    @classmethod
    def parse(cls, text: str) -> Mount:
        """``source:target[:option,…]`` as ``docker -v`` takes it; a source without a slash is a volume."""
        source, _, rest = v.text(text).partition(":")
        target, _, options = rest.partition(":")
        if not source or not target:
            raise ModelError(
                "expected 'source:target[:options]'",
                class_name="Mount",
                field="target",
                value=text,
                hint="Mount.tmpfs(target) makes a directory without a source",
            )
        kind = "bind" if "/" in source or source in {".", ".."} else "volume"
        return cls._with_options(source, target, kind, options.split(",") if options else [])

    @classmethod
    def of(cls, value: Mount | str | Sequence[Any]) -> Mount:
        """A mount from itself, from docker's notation, or from ``(source, target[, options])``."""
        if isinstance(value, Mount):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        if not isinstance(value, (tuple, list)) or not 2 <= len(value) <= 3:
            raise TypeError("expected a Mount, 'source:target[:options]' or (source, target[, options])")
        source, target, *rest = value
        options = rest[0].split(",") if rest and isinstance(rest[0], str) else rest[0] if rest else []
        kind = "bind" if not isinstance(source, str) or "/" in source or source in {".", ".."} else "volume"
        return cls._with_options(source, target, kind, list(options))

    @classmethod
    def _with_options(cls, source: Any, target: Any, kind: str, options: list[str]) -> Mount:
        fields: dict[str, Any] = dict(_FLAGS[option] for option in options if option in _FLAGS)
        others = [option for option in options if option not in {*_FLAGS, "bind", "rbind"}]
        return cls(target, source, type=kind, options=others, **fields)


def mounts(value: Mount | str | Iterable[Mount | str | Sequence[Any]]) -> tuple[Mount, ...]:
    """Mounts from any of their notations; a single one may stand alone."""
    if isinstance(value, (str, Mount)):
        return (Mount.of(value),)
    found = tuple(Mount.of(item) for item in value)
    targets = [mount.target for mount in found]
    for target in targets:
        if targets.count(target) > 1:
            raise ValueError(f"{target} is the target of two mounts")
    return found


@attrs.frozen(repr=False, field_transformer=v.named_errors)
class Volume:
    """A directory that containers of a pod share; it lives and dies with the pod.

    >>> Volume("data", size="64M")
    Volume(name='data', size=67108864)
    """

    #: By what mounts refer to it.
    name: str = attrs.field(converter=v.name)
    #: Most bytes it takes, or a share of the host's memory; ``None``: as much as the host gives.
    size: int | u.Percent | None = attrs.field(
        default=None, converter=attrs.converters.optional(u.parse_memory)
    )

    __repr__ = v.short_repr


def volumes(value: str | Volume | Iterable[str | Volume]) -> tuple[Volume, ...]:
    """Volumes; a name is enough."""
    items = [value] if isinstance(value, (str, Volume)) else value
    found = tuple(item if isinstance(item, Volume) else Volume(item) for item in items)
    known = [volume.name for volume in found]
    for name in known:
        if known.count(name) > 1:
            raise ValueError(f"two volumes are named {name!r}")
    return found
