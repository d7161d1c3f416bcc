"""cgroup files: version 2 (cgroups(7), Documentation/admin-guide/cgroup-v2.rst), and version 1 beside it.

A :class:`Cgroup` is one node: its version 2 directory, and on hybrid hosts a directory in each version 1 hierarchy that
is needed. Freezing and killing are version 2 throughout; it has them even where it has no controllers.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from .errors import KernelError
from .mounts import mount_table

#: How long :meth:`Cgroup.remove` waits for the last processes to leave after they were killed, in seconds.
_REMOVE_PATIENCE = 2.0


class Hierarchies(NamedTuple):
    """Where cgroups are mounted: version 2, and version 1 by controller."""

    v2: str | None
    v1: dict[str, str]


def hierarchies(process: str = "self") -> Hierarchies:
    """Read the mount table; a directory that is covered by a later mount counts for nothing."""
    v2: str | None = None
    v1: dict[str, str] = {}
    for mount in mount_table(process):
        if mount.fstype not in ("cgroup", "cgroup2") or not os.path.exists(f"{mount.target}/cgroup.procs"):
            continue  # something else lies on top of it
        if mount.fstype == "cgroup2":
            v2 = mount.target
        else:
            v1.update({option: mount.target for option in mount.super_options if option not in ("rw", "ro")})
    return Hierarchies(v2, v1)


def read(path: str) -> str | None:
    """The text of a cgroup file, None where there is no such file, or no more once it was opened (ENODEV)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, 65536).decode()
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return None
    finally:
        os.close(fd)


