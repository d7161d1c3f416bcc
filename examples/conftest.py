"""Lets the lessons speak: with -v, each file's story comes before its tests, and what a test `tells` after its result.

Nothing here is needed to use pytest-sandbox.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Say what happened; shown with -v, and kept in reports."""
    return lambda text: record_property("tells", text)


class Storyteller:
    """Writes to the terminal between pytest's own lines."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal
        self._stories: dict[str, str] = {}
        self._told = ""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember the docstring of each file."""
        for item in session.items:
            module = getattr(item, "module", None)
            self._stories[item.nodeid.partition("::")[0]] = inspect.getdoc(module) or ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Begin a file with its story."""
        file = nodeid.partition("::")[0]
        if file != self._told:
            self._told = file
            self._terminal.ensure_newline()
            self._terminal.line("")
            for number, line in enumerate(self._stories.get(file, "").splitlines()):
                self._terminal.line(line, bold=number == 0)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """End a test with what it has to tell."""
        if report.when == "call":
            for name, text in report.user_properties:
                if name == "tells":
                    self._terminal.ensure_newline()
                    self._terminal.line(f"    {text}")


def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    workers = getattr(config.option, "numprocesses", None)
    if terminal is not None and config.get_verbosity() > 0 and not workers:
        config.pluginmanager.register(Storyteller(terminal), "storyteller")
