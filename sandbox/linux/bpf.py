"""Classic BPF as seccomp(2) has it: programs taken apart, put together, and asked what they would answer."""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

#: linux/audit.h (AUDIT_ARCH_…), by the names of seccomp profiles, in the order in which these are likely.
ARCHITECTURES = {
    "SCMP_ARCH_X86_64": 0xC000003E, "SCMP_ARCH_X86": 0x40000003, "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_ARM": 0x40000028, "SCMP_ARCH_RISCV64": 0xC00000F3, "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_S390X": 0x80000016,
}  # fmt: skip
#: The names of machines (uname(2)) → their architecture.
MACHINES = {
    "x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64", "riscv64": "SCMP_ARCH_RISCV64",
    "ppc64le": "SCMP_ARCH_PPC64LE", "s390x": "SCMP_ARCH_S390X",
}  # fmt: skip
#: struct seccomp_data: nr at 0, arch at 4, instruction pointer at 8, arguments from 16 on.
NR, ARCH, ARGUMENTS = 0, 4, 16
LD, JEQ, JGT, JGE, JSET, JA, AND, RET = 0x20, 0x15, 0x25, 0x35, 0x45, 0x05, 0x54, 0x06


class Instruction(NamedTuple):
    """``struct sock_filter``."""

    code: int
    jt: int
    jf: int
    k: int


def decode(program: bytes) -> list[Instruction]:
    """The instructions of a compiled filter."""
    return [Instruction(*fields) for fields in struct.iter_unpack("=HBBI", program)]


def encode(instructions: Sequence[Instruction]) -> bytes:
    """The reverse of :func:`decode`."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


class UnknownInstruction(ValueError):
    """A program that :func:`evaluate` does not understand."""


class NeedsWord(Exception):
    """The answer depends on the word at ``offset`` of struct seccomp_data, which was not given."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


def evaluate(program: Sequence[Instruction], arch: int, nr: int, arguments: Sequence[int] = ()) -> int:
    """What the filter returns. Raises :class:`NeedsWord` if that depends on an argument that is not given."""
    words = {NR: nr, ARCH: arch}
    for position, value in enumerate(arguments):
        words[ARGUMENTS + 8 * position] = value & 0xFFFFFFFF
        words[ARGUMENTS + 8 * position + 4] = value >> 32
    return run(program, words)


def run(program: Sequence[Instruction], words: Mapping[int, int]) -> int:
    """Execute ``program`` over a struct seccomp_data of which ``words`` are known."""
    tests: dict[int, Callable[[int, int], bool]] = {
        JEQ: operator.eq, JGT: operator.gt, JGE: operator.ge, JSET: lambda a, k: bool(a & k)
    }  # fmt: skip
    position = accumulator = 0
    unknown: int | None = None
    while True:
        code, jt, jf, k = program[position]
        position += 1
        if code == RET:
            return k
        if code == LD:
            unknown = None if k in words else k
            accumulator = words.get(k, 0)
        elif code == AND:
            accumulator &= k
            unknown = unknown if k else None  # libseccomp does look at the high words of 32-bit masks, in vain
        elif code == JA:
            position += k
        elif code in tests:
            if unknown is not None:
                raise NeedsWord(unknown)
            position += jt if tests[code](accumulator, k) else jf
        else:
            raise UnknownInstruction(f"{code:#x}")
