"""Programs of a spec as plain values, and why one cannot be executed."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from sandbox._process import Result, Streams, Usage, decode, signal_value
from sandbox.errors import CalledProcessError, PodStateError
from sandbox.runtime import process
from sandbox.runtime.failure import Failure

PROCESS: dict[str, Any] = {"args": ["true"], "cwd": "/", "user": {"uid": 1, "gid": 2, "additionalGids": [3], "umask": 0o77}}


def parse(linux: dict[str, Any] | None = None, seccomp: bytes = b"", **changes: Any) -> process.Program:
    return process.parse({**PROCESS, **changes}, linux or {}, seccomp)


def test_parse() -> None:
    found = parse(
        {"personality": {"domain": "LINUX32"}, "seccomp": {"flags": ["SECCOMP_FILTER_FLAG_LOG"]}}, b"filter",
        env=["A=1", "B=x=y", "A=2"], noNewPrivileges=True, oomScoreAdj=5, terminal=True, consoleSize={"height": 3, "width": 4},
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 5, "hard": (1 << 64) - 1}],
        capabilities={"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN", "CAP_KILL"]},
    )  # fmt: skip
    assert (found.uid, found.gid, found.groups, found.umask) == (1, 2, (3,), 0o77)
    assert found.env == {"A": "2", "B": "x=y"}
    assert found.rlimits == ((resource.RLIMIT_NOFILE, "RLIMIT_NOFILE", 5, resource.RLIM_INFINITY),)
    assert (found.capabilities.bounding, found.capabilities.effective, found.capabilities.ambient) == (1, 0b100001, 0)
    assert (found.terminal, found.window, found.seccomp, found.seccomp_flags) == (True, (3, 4), b"filter", 2)
    assert (found.personality, found.no_new_privileges, found.oom_score_adj) == (8, True, 5)


def test_the_defaults_give_nothing() -> None:
    found = process.parse({"args": ["x"], "cwd": "/"}, {}, b"")
    assert (found.uid, found.gid, found.umask, found.window) == (0, 0, 0o022, None)
    assert found.capabilities == process.Capabilities(0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("linux", "feature"),
    [
        ({"personality": {"domain": "LINUX", "flags": ["X"]}}, "linux.personality"),
        ({"personality": {"domain": "BSD"}}, "linux.personality"),
        ({"seccomp": {"flags": ["SECCOMP_FILTER_FLAG_WAIT"]}}, "linux.seccomp.flags SECCOMP_FILTER_FLAG_WAIT"),
    ],
)
def test_unsupported(linux: dict[str, Any], feature: str) -> None:
    with pytest.raises(Failure) as caught:
        parse(linux)
    assert caught.value.facts["feature"] == feature


def test_candidates_along_the_path() -> None:
    assert process.candidates(_program("./x", "/bin")) == ["./x"]
    assert process.candidates(_program("x", "/a::/b")) == ["/a/x", "./x", "/b/x"]


def _program(command: str, path: str) -> process.Program:
    return process.parse({"args": [command], "cwd": "/", "env": [f"PATH={path}"]}, {}, b"")


@pytest.mark.parametrize(
    ("content", "number", "kind", "cause"),
    [
        (b"#!/no/such thing\n", errno.ENOENT, "CommandNotFound", "its interpreter /no/such does not exist"),
        (b"\x7fELF...", errno.ENOENT, "CommandNotFound", "the dynamic loader that it names does not exist"),
        (b"text", errno.ENOEXEC, "CommandNotExecutable", "neither a program of this machine's architecture"),
        (b"text", errno.EACCES, "CommandNotExecutable", "no permission to execute it as this user"),
        (b"text", errno.E2BIG, "CommandNotExecutable", "together are too long"),
        (b"text", errno.EIO, "CommandNotExecutable", None),
    ],
)
def test_why_not(tmp_path: Path, content: bytes, number: int, kind: str, cause: str | None) -> None:
    path = tmp_path / "it"
    path.write_bytes(content)
    facts = process.explain_exec(str(path), OSError(number, os.strerror(number))).facts
    assert (facts["type"], facts["object"], facts["errno"]) == (kind, str(path), number)
    assert facts.get("cause") == cause or (cause is not None and cause in facts["cause"])


def test_a_directory_is_no_program(tmp_path: Path) -> None:
    facts = process.explain_exec(str(tmp_path), OSError(errno.EACCES, "")).facts
    assert facts["cause"] == "it is a directory"


# --- the client's side --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "number"), [(9, 9), ("9", 9), ("KILL", 9), ("SIGKILL", 9), ("hup", 1)])
def test_signals_by_any_name(given: int | str, number: int) -> None:
    assert signal_value(given) == number


def test_a_signal_that_does_not_exist() -> None:
    with pytest.raises(PodStateError, match="no signal 'NONSENSE'"):
        signal_value("NONSENSE")


def test_usage_from_a_cgroup_or_from_rusage() -> None:
    both = {"cpu_usec": 3_000_000, "cpu_user_usec": 2_000_000, "cpu_system_usec": 1_000_000, "user": 9, "memory_peak": 5,
            "max_rss": 6}  # fmt: skip
    assert Usage.from_message(both) == Usage(cpu=3.0, user=2.0, system=1.0, memory_peak=5)
    alone = Usage.from_message({"user": 0.5, "system": 0.25, "max_rss": 6})
    assert alone == Usage(cpu=0.75, user=0.5, system=0.25, memory_peak=6)


def test_results() -> None:
    Result(["x"], 0, "", "").check_returncode()
    with pytest.raises(CalledProcessError, match="exit status 2") as caught:
        Result(["x"], 2, "out", "err").check_returncode()
    assert (caught.value.stdout, caught.value.stderr) == ("out", "err")


def test_output_is_text_or_bytes() -> None:
    assert decode(b"\xffa", text=True) == "\\xffa"
    assert decode(b"\xffa", text=False) == b"\xffa"


def test_streams_close_what_they_opened(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    streams = Streams(-1, -1, -2, text=True)
    assert streams.given[1] == streams.given[2]
    streams.release()
    streams.close()
    streams.close()
    with pytest.raises((AttributeError, TypeError, ValueError)):
        Streams(-1, -1, object(), text=True)
    assert sorted(os.listdir("/proc/self/fd")) == before
