"""The fixtures: ``sandbox``, ``sandbox_factory`` and ``sandbox_session_factory``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox import report
from pytest_sandbox.state import STATE, State

if TYPE_CHECKING:
    from sandbox import Container, Pod, RunningPod


class SandboxFactory:
    """Starts pods that are removed when the test (or the session) ends."""

    def __init__(self, state: State, node: pytest.Item | pytest.Session) -> None:
        self._state = state
        self._node = node

    def __call__(self, subject: Pod | Container | Iterable[Container] | None = None, /, **fields: Any) -> RunningPod:
        """Start a pod and wait until it is ready; the arguments are those of the marker and of :func:`sandbox.as_pod`.

        Raises what :func:`sandbox.start` raises.
        """
        __tracebackhide__ = True
        return self._state.start(self._node, subject, fields)


@pytest.fixture
def sandbox_factory(request: pytest.FixtureRequest) -> Iterator[SandboxFactory]:
    """Start any number of pods: ``sandbox_factory(image="redis:7", ready=Port(6379))``; all go with the test."""
    yield from _factory(request, request.node)


@pytest.fixture(scope="session")
def sandbox_session_factory(request: pytest.FixtureRequest) -> Iterator[SandboxFactory]:
    """Start pods that many tests share, for fixtures of a wider scope; all go with the session."""
    yield from _factory(request, request.session)


def _factory(request: pytest.FixtureRequest, node: pytest.Item | pytest.Session) -> Iterator[SandboxFactory]:
    __tracebackhide__ = True
    state = request.config.stash[STATE]
    try:
        yield SandboxFactory(state, node)
    finally:
        if isinstance(node, pytest.Item):
            report.remember(node)
        state.finish(node)


@pytest.fixture
def sandbox(request: pytest.FixtureRequest, sandbox_factory: SandboxFactory) -> RunningPod:
    """Give the test its pod, a :class:`sandbox.RunningPod`, as ``@pytest.mark.sandbox(…)`` describes it.

    Several markers add up, the class's before the function's, and the closest one wins. One with a subject
    (a Pod, a Container) starts afresh: what is further away is not looked at.
    """
    __tracebackhide__ = True
    subject, fields = described(request.node)
    return sandbox_factory(subject, **fields)


def described(node: pytest.Item) -> tuple[Any, dict[str, Any]]:
    """Subject and fields from the markers of a test. Raises UsageError."""
    marks = list(node.iter_markers("sandbox"))
    if not marks:
        raise pytest.UsageError(
            f"{node.nodeid} uses the fixture `sandbox`, but no marker says what to start: add "
            "@pytest.mark.sandbox(image=…, command=…), or use the fixture `sandbox_factory`"
        )
    fields: dict[str, Any] = {}
    for mark in marks:
        if len(mark.args) > 1:
            raise pytest.UsageError(
                f"{node.nodeid}: pytest.mark.sandbox takes one subject, a Pod, a Container or a list of containers, "
                f"not {len(mark.args)}; everything else is named"
            )
        fields = {**mark.kwargs, **fields}
        if mark.args and mark.args[0] is not None:
            return mark.args[0], fields
    return None, fields
