"""The mark ``system_manager``: what happens to a test inside is what its report says outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gate import requires
from machines import nested

#: hypothesis imports all of itself at the end of a session, which takes longer than the session.
PLAIN = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
CONFTEST = "import pytest\npytest_plugins = ['machines.inside']\n"
INI = f"[pytest]\npythonpath = {nested.CHECKOUT / 'tests'}\n"
MODULE = """
import os, pytest
pytestmark = pytest.mark.system_manager

@pytest.fixture
def number():
    return os.getpid()

def test_passes(number):
    assert open("/proc/1/comm").read() == "systemd\\n"
    assert os.geteuid() == 0

@pytest.mark.parametrize("value", [1, 2])
def test_fails(value):
    print("printed inside")
    assert value == 1, "two is bad"

def test_skips():
    pytest.skip("no mood")

@pytest.fixture
def broken():
    raise RuntimeError("no fixture")

def test_error(broken): pass
"""


@pytest.mark.system_manager
def test_this_very_suite_runs_inside(tmp_path: Path) -> None:
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    assert os.environ[nested.TESTBED] == "nested"
    assert tmp_path.is_dir()


@requires("systemd.system")
class TestReports:
    @pytest.fixture
    def suite(self, pytester: pytest.Pytester) -> pytest.Pytester:
        pytester.makeconftest(CONFTEST)
        pytester.makeini(INI)
        return pytester

    @pytest.mark.parametrize("options", [(), ("-n2",)], ids=["alone", "xdist"])
    def test_are_those_of_the_inside(self, suite: pytest.Pytester, options: tuple[str, ...]) -> None:
        suite.makepyfile(MODULE)
        result = suite.runpytest_subprocess("-rs", *PLAIN, *options)
        result.assert_outcomes(passed=2, failed=1, skipped=1, errors=1)
        result.stdout.fnmatch_lines_random(
            ["*two is bad*", "*printed inside*", "*RuntimeError: no fixture*", "SKIPPED*no mood*"]
        )

    def test_tell_when_the_machine_dies(self, suite: pytest.Pytester) -> None:
        suite.makepyfile(
            "import os, signal, pytest\n@pytest.mark.system_manager\n"
            "def test_kills_the_machine(): os.system('systemctl --force --force poweroff')"
        )
        result = suite.runpytest_subprocess(*PLAIN)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["The test was not run inside."])

    def test_do_not_disturb_tests_that_stay_outside(self, suite: pytest.Pytester) -> None:
        """What these share with each other is set up once and torn down in the end, as if nothing were between."""
        outside = (
            "import pytest\n@pytest.fixture(scope='module', autouse=True)\ndef around():\n"
            "    yield\n    print('torn down')\ndef test_outside(): pass\n"
        )
        marked = "import pytest\n@pytest.mark.system_manager\ndef test_inside(): assert not {}\n"
        suite.makepyfile(
            test_a=outside,
            test_b=marked.format(0),
            test_c=outside + marked.format(0),
            test_d=outside,
        )
        result = suite.runpytest_subprocess("-s", *PLAIN)
        result.assert_outcomes(passed=5)
        assert result.stdout.str().count("torn down") == 3


def test_what_is_skipped_outside_needs_no_machine(pytester: pytest.Pytester) -> None:
    """As by the gate, for somebody who is not root."""
    pytester.makeconftest(f"{CONFTEST}def pytest_runtest_setup(item): pytest.skip('not root')\n")
    pytester.makeini(INI)
    pytester.makepyfile(MODULE)
    result = pytester.runpytest_subprocess("-rs", *PLAIN)
    result.assert_outcomes(skipped=5)
    result.stdout.fnmatch_lines(["SKIPPED*not root*"])
