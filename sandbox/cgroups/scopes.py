"""Transient scopes for the pods of one shim, one or a few of them ready before they are asked for.

Making a scope takes systemd some ten milliseconds, most of them for moving a process into it. So as soon as pods follow one
another, a thread has the next scope made while the last pod is in use; and a few at once if that is not soon enough.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

from sandbox_systemd.bus import TIMEOUT, Pending, Variant
from sandbox_systemd.errors import NoSuchUnit

from sandbox.errors import SandboxError
from sandbox.systemd_errors import ManagerTimeout, made_public

from .grant import Declaration, ShimClient

if TYPE_CHECKING:
    from sandbox_systemd.manager import Manager, Property

#: Where all pods are: limits for all of them together can be set there (sandbox.slice).
SLICE = "sandbox.slice"
#: What systemd shows beside the description.
_DOCUMENTATION = "https://pypi.org/project/pytest-sandbox/"
#: Whatever happens to us, systemd ends a pod after a day.
_RUNTIME_MAX_USEC = 24 * 3600 * 1_000_000
#: Who stops a scope from outside does not wait longer than this for programs that ignore SIGTERM.
_STOP_USEC = 5_000_000
#: The second pod tells that a third may come.
_STARTS_BEFORE = 2
#: Scopes that are ready at a time where pods follow one another faster than systemd makes scopes.
_MOST_AHEAD = 4
#: Seconds that the making of the next scopes, and the saying of what a pod is, waits for who has just started one.
_POLITENESS = 0.005
#: Seconds that the end of a pod waits for systemd's answer to what it was told of it.
_PATIENCE = 0.5

#: Of all shims of this process: two kinds of manager (``auto``, ``system``) may be one.
_numbers = itertools.count(1)


class Scope(NamedTuple):
    """A scope in systemd, delegated, with a holder in it and ready for a pod."""

    unit: str
    #: Its cgroup2 directory.
    path: str


class Scopes:
    """The scopes of one shim."""

    def __init__(self, manager: Manager, mount: str, controllers: frozenset[str], shim: ShimClient) -> None:
        self._manager, self._mount, self._controllers, self._shim = manager, mount, controllers, shim
        self._news = threading.Condition()
        self._ready: deque[Scope] = deque()
        self._taken = 0
        #: How many are being made ahead, how many wait for one of these, and how many are made at once.
        self._coming = self._awaited = 0
        self._batch = 1
        #: What systemd has yet to be told of pods.
        self._unsaid: list[_Declaration] = []
        self._parent: str | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def take(self) -> Scope:
        """One that is ready, or a new one. Raises :class:`SystemdError` or what the shim says."""
        with self._news:
            self._taken += 1
            if not self._ready and self._awaited < self._coming:
                # It is on its way, so a second one would not be there sooner. But more of them are wanted at a time.
                self._batch = min(self._batch * 2, _MOST_AHEAD)
                self._awaited += 1
                self._news.notify_all()
                self._news.wait_for(lambda: self._ready or not self._coming or self._closed)
                self._awaited -= 1
            scope = self._ready.popleft() if self._ready else None
        return scope or self._make(1)[0]

    def _expect_more(self) -> None:
        """A pod is started: time to think of the next ones. With the lock."""
        if self._taken >= _STARTS_BEFORE and not self._coming and len(self._ready) <= self._batch // 2:
            self._coming = self._batch - len(self._ready)
            self._wake()

    def _wake(self) -> None:
        """With the lock."""
        self._news.notify_all()
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._work, name="sandbox-scopes", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._coming or self._unsaid or self._closed)
                # Who has started a pod goes on first: only one thread of a process runs Python at a time.
                self._news.wait_for(lambda: self._awaited or self._closed, _POLITENESS)
                if self._closed:
                    return
                count, unsaid = self._coming, list(self._unsaid)
                self._unsaid.clear()
            for declaration in unsaid:
                declaration.say()
            if count:
                self._make_ahead(count)

    def _make_ahead(self, count: int) -> None:
        try:
            made = self._make(count)
        except Exception:  # noqa: BLE001 - who needs a scope makes one, and is told why that fails
            made = []
        with self._news:
            self._coming = 0
            self._ready.extend(made)
            self._news.notify_all()

    def _make(self, count: int) -> list[Scope]:
        """Make some at once: the kernel waits for all processors before it moves a process, and once will do for several.

        Raises what stood in the way of the first that could not be made, if none could.
        """
        made: list[Scope] = []
        failure: BaseException | None = None
        with contextlib.ExitStack() as stack:
            asked = [stack.enter_context(_Making(self._manager, self._shim)) for _ in range(count)]
            for making in asked:
                try:
                    unit = making.finish()
                    path = f"{self._directory(unit)}/{unit}"
                    self._shim.call("scope.place", holder=making.placed(), v2=path, controllers=sorted(self._controllers))
                    made.append(Scope(unit, path))
                except Exception as error:  # noqa: BLE001 - raised below
                    failure = failure or error
        if failure is not None and not made:
            raise failure
        return made

    def _directory(self, unit: str) -> str:
        """The directory of the slice, asked of systemd once."""
        if self._parent is None:
            self._parent = os.path.dirname(f"{self._mount}{self._manager.get(unit, 'Scope', 'ControlGroup').value}")
        return self._parent

    def declare(self, unit: str, description: str, properties: Sequence[Property], *, later: bool) -> Declaration:
        """Tell systemd what the pod in the scope is and may."""
        rows = [("Description", Variant("s", description)), *properties]
        declaration = _Declaration(lambda: self._manager.begin_set_properties(unit, rows), self._told)
        if later:
            with self._news:
                self._unsaid.append(declaration)
                self._expect_more()
                self._wake()
        else:
            declaration.say()
        return declaration

    def _told(self) -> None:
        with self._news:
            self._expect_more()

    def close(self) -> None:
        """The shim ends, and with its processes the scopes do."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5)


