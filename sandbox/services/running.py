"""A service from its start to its end: the unit, its streams, what systemd tells of it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import tempfile
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from sandbox._process import AnyText, Streams, WithStreams, signal_value
from sandbox.errors import PodStateError, SandboxError, TimeoutExpired
from sandbox.services.ending import Ending, ServiceResult, ServiceUsage, gather
from sandbox.services.managers import errors_of_systemd
from sandbox.systemd_errors import ManagerTimeout

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox_systemd.bus import Signal, Subscription, Variant

    from sandbox.services.managers import Home
    from sandbox.services.plan import Plan

__all__ = ["LOG", "RunningService", "Watched"]

#: A stream that is kept for :meth:`RunningService.logs`.
LOG = "log"
_SERVICE = "org.freedesktop.systemd1.Service"
_UNIT = "org.freedesktop.systemd1.Unit"
#: Seconds from SIGKILL until systemd has seen that everything is gone.
_KILL_PATIENCE = 10.0
#: Seconds that stopping may take if nobody says otherwise; TimeoutStopSec= comes first.
_STOP_PATIENCE = 100.0
#: States of a service whose command has ended, one way or another.
_ENDED = frozenset({"exited", "failed"})


class Watched:
    """What systemd tells of a unit while it runs: every change of its properties.

    Asked for before the unit is there, so that nothing is missed.
    """

    def __init__(self, home: Home, unit: str, slice: str | None = None) -> None:
        from sandbox_systemd.manager import unit_path

        self.home = home
        self.unit = unit
        self.path = unit_path(unit)
        #: The directory of its control group; None where we cannot see it.
        self.cgroup = home.cgroup_of(unit, slice) if slice is not None else None
        self._values: dict[str, Any] = {}
        #: The last news of each interface, which is read when somebody wants to know.
        self._unread: dict[str, Signal] = {}
        self._lock = threading.Lock()
        self._alive = False
        self._gone = False
        with errors_of_systemd("watch unit", unit):
            self._subscribe()

    def _subscribe(self) -> None:
        from sandbox_systemd.bus import PROPERTIES

        self.bus = self.home.manager.bus
        self._subscription: Subscription = self.bus.subscribe(self.path, PROPERTIES, "PropertiesChanged", self._changed)

    def again(self) -> None:
        """After the connection broke: the manager may have been executed anew, and have the unit still."""
        from sandbox_systemd.errors import NoSuchUnit

        manager = self.home.manager
        known = manager.exists(self.unit)  # which connects anew
        self._subscribe()
        try:
            values = {**manager.get_all(self.unit, _SERVICE), **manager.get_all(self.unit, _UNIT)} if known else {}
        except NoSuchUnit:
            values = {}
        with self._lock:
            self._unread.clear()
            self._values.update({name: value.value for name, value in values.items()})
        self._alive = True
        self._gone = not values

    def _changed(self, news: Signal) -> None:
        """The bus tells of the interface of services first, and then of that of all units, which has the state."""
        if self.ended:
            return  # what follows is that it is cleaned up, and forgets how it ended
        self._unread[news.first] = news
        if news.first != _UNIT:
            return
        if not news.mentions("dead", *_ENDED):
            self._alive = True
            return
        state = self.state
        self._gone = self._alive and state == "dead"  # stopped by somebody: it is unloaded with that
        self._alive = self._alive or state != "dead"

    @property
    def values(self) -> Mapping[str, Any]:
        """The last value of each property that has changed."""
        with self._lock:
            while self._unread:
                changed: Mapping[str, Variant] = self._unread.popitem()[1].body[1]
                self._values.update({name: value.value for name, value in changed.items()})
        return self._values

    @property
    def state(self) -> str:
        """The state of the service, in systemd's word."""
        return str(self.values.get("SubState", "dead"))

    @property
    def ended(self) -> bool:
        """Its command has ended, or there was none."""
        return self._gone or self._values.get("SubState") in _ENDED

    def wait(self, timeout: float | None = None) -> None:
        """Until it has ended. Raises the bus's errors."""
        self.bus.wait_for(lambda: self.ended or None, timeout)

    def close(self) -> None:
        """Nothing more is wanted."""
        self._subscription.close()


