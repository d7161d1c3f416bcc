"""The fixture ``service_sandbox``, and the section that a failed test's report has for its service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gate import requires

if TYPE_CHECKING:
    import pytest

pytestmark = requires("systemd.manager")


def section(result: pytest.RunResult, title: str) -> list[str]:
    lines: list[str] = result.stdout.lines
    start = next(i for i, line in enumerate(lines) if line.strip("- ") == title)
    rest = lines[start + 1 :]
    return rest[: next(i for i, line in enumerate([*rest, "==="]) if line[:3] in {"---", "===", "___"})]


def test_a_service_for_a_test(run: Any) -> None:
    run("""
@pytest.mark.service_sandbox(["sh", "-c", "echo hello; exec sleep inf"], profile="strict")
class TestIt:
    def test_it_runs(self, service_sandbox):
        assert isinstance(service_sandbox, RunningService)
        assert service_sandbox.state == "running"
        TestIt.service = service_sandbox

    @pytest.mark.service_sandbox(profile=None, UMask="0070")
    def test_the_closest_marker_wins(self, service_sandbox):
        assert TestIt.service.returncode == -15, "gone with its test"
        assert service_sandbox.get("UMask") == 0o070
        assert service_sandbox.get("PrivateNetwork") is False

def test_any_number_of_them(service_sandbox_factory):
    one, two = (service_sandbox_factory(["sleep", "inf"]) for _ in range(2))
    assert one.pid != two.pid
""").assert_outcomes(passed=3)


def test_the_report_of_a_failed_test(run: Any) -> None:
    result = run("""
@pytest.mark.service_sandbox(["sh", "-c", "echo first; printf '\\\\033[31mred\\\\033[0m\\\\n\\\\a'; sleep 0.1; kill -SEGV $$"])
def test_it(service_sandbox):
    service_sandbox.wait(10)
    assert False

@pytest.mark.service_sandbox(["sleep", "inf"])
def test_that_passes(service_sandbox): pass
""", "--sandbox-log-lines=2")
    result.assert_outcomes(failed=1, passed=1)
    told = section(result, "service sh")
    assert told[0].startswith("sandbox-service-")
    assert told[1].startswith("result: ")
    assert "killed by SIGSEGV" in told[1]
    assert told[2].startswith("used: CPU ")
    assert told[3:] == ["the last 2 of 3 lines:", "  red", "  \\x07"]
    assert "service sleep" not in result.stdout.str()


def test_errors_are_told_and_nothing_else(run: Any) -> None:
    result = run("""
@pytest.mark.service_sandbox(["/nonexistent/daemon"])
def test_none(service_sandbox): pass

@pytest.mark.service_sandbox(["true"], Nonsense=True)
def test_bad(service_sandbox): pass

def test_unmarked(service_sandbox): pass

@pytest.mark.service_sandbox("true", "false")
def test_two(service_sandbox): pass
""")
    result.assert_outcomes(errors=4)
    text = result.stdout.str()
    assert "start service `/nonexistent/daemon`: there is no such program" in text
    assert "service units have no property Nonsense" in text
    assert 'add @pytest.mark.service_sandbox(["./daemon"])' in text
    assert "takes one command, a list or a string, not 2" in text
    assert "sandbox/services/start.py" not in text
