"""The systemd manager that runs services: one connection for each kind and process, and what that manager can do."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from sandbox.services.errors import NoManager, PropertyError

if TYPE_CHECKING:
    from sandbox_systemd.manager import Manager

__all__ = ["Home", "errors_of_systemd", "home"]

#: Units of one process of ours carry its token, so that who comes later can tell whose are left over.
_PREFIX = "sandbox-service"
_CLIENT = "sandbox-client"


class Home:
    """Where services run: a manager, and whether it does what is asked.

    A manager that outlives us (the system's, a user's) is given a unit that stands for this process and ends with it,
    after ``kill -9`` too; services are bound to it. A private manager ends with us by itself.
    """

    def __init__(self, manager: Manager, kind: str) -> None:
        self.manager = manager
        #: As it was asked for.
        self.kind = kind
        self.pid = os.getpid()
        self.token = f"{self.pid}-{os.urandom(4).hex()}"
        self._count = 0
        self._lock = threading.Lock()
        self._client: int | None = None
        #: Whether packets of its services are filtered; None if nobody has tried yet.
        self.firewall: bool | None = None
        if manager.kind != "private":
            self._sweep()

    @property
    def root(self) -> bool:
        """It runs as root, and can run services as anybody."""
        return self.manager.kind == "system" or os.geteuid() == 0

    def new_name(self) -> str:
        """A unit name that nobody has."""
        with self._lock:
            self._count += 1
            return f"{_PREFIX}-{self.token}-{self._count}.service"

    @property
    def client(self) -> str | None:
        """The unit that stands for this process; started when it is first needed. None: the manager ends with us."""
        if self.manager.kind == "private":
            return None
        unit = f"{_CLIENT}-{self.token}.service"
        with self._lock:
            if self._client is None:
                self._client = self._start_client(unit)
        return unit

    def _start_client(self, unit: str) -> int:
        from sandbox_systemd.bus import Variant

        cat = shutil.which("cat", path="/usr/bin:/bin") or "/bin/cat"
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        try:
            self.manager.start_transient(unit, [
                ("Description", Variant("s", f"Process {os.getpid()} of sandbox, as long as it lives")),
                ("CollectMode", Variant("s", "inactive-or-failed")),
                ("StandardInputFileDescriptor", Variant("h", theirs)),
                ("ExecStart", Variant("a(sasb)", [(cat, [cat], False)])),
                ("Slice", Variant("s", "sandbox.slice")),
            ])  # fmt: skip
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        return ours

    def _sweep(self) -> None:
        """Forget failed services of processes that are gone; their units have nothing in them any more."""
        from sandbox_systemd.errors import SystemdError

        states = {unit.name: unit.active_state for unit in self.manager.list_units([f"{_PREFIX}-*", f"{_CLIENT}-*"])}
        for name, state in states.items():
            token = name.removeprefix(f"{_PREFIX}-").rpartition("-")[0]
            # The client's unit is still known as long as one that was bound to it is.
            if state == "failed" and states.get(f"{_CLIENT}-{token}.service") != "active":
                with contextlib.suppress(SystemdError):
                    self.manager.reset_failed(name)

    @functools.cached_property
    def features(self) -> frozenset[str]:
        """What it was built with: ``{"SECCOMP", …}`` (systemd --version)."""
        words = str(self.manager.own("Features").value).split()
        return frozenset(word[1:] for word in words if word.startswith("+"))

    @functools.cached_property
    def top(self) -> str | None:
        """Where cgroup2 is mounted; None where it is not."""
        return _cgroup2()

    @functools.cached_property
    def cgroup(self) -> str | None:
        """The directory of the manager's control group, as we see it."""
        return None if self.top is None else f"{self.top}{self.manager.own('ControlGroup').value}".rstrip("/")

    def cgroup_of(self, unit: str, slice: str) -> str | None:
        """The directory of a unit's control group. A slice lies in that which its name begins with (systemd.slice(5))."""
        if self.cgroup is None:
            return None
        parts = slice.removesuffix(".slice").split("-")
        slices = ["-".join(parts[: count + 1]) + ".slice" for count in range(len(parts))]
        return "/".join([self.cgroup, *slices, unit])

    @functools.cached_property
    def controllers(self) -> frozenset[str]:
        """The controllers whose limits it can keep."""
        found: set[str] = set()
        if self.cgroup is not None:
            with contextlib.suppress(OSError), open(f"{self.cgroup}/cgroup.controllers") as file:
                found.update(file.read().split())
        if self.manager.kind == "system":
            found |= _cgroup1()
        return frozenset(found)

    def has_ended(self) -> bool:
        """A private manager that somebody has killed: its directory has gone with it, and so has what it ran."""
        return self.manager.kind == "private" and not os.path.exists(f"{self.manager.name}/systemd/private")

    def close(self) -> None:
        """End the connection, and what was bound to it."""
        if self._client is not None:
            os.close(self._client)
            self._client = None
        self.manager.close()


def _mounts() -> Iterator[tuple[str, str, set[str]]]:
    """(target, kind, options of the file system) of every mount (proc_pid_mountinfo(5))."""
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.rstrip("\n").partition(" - ")
            kind, _, options = after.split(" ", 2)
            yield before.split(" ")[4], kind, set(options.split(","))


def _cgroup2() -> str | None:
    found = [target for target, kind, _ in _mounts() if kind == "cgroup2" and os.path.exists(f"{target}/cgroup.procs")]
    return found[-1] if found else None


def _cgroup1() -> set[str]:
    """Controllers of version 1 hierarchies, by the names they have in version 2."""
    names = {"memory": "memory", "pids": "pids", "cpu": "cpu", "blkio": "io", "cpuset": "cpuset"}
    return {names[option] for _, kind, options in _mounts() if kind == "cgroup" for option in options if option in names}


_homes: dict[str, Home] = {}
_opening = threading.Lock()


def home(kind: str | None = None) -> Home:
    """The manager of this kind (``auto``, ``system``, ``user``, ``private``), opened once by each process.

    :raises NoManager: there is none
    """
    wanted = kind or os.environ.get("SANDBOX_SYSTEMD") or "auto"
    with _opening:
        there = _homes.get(wanted)
        if there is None or there.pid != os.getpid() or there.has_ended():
            there = _homes[wanted] = _open(wanted)
        return there


def _open(kind: str) -> Home:
    if kind == "off":
        raise NoManager("systemd is switched off", operation="run service",
                        hint="choose another manager than `off` (--sandbox-systemd, $SANDBOX_SYSTEMD)")  # fmt: skip
    with errors_of_systemd("run service"):
        from sandbox_systemd.managers import open_manager

        return Home(open_manager(kind), kind)


@contextlib.contextmanager
def errors_of_systemd(operation: str, object: str | None = None) -> Iterator[None]:
    """What systemd refuses, as an error of ours."""
    from sandbox_systemd.errors import SystemdError

    try:
        yield
    except SystemdError as error:
        _translate(error, operation, object)


def _translate(error: Any, operation: str, object: str | None) -> NoReturn:
    from sandbox_systemd.errors import InvalidProperty

    from sandbox.systemd_errors import public

    error.about(operation, object)
    if isinstance(error, InvalidProperty):
        name, _, value = str(error.object or "").partition("=")
        raise PropertyError(
            error.detail, class_name="service", field=name or "property", value=value, cause=error.cause, hint=error.hint,
        ) from None  # fmt: skip
    raise public(error) from None