class RunningService(WithStreams):
    """A service that was started; :func:`sandbox.start_service` makes one.

    A context manager: leaving it stops the service and takes its unit away. ``stdin``, ``stdout`` and ``stderr`` are file
    objects for the streams that are pipes.
    """

    def __init__(self, plan: Plan, watched: Watched, streams: Streams) -> None:
        self.plan = plan
        self.unit = watched.unit
        self.args = list(plan.args)
        self._home = watched.home
        self._watched = watched
        self._streams = streams
        self._log: IO[bytes] | None = getattr(streams, "log", None)
        self._kept = ""
        self._done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ended = threading.Event()
        self._ending: Ending | None = None
        self._lost: SandboxError | None = None
        self._closers: list[Callable[[], None]] = []
        self._closed = False
        self._watcher = threading.Thread(target=self._watch, name=f"watch {self.unit}", daemon=True)
        self._watcher.start()

    def __repr__(self) -> str:
        return f"<RunningService {self.unit!r}: {self.state}>"

    def when_closed(self, closer: Callable[[], None]) -> None:
        """Something that goes with it."""
        self._closers.append(closer)

    def _watch(self) -> None:
        try:
            with errors_of_systemd("wait for service", self.unit):
                self._ending = self._until_it_ends()
        except SandboxError as error:
            self._lost = error
        self._watched.close()
        self._ended.set()
        with contextlib.suppress(OSError):
            os.eventfd_write(self._done, 1)

    def _until_it_ends(self) -> Ending:
        from sandbox_systemd.errors import ConnectionLost

        while True:
            try:
                self._watched.wait()
                return gather(self._watched)
            except ConnectionLost:
                self._watched.again()

    # -- how it is --------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """In systemd's word: ``start``, ``running``, ``exited``, ``failed``, ``dead`` and others."""
        return self._watched.state

    @property
    def pid(self) -> int | None:
        """Process id of the command, as this process sees it; None once it has ended."""
        return None if self._ended.is_set() else self._watched.values.get("MainPID") or None

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._ending.returncode if self._ending is not None else None

    @property
    def result(self) -> str | None:
        """How it ended in systemd's word: ``success``, ``exit-code``, ``signal``, ``oom-kill`` and others."""
        return self._ending.result if self._ending is not None else None

    @property
    def oom_killed(self) -> bool:
        """A process of it was killed because of a memory limit."""
        return self._ending is not None and self._ending.result == "oom-kill"

    @property
    def usage(self) -> ServiceUsage | None:
        """What it used in all, once it has ended."""
        return self._ending.usage if self._ending is not None else None

    @property
    def status(self) -> str:
        """What it last said of itself (STATUS= of sd_notify(3))."""
        return str(self._watched.values.get("StatusText", ""))

    @property
    def has_written(self) -> bool:
        """Something came out of it that nobody has read yet, or that is kept."""
        ends = [stream for stream in (self.stdout, self.stderr) if stream is not None]
        return bool(self.logs(tail=1)) or any(_waiting(stream.fileno()) for stream in ends)

    def stats(self) -> ServiceUsage:
        """What it has used so far, and the tasks it has now."""
        if self._ending is not None:
            return self._ending.usage
        with errors_of_systemd("read usage of service", self.unit):
            return ServiceUsage.read(self._watched)

    def get(self, name: str) -> Any:
        """One of its properties, of whichever interface, as a Python value: ``get("MemoryMax")``."""
        from sandbox_systemd.properties import to_python

        with errors_of_systemd("get property of service", self.unit):
            manager = self._home.manager
            values = manager.get_all(self.unit, _SERVICE)
            if name not in values:
                values = manager.get_all(self.unit, _UNIT)
            if name not in values:
                from sandbox.services.errors import PropertyError

                raise PropertyError("services have no such property", class_name="service", field=name, value="")
            return to_python(name, values[name])

    def logs(self, tail: int | None = None) -> str:
        """What it has written to the streams that are kept (``stdout="log"``, the default of a running service)."""
        text = self._kept
        if self._log is not None:
            size = os.fstat(self._log.fileno()).st_size
            text = os.pread(self._log.fileno(), size, 0).decode("utf-8", "backslashreplace")
        return text if tail is None else "".join(text.splitlines(keepends=True)[-tail:] if tail else [])

    # -- waiting ----------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """For poll(2): readable when it has ended."""
        return self._done

    def poll(self) -> int | None:
        """The exit status if it has ended, else None."""
        return self.wait(0) if self._ended.is_set() else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit status. Raises :class:`TimeoutExpired`, and leaves it running."""
        if not self._ended.wait(timeout):
            raise TimeoutExpired(self.args, timeout or 0, operation="wait for service")
        if self._lost is not None:
            raise self._lost
        assert self._ending is not None
        return self._ending.returncode

    def communicate(self, input: AnyText | None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write ``input``, read to the end, wait; like :meth:`subprocess.Popen.communicate`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        data = input.encode() if isinstance(input, str) else input or b""
        out, err = (self._streams.text(part) for part in self._streams.exchange(self._done, data, deadline))
        if deadline is not None and not self._ended.is_set():
            raise TimeoutExpired(self.args, timeout or 0, out, err, operation="wait for service")
        self.wait()
        return out, err

    def completed(self, out: Any, err: Any) -> ServiceResult[Any]:
        """Everything about it, once it has ended."""
        assert self._ending is not None
        ending = self._ending
        return ServiceResult(
            self.args, ending.returncode, out, err, ending.duration, oom_killed=self.oom_killed, usage=ending.usage,
            result=ending.result, unit=self.unit,
        )  # fmt: skip

    # -- control ----------------------------------------------------------------------------------------------------

    def send_signal(self, number: int | str) -> None:
        """Signal the command itself ("HUP", signal.SIGHUP, 1); nothing happens if it has ended."""
        self._signal(number, "main")

    def terminate(self) -> None:
        """SIGTERM to the command."""
        self.send_signal(signal.SIGTERM)

    def kill(self, number: int | str = "KILL") -> None:
        """Signal everything in it."""
        self._signal(number, "all")

    def _signal(self, number: int | str, who: str) -> None:
        value = signal_value(number)
        if self._ended.is_set():
            return
        try:
            self._do("signal service", lambda: self._home.manager.kill(self.unit, value, who=who))
        except SandboxError:
            if not self._ended.wait(1.0):  # it may have ended in this moment
                raise

    def stop(self, timeout: float | None = None) -> int:
        """Stop it as its unit says (KillSignal=, TimeoutStopSec=); kill it after ``timeout`` seconds. The exit status."""
        from sandbox_systemd.errors import NoSuchUnit

        if not self._ended.is_set():
            patience = _STOP_PATIENCE if timeout is None else timeout
            try:
                with errors_of_systemd("stop service", self.unit), contextlib.suppress(NoSuchUnit):
                    self._home.manager.stop(self.unit, timeout=patience)
            except ManagerTimeout:
                self.kill()
        return self.wait(_KILL_PATIENCE)

    def freeze(self) -> None:
        """Hold every process of it where it stands (cgroup freezer); returns when they do."""
        self._set_frozen("freeze service", frozen=True)

    def thaw(self) -> None:
        """Let them go on."""
        self._set_frozen("thaw service", frozen=False)

    def _set_frozen(self, operation: str, *, frozen: bool) -> None:
        manager, cgroup = self._home.manager, self._watched.cgroup
        if manager.kind == "private" and cgroup is not None:
            # It looks for the freezer in the control group of process 1; ours is our own to write to.
            self._do(operation, lambda: _freeze(cgroup, frozen))
        else:
            self._do(operation, lambda: (manager.freeze if frozen else manager.thaw)(self.unit))

    def set_properties(self, **properties: Any) -> None:
        """Change properties while it runs: ``set_properties(TasksMax=10)``. systemd allows that for limits and weights."""
        from sandbox_systemd.properties import from_python

        from sandbox.services import enforcement
        from sandbox.services.settings import Settings, assignments_of

        enforcement.check(Settings(assignments_of(properties)), self._home, lambda: True)
        self._do("change service", lambda: self._home.manager.set_properties(self.unit, from_python(properties)))

    def _do(self, operation: str, action: Callable[[], None]) -> None:
        if self._ended.is_set():
            raise PodStateError(operation=operation, object=self.unit, state="stopped")
        with errors_of_systemd(operation, self.unit):
            action()

    # -- end --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop it if it runs, and take everything back. May be called again."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self._ended.is_set():
                self.stop()
        finally:
            self._watcher.join(_KILL_PATIENCE)
            self._kept, self._log = self.logs(), None
            self._streams.close()
            for closer in self._closers:
                closer()
            os.close(self._done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.close()


def _freeze(cgroup: str, frozen: bool) -> None:
    """By hand; cgroup.events tells when it is done (Documentation/admin-guide/cgroup-v2.rst)."""
    with open(f"{cgroup}/cgroup.events") as events:
        with open(f"{cgroup}/cgroup.freeze", "w") as file:
            file.write(str(int(frozen)))
        poller = select.poll()
        poller.register(events, select.POLLPRI)
        while f"frozen {int(frozen)}" not in events.read():
            poller.poll(1000)
            events.seek(0)


def _waiting(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return any(events & select.POLLIN for _, events in poller.poll(0))


def log_file() -> IO[bytes]:
    """A file without a name that takes what a service writes; each write goes to its end."""
    file = tempfile.TemporaryFile(prefix="sandbox-service-", buffering=0)  # noqa: SIM115 - lives with the service
    import fcntl

    fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND | os.O_RDWR)
    return file


