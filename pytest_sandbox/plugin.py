"""What pytest sees: options, hooks, fixtures and reports are registered here and live in their own modules.

Nothing of the library is imported until a test asks for a sandbox: a run that does not use the plugin does not pay
for it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from pytest_sandbox import hookspecs, options, report, services
from pytest_sandbox.fixtures import sandbox, sandbox_factory, sandbox_session_factory
from pytest_sandbox.services import service_sandbox, service_sandbox_factory
from pytest_sandbox.state import STATE, State, note_failure, note_start

__all__ = ["sandbox", "sandbox_factory", "sandbox_session_factory", "service_sandbox", "service_sandbox_factory"]

_OF_PODS = frozenset({"sandbox", "sandbox_factory", "sandbox_session_factory"})

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
    return not _OF_PODS.isdisjoint(getattr(item, "fixturenames", ()))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note when the test began: what longer-lived pods wrote before is not about it."""
    note_start(item)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:  # fmt: skip
    """Tell about the containers and services of a test that failed, while they are still there."""
    del call
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
