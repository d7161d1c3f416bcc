"""Several probes as one: :class:`All` and :class:`Any`. Their watches take turns; there are no threads."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping

import attrs

from sandbox.errors import ModelError

from ._base import Probe, Watch, as_probe

if typing.TYPE_CHECKING:
    from sandbox._container import RunningContainer


def _probes(value: Iterable[object]) -> tuple[Probe, ...]:
    found = tuple(value)
    if not found:
        raise ValueError("give at least one probe")
    for item in found:
        if not callable(item) and not callable(getattr(item, "wait", None)):
            raise TypeError(f"expected a probe such as Port(5432), or a callable; got {item!r}")
    return tuple(as_probe(item) for item in found)


@attrs.frozen(init=False, repr=False)
class _Group(Probe):
    #: Probes, or callables.
    probes: tuple[Probe, ...]

    def __init__(self, *probes: typing.Any) -> None:
        try:
            self.__attrs_init__(_probes(probes))
        except (TypeError, ValueError) as error:
            raise ModelError(str(error), class_name=type(self).__name__, field="probes", value=probes) from None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.probes))})"

    @property
    def wants_notify(self) -> bool:
        return any(probe.wants_notify for probe in self.probes)

    def _watches(self, container: RunningContainer) -> list[tuple[Probe, Watch]]:
        watches: list[tuple[Probe, Watch]] = []
        try:
            for probe in self.probes:
                watches.append((probe, probe.watch(container)))  # noqa: PERF401 - those made so far must be closed
        except BaseException:
            for _, watch in watches:
                watch.close()
            raise
        return watches


class All(_Group):
    """Ready when every one of the probes has been; each may have its moment.

    >>> All(Port(5432), Log("ready"))
    All(Port(5432), Log('ready'))
    """

    def watch(self, container: RunningContainer) -> Watch:
        return _AllWatch(self._watches(container))


class Any(_Group):
    """Ready when one of the probes is.

    >>> Any(Port(8080), Port(8443))
    Any(Port(8080), Port(8443))
    """

    def watch(self, container: RunningContainer) -> Watch:
        return _AnyWatch(self._watches(container))


class _GroupWatch:
    """Those that are still being watched."""

    def __init__(self, watches: list[tuple[Probe, Watch]]) -> None:
        self._watches = watches

    @property
    def last_seen(self) -> str:
        return "; ".join(f"{probe!r}: {watch.last_seen}" for probe, watch in self._watches if watch.last_seen)

    @property
    def told(self) -> str | None:
        return "; ".join(watch.told for _, watch in self._watches if watch.told) or None

    def fds(self) -> Mapping[int, int]:
        wanted: dict[int, int] = {}
        for _, watch in self._watches:
            for fd, events in watch.fds().items():
                wanted[fd] = wanted.get(fd, 0) | events
        return wanted

    def delay(self) -> float | None:
        delays = [delay for _, watch in self._watches if (delay := watch.delay()) is not None]
        return min(delays, default=None)

    def close(self) -> None:
        for _, watch in self._watches:
            watch.close()
        self._watches = []


class _AllWatch(_GroupWatch):
    def step(self) -> bool:
        for pair in list(self._watches):
            if pair[1].step():
                pair[1].close()
                self._watches.remove(pair)
        return not self._watches

    def last_step(self) -> bool:
        return all(watch.last_step() for _, watch in self._watches)


class _AnyWatch(_GroupWatch):
    def step(self) -> bool:
        return any(watch.step() for _, watch in self._watches)

    def last_step(self) -> bool:
        return any(watch.last_step() for _, watch in self._watches)
