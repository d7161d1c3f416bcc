"""What a report shows of an error of the library: what it says, and the lines of the tests that led to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType, TracebackType

import pytest

_OURS = frozenset({"sandbox", "pytest_sandbox", "sandbox_systemd"})
#: What the library calls, and is called through.
_BELOW = frozenset({"attr", "attrs", "cattr", "cattrs", "jeepney", "pydbus", "gi", "pyseccomp"}) | sys.stdlib_module_names
_RUNNER = frozenset({"_pytest", "pluggy"})


def shorten(call: pytest.CallInfo[None]) -> None:
    """Take the library's own frames out of the traceback, and errors out of the chain that are the cause it tells of.

    The way through the library and the sockets below it is for those who look for a mistake in there, with --full-trace.
    """
    if call.excinfo is None:
        return
    error = call.excinfo.value
    kinds = _kinds()
    found = [each for each in _all(error, set()) if isinstance(each, kinds)]
    for each in found:
        _without_inner(each)
        each.with_traceback(_outside(each.__traceback__))
    if error in found:
        call.excinfo = pytest.ExceptionInfo.from_exception(error)


def _kinds() -> tuple[type[BaseException], ...]:
    """A run without sandboxes has none of these errors, and does not load them."""
    errors = sys.modules.get("sandbox.errors")
    return (pytest.UsageError,) if errors is None else (pytest.UsageError, errors.SandboxError)


def _all(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    """An error, those in its chain, and those in its group."""
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        for member in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
            yield from _all(member, seen)
        error = _before(error)


def _before(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _without_inner(error: BaseException) -> None:
    """What was caught where it was raised, inside the library, is told by ``error``; what comes before that stays."""
    while (inner := _before(error)) is not None and inner.__traceback__ and all(map(_inner, _frames(inner.__traceback__))):
        suppressed = inner.__suppress_context__
        error.__cause__, error.__context__ = inner.__cause__, inner.__context__
        error.__suppress_context__ = suppressed  # setting a cause sets it, too


def _outside(traceback: TracebackType | None) -> TracebackType | None:
    """The entries that are not the library's, nor below it. A callback that it called is not."""
    entries = list(_entries(traceback))
    first = next((i for i, entry in enumerate(entries) if _is(entry.tb_frame, _OURS)), len(entries))
    kept = entries[:first] + [entry for entry in entries[first:] if not _inner(entry.tb_frame)]
    if first < len(entries) and all(_is(entry.tb_frame, _RUNNER) for entry in kept):
        kept.append(entries[first])  # our fixture, which hides itself: with no entry at all pytest would show its own
    shown: TracebackType | None = None
    for entry in reversed(kept):
        shown = TracebackType(shown, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return shown


def _entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _frames(traceback: TracebackType) -> Iterator[FrameType]:
    return (entry.tb_frame for entry in _entries(traceback))


def _inner(frame: FrameType) -> bool:
    return _is(frame, _OURS) or _is(frame, _BELOW)


def _is(frame: FrameType, packages: frozenset[str]) -> bool:
    """Code that was made at run time has no module: attrs' ``__init__``."""
    name = frame.f_globals.get("__name__")
    return packages is _BELOW if name is None else name.partition(".")[0] in packages
