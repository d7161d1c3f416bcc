"""What probes have in common: a probe describes, a watch works, and one loop waits. No threads.

A :class:`Probe` is a frozen description. :meth:`Probe.watch` begins to look at one container and gives a
:class:`Watch`: a step at a time, it says whether the container is ready, and what its next step depends on: descriptors
that become readable or writable, or time. So :func:`wait_for` can sleep in poll(2) over everything that matters,
the end of the container included, and several watches combine into one.
"""

from __future__ import annotations

import contextlib
import math
import re
import select
import shlex
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from sandbox.errors import ReadinessTimeout, SandboxError

if TYPE_CHECKING:
    from sandbox._container import ContainerFace, RunningContainer
    from sandbox.shim.client import Conversation

#: Log lines that go into an error.
_LOG_LINES = 50
#: How long a foreign probe may keep us before we look whether the container still runs, in seconds.
_SLICE = 0.1
#: What no service makes its client raise by not being ready yet.
_BUGS = (ArithmeticError, ImportError, NameError, SyntaxError, TypeError)


class Watch(Protocol):
    """A probe at work on one container."""

    @property
    def last_seen(self) -> str:
        """What it saw last, for the error; empty if nothing yet."""

    @property
    def told(self) -> str | None:
        """What the program itself said about its state, if it did."""

    def fds(self) -> Mapping[int, int]:
        """The descriptors that the next step depends on, and the events of poll(2)."""

    def delay(self) -> float | None:
        """Seconds until the next step is due whatever the descriptors do; None for never."""

    def step(self) -> bool:
        """Look; true if the container is ready. May be called early. Must not block."""

    def last_step(self) -> bool:
        """The container has ended: true if it said before that it was ready."""

    def close(self) -> None:
        """Give back what it holds."""


class Looking:
    """A base for watches: looks again and again, each time after a longer while."""

    told: str | None = None

    def __init__(self, first: float, longest: float, factor: float = 1.5) -> None:
        self.last_seen = ""
        self._pause = first
        self._longest = longest
        self._factor = factor
        self._due = -math.inf

    def fds(self) -> Mapping[int, int]:
        """Nothing but time matters, unless a subclass knows better."""
        return {}

    def delay(self) -> float | None:
        """Until the next look."""
        return max(self._due - time.monotonic(), 0.0)

    def step(self) -> bool:
        """Look, if it is time."""
        if time.monotonic() < self._due:
            return False
        if self.look():
            return True
        self._due = time.monotonic() + self._pause
        self._pause = min(self._pause * self._factor, self._longest)
        return False

    def last_step(self) -> bool:
        """What has ended does not become ready any more."""
        return False

    def look(self) -> bool:
        """One look; true if the container is ready."""
        raise NotImplementedError  # pragma: no cover - subclasses have it

    def close(self) -> None:
        """Nothing is held."""


@attrs.frozen(repr=False)
class Probe:
    """The base of all probes."""

    def __repr__(self) -> str:
        """As one would write it."""
        first, *others = [field for field in attrs.fields(type(self)) if field.repr] or [None]
        words = [] if first is None else [_shown(getattr(self, first.name))]
        for field in others:
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name}={_shown(value)}")
        return f"{type(self).__name__}({', '.join(words)})"

    def watch(self, container: RunningContainer) -> Watch:
        """Begin to look at ``container``; the caller closes the watch."""
        raise NotImplementedError  # pragma: no cover - subclasses have it

    @property
    def wants_notify(self) -> bool:
        """True if the container needs a NOTIFY_SOCKET."""
        return False

    def wait(self, container: ContainerFace, timeout: float = 60.0) -> None:
        """Wait until ``container`` (or a pod that has only one) is ready.

        :param timeout: seconds
        :raises ReadinessTimeout: it was not; says what was seen last
        :raises ContainerExited: it ended
        """
        wait_for(self, container._one(), timeout)  # noqa: SLF001 - the house's own


def _shown(value: Any) -> str:
    """Patterns and command lines as the text they were made from."""
    if isinstance(value, re.Pattern):
        return repr(value.pattern)
    if isinstance(value, tuple):
        return repr(shlex.join(value))
    return repr(set(value)) if isinstance(value, frozenset) else repr(value)


