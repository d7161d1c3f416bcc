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


class Item(pytest.Item):
    """A marked test, seen from outside: has no fixtures, and asks what happened inside."""

    #: The gate has had its say there.
    judged_inside = True

    def __init__(self, *, original: pytest.Item, **known: Any) -> None:
        super().__init__(**known)
        self.original = original
        #: What happened inside; nothing as long as it is not known, because the test was skipped outside.
        self.found: dict[str, list[Any]] = {}
        self.own_markers.extend(original.own_markers)
        self.keywords.update(original.keywords)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.original.reportinfo()

    def setup(self) -> None:
        """Run the tests of the module inside, unless that has been done."""
        self.found = batch_of(self)

    def runtest(self) -> None:
        """Fail, if there is nothing to tell; else the reports are made of what happened inside."""
        if self.nodeid not in self.found:
            pytest.fail("\n".join(["The test was not run inside.", *self.found[""]]), pytrace=False)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if nested.TESTBED not in os.environ:
        items[:] = [
            Item.from_parent(item.parent, name=item.name, original=item)
            if item.parent is not None and item.get_closest_marker("system_manager")
            else item
            for item in items
        ]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> pytest.TestReport | None:
    """Of each phase of a marked test the report from inside; a skip by the gate, outside, is reported as ever."""
    if not isinstance(item, Item) or call.excinfo is not None or item.nodeid not in item.found:
        return None
    data = next(data for data in item.found[item.nodeid] if data["when"] == call.when)
    if isinstance(data["longrepr"], list):  # of a skip; JSON has no tuples
        data["longrepr"] = tuple(data["longrepr"])
    report: pytest.TestReport = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
    return report


def batch_of(item: pytest.Item) -> dict[str, list[Any]]:
    batches = item.config.stash.setdefault(_BATCHES, {})
    module = module_of(item)
    if module not in batches:
        batches[module] = shared_batch(item, module)
    return batches[module]


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
    nodes = [other.nodeid for other in item.session.items if isinstance(other, Item) and module_of(other) == module]
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
