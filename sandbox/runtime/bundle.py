"""The document that an external engine gets: the same one, less what has been done by then. No I/O.

The driver (:mod:`.driver`) is in the pod's user, network, IPC and UTS namespaces before it calls the engine; it has set
the sysctls, mounted the root and brought in what is bound from the host; the shim sets limits, and runs the hooks that
follow the start.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from sandbox.linux import constants as c
from sandbox.linux.mounts import parse_options

from .failure import unsupported
from .plan import Plan
from .steps import Bind

_JOINED = ("network", "ipc", "uts")
#: Members of ``linux`` that the driver or the shim sees to.
_DONE = frozenset({"uidMappings", "gidMappings", "cgroupsPath", "resources", "sysctl"})
#: RLIM_INFINITY is -1 in Python, and the largest number in a document.
_INFINITY = 1 << 64
_SHIM_HOOKS = ("poststart", "poststop")


def check(plan: Plan, engine: str) -> None:
    """Refuse by name what these programs would ignore or cannot do. Raises :class:`Failure`."""
    if plan.init:
        raise unsupported("init", f"the {engine} engine has no init of its own",
                          "use the native engine, or an init in the image (tini, dumb-init)")  # fmt: skip
    if plan.domainname:
        raise unsupported("domainname", f"the {engine} engine does not set it", "use the native engine")
    if plan.time_offsets or "time" in plan.namespaces:
        raise unsupported("linux.timeOffsets", f"the {engine} engine has no time namespaces", "use the native engine")
    for kind, path in plan.namespaces.items():
        if path:
            raise unsupported(f"linux.namespaces {kind} with a path", f"not with the {engine} engine",
                              "use the native engine")  # fmt: skip


def document(spec: Mapping[str, Any], plan: Plan, *, root: str, sources: Mapping[str, str]) -> dict[str, Any]:
    """The content of config.json.

    ``root`` is the assembled root; ``sources`` has the place of each bound file or directory by its target. Limits come
    from ``plan``, which knows those of the caller: the engine would inherit the shim's.
    """
    linux = {name: value for name, value in (spec.get("linux") or {}).items() if name not in _DONE}
    linux["namespaces"] = list(_namespaces(linux.get("namespaces") or ()))
    whole = {**spec, "linux": linux, "root": {**(spec.get("root") or {}), "path": root}}
    whole["process"] = {**spec["process"], "rlimits": [_rlimit(*row[1:]) for row in plan.program.rlimits]}
    whole["mounts"] = [_mount(mount, sources) for mount in spec.get("mounts") or ()]
    if spec.get("hooks"):
        whole["hooks"] = {kind: rows for kind, rows in spec["hooks"].items() if kind not in _SHIM_HOOKS}
    return whole


def _rlimit(name: str, soft: int, hard: int) -> dict[str, Any]:
    return {"type": name, "soft": soft % _INFINITY, "hard": hard % _INFINITY}


def _namespaces(entries: Any) -> Iterator[dict[str, str]]:
    """Those that the engine is in already are given by path, lest a host name or a loopback device be missed."""
    for entry in entries:
        kind = entry["type"]
        if kind in _JOINED:
            yield {"type": kind, "path": f"/proc/self/ns/{c.NAMESPACES[kind][1]}"}
        elif kind != "user":
            yield {"type": kind}


def _mount(mount: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    source = sources.get("/" + posixpath.normpath(mount["destination"]).lstrip("/"))
    if source is None:
        return dict(mount)
    result = {key: value for key, value in mount.items() if key not in ("uidMappings", "gidMappings")}
    # Owners are mapped and recursive attributes set already: these options are what runtimes differ in.
    options = [option for option in mount.get("options") or () if not _is_done(option)]
    return {**result, "type": "bind", "source": source, "options": options}


def _is_done(option: str) -> bool:
    parsed = parse_options((option,))
    return parsed.idmap or bool(parsed.recursive_set or parsed.recursive_clear)


def places(plan: Plan, directory: str) -> dict[str, str]:
    """Where in ``directory`` each bound file or directory is put, by its target."""
    return {step.target: f"{directory}/{number}" for number, step in enumerate(plan.binds)}


def mount_points(plan: Plan, below: str) -> Iterator[tuple[str, bool | None]]:
    """(target, whether it is a directory; None for as its source is) of the mounts of ``plan`` below a directory."""
    for step in plan.steps:
        target = getattr(step, "target", "")
        if isinstance(step, Bind) and os.path.commonpath((below, target)) == below:
            yield target, None
        elif hasattr(step, "fstype") and os.path.commonpath((below, target)) == below:
            yield target, True
