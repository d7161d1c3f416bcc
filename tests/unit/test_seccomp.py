"""seccomp profiles compiled by libseccomp, and kept."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox import _seccomp, oci
from sandbox.errors import SpecError, UnsupportedFeature
from sandbox.linux import bpf
from sandbox.models import Container, Pod
from sandbox.runtime import stub

X86 = 0xC000003E
ALLOW = 0x7FFF0000
PROFILE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [
        {"names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
    ],
}  # fmt: skip

@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_seccomp, "_memory", {})
    monkeypatch.setattr(_seccomp, "_by_identity", {})
    return tmp_path / "sandbox" / "seccomp"


def test_what_the_program_answers() -> None:
    program = bpf.decode(_seccomp.compile_profile(PROFILE)[1])
    answers = {nr: bpf.evaluate(program, X86, nr, [0] * 6) for nr in (0, 1, 2, 62, 135)}
    assert answers == {0: ALLOW, 1: ALLOW, 2: 0x00050026, 62: 0x80000000, 135: 0x00050026}
    assert bpf.evaluate(program, X86, 135, [8, 0, 0, 0, 0, 0]) == ALLOW


def test_compiled_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, program = _seccomp.compile_profile(PROFILE)
    kept = cache / f"{digest}.bpf"
    assert kept.read_bytes() == program
    assert [path.name for path in cache.iterdir()] == [kept.name]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    monkeypatch.setattr(_seccomp, "_compile", lambda _profile: pytest.fail("compiled again"))
    assert _seccomp.compile_profile(dict(reversed(PROFILE.items()))) == (digest, program)
    _seccomp._memory.clear()
    assert _seccomp.compile_profile(PROFILE) == (digest, program)


def test_another_profile_is_another_program() -> None:
    assert _seccomp.compile_profile(PROFILE)[0] != _seccomp.compile_profile({**PROFILE, "syscalls": []})[0]


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert _seccomp.compile_profile(PROFILE)[1]


def test_the_default_profile_is_compiled_once_by_identity() -> None:
    container = Container(command=["x"])
    spec = oci.to_spec(container, Pod([container]), None, oci.Host(pod_id="p", cgroup_parent="/p"))
    assert spec.linux is not None
    assert spec.linux.seccomp is not None
    first = _seccomp.compiled(spec.linux.seccomp)
    assert _seccomp.compiled(spec.linux.seccomp) is first
    assert first.document["defaultAction"]
    assert len(first.program) % 8 == 0


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"architectures": ["SCMP_ARCH_PDP11"]}, SpecError, "unknown architecture 'SCMP_ARCH_PDP11'"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, UnsupportedFeature, "seccomp action SCMP_ACT_NOTIFY"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["no_such_call"], "action": "SCMP_ACT_ERRNO"}]},
         SpecError, r"does not know the system call 'no_such_call'"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled(change: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        _seccomp.compile_profile({**PROFILE, **change})


def test_without_libseccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(UnsupportedFeature, match="libseccomp") as caught:
        _seccomp.compile_profile(PROFILE)
    assert "seccomp='unconfined'" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "architectures", [None, [], ["SCMP_ARCH_X86"], ["SCMP_ARCH_AARCH64"], ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]]
)
def test_a_profile_holds_for_this_machine_whatever_it_lists(architectures: list[str] | None) -> None:
    document: dict[str, Any] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["uname", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7}],
    }
    if architectures is not None:
        document["architectures"] = architectures
    _, program = _seccomp.compile_profile(document)
    machine = stub.MACHINES[os.uname().machine]
    assert bpf.evaluate(bpf.decode(program), machine.audit, machine.calls["mkdirat"]) == 0x50007
    assert bpf.evaluate(bpf.decode(program), machine.audit, machine.calls["chdir"]) == 0x7FFF0000