@attrs.frozen(repr=False)
class Call(Probe):
    """A plain callable as a probe."""

    function: Callable[[Any], Any]

    def watch(self, container: RunningContainer) -> Watch:
        return _Calls(self.function, container, repr(self))

    def __repr__(self) -> str:
        return f"{getattr(self.function, '__name__', None) or repr(self.function)}()"


class _Calls(Looking):
    def __init__(self, function: Callable[[RunningContainer], Any], container: RunningContainer, name: str) -> None:
        super().__init__(0.001, 0.05)
        self._function = function
        self._name = name
        self._container = container
        self._ready = False

    def look(self) -> bool:
        try:
            value = self._function(self._container)
        except _BUGS as error:
            raise SandboxError("it has a bug", operation="wait for", object=self._name, container=self._container.name,
                               cause=f"{type(error).__name__}: {error}",
                               hint="correct it; only what a service raises that is not ready yet is tried again",
                               ) from error  # fmt: skip
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was seen
            self.last_seen = f"{type(error).__name__}: {error}"
            return False
        self.last_seen = f"it returned {value!r}"
        self._ready = bool(value)
        return self._ready

    def last_step(self) -> bool:
        """It may know of an end that counts."""
        return self._ready


@attrs.frozen
class _Waiter:
    """Someone else's object with a ``wait(container, timeout)``, as a callable."""

    waiter: Any

    @property
    def __name__(self) -> str:
        return f"{type(self.waiter).__name__}.wait"

    def __call__(self, container: RunningContainer) -> bool:
        return self.waiter.wait(container, timeout=_SLICE) is not False


def as_probe(ready: Any) -> Probe:
    """A probe from what a user may write: a probe, an object with a ``wait``, a callable."""
    if isinstance(ready, Probe):
        return ready
    if isinstance(ready, type):  # to call it would make one, which counts as true
        raise TypeError(f"{ready.__name__} is a class; expected one of its instances, {ready.__name__}(…)")
    return Call(_Waiter(ready) if callable(getattr(ready, "wait", None)) else ready)


def wait_for(probe: Probe, container: RunningContainer, timeout: float) -> None:
    """Wait until ``probe`` finds ``container`` ready, it ends, or ``timeout`` seconds have passed."""
    deadline = time.monotonic() + timeout
    with container.watch_exit() as death, contextlib.closing(probe.watch(container)) as watch:
        while True:
            if watch.step():
                if _over(death) and not watch.last_step():  # what was seen is another's: a port that two want
                    raise _ended(probe, watch, container, death)
                return
            rest = deadline - time.monotonic()
            if rest <= 0:
                raise _late(probe, watch, container, timeout)
            delay = watch.delay()
            if death.fileno() in _poll(watch, death, rest if delay is None else min(delay, rest)):
                if watch.last_step():
                    return
                raise _ended(probe, watch, container, death)


def _over(death: Conversation) -> bool:
    poller = select.poll()
    poller.register(death, select.POLLIN)
    return bool(poller.poll(0))


def _poll(watch: Watch, death: Conversation, seconds: float) -> set[int]:
    poller = select.poll()
    poller.register(death, select.POLLIN)
    for fd, events in watch.fds().items():
        poller.register(fd, events)
    return {fd for fd, _ in poller.poll(seconds * 1000)}


def _late(probe: Probe, watch: Watch, container: RunningContainer, timeout: float) -> SandboxError:
    return ReadinessTimeout(
        operation="wait for", object=repr(probe), container=container.name, timeout=timeout,
        last_seen=watch.last_seen or None, cause=_told(watch), logs=container.logs(tail=_LOG_LINES),
    )  # fmt: skip


def _ended(probe: Probe, watch: Watch, container: RunningContainer, death: Conversation) -> SandboxError:
    document, _ = death.answer()
    container.exit = document
    if document.get("returncode") is None and "error" in document:  # it could not be restarted
        return SandboxError.from_dict(document["error"])
    error = container.exited(document, doing=f"wait for {probe!r}")
    error.cause = error.cause or _told(watch)
    return error


def _told(watch: Watch) -> str | None:
    return watch.told and f"it said: {watch.told}"


__all__ = ["Call", "Looking", "Probe", "Watch", "as_probe", "wait_for"]
