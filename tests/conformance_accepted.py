"""The differences between engines that are all right, each with its reason. There are no others."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from sandbox.oci.mounts import MASKED_PATHS, READONLY_PATHS


class Accepted(NamedTuple):
    """One difference from the native engine."""

    engine: str
    #: Paths into the probe's report, as shell patterns; at least one has to differ in every case concerned.
    paths: tuple[str, ...]
    reason: str
    #: Only in this case …
    only: str | None = None
    #: … or in all but these.
    unless: tuple[str, ...] = ()
    #: What the values of both engines have all the same.
    both: tuple[str, ...] = ()

    def concerns(self, engine: str, case: str) -> bool:
        return engine == self.engine and case not in self.unless and self.only in {None, case}

    def allows(self, path: str, values: tuple[Any, Any]) -> bool:
        found = any(fnmatchcase(path, pattern) for pattern in self.paths)
        return found and all(word in (value or ()) for value in values for word in self.both)


def _options(*places: str) -> tuple[str, ...]:
    return tuple(f"mounts.{place}.options" for place in places)


_NODES = tuple(f"/dev/{name}" for name in ("full", "null", "random", "tty", "urandom", "zero"))
_UNMASKED = ("privileged",)

TABLE = (
    Accepted(
        "crun", _options("/"),
        "crun binds the root once more, without the mount flag nodev. File systems that a user namespace has mounted "
        "have no device files in any case",
    ),
    Accepted("crun", _options(*_NODES), "crun binds devices with nosuid and noexec; nobody can tell from using them"),
    Accepted(
        "crun", _options(*READONLY_PATHS),
        "crun binds read-only paths anew, without the flags of the mount that they are on", unless=_UNMASKED, both=("ro",),
    ),
    Accepted(
        "crun", _options(*MASKED_PATHS),
        "crun masks a directory with a tmpfs of its own, and makes the /dev/null on a masked file read-only; the "
        "native engine has one empty directory for all", unless=_UNMASKED, both=("relatime",),
    ),
    Accepted("crun", tuple(f"mounts.{place}.data" for place in MASKED_PATHS), "the same", unless=_UNMASKED),
    Accepted(
        "crun", tuple(f"proc_paths.{place.removeprefix('/proc/')}" for place in MASKED_PATHS),
        "the same: the mount that masks a file is read-only. Opening it for writing does the same in both, nothing",
        unless=_UNMASKED, both=("ok", "c"),
    ),
    Accepted(
        "crun", ("mounts./sys.data",),
        "crun makes the mount read-only, not the sysfs behind it, which nobody else has mounted", unless=_UNMASKED,
    ),
    Accepted("crun", _options("/dev/console"), "crun binds the terminal without the flags of devpts", only="terminal"),
    Accepted("runc", ("devices.core",), "runc makes no link /dev/core; /proc/kcore is masked where it would lead"),
    Accepted(
        "runc", _options("/"), "runc makes the root read-only without the mount flag nodev (see crun)", only="read-only",
        both=("ro",),
    ),
    Accepted(
        "runc", tuple(f"mounts.{place}.{field}" for place in MASKED_PATHS for field in ("options", "data")),
        "runc masks a directory with a tmpfs of its own (see crun)", unless=_UNMASKED,
    ),
)  # fmt: skip


def judge(engine: str, case: str, found: dict[str, tuple[Any, Any]]) -> tuple[dict[str, Any], list[Accepted]]:
    """(differences that no row of the table allows, rows that concern this case but met nothing)."""
    rows = [row for row in TABLE if row.concerns(engine, case)]
    unexplained = {
        path: values for path, values in found.items() if not any(row.allows(path, values) for row in rows)
    }
    idle = [row for row in rows if not any(row.allows(path, values) for path, values in found.items())]
    return unexplained, idle
