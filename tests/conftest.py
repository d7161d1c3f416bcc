"""Fixtures and rules that hold for the whole suite."""

from __future__ import annotations

import os
from collections.abc import Generator

import gate
import pytest

pytest_plugins = ["pytester", "machines.inside"]

#: A gated skip of this test was judged already; set on the item, read when its report is made.
_JUDGED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    os.environ["SANDBOX_PULL"] = "never"  # a misspelled image is an error here, not a question to the Internet
    config.addinivalue_line("markers", "requires(*names): what the test needs of the machine (tests/gate.py)")
    config.addinivalue_line("markers", "serial: looks at the whole machine; runs when no other test does")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("requires"):
            for name in mark.args:
                if name not in gate.PROBES:
                    raise pytest.UsageError(f"{item.nodeid}: requires({name!r}): no such requirement")


def pytest_runtest_setup(item: pytest.Item) -> None:
    names = [name for mark in item.iter_markers("requires") for name in mark.args]
    if item.get_closest_marker("system_manager") is not None:
        names.append("systemd.system")
    lacking = {name: reason for name in names if (reason := gate.missing(name)) is not None}
    if not lacking:
        return
    text = "; ".join(f"{name}: {reason}" for name, reason in lacking.items())
    if gate.in_ci() and (must := [name for name in lacking if gate.why_ci_may_lack(name) is None]):
        pytest.fail(f"CI has to provide {', '.join(must)} ({text})", pytrace=False)
    item.stash[_JUDGED] = True
    pytest.skip(text)


def _fail_a_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    report.outcome = "failed"
    report.longrepr = f"CI does not expect this skip: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, a skip that no gate has judged is a failure."""
    report = yield
    judged = item.stash.get(_JUDGED, False) or hasattr(report, "wasxfail") or hasattr(item, "judged_inside")
    if report.skipped and not judged and gate.in_ci():
        _fail_a_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself while it is collected (importorskip)."""
    report = yield
    if report.outcome == "skipped" and gate.in_ci():
        _fail_a_skip(report)
    return report
