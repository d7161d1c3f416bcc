"""What systemd costs a start: the time in which the client is in the scopes' code and the start waits for it.

Declaring what is in the scope is not part of that: it is done when the shim has been asked, which starts the pod meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from sandbox.cgroups import choose
from sandbox.errors import SandboxError

from .cases import Subject
from .measure import PAUSE, Effort, Row, percentiles

#: Milliseconds of a start that may be spent on D-Bus.
_TARGET = 0.5


class _Stopwatch:
    """Adds up what its functions take."""

    def __init__(self) -> None:
        self.spent = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.spent += time.perf_counter() - start

        return timed

    def around_result(self, declare: Callable[..., Any]) -> Callable[..., Any]:
        """The function, untimed, for the shim starts the pod meanwhile; of what it returns, what is waited for is timed."""

        def declared(*arguments: Any, **named: Any) -> Any:
            declaration = declare(*arguments, **named)
            declaration.over = self.around(declaration.over)
            return declaration

        return declared


def rows(subject: Subject, effort: Effort) -> list[Row]:
    """The median over starts with a rest in between, in which the next scope is made. Raises if there is no systemd."""
    giver = choose()
    if giver.name != "systemd":
        raise SandboxError("cgroups do not come from it here", operation="measure", object="systemd",
                           cause=choose("systemd").why_not())  # fmt: skip
    watch = _Stopwatch()
    times = []
    plain = giver.grant, giver.declare
    giver.grant = watch.around(plain[0])  # type: ignore[method-assign]
    giver.declare = watch.around_result(plain[1])  # type: ignore[method-assign]
    try:
        for _ in range(effort.pairs + 3):  # the first ones find no scope ready
            watch.spent = 0.0
            subject.run()
            times.append(watch.spent * 1e3)
            time.sleep(PAUSE)
    finally:
        giver.grant, giver.declare = plain  # type: ignore[method-assign]
    found = times[3:]
    return [
        Row("D-Bus in the way of a start", statistics.median(found), "ms", target=_TARGET, count=len(found),
            spread=percentiles(found), note=f"{giver.describe()}; a scope asked for, and what was said of it confirmed"),
    ]  # fmt: skip