class _Declaration(Declaration):
    """Said by whoever comes first: who needs it to be known, or the thread."""

    def __init__(self, begin: Callable[[], Pending], told: Callable[[], None]) -> None:
        self._begin, self._told = begin, told
        self._lock = threading.Lock()
        self._over = False
        self._pending: Pending | None = None
        self._failure: Exception | None = None

    def say(self) -> None:
        """Send it, unless the pod has ended. Raises nothing yet."""
        with self._lock:
            if self._pending is None and self._failure is None and not self._over:
                try:
                    self._pending = self._begin()
                except Exception as error:  # noqa: BLE001 - for who asks
                    self._failure = error

    def wait(self) -> None:
        self.say()
        self._finish(TIMEOUT)
        self._told()

    def over(self) -> None:
        with contextlib.suppress(ManagerTimeout):  # of something that is over nobody needs to know it so urgently
            self._finish(_PATIENCE)

    def _finish(self, timeout: float) -> None:
        """Once: an answer comes once, and a refusal is raised once."""
        with self._lock:
            pending, self._pending = self._pending, None
            failure, self._failure = self._failure, None
            self._over = True
        with made_public(), contextlib.suppress(NoSuchUnit):  # the pod has ended before the answer came
            if failure is not None:
                raise failure
            if pending is not None:
                pending.result(timeout)


class _Making:
    """A scope on its way. A context manager: one that was not placed gives its holder back."""

    def __init__(self, manager: Manager, shim: ShimClient) -> None:
        self._shim = shim
        with shim.ask("scope.hold", {}) as conversation:
            answer, fds = conversation.answer()
        self._holder: int | None = answer["holder"]
        self._unit = f"sandbox-{shim.id}-{next(_numbers)}.scope"
        try:
            self._start = manager.begin_transient(self._unit, _properties(_process_of(fds[0])))
        except BaseException:
            self.__exit__()
            raise
        finally:
            os.close(fds[0])

    def finish(self) -> str:
        """Until systemd has made it; its name."""
        self._start.result()
        return self._unit

    def placed(self) -> int:
        """The holder, which is no longer ours."""
        holder, self._holder = self._holder, None
        assert holder is not None
        return holder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._holder is not None:
            self._shim.call("scope.drop", holder=self.placed())  # if the shim has died, that is what is to be told


def enclose(manager: Manager, shim: ShimClient) -> None:
    """Put the shim itself into a scope of this manager.

    A process can only be born in a cgroup of which it may write to the nearest common ancestor (cgroups(7)). For the shim of
    an ordinary user who is in a login session, that is a directory of root's; in a scope of the user's manager it is not.
    """
    with shim.ask("scope.hold", {}) as conversation:
        answer, fds = conversation.answer()
    try:
        pid = _parent_of(_process_of(fds[0]))
    finally:
        os.close(fds[0])
        shim.call("scope.drop", holder=answer["holder"])
    manager.start_transient(f"sandbox-shim-{shim.id}.scope", [
        ("Description", Variant("s", "pytest-sandbox: the process that holds the pods")),
        ("Documentation", Variant("as", [_DOCUMENTATION])), ("Slice", Variant("s", SLICE)),
        ("CollectMode", Variant("s", "inactive-or-failed")), ("PIDs", Variant("au", [pid])),
    ])  # fmt: skip


def _properties(pid: int) -> list[Property]:
    return [
        ("Description", Variant("s", "pytest-sandbox: ready for a pod")),
        ("Documentation", Variant("as", [_DOCUMENTATION])),
        ("Slice", Variant("s", SLICE)),
        ("Delegate", Variant("b", True)),
        ("CollectMode", Variant("s", "inactive-or-failed")),
        ("RuntimeMaxUSec", Variant("t", _RUNTIME_MAX_USEC)),
        ("TimeoutStopUSec", Variant("t", _STOP_USEC)),
        ("PIDs", Variant("au", [pid])),
    ]


def _process_of(pidfd: int) -> int:
    """Its number in our process namespace (proc_pid_fdinfo(5)); the shim knows only the one in its own."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        pid = next((int(line.split()[1]) for line in file if line.startswith("Pid:")), -1)
    if pid <= 0:
        raise SandboxError("it has ended already", operation="find", object="the process that holds a scope")
    return pid


def _parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("PPid:"))
