"""The marker and the fixtures: what is started, and that nothing of it stays."""

from __future__ import annotations

import os
from typing import Any

import pytest
from gate import requires

from sandbox.shim.client import own_shim

pytestmark = requires("userns", "overlay")


def pods() -> list[dict[str, Any]]:
    """The pods there are at this moment in the process that runs the tests."""
    found: list[dict[str, Any]] = own_shim().call("pod.list")["pods"]
    return found


def test_each_test_gets_its_own_pod(run: Any) -> None:
    result = run("""
pytestmark = pytest.mark.sandbox(command="sleep inf")

@pytest.mark.parametrize("round", [1, 2])
def test_it(sandbox, round):
    assert isinstance(sandbox, RunningPod)
    assert not sandbox.exists("/tmp/mine")
    sandbox.write_text("/tmp/mine", "x")
    assert sandbox.exec("cat /tmp/mine").stdout == "x"
""")
    result.assert_outcomes(passed=2)
    assert pods() == []


def test_what_the_marker_takes(run: Any) -> None:
    result = run("""
one = Container("one", command="sleep inf", env={"A": "1"})

@pytest.mark.sandbox(Pod([one, Container("two", command="sleep inf")]))
def test_a_pod(sandbox):
    assert [container.name for container in sandbox] == ["one", "two"]

@pytest.mark.sandbox(one, env={"A": "2"})
def test_a_container_and_changes(sandbox):
    assert sandbox.exec(["sh", "-c", "echo $A"]).stdout == "2\\n"

@pytest.mark.sandbox([one, Container("two", command="sleep inf")], hostname="both")
def test_several(sandbox):
    assert sandbox["two"].exec("hostname").stdout == "both\\n"

@pytest.mark.parametrize("letter", [
    pytest.param("a", marks=pytest.mark.sandbox(command="sleep inf", env={"L": "a"})),
    pytest.param("b", marks=pytest.mark.sandbox(command="sleep inf", env={"L": "b"})),
])
def test_parameters(sandbox, letter):
    assert sandbox.exec(["sh", "-c", "echo $L"]).stdout.strip() == letter
""")
    result.assert_outcomes(passed=5)


def test_markers_add_up_and_the_closest_wins(run: Any) -> None:
    result = run("""
pytestmark = pytest.mark.sandbox(command="sleep inf", env={"FROM": "module"}, hostname="mod")

@pytest.mark.sandbox(env={"FROM": "class"})
class TestClass:
    def test_class(self, sandbox):
        assert sandbox.exec(["sh", "-c", "echo $FROM"]).stdout == "class\\n"
        assert sandbox.exec("hostname").stdout == "mod\\n"

    @pytest.mark.sandbox(hostname="fun")
    def test_function(self, sandbox):
        assert sandbox.exec(["sh", "-c", "echo $FROM"]).stdout == "class\\n"
        assert sandbox.exec("hostname").stdout == "fun\\n"

    @pytest.mark.sandbox(Container("other", command="sleep inf"))
    def test_a_subject_starts_afresh(self, sandbox):
        assert sandbox.exec(["sh", "-c", "echo $FROM"]).stdout == "\\n"
        assert sandbox.exec("hostname").stdout != "mod\\n"
        assert list(sandbox.containers) == ["other"]

@pytest.mark.sandbox(Container("outer", command="sleep inf", env={"A": "1"}))
class TestSubjectOutside:
    @pytest.mark.sandbox(hostname="inner")
    def test_fields_change_it(self, sandbox):
        assert list(sandbox.containers) == ["outer"]
        assert sandbox.exec(["sh", "-c", "echo $A; hostname"]).stdout == "1\\ninner\\n"
""")
    result.assert_outcomes(passed=4)


def test_a_factory_for_any_number(run: Any) -> None:
    result = run("""
def test_two(sandbox_factory):
    first = sandbox_factory(command="sleep inf")
    second = sandbox_factory(Container("other", command="sleep inf"), hostname="x")
    assert first.id != second.id
    assert second.exec("hostname").stdout == "x\\n"
    with sandbox_factory(command="sleep inf") as third:
        assert third.state == "running"
    with pytest.raises(CommandNotFound):
        sandbox_factory(command="no-such-program")

def test_gone(sandbox_factory):
    from sandbox.shim.client import own_shim
    assert own_shim().call("pod.list")["pods"] == []

@pytest.mark.sandbox(command="sleep inf")
def test_both(sandbox, sandbox_factory):
    assert sandbox_factory(command="sleep inf").id != sandbox.id
""")
    result.assert_outcomes(passed=3)
    assert pods() == []


def test_a_pod_for_the_session(run: Any) -> None:
    result = run(
        """
def test_one(db):
    db.write_text("/tmp/table", "row")

def test_two(db):
    assert db.read_text("/tmp/table") == "row"
""",
        conftest="""
@pytest.fixture(scope="session")
def db(sandbox_session_factory):
    return sandbox_session_factory(command="sleep inf")
""",
    )
    result.assert_outcomes(passed=2)
    assert pods() == []


def test_the_pod_knows_its_test(run: Any) -> None:
    result = run("""
@pytest.mark.sandbox(command="sleep inf")
def test_name(sandbox):
    (pod,) = sandbox.shim.call("pod.list")["pods"]
    assert "::test_name" in pod["meta"]["test"]
""")
    result.assert_outcomes(passed=1)


# --- errors -------------------------------------------------------------------------------------------------------


def test_without_a_marker(run: Any) -> None:
    result = run("def test_it(sandbox): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E *UsageError: *::test_it uses the fixture `sandbox`, but no marker says what to start*"])


