"""A filter that was made smaller answers every call as the one it was made from."""

from __future__ import annotations

import functools
from typing import Any

import pyseccomp
from hypothesis import HealthCheck, given, settings, strategies as st

from sandbox import _seccomp, oci
from sandbox.linux import bpf
from sandbox.models import Container, Pod

NUMBERS = st.one_of(st.integers(0, 500), st.integers(0, 0xFFFFFFFF))
WORDS = st.one_of(
    st.sampled_from([0, 1, 8, 0x20000, 0x20008, 0xFFFFFFFF, 1 << 40, 0x7E020000, 40, 16, 2]), st.integers(0, (1 << 64) - 1)
)
NAMES = ("read", "write", "clone", "personality", "socket", "openat", "kill", "ptrace", "fcntl", "mmap", "reboot")
ACTIONS = ("SCMP_ACT_ALLOW", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_LOG")

arguments = st.fixed_dictionaries({
    "index": st.integers(0, 5),
    "op": st.sampled_from(["SCMP_CMP_EQ", "SCMP_CMP_NE", "SCMP_CMP_GE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ"]),
    "value": st.sampled_from([0, 1, 8, 0xFFFF0000, 0x7E020000, 0xFFFFFFFF]),
    "valueTwo": st.sampled_from([0, 8, 0x10000]),
})  # fmt: skip
rules = st.fixed_dictionaries({
    "names": st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True),
    "action": st.sampled_from(ACTIONS),
    "args": st.lists(arguments, max_size=2),
})  # fmt: skip
profiles = st.fixed_dictionaries({
    "defaultAction": st.just("SCMP_ACT_ERRNO"),
    "architectures": st.just(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]),
    "syscalls": st.lists(rules, max_size=6),
})  # fmt: skip


def both(profile: dict[str, Any]) -> tuple[list[bpf.Instruction], list[bpf.Instruction]]:
    """libseccomp's program, and ours."""
    return bpf.decode(_seccomp._libseccomp(pyseccomp, profile)), bpf.decode(_seccomp._compile(profile))


@functools.cache
def default() -> tuple[list[bpf.Instruction], list[bpf.Instruction]]:
    container = Container(command=["x"])
    spec = oci.to_spec(container, Pod([container]), None, oci.Host(pod_id="p", cgroup_parent="/p"))
    document: dict[str, Any] = oci.to_dict(spec)
    return both(document["linux"]["seccomp"])


ARCHES = st.sampled_from([0xC000003E, 0x40000003, 0xC00000B7, 0])


@given(arch=ARCHES, nr=NUMBERS, words=st.lists(WORDS, min_size=6, max_size=6))
@settings(max_examples=400, deadline=None)
def test_the_default_profile(arch: int, nr: int, words: list[int]) -> None:
    theirs, ours = default()
    assert len(ours) < len(theirs)
    assert bpf.evaluate(ours, arch, nr, words) == bpf.evaluate(theirs, arch, nr, words)


@given(profile=profiles, data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_profile(profile: dict[str, Any], data: st.DataObject) -> None:
    try:
        theirs, ours = both(profile)
    except (ValueError, OSError):
        return  # libseccomp refuses rules that contradict each other
    known = [pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for name in NAMES]
    for arch in (0xC000003E, 0x40000003):
        for nr in (*known, data.draw(NUMBERS)):
            words = data.draw(st.lists(WORDS, min_size=6, max_size=6))
            assert bpf.evaluate(ours, arch, nr, words) == bpf.evaluate(theirs, arch, nr, words)
