"""seccomp filters made smaller: what they answer stays the same (see also tests/property/test_bpf.py)."""

from __future__ import annotations

import struct

import pytest

from sandbox import _bpf
from sandbox.linux import bpf
from sandbox.linux.bpf import Instruction as I  # noqa: N817 - tables of instructions

LD, JEQ, JGE, JA, AND, RET = 0x20, 0x15, 0x35, 0x05, 0x54, 0x06
X86 = 0xC000003E
ALLOW, DENY = 0x7FFF0000, 0x00050001


def test_programs_survive_the_trip_through_bytes() -> None:
    program = [I(LD, 0, 0, 4), I(JEQ, 1, 0, X86), I(RET, 0, 0, 0), I(RET, 0, 0, ALLOW)]
    assert bpf.decode(bpf.encode(program)) == program
    assert len(bpf.encode(program)) == 8 * len(program)


@pytest.mark.parametrize(("nr", "answer"), [(0, ALLOW), (5, DENY), (6, ALLOW), (200, DENY)])
def test_evaluation(nr: int, answer: int) -> None:
    program = [
        I(LD, 0, 0, 0), I(JEQ, 3, 0, 5), I(JGE, 2, 0, 100), I(JA, 0, 0, 0), I(RET, 0, 0, ALLOW), I(RET, 0, 0, DENY),
    ]  # fmt: skip
    assert bpf.evaluate(program, X86, nr) == answer


def test_arguments_are_two_words() -> None:
    program = [
        I(LD, 0, 0, 16 + 8), I(AND, 0, 0, 0xF0), I(JEQ, 0, 3, 0x10), I(LD, 0, 0, 16 + 12), I(JEQ, 0, 1, 1),
        I(RET, 0, 0, ALLOW), I(RET, 0, 0, DENY),
    ]  # fmt: skip
    assert bpf.evaluate(program, X86, 0, [0, 0x1_0000_001F]) == ALLOW
    assert bpf.evaluate(program, X86, 0, [0, 0x1F]) == DENY
    with pytest.raises(bpf.NeedsWord) as caught:
        bpf.evaluate(program, X86, 0)
    assert caught.value.offset == 24


def test_an_instruction_that_is_not_understood() -> None:
    with pytest.raises(bpf.UnknownInstruction, match="0x7"):
        bpf.evaluate([I(0x07, 0, 0, 0)], X86, 0)


def linear(rules: dict[int, int], default: int) -> list[I]:
    """A comparison for each number, as libseccomp writes them."""
    code = [I(LD, 0, 0, 4), I(JEQ, 1, 0, X86), I(RET, 0, 0, 0), I(LD, 0, 0, 0)]
    for nr, action in sorted(rules.items()):
        code += [I(JEQ, 0, 1, nr), I(RET, 0, 0, action)]
    return [*code, I(RET, 0, 0, default)]


def test_a_long_list_becomes_a_short_search() -> None:
    rules = {nr: ALLOW for nr in range(300) if nr % 50}
    whole, rest = linear(rules, DENY), linear({}, DENY)
    small = bpf.decode(_bpf.shrink(bpf.encode(whole), bpf.encode(rest), ["SCMP_ARCH_X86_64"]))
    assert len(small) < len(whole) / 8
    for nr in (*range(400), 1023, 1024, 1 << 30, 0xFFFFFFFF):
        assert bpf.evaluate(small, X86, nr) == bpf.evaluate(whole, X86, nr), nr
    assert bpf.evaluate(small, 0x40000003, 5) == 0


def test_what_would_not_get_shorter_stays() -> None:
    program = bpf.encode(linear({1: ALLOW}, DENY))
    assert _bpf.shrink(program, program, ["SCMP_ARCH_X86_64"]) == program


@pytest.mark.parametrize("architectures", [["SCMP_ARCH_UNHEARD_OF"], []])
def test_what_is_not_understood_stays(architectures: list[str]) -> None:
    program = bpf.encode(linear(dict.fromkeys(range(9), ALLOW), DENY))
    odd = struct.pack("=HBBI", 0x07, 0, 0, 0) + program
    assert _bpf.shrink(odd, program, architectures or ["SCMP_ARCH_X86_64"]) == odd