def test_two_subjects(run: Any) -> None:
    result = run("@pytest.mark.sandbox(Container('a'), Container('b'))\ndef test_it(sandbox): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E *UsageError: *::test_it: pytest.mark.sandbox takes one subject*not 2*"])


def test_errors_are_told_without_the_way_to_them(run: Any) -> None:
    source = """
@pytest.mark.sandbox(comand="sleep inf")
def test_typo(sandbox): pass

@pytest.mark.sandbox(command="no-such-program")
def test_missing(sandbox): pass

@pytest.mark.sandbox(command=["sh", "-c", "echo no disk >&2; exit 3"], ready=Port(80))
def test_dies(sandbox): pass

def test_in_a_factory(sandbox_factory):
    sandbox_factory(image="dir:/no/such/place")
"""
    result = run(source)
    result.assert_outcomes(errors=3, failed=1)
    result.stdout.fnmatch_lines([
        "E *ModelError: Pod.comand = 'sleep inf': there is no such field", "*hint: did you mean 'command'?",
        "E *CommandNotFound: container `main`: *no-such-program*",
        "E *ContainerExited: container `main`: wait for Port(80): exit status 3", "*last log lines:", "*no disk",
        ">* sandbox_factory(image=*", "E *ImageNotFound: *no/such/place*",
    ])  # fmt: skip
    assert "_launch.py" not in result.stdout.str()
    assert "state.py" not in result.stdout.str()
    assert "_launch.py" in run(source, "--full-trace", "-k", "place or factory").stdout.str()


def test_the_logs_of_the_others_are_told_too(run: Any) -> None:
    result = run("""
db = Container("db", command=["sh", "-c", "echo the disk is full; sleep inf"], ready=Log("full"))
api = Container("api", after=["db"], command=["sh", "-c", "echo no database; exit 1"], ready=Port(80))

@pytest.mark.sandbox([db, api])
def test_it(sandbox): pass
""")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E *container `api`: wait for Port(80): exit status 1", "*no database",
                                 "*last log lines of container `db`:", "*the disk is full"])  # fmt: skip


# --- what stays ---------------------------------------------------------------------------------------------------

UNHAPPY_ENDS = {
    "failure": "assert False",
    "error": "raise OSError('oops')",
    "skip": "pytest.skip('no')",
    "end of the session": "pytest.exit('enough')",
    "ctrl-c": "raise KeyboardInterrupt",
}


@pytest.mark.parametrize("end", UNHAPPY_ENDS.values(), ids=list(UNHAPPY_ENDS))
@pytest.mark.parametrize("fixture", ["sandbox", "sandbox_factory"])
def test_nothing_stays_whatever_happens(pytester: pytest.Pytester, run: Any, fixture: str, end: str) -> None:
    source = f"""
@pytest.mark.sandbox(command="sleep inf")
def test_it({fixture}):
    if {fixture!r} == "sandbox_factory":
        sandbox_factory(command="sleep inf")
        sandbox_factory(command="sleep inf")
    {end}
"""
    if "Keyboard" in end:
        with pytest.raises(KeyboardInterrupt):
            run(source)
    else:
        run(source)
    assert pods() == []


def test_nothing_stays_of_a_set_up_that_fails_later(run: Any) -> None:
    result = run("""
@pytest.fixture
def broken(sandbox):
    raise OSError("not my day")

@pytest.mark.sandbox(command="sleep inf")
def test_it(sandbox, broken): pass
""")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*- sandbox main -*"])
    assert pods() == []


def test_nothing_stays_of_a_fixture_that_never_got_to_its_end(run: Any) -> None:
    """The plugin's own clean-up at the end of the run."""
    result = run("""
@pytest.mark.sandbox(command="sleep inf")
def test_it(sandbox, request):
    request.config.stash[__import__("pytest_sandbox.state").state.STATE].finish = lambda node: None
""")
    result.assert_outcomes(passed=1)
    assert pods() == []


def test_ctrl_c_in_a_process_of_its_own(pytester: pytest.Pytester, run_apart: Any) -> None:
    """Not even the process that held the pods is left."""
    result = run_apart("""
import os, pathlib, signal, time

@pytest.mark.sandbox(command="sleep inf")
def test_it(sandbox):
    pathlib.Path("monitor").write_text(str(sandbox.shim._monitor.pid))
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
""")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    monitor = (pytester.path / "monitor").read_text()
    assert not os.path.exists(f"/proc/{monitor}")


# --- beside others ------------------------------------------------------------------------------------------------


def test_under_xdist(run_apart: Any) -> None:
    result = run_apart(
        """
@pytest.mark.parametrize("n", range(8))
@pytest.mark.sandbox(command=["sh", "-c", "echo I am here; sleep inf"], ready=Log("here"))
def test_it(sandbox, n):
    assert sandbox.exec("echo hello").stdout == "hello\\n"
    assert n != 5
""",
        "-n", "2",
    )  # fmt: skip
    result.assert_outcomes(passed=7, failed=1)
    result.stdout.fnmatch_lines(["*- sandbox main -*", "pod-*/main, image host: running", "*stdout: I am here"])


def test_switched_off(run_apart: Any) -> None:
    result = run_apart("def test_it(): pass\ndef test_that(sandbox): pass", "-p", "no:sandbox")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["E *fixture 'sandbox' not found"])


def test_the_marker_and_the_fixtures_are_documented(run_apart: Any) -> None:
    result = run_apart("", "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.sandbox(subject=None, /, ?*fields): *"])
    result = run_apart("", "--fixtures")
    for name in ("sandbox", "sandbox_factory", "sandbox_session_factory*"):
        result.stdout.fnmatch_lines([f"{name} -- *"])
    assert "no docstring available" not in result.stdout.str()
