"""What pytest sees: options, hooks, fixtures and reports are registered here and live in their own modules.

Nothing of the library is imported until a test asks for a sandbox: a run that does not use the plugin does not pay
for it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_sandbox import hookspecs, options, report, services, tracebacks
from pytest_sandbox.fixtures import sandbox, sandbox_factory, sandbox_session_factory
from pytest_sandbox.services import service_sandbox, service_sandbox_factory
from pytest_sandbox.shared import OURS
from pytest_sandbox.state import STATE, State, note_failure, note_start

__all__ = ["sandbox", "sandbox_factory", "sandbox_session_factory", "service_sandbox", "service_sandbox_factory"]

#: marker → the fixtures that start what it describes, the first one if the test has none of them.
_MARKERS = {"sandbox": ("sandbox", *sorted(OURS)), "service_sandbox": ("service_sandbox", "service_sandbox_factory")}

_MARKER = (
    "sandbox(subject=None, /, **fields): the pod of the `sandbox` fixture. `subject` is a sandbox.Pod, a Container or "
    "several; `fields` describe a container (image=, command=, ready=, memory=, …) or change the subject: "
    "see sandbox.as_pod."
)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks that others may implement."""
    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare options and ini values."""
    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Read the options, so that a bad one is told before any test runs."""
    config.addinivalue_line("markers", _MARKER)
    config.addinivalue_line("markers", services.MARKER)
    config.stash[STATE] = State(config, options.read(config))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Whatever is still there goes now."""
    if (state := config.stash.get(STATE, None)) is not None:
        state.close()


def pytest_report_header(config: pytest.Config) -> str:
    """Say what was asked for."""
    return report.header(config.stash[STATE].settings)


def pytest_report_collectionfinish(
    config: pytest.Config, start_path: Path, items: Sequence[pytest.Item]
) -> list[str]:  # fmt: skip
    """Say what was found, if a test uses it."""
    del start_path
    return report.found(config.stash[STATE].settings) if any(map(_uses_us, items)) else []


def _uses_us(item: pytest.Item) -> bool:
    return not OURS.isdisjoint(getattr(item, "fixturenames", ()))


def pytest_itemcollected(item: pytest.Item) -> None:
    """A marker is enough: tests that cannot have arguments (unittest's), or need none, get what it describes all the same."""
    if isinstance(item, pytest.Function):
        for marker, fixtures in _MARKERS.items():
            if item.get_closest_marker(marker) is not None and not set(fixtures) & set(item.fixturenames):
                item.fixturenames = [*item.fixturenames, fixtures[0]]


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:  # fmt: skip
    """Know which fixture it is that starts a pod for many tests: its tests are those that the pod is about."""
    __tracebackhide__ = True  # else it would be in the report of every fixture that fails
    shared = request.config.stash[STATE].shared
    shared.begins(fixturedef)
    try:
        return (yield)
    finally:
        shared.ends()


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    """Its pods have nobody any more who could use them."""
    request.config.stash[STATE].shared.torn_down(fixturedef)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """What is torn down from now on was there during the test."""
    item.config.stash[STATE].shared.test_ends()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note when the test began: what longer-lived pods wrote before is not about it."""
    note_start(item)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:  # fmt: skip
    """Say what went wrong, not how the library came to it; and tell of containers and services while they are there."""
    if not item.config.getoption("fulltrace"):
        tracebacks.shorten(call)
    result = yield
    if result.failed:
        note_failure(item)
        result.sections.extend(report.sections(item))
        result.sections.extend(services.sections(item))
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the pods that were kept."""
    if kept := config.stash[STATE].kept:
        terminalreporter.section("sandboxes of failed tests")
        for pod, test in kept.items():
            terminalreporter.line(f"{test}: {pod.id}")
        terminalreporter.line("They go now, with this run. At a terminal it would have waited for you.")
