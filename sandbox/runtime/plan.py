"""From an OCI spec to a plan: everything that can be decided, checked or refused before a process exists. No I/O."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from sandbox.linux.constants import NAMESPACES
from sandbox.linux.mounts import parse_options, propagation_flag

from . import process as processes
from .failure import invalid, unsupported
from .rootfs import Rootfs
from .steps import Bind, Device, Mask, MountFilesystem, ReadOnly, Step, Symlink, Sysctl

#: Without these there is no container to speak of: everything else relies on them.
_REQUIRED = ("user", "mount", "pid")
#: Members of ``linux`` that only some runtimes have.
_UNSUPPORTED = ("intelRdt", "mountLabel", "netDevices", "memoryPolicy")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
_LINKS = (
    ("/dev/ptmx", "pts/ptmx"), ("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"), ("/dev/stderr", "/proc/self/fd/2"), ("/dev/core", "/proc/kcore"),
)  # fmt: skip
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


class Shape(NamedTuple):
    """All that the file system of a container is made of. Of two containers with the same, either's will do for the other."""

    steps: tuple[Step, ...]
    read_only_root: bool
    propagation: int
    rootfs: Rootfs


class Plan(NamedTuple):
    """A container, ready to be made."""

    namespaces: dict[str, str | None]
    steps: tuple[Step, ...]
    program: processes.Program
    hostname: str | None
    domainname: str | None
    read_only_root: bool
    propagation: int
    hooks: dict[str, list[dict[str, Any]]]
    time_offsets: dict[str, dict[str, int]]
    annotations: dict[str, str]
    init: bool

    def shape(self, rootfs: Rootfs) -> Shape:
        """What its file system is made of."""
        return Shape(self.steps, self.read_only_root, self.propagation, rootfs)

    @property
    def binds(self) -> Iterator[Bind]:
        """The steps that need something of the host."""
        return (step for step in self.steps if isinstance(step, Bind))


def build(
    spec: Mapping[str, Any], seccomp: bytes = b"", *, init: bool = False,
    surroundings: processes.Surroundings = processes.PLAIN,
) -> Plan:  # fmt: skip
    """Check ``spec`` (an OCI runtime-spec document) and lay out the steps.

    Raises :class:`Failure`: ``SpecError`` with the place in the document, ``UnsupportedFeature`` with the member's name.
    """
    linux = spec.get("linux") or {}
    _check(spec, linux, seccomp)
    namespaces = _namespaces(linux.get("namespaces") or ())
    hostname, domainname = spec.get("hostname"), spec.get("domainname")
    if (hostname or domainname) and "uts" not in namespaces:
        raise invalid("$.hostname", "a host name needs a uts namespace")
    program = processes.parse(spec.get("process") or {}, linux, seccomp, surroundings)
    return Plan(
        namespaces, tuple(_steps(spec, linux)), program, hostname, domainname,
        bool((spec.get("root") or {}).get("readonly")), _propagation(linux.get("rootfsPropagation")),
        _hooks(spec.get("hooks") or {}), linux.get("timeOffsets") or {}, dict(spec.get("annotations") or {}), init,
    )  # fmt: skip


def _check(spec: Mapping[str, Any], linux: Mapping[str, Any], seccomp: bytes) -> None:
    version = str(spec.get("ociVersion", ""))
    if not version.startswith("1."):
        raise invalid("$.ociVersion", f"{version!r} is not a version 1 document")
    for platform in ("windows", "solaris", "vm", "zos"):
        if spec.get(platform):
            raise unsupported(platform, "this is a Linux runtime")
    for name in _UNSUPPORTED:
        if linux.get(name):
            raise unsupported(f"linux.{name}", "the native engine does not have it", "use the crun or runc engine")
    if linux.get("seccomp") and not seccomp:
        raise invalid("$.linux.seccomp", "the profile was not compiled")


def _namespaces(entries: Any) -> dict[str, str | None]:
    result: dict[str, str | None] = {}
    for position, entry in enumerate(entries):
        kind, path = entry.get("type"), entry.get("path")
        if kind not in NAMESPACES:
            raise invalid(f"$.linux.namespaces[{position}].type", f"unknown namespace {kind!r}")
        if kind in result:
            raise invalid(f"$.linux.namespaces[{position}].type", f"the {kind} namespace is given twice")
        if path and kind in ("mount", "pid", "cgroup", "time"):
            raise unsupported(f"linux.namespaces {kind} with a path", "the native engine always makes this one anew")
        result[kind] = path or None
    for kind in _REQUIRED:
        if kind not in result:
            raise invalid("$.linux.namespaces", f"there is no {kind} namespace; the container would not be isolated")
    return result


