"""Tests that run inside a nested system manager: the mark ``system_manager``, and the fixture of the same name.

A module (or test) that carries the mark is run by a pytest of its own in a machine of its own (machines/nested.py),
all of its marked tests at once, and each test here reports what happened to it there: fixtures are set up inside.
Where the environment has SANDBOX_TESTBED set, the machine's own manager is what is to be tested, and the tests run
where they are. Processes of xdist share one run of a module.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gate
import pytest
from machines import nested

#: What the tests of a module may take together, in seconds.
TIMEOUT = 150
#: Where the pytest inside writes its reports, a line of JSON each.
REPORTS = "SANDBOX_TESTBED_REPORTS"
#: A directory that the processes of xdist share; made, named to them and removed by their controller.
_SHARED = pytest.StashKey[tempfile.TemporaryDirectory[str]]()
#: What happened in modules that were run: module → node id → reports; under "", what was printed.
_BATCHES = pytest.StashKey[dict[str, dict[str, list[Any]]]]()


@pytest.fixture(scope="module")
def system_manager() -> Iterator[nested.Machine]:
    """A machine with a system manager, for the tests of a module; seen from outside."""
    with nested.boot() as machine:
        yield machine


# --- inside -----------------------------------------------------------------------


class Writer:
    """Writes reports down for the outside."""

    def __init__(self, config: pytest.Config, file: Path) -> None:
        self.config = config
        self.file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        with self.file.open("a", encoding="utf-8") as stream:
            print(json.dumps(data), file=stream)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "system_manager: runs inside a nested system manager, as root")
    if file := os.environ.get(REPORTS):
        config.pluginmanager.register(Writer(config, Path(file)))


# --- outside ----------------------------------------------------------------------


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In the controller of xdist, for each of its processes."""
    if _SHARED not in node.config.stash:
        node.config.stash[_SHARED] = tempfile.TemporaryDirectory(prefix="inside-")
    node.workerinput["inside"] = node.config.stash[_SHARED].name


def pytest_unconfigure(config: pytest.Config) -> None:
    if _SHARED in config.stash:
        config.stash[_SHARED].cleanup()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Instead of running a marked test, tell what happened to it inside."""
    if nested.TESTBED in os.environ or item.get_closest_marker("system_manager") is None:
        return None
    if gate.missing("systemd.system") is not None:
        return None  # the set-up skips it, or fails it, as the gate says
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports_of(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def reports_of(item: pytest.Item) -> list[pytest.TestReport]:
    batches = item.config.stash.setdefault(_BATCHES, {})
    module = module_of(item)
    if module not in batches:
        batches[module] = shared_batch(item, module)
    found = batches[module].get(item.nodeid)
    if found is None:
        text = "The test was not run inside.\n" + "\n".join(batches[module][""])
        return [pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")]
    for data in found:
        if isinstance(data["longrepr"], list):  # of a skip; JSON has no tuples
            data["longrepr"] = tuple(data["longrepr"])
    read = item.config.hook.pytest_report_from_serializable
    return [read(config=item.config, data=data) for data in found]


def module_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def shared_batch(item: pytest.Item, module: str) -> dict[str, list[Any]]:
    """The reports of a module, which the first process of xdist that wants them makes and the others read."""
    if (shared := getattr(item.config, "workerinput", {}).get("inside")) is None:
        return batch(item, module)
    with Path(shared, module.replace("/", "-")).open("a+", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        if text := stream.read():
            reports: dict[str, list[Any]] = json.loads(text)
            return reports
        reports = batch(item, module)
        json.dump(reports, stream)
        return reports


def batch(item: pytest.Item, module: str) -> dict[str, list[Any]]:
    """Run all selected tests of a module inside a machine of its own."""
    nodes = [
        other.nodeid
        for other in item.session.items
        if module_of(other) == module and other.get_closest_marker("system_manager")
    ]
    found: dict[str, list[Any]] = {}
    top = item.config.rootpath
    with nested.boot(shows=[top]) as machine:
        reports = machine.root / "run/reports"
        try:
            done = machine.pytest(
                *nodes, directory=top, timeout=TIMEOUT, check=False, env={REPORTS: "/run/reports"}
            )
            found[""] = [done.stdout, done.stderr, machine.console()]
        except nested.MachineFailed as error:
            found[""] = [str(error)]
        for line in reports.read_text("utf-8").splitlines() if reports.exists() else ():
            data = json.loads(line)
            found.setdefault(data["nodeid"], []).append(data)
    return found
