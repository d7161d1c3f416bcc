"""Ready when a program in the container says so: :class:`Exec`, and the image's own :class:`Healthcheck`."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from sandbox import _units as u, _validators as v
from sandbox._process import DEVNULL, PIPE, STDOUT, Process
from sandbox._text import describe_exit
from sandbox.errors import (
    CommandNotExecutable,
    CommandNotFound,
    PodStateError,
    ReadinessTimeout,
    SandboxError,
)

from ._base import Looking, Probe, Watch

if TYPE_CHECKING:
    from sandbox._container import RunningContainer
    from sandbox.oci.image import Healthcheck as Declared

#: Starting a program takes some milliseconds of CPU time, so the pauses grow.
_FIRST_TRY, _LONGEST_PAUSE = 0.003, 0.1
#: Bytes of a program's output that are kept to say what was seen.
_TAIL = 4096
#: What docker assumes where the image says nothing, in seconds.
_INTERVAL, _TIMEOUT, _RETRIES = 30.0, 30.0, 3
_NANOSECONDS = 1e9


def _command(value: object) -> tuple[str, ...]:
    words = v.words(value)  # type: ignore[arg-type]
    if not words or not words[0]:
        raise ValueError("the command is empty")
    return words


def _returncode(value: int) -> int:
    return u.parse_int(value, -64, 255)


@attrs.frozen(repr=False, field_transformer=v.named_errors)
class Exec(Probe):
    """Ready when a program, run in the container again and again, ends with the exit status expected.

    >>> Exec("pg_isready -q")
    Exec('pg_isready -q')
    """

    #: The program and its arguments; a string is split as shells do.
    command: tuple[str, ...] = attrs.field(converter=_command)
    #: The exit status that means ready.
    returncode: int = attrs.field(default=0, converter=_returncode)
    #: Seconds that one run may take before it is killed and tried again.
    timeout: float = attrs.field(default=10.0, converter=u.parse_seconds)

    def watch(self, container: RunningContainer) -> Watch:
        return ExecWatch(container, self.command, self.returncode, self.timeout)


class ExecWatch(Looking):
    """One run after the other."""

    def __init__(
        self, container: RunningContainer, command: tuple[str, ...], returncode: int, timeout: float,
        *, longest_pause: float = _LONGEST_PAUSE,
    ) -> None:  # fmt: skip
        super().__init__(_FIRST_TRY, longest_pause)
        self._container = container
        self._command = command
        self._returncode = returncode
        self._timeout = timeout
        self._process: Process | None = None
        self._output = b""
        self._give_up = 0.0
        #: How many runs have ended otherwise than expected.
        self.failures = 0

    def fds(self) -> Mapping[int, int]:
        if self._process is None:
            return {}
        return dict.fromkeys([self._process.fileno(), *self._pipe()], select.POLLIN)

    def _pipe(self) -> list[int]:
        out = self._process.stdout if self._process else None
        return [out.fileno()] if out is not None and not out.closed else []

    def delay(self) -> float | None:
        return super().delay() if self._process is None else max(self._give_up - time.monotonic(), 0.0)

    def step(self) -> bool:
        return super().step() if self._process is None else self._go_on()

    def look(self) -> bool:
        """Begin a run. A program that does not exist will not come into being by waiting."""
        self._give_up = time.monotonic() + self._timeout
        self._output = b""
        try:
            self._process = self._container.popen(
                self._command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, text=False, kill_with_me=True
            )  # fmt: skip
        except (CommandNotFound, CommandNotExecutable):
            raise
        except SandboxError as error:  # between two restarts, or about to be gone
            self._over(str(error).partition("\n")[0])
            return False
        for fd in self._pipe():
            os.set_blocking(fd, False)
        return self._go_on()

    def _go_on(self) -> bool:
        assert self._process is not None
        self._read()
        status = self._process.poll()
        if status is None:
            if time.monotonic() >= self._give_up:
                self._over(f"{self._name()} did not end within {self._timeout:g} s{self._said()}")
            return False
        self._read()
        self._over(f"{self._name()} ended with {describe_exit(status)}{self._said()}")
        return status == self._returncode

    def _name(self) -> str:
        return f"`{self._command[0]}`"

    def _said(self) -> str:
        lines = self._output.decode("utf-8", "backslashreplace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f": {said[-1][:200]}" if said else ""

    def _read(self) -> None:
        assert self._process is not None
        for fd in self._pipe():
            try:
                while data := os.read(fd, 65536):
                    self._output = (self._output + data)[-_TAIL:]
            except BlockingIOError:
                return
            assert self._process.stdout is not None
            self._process.stdout.close()

    def _over(self, seen: str) -> None:
        self.last_seen = seen
        self.failures += 1
        self._due = time.monotonic() + self._pause
        self.close()

    def close(self) -> None:
        """End a run that has not ended by itself."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.close()


@attrs.frozen(repr=False)
class Healthcheck(Probe):
    """Ready when the image's own health check (``HEALTHCHECK`` of its Dockerfile) passes.

    It is run at once, and again after pauses that grow to the image's interval, one second at most. When it has
    failed for as long as makes docker call a container unhealthy (start period, then interval times retries), the
    wait ends.

    >>> Healthcheck()
    Healthcheck()
    """

    def watch(self, container: RunningContainer) -> Watch:
        config = container.image.config.config
        declared = config.healthcheck if config else None
        if declared is None or not declared.test or declared.test[0] not in {"CMD", "CMD-SHELL"}:
            raise PodStateError(
                "the image declares none", operation="wait for", object=repr(self), container=container.name,
                hint="say how to tell that it is ready: Port(…), Log(…), Exec(…)",
            )  # fmt: skip
        return _HealthWatch(container, declared)


class _HealthWatch(ExecWatch):
    def __init__(self, container: RunningContainer, declared: Declared) -> None:
        kind, *words = declared.test or ()
        command = ("/bin/sh", "-c", *words) if kind == "CMD-SHELL" else tuple(words)
        interval = _seconds(declared.interval, _INTERVAL)
        super().__init__(container, command, 0, _seconds(declared.timeout, _TIMEOUT), longest_pause=min(interval, 1.0))
        self._retries = declared.retries or _RETRIES
        patience = _seconds(declared.start_period, 0.0) + interval * self._retries
        self._unhealthy_at = time.monotonic() + patience

    def delay(self) -> float | None:
        due = super().delay()
        rest = max(self._unhealthy_at - time.monotonic(), 0.0)
        return rest if due is None else min(due, rest)

    def step(self) -> bool:
        if super().step():
            return True
        if time.monotonic() >= self._unhealthy_at and self.failures >= self._retries:
            raise ReadinessTimeout(
                f"unhealthy: the check failed {self.failures} times", operation="wait for", object="Healthcheck()",
                container=self._container.name, last_seen=self.last_seen, logs=self._container.logs(tail=50),
            )  # fmt: skip
        return False


def _seconds(nanoseconds: int | None, default: float) -> float:
    """Docker's zero means that it was not given."""
    return nanoseconds / _NANOSECONDS if nanoseconds else default