def _propagation(name: str | None) -> int:
    try:
        return propagation_flag(name or "rprivate")
    except KeyError:
        raise invalid("$.linux.rootfsPropagation", f"unknown propagation {name!r}") from None


def _hooks(hooks: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    for name in hooks:
        if name not in _HOOKS:
            raise invalid(f"$.hooks.{name}", "no such kind of hook")
    return {name: list(rows) for name, rows in hooks.items() if rows}


def _steps(spec: Mapping[str, Any], linux: Mapping[str, Any]) -> Iterator[Step]:
    own_dev = False
    for position, mount in enumerate(spec.get("mounts") or ()):
        step = _mount(mount, f"$.mounts[{position}]")
        own_dev |= isinstance(step, MountFilesystem) and step.target == "/dev"
        yield step
    yield from _devices(linux, own_dev)
    for name, value in (linux.get("sysctl") or {}).items():
        yield Sysctl(name, str(value))
    for path in linux.get("readonlyPaths") or ():
        yield ReadOnly(destination(path, "$.linux.readonlyPaths"))
    for path in linux.get("maskedPaths") or ():
        yield Mask(destination(path, "$.linux.maskedPaths"))


def _devices(linux: Mapping[str, Any], own_dev: bool) -> Iterator[Step]:
    paths = list(_DEVICES) if own_dev else []
    for position, device in enumerate(linux.get("devices") or ()):
        path = destination(device.get("path"), f"$.linux.devices[{position}].path")
        if path not in paths:
            paths.append(path)
    yield from (Device(path) for path in paths)
    if own_dev:
        yield from (Symlink(path, target) for path, target in _LINKS)


def destination(path: Any, place: str) -> str:
    """A normalised absolute path inside the container; anything that could mean another place is refused."""
    if not isinstance(path, str) or not path.startswith("/"):
        raise invalid(place, f"{path!r} is not an absolute path")
    return _normal(path, place)


@lru_cache(maxsize=512)
def _normal(path: str, place: str) -> str:
    if ".." in path.split("/") or "\0" in path:
        raise invalid(place, f"{path!r} contains `..` or NUL")
    return "/" + posixpath.normpath(path).lstrip("/")


def _mount(mount: Mapping[str, Any], place: str) -> Step:
    """One mount; of the standard ones the step is nearly always one that was made before."""
    options = tuple(mount.get("options") or ())
    texts = (mount.get("destination"), *options)
    if not all(isinstance(text, str) for text in texts):
        raise invalid(place, "destination and options are texts")
    if any("\0" in str(text) for text in (mount.get("type"), mount.get("source"), *options)):
        raise invalid(place, "a NUL character in type, source or options")
    if mount.get("uidMappings") or mount.get("gidMappings"):
        return _new_mount(mount, place)
    return _known_mount(mount["destination"], mount.get("type"), mount.get("source"), options, place)


@lru_cache(maxsize=512)
def _known_mount(target: str, kind: str | None, source: str | None, options: tuple[str, ...], place: str) -> Step:
    return _new_mount({"destination": target, "type": kind, "source": source, "options": options}, place)


def _new_mount(mount: Mapping[str, Any], place: str) -> Step:
    target = destination(mount.get("destination"), f"{place}.destination")
    if target == "/":
        raise invalid(f"{place}.destination", "the root itself cannot be a mount's destination")
    given = mount.get("options") or ()
    options = parse_options(given)
    if options.copy_up:
        raise unsupported("mounts option tmpcopyup", "the native engine does not have it")
    kind = mount.get("type") or ""
    if kind in ("bind", "none", "") or "bind" in given or "rbind" in given:
        return _bind(mount, target, place)
    if kind == "cgroup":
        # The container is in a cgroup namespace, so this shows its own subtree; version 2 even on hybrid hosts.
        return MountFilesystem("cgroup2", "cgroup", target, options._replace(data=""))
    return MountFilesystem(kind, mount.get("source") or kind, target, options)


def _bind(mount: Mapping[str, Any], target: str, place: str) -> Bind:
    options = parse_options(mount.get("options") or ())
    if not mount.get("source"):
        raise invalid(f"{place}.source", "a bind mount needs a source")
    if options.data:
        raise invalid(f"{place}.options", f"unknown option for a bind mount: {options.data}")
    for kind in ("uidMappings", "gidMappings"):
        if mount.get(kind) and not options.idmap:
            options = options._replace(idmap=True)
    return Bind(mount["source"], target, options)
