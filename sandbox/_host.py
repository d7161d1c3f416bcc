"""The facts about this host that a translation needs (:class:`sandbox.oci.Host`)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from functools import cache
from typing import Any

from sandbox.linux.idmap import IdMap, IdRange, is_privileged, nested
from sandbox.oci import DeviceNumbers
from sandbox.oci.runtime import LinuxIdMapping


@cache
def facts(idmap: IdMap, run_dir: str) -> dict[str, Any]:
    """Everything that stays the same for a shim's life, as arguments of :class:`sandbox.oci.Host`. Not to be changed."""
    privileged = is_privileged()
    pod_map = idmap if privileged else nested(idmap)
    release = os.uname().release.split(".")
    return {
        "rootless": not privileged,
        "uid_mappings": _mappings(pod_map.uids),
        "gid_mappings": _mappings(pod_map.gids),
        "machine": os.uname().machine,
        "kernel": (int(release[0]), int("".join(filter(str.isdigit, release[1])))),
        "memory_total": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "cpu_count": os.cpu_count() or 1,
        "run_dir": run_dir,
    }


def _mappings(ranges: Iterable[IdRange]) -> tuple[LinuxIdMapping, ...]:
    return tuple(LinuxIdMapping(container_id=r.inside, host_id=r.outside, size=r.count) for r in ranges)


def device_numbers(paths: Iterable[str]) -> dict[str, DeviceNumbers]:
    """What stat(2) says of device nodes; paths that are none are left out, to be refused by who needs them."""
    found = {}
    for path in paths:
        try:
            state = os.stat(path)
        except OSError:
            continue
        kind = "c" if stat.S_ISCHR(state.st_mode) else "b" if stat.S_ISBLK(state.st_mode) else None
        if kind:
            found[path] = DeviceNumbers(kind, os.major(state.st_rdev), os.minor(state.st_rdev))
    return found