def write(path: str, value: str) -> None:
    """Write one value; a refusal is a :class:`KernelError` that names the file."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError(error.errno or 0, f"write {value!r} to", path) from None


def flat_keyed(text: str | None) -> dict[str, int]:
    """``cpu.stat``-like text: a name and a number on each line."""
    pairs = (line.split() for line in (text or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def read_event(events: int, name: str) -> int | None:
    """A number in an open ``cgroup.events``; None when the cgroup has gone.

    Reading arms the notification (POLLPRI) of what changes from then on: who looks elsewhere first may miss the change.
    """
    try:
        return flat_keyed(os.pread(events, 4096, 0).decode()).get(name, 0)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return None


class Cgroup:
    """One cgroup; directories exist after :meth:`create`."""

    def __init__(self, v2: str | None, v1: dict[str, str] | None = None) -> None:
        self.v2 = v2
        self.v1 = v1 or {}

    def child(self, name: str) -> Cgroup:
        """The cgroup ``name`` below this one (which need not exist yet)."""
        return Cgroup(self.v2 and f"{self.v2}/{name}", {k: f"{path}/{name}" for k, path in self.v1.items()})

    def v2_only(self) -> Cgroup:
        """The same node without its version 1 directories."""
        return Cgroup(self.v2)

    @property
    def paths(self) -> list[str]:
        """Its directories."""
        return [path for path in (self.v2, *dict.fromkeys(self.v1.values())) if path]

    def create(self) -> None:
        """Make the directories, with parents."""
        for path in self.paths:
            try:
                os.mkdir(path, 0o755)
            except FileExistsError:
                pass
            except FileNotFoundError:
                os.makedirs(path, 0o755, exist_ok=True)
            except OSError as error:
                raise KernelError(error.errno or 0, "make the cgroup", path) from None

    def open_directory(self) -> int:
        """A descriptor for clone3's CLONE_INTO_CGROUP, -1 without version 2."""
        return os.open(self.v2, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if self.v2 else -1

    def open_v1_tasks(self) -> tuple[int, ...]:
        """Descriptors of the version 1 ``tasks`` files; writing "0" to one enters it."""
        paths = dict.fromkeys(self.v1.values())
        return tuple(os.open(f"{path}/tasks", os.O_WRONLY | os.O_CLOEXEC) for path in paths)

    def enable(self, controllers: set[str]) -> None:
        """Hand ``controllers`` down to the children (cgroup.subtree_control)."""
        if self.v2 and controllers:
            write(f"{self.v2}/cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(controllers)))

    def available(self) -> set[str]:
        """Version 2 controllers that this cgroup has."""
        return set((read(f"{self.v2}/cgroup.controllers") or "").split()) if self.v2 else set()

    def kill(self) -> bool:
        """SIGKILL every process in it and below (cgroup.kill, Linux 5.14). False if that cannot be done here."""
        return self.v2 is not None and _try_write(f"{self.v2}/cgroup.kill", "1")

    def freeze(self, frozen: bool) -> None:
        """Start to freeze or thaw; :meth:`frozen` tells when it is done, and cgroup.events signals it."""
        write(f"{self.v2}/cgroup.freeze", "1" if frozen else "0")

    def frozen(self) -> bool:
        """True once every process is stopped."""
        return self._event("frozen") == 1

    def populated(self) -> bool:
        """True while a process is in it or below."""
        return self._event("populated") == 1

    def _event(self, name: str) -> int:
        return flat_keyed(read(f"{self.v2}/cgroup.events")).get(name, 0)

    def oom_kills(self) -> int:
        """How many processes the kernel killed here for want of memory."""
        if "memory" in self.v1:
            return flat_keyed(read(f"{self.v1['memory']}/memory.oom_control")).get("oom_kill", 0)
        return flat_keyed(read(f"{self.v2}/memory.events")).get("oom_kill", 0) if self.v2 else 0

    def statistics(self) -> dict[str, int]:
        """Usage as far as the controllers tell: cpu_usec, memory bytes, pids, io bytes; what is unknown is absent."""
        found = self.totals()
        if self.v2:
            for controller, files in _V2_FILES.items():
                if controller not in self.v1:
                    found.update(_numbers(self.v2, files))
        for controller, files in _V1_FILES.items():
            if controller in self.v1:
                found.update(_numbers(self.v1[controller], files))
        return found

    def totals(self) -> dict[str, int]:
        """What of it makes sense when nothing runs in it any more: sums and peaks."""
        found = self.cpu()
        if self.v2:
            found.update(_io(read(f"{self.v2}/io.stat")))
        for controller, (v1_file, v2_file) in _PEAKS.items():
            directory, file = (self.v1[controller], v1_file) if controller in self.v1 else (self.v2, v2_file)
            if directory:
                found.update(_number(directory, file, f"{controller}_peak"))
        return found

    def cpu(self) -> dict[str, int]:
        """Of that the time, which every cgroup knows."""
        return dict(_cpu(flat_keyed(read(f"{self.v2}/cpu.stat")))) if self.v2 else {}

    def pressure(self, resource: str) -> dict[str, float]:
        """PSI of ``cpu``, ``memory`` or ``io``: some_avg10 … full_total (stall shares in percent, totals in µs)."""
        found: dict[str, float] = {}
        for line in (read(f"{self.v2}/{resource}.pressure") or "").splitlines() if self.v2 else ():
            kind, *pairs = line.split()
            found.update({f"{kind}_{name}": float(value) for name, value in (pair.split("=") for pair in pairs)})
        return found

    def remove_empty(self) -> bool:
        """Remove the directories if nothing is in them; False if that cannot be done, for then something is."""
        try:
            for path in self.paths:
                os.rmdir(path)
        except OSError:
            return False
        return True

    def remove_children(self) -> None:
        """Kill what is left in its version 2 directory, and remove what is below it; it stays itself."""
        self.kill()
        try:
            entries = list(os.scandir(self.v2)) if self.v2 else []
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _remove_tree(entry.path)

    def remove(self) -> None:
        """Kill what is left and remove the directories with everything below; returns when they are gone."""
        self.kill()
        for path in self.paths:
            _remove_tree(path)


_V2_FILES = {
    "memory": {"memory.current": "memory_current", "memory.max": "memory_limit", "memory.swap.current": "swap_current"},
    "pids": {"pids.current": "pids_current", "pids.max": "pids_limit"},
}
_V1_FILES = {
    "memory": {"memory.usage_in_bytes": "memory_current", "memory.limit_in_bytes": "memory_limit"},
    "pids": {"pids.current": "pids_current", "pids.max": "pids_limit"},
}
#: Of these, the highest value so far, in either version.
_PEAKS = {"memory": ("memory.max_usage_in_bytes", "memory.peak"), "pids": ("pids.peak", "pids.peak")}
#: What version 1 says for "no limit": the largest page-aligned number, and anything near it.
_UNLIMITED = 1 << 62


def _numbers(directory: str, files: dict[str, str]) -> Iterator[tuple[str, int]]:
    for file, name in files.items():
        content = read(f"{directory}/{file}")
        if content is None and name.endswith("_current"):
            return  # the controller is not enabled here, and its other files are not there either
        yield from _plain_number(content, name)


def _number(directory: str, file: str, name: str) -> Iterator[tuple[str, int]]:
    return _plain_number(read(f"{directory}/{file}"), name)


def _plain_number(content: str | None, name: str) -> Iterator[tuple[str, int]]:
    text = (content or "").strip()
    if text.isdecimal() and int(text) < _UNLIMITED:
        yield name, int(text)


def _cpu(stat: dict[str, int]) -> Iterator[tuple[str, int]]:
    for key, name in (("usage_usec", "cpu_usec"), ("user_usec", "cpu_user_usec"), ("system_usec", "cpu_system_usec"),
                      ("nr_throttled", "cpu_throttled"), ("throttled_usec", "cpu_throttled_usec")):  # fmt: skip
        if key in stat:
            yield name, stat[key]


def _io(text: str | None) -> Iterator[tuple[str, int]]:
    if text is None:
        return
    totals = {"rbytes": 0, "wbytes": 0}
    for pair in text.split():
        name, _, value = pair.partition("=")
        if name in totals and value.isdecimal():
            totals[name] += int(value)
    yield "io_read_bytes", totals["rbytes"]
    yield "io_write_bytes", totals["wbytes"]


def _try_write(path: str, value: str) -> bool:
    try:
        write(path, value)
    except KernelError:
        return False
    return True


def _remove_tree(path: str) -> None:
    for directory, _, _ in os.walk(path, topdown=False):
        _remove_one(directory)


def _remove_one(path: str) -> None:
    """A killed process leaves its cgroup a moment later, when it is reaped: EBUSY until then."""
    deadline = time.monotonic() + _REMOVE_PATIENCE
    delay = 0.0005
    while True:
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise KernelError(error.errno or 0, "remove the cgroup", path) from None
        time.sleep(delay)
        delay = min(delay * 2, 0.02)
