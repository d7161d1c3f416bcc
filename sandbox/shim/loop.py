"""An event loop of one thread: readiness of descriptors (epoll(7)) and times."""

from __future__ import annotations

import heapq
import itertools
import select
import sys
import time
from collections import deque
from collections.abc import Callable

Callback = Callable[[int], None]
#: Seconds that a busy loop may put off what was left for idle moments.
_LONGEST_DELAY = 0.02


class Loop:
    """Calls back when a descriptor is ready or a time has come; callbacks must not block."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        #: What was forgotten in this round: an event of it that is still to be told may meet another descriptor's callback.
        self._forgotten: set[int] = set()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._idle: deque[tuple[float, Callable[[], None]]] = deque()
        self.running = True

    def watch(self, fd: int, callback: Callback, events: int = select.EPOLLIN) -> None:
        """Call ``callback(events)`` whenever ``fd`` is ready; watching again replaces what was asked before."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Stop watching; to be called before the descriptor is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            self._forgotten.add(fd)

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback()`` once, ``seconds`` from now."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), callback))

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Call ``callback()`` once, when nothing else waits to be done, but soon: what nobody waits for."""
        self._idle.append((time.monotonic() + _LONGEST_DELAY, callback))

    def run(self) -> None:
        """Until :attr:`running` is false."""
        while self.running:
            self._forgotten.clear()
            ready = self._epoll.poll(self._patience())
            for fd, events in ready:
                callback = self._callbacks.get(fd)
                if callback is not None and fd not in self._forgotten:  # what is ready still is in the next round
                    callback(events)
            self._fire()
            if self._idle and (not ready or self._idle[0][0] < time.monotonic()):
                self._do_one_idle()
        while self._idle:
            self._do_one_idle()

    def _do_one_idle(self) -> None:
        """Nobody is there to be told what goes wrong; all pods must not go with it."""
        try:
            self._idle.popleft()[1]()
        except Exception:  # noqa: BLE001
            sys.excepthook(*sys.exc_info())

    def _patience(self) -> float | None:
        if self._idle:
            return 0
        return max(self._timers[0][0] - time.monotonic(), 0) if self._timers else None

    def _fire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
