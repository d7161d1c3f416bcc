"""The gate itself: what is skipped on a laptop, what fails in CI."""

from __future__ import annotations

import os
from pathlib import Path

import gate
import gate_cgroups
import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"

#: hypothesis imports all of itself at the end of a session, which takes longer than the session.
PLAIN = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite with our conftest, on a machine that has `here`, lacks `gone` and may lack `spare`."""
    monkeypatch.setitem(gate.PROBES, "here", lambda: None)
    monkeypatch.setitem(gate.PROBES, "gone", lambda: "not there")
    monkeypatch.setitem(gate.PROBES, "spare", lambda: "not there either")
    monkeypatch.setitem(gate.EXPECTED_IN_CI, "spare", (lambda: True, "tested elsewhere"))
    monkeypatch.delenv("CI", raising=False)
    pytester.makeconftest(CONFTEST.read_text("utf-8"))
    return pytester


def outcomes(suite: pytest.Pytester, source: str) -> dict[str, int]:
    suite.makepyfile(source)
    return suite.runpytest_inprocess(*PLAIN).parseoutcomes()


GATED = "import pytest, gate\n@gate.requires({names})\ndef test(): pass"


@pytest.mark.parametrize(
    ("names", "laptop", "ci"),
    [
        ("'here'", "passed", "passed"),
        ("'gone'", "skipped", "errors"),
        ("'spare'", "skipped", "skipped"),
        ("'here', 'spare'", "skipped", "skipped"),
        ("'spare', 'gone'", "skipped", "errors"),
    ],
)
def test_ci_fails_where_a_laptop_skips(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, names: str, laptop: str, ci: str
) -> None:
    source = GATED.format(names=names)
    assert outcomes(suite, source) == {laptop: 1}
    monkeypatch.setenv("CI", "true")
    assert outcomes(suite, source) == {ci: 1}


@pytest.mark.parametrize(
    "source",
    [
        "import pytest\ndef test(): pytest.skip('no mood')",
        "import pytest\n@pytest.mark.skip(reason='no mood')\ndef test(): pass",
        "import pytest\npytest.importorskip('no_such_module')\ndef test(): pass",
    ],
)
def test_a_skip_past_the_gate_fails_in_ci(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    assert outcomes(suite, source) == {"skipped": 1}
    monkeypatch.setenv("CI", "true")
    assert set(outcomes(suite, source)) <= {"failed", "errors"}


def test_an_expected_failure_is_no_skip(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    source = "import pytest\n@pytest.mark.xfail(reason='known')\ndef test(): assert False"
    assert outcomes(suite, source) == {"xfailed": 1}


def test_an_unknown_requirement_is_an_error(suite: pytest.Pytester) -> None:
    with pytest.raises(ValueError, match=r"requires\('moon'\): no such requirement; there are .*root"):
        gate.requires("here", "moon")
    suite.makepyfile("import pytest\n@pytest.mark.requires('moon')\ndef test(): pass")
    result = suite.runpytest_inprocess(*PLAIN)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test: requires('moon'): no such requirement*"])


def test_exactly_one_of_root_and_rootless() -> None:
    assert (gate.missing("root") is None) != (gate.missing("rootless") is None)


@pytest.mark.parametrize("name", sorted(gate.PROBES))
def test_a_probe_answers_and_leaves_no_cgroup(name: str) -> None:
    answer = gate.missing(name)
    assert answer is None or (answer and "\n" not in answer)
    for fstype in ("cgroup", "cgroup2"):
        for top, _ in gate_cgroups.mounts(fstype):
            # Other tests make and remove cgroups meanwhile, which this walk passes over.
            assert [name for name, _, _ in os.walk(top) if name.endswith(f"/probe-{os.getpid()}")] == []


def test_every_expected_absence_names_a_probe() -> None:
    assert set(gate.EXPECTED_IN_CI) <= set(gate.PROBES)


def test_the_mount_table_is_read_as_the_kernel_writes_it() -> None:
    assert any(top == Path("/proc") for top, _ in gate_cgroups.mounts("proc"))
