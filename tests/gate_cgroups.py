"""Probes of the gate for cgroups: which hierarchies are there, and where we may make a cgroup that has a controller."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def mounts(fstype: str) -> list[tuple[Path, set[str]]]:
    """Mount points of a file system type and their super block options (proc_pid_mountinfo(5))."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == fstype:
            found.append((Path(before.split(" ")[4]), set(options.split(","))))
    return found


def _own_cgroup(hierarchy: str) -> str:
    """Our path in a hierarchy: "" names cgroup2, a controller the v1 hierarchy it belongs to."""
    for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
        number, controllers, path = line.split(":", 2)
        if hierarchy in controllers.split(",") if hierarchy else number == "0":
            return path.lstrip("/")
    return ""


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One probe at a time: other test processes switch the same controller on and off."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _child_of(parent: Path, controller: str | None = None) -> str | None:
    """Make a cgroup below ``parent``; with ``controller``, see that the child really has it."""
    child = parent / f"probe-{os.getpid()}"
    try:
        child.mkdir()
    except OSError as error:
        return f"cannot make a cgroup in {parent}: {error.strerror}"
    try:
        with _locked(parent):
            return None if controller is None else _enable(parent, child, controller)
    finally:
        child.rmdir()


def _enable(parent: Path, child: Path, controller: str) -> str | None:
    def has_it() -> bool:
        return controller in (child / "cgroup.controllers").read_text("ascii").split()

    if has_it():
        return None
    control = parent / "cgroup.subtree_control"
    try:
        control.write_text(f"+{controller}", "ascii")
    except OSError:
        return f"{parent} has no controller {controller} to hand on"
    there = has_it()
    control.write_text(f"-{controller}", "ascii")
    return None if there else f"{parent} does not hand {controller} on"


def cgroup2(controller: str | None = None) -> str | None:
    """A cgroup2 directory that we may make children in: our own cgroup, or for root the top."""
    reason = "cgroup2 is not mounted"
    for top, _ in mounts("cgroup2"):
        for parent in dict.fromkeys((top / _own_cgroup(""), top)):
            failure = _child_of(parent, controller)
            if failure is None:
                return None
            reason = failure
    return reason


def cgroup1(controller: str) -> str | None:
    for top, options in mounts("cgroup"):
        if controller in options:
            return _child_of(top / _own_cgroup(controller))
    return f"no cgroup v1 hierarchy has {controller}"
