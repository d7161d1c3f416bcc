"""What both bindings do alike: wait for what comes in over a connection, in any number of threads."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from . import errors
from .bus import SYSTEMD, TIMEOUT, Address, Pending

__all__ = ["Waiting"]

T = TypeVar("T")


class Waiting(ABC):
    """The waiting part of a :class:`~sandbox_systemd.bus.Bus`."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._news = threading.Condition()
        #: Why the connection is over.
        self._lost: str | None = None

    @property
    def _name(self) -> str:
        return self.address.path.replace("\0", "@", 1)

    @abstractmethod
    def begin(
        self, path: str, interface: str, member: str, signature: str = "", arguments: Sequence[Any] = (), *,
        destination: str = SYSTEMD,
    ) -> Pending:  # fmt: skip
        """Send a method call."""

    def call(
        self, path: str, interface: str, member: str, signature: str = "", arguments: Sequence[Any] = (), *,
        destination: str = SYSTEMD, timeout: float | None = TIMEOUT,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Send a method call and wait for its reply's values."""
        return self.begin(path, interface, member, signature, arguments, destination=destination).result(timeout)

    def wait_for(self, ready: Callable[[], T | None], timeout: float | None) -> T:
        """Receive until ``ready`` returns something."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._news:
            while (found := ready()) is None:
                if self._lost is not None:
                    raise errors.ConnectionLost(self._lost, operation="talk to", object=self._name)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise errors.BusTimeout(f"no answer within {timeout:g} s")
                self._rest(left)
        return found

    def _rest(self, timeout: float | None) -> None:
        """Until something has come in; called with the lock held, which is given up meanwhile."""
        self._news.wait(timeout)

    def _lose(self, reason: str) -> None:
        """It is over; whoever waits is told."""
        with self._news:
            self._lost = self._lost or reason
            self._news.notify_all()
