"""Whose a pod of the session is: a fixture's, and so that of every test which has this fixture."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from sandbox import RunningPod

#: The fixtures of this plugin for pods.
OURS = frozenset({"sandbox", "sandbox_factory", "sandbox_session_factory"})
#: Of pods that were not started by a fixture: whoever gets at the factory may use them.
_FACTORY = "sandbox_session_factory"


class Shared:
    """The pods of ``sandbox_session_factory`` that are there, by the fixture that was being set up when they were started."""

    def __init__(self) -> None:
        self._setting_up: list[pytest.FixtureDef[Any]] = []
        self._pods: list[tuple[RunningPod, pytest.FixtureDef[Any] | None, str]] = []
        self._test_is_over = False
        #: Of the test that runs now: whatever asked for them, by a name or with ``request.getfixturevalue``.
        self._new: list[RunningPod] = []
        #: Fixtures set up so far that may fail when they are torn down.
        self.with_an_end = 0

    def begins(self, fixture: pytest.FixtureDef[Any]) -> None:
        """A fixture is being set up; others may be meanwhile, if it asks for them."""
        self._setting_up.append(fixture)

    def ends(self) -> None:
        """The one that began last is set up, or has failed."""
        self.with_an_end += _has_an_end(self._setting_up.pop())

    def test_begins(self) -> None:
        """What was removed, or has lost its fixture, before is not about it."""
        self._test_is_over = False
        self._new.clear()
        self._pods = [
            (pod, of, name) for pod, of, name in self._pods if not pod.closed and (of is not None or name == _FACTORY)
        ]

    def test_ends(self) -> None:
        """Its fixtures are torn down from now on, and their pods still are about it."""
        self._test_is_over = True

    def torn_down(self, fixture: pytest.FixtureDef[Any]) -> None:
        """Its value is nobody's any more, nor are its pods; before the test, it was that of another parameter."""
        if self._pods:
            self._pods = [
                (pod, None if of is fixture else of, name)
                for pod, of, name in self._pods if self._test_is_over or of is not fixture
            ]  # fmt: skip

    def add(self, pod: RunningPod) -> None:
        """A pod was started."""
        of = self._setting_up[-1] if self._setting_up else None
        self._new.append(pod)
        self._pods.append((pod, of, of.argname if of else _FACTORY))

    def used_by(self, item: pytest.Item) -> list[RunningPod]:
        """Those that the fixtures of a test have led to; when it is over, those that are still there."""
        names = set(getattr(item, "fixturenames", ()))
        led_to = [pod for pod, _, name in self._pods if name in names or pod in self._new]
        return [pod for pod in led_to if not (self._test_is_over and pod.closed)]


def _has_an_end(fixture: pytest.FixtureDef[Any]) -> bool:
    """Others than ours and pytest's own, which have code behind a ``yield`` or can ask for a finalizer."""
    function = fixture.func
    if fixture.argname in OURS or str(getattr(function, "__module__", "")).startswith("_pytest."):
        return False
    return "request" in fixture.argnames or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
