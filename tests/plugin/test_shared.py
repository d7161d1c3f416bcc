"""Which pods the report of a failed test tells of: those that its fixtures have led to, and that were there during it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gate import requires

if TYPE_CHECKING:
    import pytest

pytestmark = requires("userns", "overlay")

SECTION = re.compile(r"-+ sandbox (\S+) -+")


def told(result: pytest.RunResult) -> dict[str, list[str]]:
    """Test → the titles of the sections that its report has."""
    found: dict[str, list[str]] = {}
    test = ""
    for line in result.stdout.lines:
        if match := re.fullmatch(r"_{3,} (?:ERROR at \w+ of )?(\S+) _{3,}", line):
            test = match[1]
            found[test] = []
        elif match := SECTION.fullmatch(line):
            found[test].append(match[1])
    return found


CLASSES = """
@pytest.fixture(scope="class")
def closed(sandbox_session_factory):
    with sandbox_session_factory(Container("closed", command="sleep inf")) as pod:
        yield pod

@pytest.fixture(scope="class")
def left(sandbox_session_factory):
    return sandbox_session_factory(Container("left", command="sleep inf"))

class Test1:
    def test_1(self, closed, left): pass
class Test2:
    def test_2(self, closed, left): pass
class Test3:
    def test_3(self, closed, left): assert 0
    def test_4(self, left): assert 0
    def test_5(self): assert 0

def test_plain(): assert 0
"""


def test_pods_of_tests_that_are_over_are_not_told_of(run: Any) -> None:
    result = run(CLASSES)
    titles = told(result)
    assert [title.rpartition("/")[2] for title in titles["Test3.test_3"]] == ["closed", "left"]
    assert titles["Test3.test_4"] == ["left"]
    assert titles["Test3.test_5"] == titles["test_plain"] == []
    assert "it was removed" not in result.stdout.str()


def test_sections_of_several_pods_are_told_apart(run: Any) -> None:
    result = run("""
def test_it(sandbox_factory):
    shop = Pod([Container(command="sleep inf")], name="shop")
    pods = [sandbox_factory(command="sleep inf"), sandbox_factory(shop)]
    print(*[f"[{pod.id}/main]" for pod in pods])
    assert 0
""")
    titles = told(result)["test_it"]
    assert re.fullmatch(r"pod-\w+/main shop-\w+/main", " ".join(titles))
    result.stdout.fnmatch_lines([f"[[]{titles[0]}] [[]{titles[1]}]"])


def test_a_parameter_that_is_done_with_has_taken_its_pod_along(run: Any) -> None:
    result = run("""
@pytest.fixture(scope="session", params=["a", "b"])
def one(request, sandbox_session_factory):
    return sandbox_session_factory(Container(request.param, command="sleep inf"))

def test_it(one): assert 0
""")
    assert told(result) == {"test_it[a]": ["a"], "test_it[b]": ["b"]}


def test_a_pod_that_no_fixture_started_is_that_of_all_who_may(run: Any) -> None:
    result = run("""
made = []

@pytest.fixture
def one(sandbox_session_factory):
    return lambda: made[0] if made else made.append(sandbox_session_factory(command="sleep inf"))

def test_1(one):
    one()
def test_2(one):
    one()
    assert 0
def test_3():
    assert 0
""")
    assert told(result) == {"test_2": ["main"], "test_3": []}


def test_a_pod_that_a_test_has_started_by_way_of_a_fixture_it_does_not_name(run: Any) -> None:
    result = run("""
@pytest.fixture(scope="module")
def one(sandbox_session_factory):
    return sandbox_session_factory(command="sleep inf")

def test_1(request):
    request.getfixturevalue("one")
    assert 0
def test_2():
    assert 0
""")
    assert told(result) == {"test_1": ["main"], "test_2": []}


def test_a_fixture_that_fails_when_it_is_torn_down_has_sections(run: Any) -> None:
    result = run("""
@pytest.fixture(scope="module")
def shared(sandbox_session_factory):
    return sandbox_session_factory(Container("shared", command="sleep inf"))

@pytest.fixture
def of_one(sandbox):
    sandbox.exec(["sh", "-c", "echo from the teardown > /proc/1/fd/1"])
    yield
    assert 0

@pytest.fixture
def of_all(shared):
    yield
    assert 0

@pytest.fixture
def before():
    yield
    assert 0

@pytest.mark.sandbox(command="sleep inf")
def test_own(of_one): pass
def test_shared(of_all): pass
@pytest.mark.sandbox(command="sleep inf")
def test_too_late(before, sandbox): pass
""")
    result.assert_outcomes(passed=3, errors=3)
    assert told(result) == {"test_own": ["main"], "test_shared": ["shared"], "test_too_late": []}
    result.stdout.fnmatch_lines(["pod-*/main, image host: running", "*stdout: from the teardown"])
