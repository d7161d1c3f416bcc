"""What the machine looks like: taken before and after, it shows what a session has left behind.

Everything is asked of the kernel; nothing of what the library believes to have made. The whole machine is looked at, so
tests that use this are marked ``serial``.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from programs import patient

Snapshot = Mapping[str, frozenset[str]]

#: Seconds in which the kernel has to be done with what it does by and by: reaping, namespaces, empty cgroups.
PATIENCE = 0.2
#: Namespaces in which everything that a shim starts, and the shim itself, differs from us.
_TELLING = ("user", "pid", "mnt")
#: Owners from here on are nobody's own.
_FIRST_SUB_ID = 65536
#: What may end or vanish while we look: it was there before us.
_MAY_END = frozenset({"processes", "namespaces", "files"})


def snapshot() -> Snapshot:
    """Everything a pod could leave behind on the machine, each thing as a line to read."""
    return {
        "processes": frozenset(_processes()),
        "namespaces": frozenset(_namespaces()),
        "mounts": frozenset(_mounts()),
        "cgroups": frozenset(_cgroups()),
        "interfaces": frozenset(os.listdir("/sys/class/net")),
        "ipc": frozenset(_ipc()),
        "files": frozenset(_files()),
        "devices": frozenset(_devices()),
    }


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """What is new, and what is missing that nobody else takes away."""
    lines = []
    for kind, things in after.items():
        lines += [f"{kind}: left behind: {thing}" for thing in sorted(things - before[kind])]
        if kind not in _MAY_END:
            lines += [f"{kind}: gone: {thing}" for thing in sorted(before[kind] - things)]
    return lines


def assert_as_before(before: Snapshot, patience: float | None = None) -> None:
    """Fail with a readable list if the machine is not as it was, ``patience`` seconds from now at the latest."""
    deadline = time.monotonic() + (patient(PATIENCE) if patience is None else patience)
    while lines := difference(before, snapshot()):
        if time.monotonic() > deadline:
            raise AssertionError("the machine is not as before:\n  " + "\n  ".join(lines))
        time.sleep(0.01)


def _process_directories() -> Iterator[Path]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield entry


def _processes() -> Iterator[str]:
    """By number and birth; not the kernel's threads, nor the dead that process 1 has not got round to."""
    for directory in _process_directories():
        with contextlib.suppress(OSError):
            stat = (directory / "stat").read_text()
            fields = stat.rpartition(")")[2].split()
            is_kernel_thread = int(fields[6]) & 0x00200000  # PF_KTHREAD
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if not is_kernel_thread and not _is_for_init_to_reap(directory) and _may_be_ours(directory, command):
                name = stat.partition("(")[2].rpartition(")")[0]
                yield f"{directory.name} {command[:200] or name} (state {fields[0]}, started {fields[19]})"


def _is_for_init_to_reap(directory: Path) -> bool:
    try:
        return (directory / "stat").read_text().rpartition(")")[2].split()[:2] == ["Z", "1"]
    except OSError:
        return False


def _may_be_ours(directory: Path, command: str) -> bool:
    """Not what a desktop or a daemon starts meanwhile: ours are in namespaces of their own, or say what they are."""
    if int(directory.name) == os.getpid():
        return False
    if "sandbox" in command or "busy.py" in command:
        return True
    try:
        return any(os.readlink(directory / "ns" / kind) != os.readlink(f"/proc/self/ns/{kind}") for kind in _TELLING)
    except OSError:
        owner = directory.stat().st_uid
        return owner == os.getuid() or owner >= _FIRST_SUB_ID


def _namespaces() -> Iterator[str]:
    """Of all processes, and those that only a descriptor keeps alive, as far as we may look."""
    for directory in _process_directories():
        if _is_for_init_to_reap(directory):
            continue  # it still has the number of its process namespace
        for links in (directory / "ns", directory / "fd"):
            with contextlib.suppress(OSError):
                for link in links.iterdir():
                    with contextlib.suppress(OSError):
                        target = os.readlink(link)
                        if ":[" in target and not target.startswith(("pipe:", "socket:", "anon_inode:")):
                            yield target


def _mounts() -> Iterator[str]:
    """Of our own mount namespace and, as far as we may look, that of process 1; without the ids of mounts."""
    for process in ("self", "1"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/mountinfo").read_text().splitlines():
                yield line.split(" ", 2)[2]


def _cgroups() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith(("cgroup ", "cgroup2 ")):
            for directory, _, _ in os.walk(before.split(" ")[4]):
                if not directory.endswith("/sandbox.slice"):  # systemd keeps a slice once it was needed
                    yield directory


def _ipc() -> Iterator[str]:
    for kind in ("shm", "sem", "msg"):
        for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]:
            yield f"{kind} {line.split()[1]}"
    yield from (f"/dev/shm/{name}" for name in os.listdir("/dev/shm"))


def _files() -> Iterator[str]:
    """Runtime directories with all that is in them, temporary files, and what the image store was about to unpack."""
    from sandbox.images import Store
    from sandbox.shim.rundir import base_directory

    for top in (base_directory(), str(Store.default().root / "tmp")):
        for directory, names, files in os.walk(top):
            yield from (f"{directory}/{name}" for name in names + files)
    yield from (f"/tmp/{name}" for name in os.listdir("/tmp"))


def _devices() -> Iterator[str]:
    """Containers see the host's own nodes: whoever gives one away gives away the host's."""
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        state = os.stat(f"/dev/{name}")
        yield f"/dev/{name} of {state.st_uid}:{state.st_gid}, mode {state.st_mode:o}"
