"""pytest in pytest: a run of the plugin on a small test file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import pytest

import sandbox

Run = Callable[..., pytest.RunResult]

#: Other people's plugins cost time, or want to measure what is measured already.
QUIET = ("-p", "no:hypothesispytest", "-p", "no:cacheprovider", "-p", "no:timeout", "-W", "error")


@pytest.fixture(scope="session")
def whole_library() -> None:
    """All of it: pytester forgets what was first imported in a run, and half a library would be imported twice."""
    for module in pkgutil.walk_packages(sandbox.__path__, "sandbox."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


@pytest.fixture
def run(pytester: pytest.Pytester, whole_library: None) -> Run:
    """Run pytest in this process: its pods are those of our own shim. Warnings are errors."""

    def run(source: str, *arguments: str, conftest: str = "", ini: str = "") -> pytest.RunResult:
        write(pytester, source, conftest, ini)
        return pytester.runpytest_inprocess(*QUIET, *arguments)

    return run


@pytest.fixture
def run_apart(pytester: pytest.Pytester) -> Run:
    """Run pytest in a process of its own."""

    def run(source: str, *arguments: str, conftest: str = "", ini: str = "") -> pytest.RunResult:
        write(pytester, source, conftest, ini)
        return pytester.runpytest_subprocess(*QUIET, *arguments)

    return run


def write(pytester: pytest.Pytester, source: str, conftest: str, ini: str) -> None:
    prelude = "import pytest, sandbox as sb\nfrom sandbox import *\n"
    pytester.makepyfile(prelude + source)
    if conftest:
        pytester.makeconftest(prelude + conftest)
    pytester.makeini("[pytest]\naddopts = --strict-markers --strict-config\n" + ini)
