"""How much can be taken away from a command? Tries it out, and writes the answer as a unit drop-in."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from sandbox._text import describe_exit, shorten
from sandbox.errors import CommandNotExecutable, CommandNotFound
from sandbox.services.assessment import Exposure, exposure
from sandbox.services.ending import ServiceResult
from sandbox.services.enforcement import refusals
from sandbox.services.errors import ServiceError, ServiceSetupError
from sandbox.services.managers import home
from sandbox.services.restrictions import Restriction, compose, ladders
from sandbox.services.search import Search
from sandbox.services.settings import Assignment, Settings, assignments_of
from sandbox.services.start import has_firewall, service

__all__ = ["Found", "find"]

#: What a service that fails under restrictions may raise instead of an exit status.
_FAILURES = (CommandNotFound, CommandNotExecutable, ServiceSetupError)


@attrs.frozen
class Found:
    """The strictest settings under which a command passes.

    >>> Found((Restriction("PrivateTmp", "yes"),), {}, (), 3, ("true",)).drop_in().splitlines()[-2:]
    ['[Service]', 'PrivateTmp=yes']
    """

    #: What can be taken away.
    restrictions: tuple[Restriction, ...]
    #: What cannot, and how the command failed without it.
    needed: Mapping[Restriction, str]
    #: What this manager could not have kept, so that nobody knows.
    unknown: tuple[Restriction, ...]
    #: How often the command was run.
    tries: int
    command: tuple[str, ...]
    #: What everything else rests on: an ordinary user's manager needs PrivateUsers=.
    base: tuple[Assignment, ...] = ()

    @property
    def assignments(self) -> list[Assignment]:
        """The settings."""
        return [*self.base, *compose(self.restrictions)]

    @property
    def exposure(self) -> Exposure:
        """What is still open."""
        return exposure(self.assignments)

    def drop_in(self) -> str:
        """A drop-in for the service's unit, with comments on what is not in it."""
        report = self.exposure
        lines = [
            f"# Under these `{shorten(shlex.join(self.command))}` passes: found by {self.tries} tries.",
            f"# Exposure as of `systemd-analyze security`: {report.percent / 10:.1f} {report.level}.",
            *(["# It needs what these would take away:"] if self.needed else []),
            *(f"#   {restriction}: {reason}" for restriction, reason in self.needed.items()),
            *([f"# Not tried, for this manager cannot keep them: {', '.join(map(str, self.unknown))}"] if self.unknown
              else []),
            "[Service]", *(f"{name}={value}" for name, value in self.assignments),
        ]  # fmt: skip
        return "\n".join(lines) + "\n"


def find(
    command: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, timeout: float | None = 60.0, jobs: int = 1,
    passes: Callable[[ServiceResult[Any]], bool] | None = None, manager: str | None = None,
    keep: Mapping[str, Any] | None = None, told: Callable[[str], None] | None = None, **fields: Any,
) -> Found:  # fmt: skip
    """Find the strictest settings under which a command passes, by running it again and again.

    The command must do the same each time: it is run some 10 times if it needs nothing, and about ten times more for each
    thing that it needs.

    :param timeout: seconds that one run may take; longer counts as failing
    :param jobs: runs at a time; more than one only for a command that does not get in its own way
    :param passes: judges a run; by default it passes if its exit status is 0
    :param keep: properties that it always has: ``{"ReadWritePaths": "/srv/data"}``
    :param told: is told of each try
    :param fields: further arguments of :func:`sandbox.service`: ``env``, ``cwd``, ``image``, ``input``
    :raises ServiceError: it does not pass without any restriction, or not every time
    """
    trial = _Trial(command, timeout, passes or _succeeded, manager, dict(keep or {}), fields, told)
    if (reason := trial([])) is not None:
        raise ServiceError("it does not pass without any restriction", operation="find restrictions for",
                           object=trial.text, cause=reason, hint="make it pass as a plain service first")  # fmt: skip
    possible, unknown = trial.possible()
    search: Search[Restriction] = Search(trial, jobs)
    chosen = search.best(possible)
    chosen.sort(key=_rank)
    if (reason := trial(chosen)) is not None:
        raise ServiceError("it passes at one time and fails at another", operation="find restrictions for",
                           object=trial.text, cause=reason,
                           hint="let it do the same each time, with jobs=1 if it gets in its own way")  # fmt: skip
    kept = {rung for ladder in possible for rung in ladder if set(ladder) & set(chosen)}
    needed = {item: reason for item, reason in search.failed.items() if item not in kept}
    return Found(tuple(chosen), needed, tuple(unknown), trial.count, trial.args,
                 tuple(assignments_of(trial.base)))


def _succeeded(result: ServiceResult[Any]) -> bool:
    return result.returncode == 0


@functools.cache
def _order() -> dict[Restriction, int]:
    return {restriction: place for place, restriction in enumerate(rung for ladder in ladders() for rung in ladder)}


def _rank(restriction: Restriction) -> int:
    return _order()[restriction]


class _Trial:
    """Runs the command under restrictions and says why it failed, or None."""

    def __init__(
        self, command: Any, timeout: float | None, passes: Callable[[ServiceResult[Any]], bool], manager: str | None,
        keep: dict[str, Any], fields: Mapping[str, Any], told: Callable[[str], None] | None,
    ) -> None:  # fmt: skip
        from sandbox.services.plan import split_command

        self.args = split_command(command)
        self.text = shorten(" ".join(self.args))
        self.count = 0
        self._timeout, self._passes, self._told = timeout, passes, told
        self._home = home(manager)
        self.base: dict[str, Any] = {} if self._home.root else {"PrivateUsers": True}
        self._options = {"manager": manager, "profile": None, **fields, **self.base, **keep}

    def possible(self) -> tuple[list[tuple[Restriction, ...]], list[Restriction]]:
        """The ladders without what this manager cannot keep, and that."""
        unknown: list[Restriction] = []
        found = []
        for ladder in ladders(root=self._home.root):
            kept = tuple(rung for rung in ladder if self._can_be_kept(rung))
            unknown += [rung for rung in ladder if rung not in kept]
            found.append(kept)
        return [ladder for ladder in found if ladder], unknown

    def _can_be_kept(self, restriction: Restriction) -> bool:
        settings = Settings([*compose([restriction]), *((name, "yes") for name in self.base)])
        return not list(refusals(settings, self._home, lambda: has_firewall(self._home)))

    def __call__(self, chosen: Sequence[Restriction]) -> str | None:
        self.count += 1
        lines = [f"{name}={value}" for name, value in compose(chosen)]
        reason = self._run(lines)
        if self._told is not None:
            self._told(f"{self.count}: {len(chosen)} restrictions: {reason or 'passes'}")
        return reason

    def _run(self, lines: Sequence[str]) -> str | None:
        from sandbox.errors import TimeoutExpired

        try:
            result = service(list(self.args), lines=lines, timeout=self._timeout, **self._options)
        except TimeoutExpired:
            return f"not done within {self._timeout:g} s"
        except _FAILURES as error:
            return str(error.cause or error.detail)
        if self._passes(result):
            return None
        end = describe_exit(result.returncode, result.oom_killed)
        said = (result.stderr or result.stdout or "").strip().splitlines()[-1:]
        return f"{end}: {shorten(said[0])}" if said else end
