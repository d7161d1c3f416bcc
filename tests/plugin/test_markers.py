"""A marker is enough: a test without the fixture gets what the marker describes."""

from __future__ import annotations

from typing import Any

from gate import requires

pytestmark = requires("userns", "overlay")


def test_the_marker_alone_starts_the_pod(run: Any) -> None:
    result = run("""
import unittest

@pytest.mark.sandbox(command="nope")
class TestUnit(unittest.TestCase):
    def test_it(self): pass

@pytest.mark.sandbox(command="nope")
class TestPlain:
    def test_it(self): pass

@pytest.mark.sandbox(command="nope")
def test_function(): pass

@pytest.mark.parametrize("one", [pytest.param(1, marks=pytest.mark.sandbox(command="nope")), 2])
def test_of_one_parameter(one): pass
""")
    result.assert_outcomes(errors=4, passed=1)
    result.stdout.fnmatch_lines(["sandbox: cgroups from *", "E *CommandNotFound: container `main`: execute `nope`: *"])


def test_it_goes_with_the_test(run: Any) -> None:
    result = run("""
from sandbox.shim.client import own_shim

def pods():
    return len(own_shim().call("pod.list")["pods"])

@pytest.mark.sandbox(command="sleep inf")
def test_with(): assert pods() == 1

def test_without(): assert pods() == 0
""")
    result.assert_outcomes(passed=2)


def test_a_test_that_starts_its_own_is_left_alone(run: Any) -> None:
    result = run("""
pytestmark = pytest.mark.sandbox(command="nope")

def test_factory(sandbox_factory):
    assert sandbox_factory(command="sleep inf").exec("true").returncode == 0

def test_session_factory(sandbox_session_factory): pass
""")
    result.assert_outcomes(passed=2)


def test_unittest_reaches_it_through_a_fixture(run: Any) -> None:
    """The example of docs/plugin.md."""
    result = run("""
import unittest

@pytest.mark.sandbox(command="sleep inf")
class TestPing(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _take(self, sandbox):
        self.sandbox = sandbox

    def test_it(self):
        self.assertEqual(self.sandbox.exec(["echo", "hi"]).stdout, "hi\\n")
""")
    result.assert_outcomes(passed=1)


def test_the_marker_of_services_too(run: Any) -> None:
    result = run("""
@pytest.mark.service_sandbox("/nonexistent/daemon")
def test_it(): pass
""")
    result.assert_outcomes(errors=1)  # there is no such program, or nobody who would start it


def test_a_hook_that_returns_something_else_is_named(run: Any) -> None:
    result = run("""
@pytest.mark.sandbox(command="sleep inf")
def test_it(sandbox): pass
""", conftest="""
def pytest_sandbox_configure_pod(item, pod):
    return {"labels": {}}
""")  # fmt: skip
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E *the hook pytest_sandbox_configure_pod has returned {'labels': {}}: expected a sandbox*"])


def test_an_image_instead_of_a_subject(run: Any) -> None:
    result = run("""
@pytest.mark.sandbox("redis:7")
def test_it(sandbox): pass
""")
    result.stdout.fnmatch_lines(["E *as_pod.subject = 'redis:7': *", "*hint: did you mean image='redis:7'?"])
