"""What the traceback of a failed test shows of the library: nothing, unless it is asked for."""

from __future__ import annotations

import re
from typing import Any

import pytest
from gate import requires

pytestmark = requires("userns", "overlay")

#: Of a frame in the library: a line of its code, or where it is.
LIBRARY = re.compile(r"sandbox/\S+\.py:\d+|self\._one\(\)|raise CalledProcessError")


@pytest.fixture(autouse=True)
def without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here needs limits; and a thread that looks for a manager would outlive a run that ends at once."""
    monkeypatch.setenv("SANDBOX_SYSTEMD", "off")


def report(result: pytest.RunResult) -> str:
    return "\n".join(result.stdout.lines)


def test_a_failed_command_shows_the_line_of_the_test_and_its_output(run: Any) -> None:
    source = """
@pytest.mark.sandbox(command="sleep inf")
def test_it(sandbox):
    sandbox.exec(["sh", "-c", "echo this was out; echo this was err >&2; exit 3"], check=True)
"""
    result = run(source)
    text = report(result)
    result.stdout.fnmatch_lines(["E *exit status 3", "E *stdout:", "E * this was out", "E *stderr:", "E * this was err"])
    assert not LIBRARY.search(text)
    assert "Run a program in the container" not in text, "the docstring of exec"
    assert LIBRARY.search(report(run(source, "--full-trace")))
    assert not LIBRARY.search(report(run(source, "--tb=native")))


def test_a_timeout_tells_what_was_written_by_then(run: Any) -> None:
    result = run("""
@pytest.mark.sandbox(command="sleep inf")
def test_it(sandbox):
    sandbox.exec(["sh", "-c", "echo step 1; exec sleep 60"], timeout=1)
""")
    result.stdout.fnmatch_lines(["E *timed out after 1 s", "E *stdout:", "E * step 1"])
    assert "The above exception" not in report(result)
    assert not LIBRARY.search(report(result))


@pytest.mark.parametrize("image", ["dir:/nonexist", "localhost:1/redsi:7"])
@pytest.mark.parametrize(
    "test",
    [
        "def test_it(): sb.start(image={image!r})",
        "def test_it(sandbox_factory): sandbox_factory(image={image!r})",
        "@pytest.mark.sandbox(image={image!r})\ndef test_it(sandbox): pass",
        (
            "@pytest.fixture(scope='module')\ndef mine(sandbox_session_factory):\n"
            "    sandbox_session_factory(image={image!r})\ndef test_it(mine): pass"
        ),
    ],
    ids=["start", "factory", "marker", "fixture"],
)
def test_a_missing_image_is_told_in_a_few_lines(run: Any, test: str, image: str) -> None:
    text = report(run(test.format(image=image))).partition("= short test summary")[0]
    assert re.search(r"^E .*: container `main`: ", text, re.MULTILINE)
    assert not re.search(r"\.py:\d+: in |During handling|direct cause|socket\.py", text)
    assert not LIBRARY.search(text)
    assert len(text.splitlines()) < 28


def test_what_is_not_ours_stays(run: Any) -> None:
    result = run("""
class Callback:
    def __fspath__(self):
        return sb.run("true", image="dir:/callback")

def test_context():
    try:
        {}["the key"]
    except KeyError:
        sb.run("false", check=True)

def test_wrapped():
    try:
        sb.run("false", check=True)
    except SandboxError as error:
        raise RuntimeError("of the test") from error

def test_callback():
    sb.run(["ls", Callback()])

def test_other():
    class Bad:
        def __fspath__(self): raise ZeroDivisionError("of a callback")
    sb.run(["ls", Bad()])

def test_group():
    errors = []
    for name in ("false", "true"):
        try:
            sb.run(name, image="dir:/" + name)
        except SandboxError as error:
            errors.append(error)
    raise ExceptionGroup("both", errors)
""")
    result.assert_outcomes(failed=5)
    result.stdout.fnmatch_lines([
        "E *KeyError: 'the key'", "During handling*", "E *exec `false`: exit status 1",
        "E *exec `false`: exit status 1", "The above exception was the direct cause*", "E *RuntimeError: of the test",
        '*return sb.run("true", image="dir:/callback")', "E *dir:/callback*",
        "*in split_command*", "*ZeroDivisionError: of a callback",
    ])  # fmt: skip
    result.stdout.fnmatch_lines(["*ExceptionGroup: both (2 sub-exceptions)"])
