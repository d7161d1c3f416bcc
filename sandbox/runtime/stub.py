"""A program of a few instructions in which a finished container waits for the program that it is to run (:mod:`.finished`).

To execute a program the kernel takes apart the memory of the process that asks for it, and a forked Python has thousands of
pages; and every system call that Python makes costs a hundred times as much as the call. So what is left to do when a
container is asked for is written down as a list of system calls (:class:`Script`), and done by something that fits on a page:
it receives one message with three descriptors, which become its standard streams, makes the calls of the list in turn,
and the last of them is execve(2). A call that fails in another way than the list allows ends it: it tells so, and sends the
three descriptors back. It decides nothing, and knows nothing about containers.

The instructions are given beside their assembly (GNU as); a test assembles them again.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import NamedTuple

#: Where the list comes from, and where the report goes to.
CHANNEL = 3
#: What the kernel calls it.
NAME = "sandbox-spare"
#: Bytes of a script.
LARGEST = 0x40000
#: Any error may be ignored.
ANY_ERROR = (1 << 64) - 1

_TEXT, _DATA, _SCRIPT = 0x400000, 0x501000, 0x502000
#: Segments start at multiples of the largest page size that a machine of these architectures has (64 KiB), plus this.
_DATA_OFFSET = 0x1000
_ALIGNMENT = 0x10000

_X86_64 = (
    ("bf03000000", "mov $3, %edi"),  # recvmsg(CHANNEL, the first header, 0)
    ("be00105000", "mov $0x501000, %esi"),
    ("31d2", "xor %edx, %edx"),
    ("b82f000000", "mov $47, %eax"),
    ("0f05", "syscall"),
    ("4885c0", "test %rax, %rax"),
    ("7e65", "jle quit"),  # the shim is gone, or does not want us any more
    ("bb00205000", "mov $0x502000, %ebx"),
    ("", "next:"),
    ("488b03", "mov (%rbx), %rax"),
    ("4885c0", "test %rax, %rax"),  # the end of the list
    ("7832", "js refused"),
    ("488b7b08", "mov 8(%rbx), %rdi"),
    ("488b7310", "mov 16(%rbx), %rsi"),
    ("488b5318", "mov 24(%rbx), %rdx"),
    ("4c8b5320", "mov 32(%rbx), %r10"),
    ("4c8b4328", "mov 40(%rbx), %r8"),
    ("488b6b30", "mov 48(%rbx), %rbp"),
    ("4883c338", "add $56, %rbx"),
    ("0f05", "syscall"),
    ("4885c0", "test %rax, %rax"),
    ("79d5", "jns next"),
    ("48f7d8", "neg %rax"),
    ("4883f83f", "cmp $63, %rax"),
    ("7706", "ja refused"),
    ("480fa3c5", "bt %rax, %rbp"),
    ("72c6", "jc next"),
    ("", "refused:"),
    ("48890425a0105000", "mov %rax, 0x5010a0"),
    ("48891c25a8105000", "mov %rbx, 0x5010a8"),
    ("bf03000000", "mov $3, %edi"),  # sendmsg(CHANNEL, the second header, MSG_NOSIGNAL)
    ("be40105000", "mov $0x501040, %esi"),
    ("ba00400000", "mov $0x4000, %edx"),
    ("b82e000000", "mov $46, %eax"),
    ("0f05", "syscall"),
    ("", "quit:"),
    ("bf01000000", "mov $1, %edi"),  # exit_group(1)
    ("b8e7000000", "mov $231, %eax"),
    ("0f05", "syscall"),
)
_AARCH64 = (
    ("600080d2", "mov x0, #3"),
    ("010aa0d2", "movz x1, #0x50, lsl #16"),
    ("010082f2", "movk x1, #0x1000"),
    ("020080d2", "mov x2, #0"),
    ("881a80d2", "mov x8, #212"),
    ("010000d4", "svc #0"),
    ("1f0000f1", "cmp x0, #0"),
    ("0d030054", "b.le quit"),
    ("130aa0d2", "movz x19, #0x50, lsl #16"),
    ("130084f2", "movk x19, #0x2000"),
    ("", "next:"),
    ("680240a9", "ldp x8, x0, [x19]"),
    ("8801f8b7", "tbnz x8, #63, refused"),
    ("610a41a9", "ldp x1, x2, [x19, #16]"),
    ("631242a9", "ldp x3, x4, [x19, #32]"),
    ("741a40f9", "ldr x20, [x19, #48]"),
    ("73e20091", "add x19, x19, #56"),
    ("010000d4", "svc #0"),
    ("20ffffb6", "tbz x0, #63, next"),
    ("e00300cb", "neg x0, x0"),
    ("1ffc00f1", "cmp x0, #63"),
    ("68000054", "b.hi refused"),
    ("9426c09a", "lsr x20, x20, x0"),
    ("94fe0737", "tbnz x20, #0, next"),
    ("", "refused:"),
    ("010aa0d2", "movz x1, #0x50, lsl #16"),
    ("011482f2", "movk x1, #0x10a0"),
    ("204c00a9", "stp x0, x19, [x1]"),
    ("010882f2", "movk x1, #0x1040"),
    ("600080d2", "mov x0, #3"),
    ("020088d2", "mov x2, #0x4000"),
    ("681a80d2", "mov x8, #211"),
    ("010000d4", "svc #0"),
    ("", "quit:"),
    ("200080d2", "mov x0, #1"),
    ("c80b80d2", "mov x8, #94"),
    ("010000d4", "svc #0"),
)


class Machine(NamedTuple):
    """An architecture: its number in ELF (e_machine), the program, and the system calls that scripts use."""

    elf: int
    #: AUDIT_ARCH_…, which filters see.
    audit: int
    code: tuple[tuple[str, str], ...]
    calls: dict[str, int]


MACHINES = {
    "x86_64": Machine(62, 0xC000003E, _X86_64, {
        "write": 1, "execve": 59, "fcntl": 72, "chdir": 80, "umask": 95, "setgroups": 116, "setresuid": 117,
        "setresgid": 119, "capset": 126, "personality": 135, "prctl": 157, "sethostname": 170, "setdomainname": 171,
        "mkdirat": 258, "prlimit64": 302, "seccomp": 317, "close_range": 436, "sendmsg": 46, "exit_group": 231,
    }),
    "aarch64": Machine(183, 0xC00000B7, _AARCH64, {
        "write": 64, "execve": 221, "fcntl": 25, "chdir": 49, "umask": 166, "setgroups": 159, "setresuid": 147,
        "setresgid": 149, "capset": 91, "personality": 92, "prctl": 167, "sethostname": 161, "setdomainname": 162,
        "mkdirat": 34, "prlimit64": 261, "seccomp": 277, "close_range": 436, "sendmsg": 211, "exit_group": 94,
    }),
}  # fmt: skip
#: None on machines for which there is no stub: nothing is finished ahead there.
HERE = MACHINES.get(os.uname().machine)


def errors(*numbers: int) -> int:
    """The set of some errors, for :meth:`Script.call`."""
    return sum(1 << number for number in numbers)


class Full(Exception):
    """A script has no room for another call."""


class Script:
    """System calls and the data that they point to, at the addresses which they will have in the stub."""

    def __init__(self, machine: Machine, most_calls: int, data: bytes = b"") -> None:
        self._machine = machine
        self._calls = bytearray()
        self._size = (most_calls + 1) * _RECORD.size
        self._data = bytearray(data)

    def put(self, data: bytes, *, alignment: int = 1) -> int:
        """Add data; its address."""
        self._data += bytes(-len(self._data) % alignment)
        address = _SCRIPT + self._size + len(self._data)
        self._data += data
        return address

    def text(self, text: str) -> int:
        """Add a text, as C has them; its address."""
        return self.put(os.fsencode(text) + b"\0")

    def texts(self, texts: Iterable[str]) -> int:
        """Add an array of pointers to texts, with a null pointer at its end; its address."""
        encoded = [os.fsencode(text) for text in texts]
        start = self.put(b"\0".join(encoded) + b"\0")
        pointers = []
        for text in encoded:
            pointers.append(start)
            start += len(text) + 1
        return self.put(struct.pack(f"={len(pointers) + 1}Q", *pointers, 0), alignment=8)

    def call(self, name: str, *arguments: int, may: int = 0) -> None:
        """Add a call; ``may``: errors after which to go on (:func:`errors`). Raises :class:`Full`."""
        if len(self._calls) + _RECORD.size >= self._size:
            raise Full
        five = (*arguments, *(0,) * (5 - len(arguments)))
        self._calls += _RECORD.pack(self._machine.calls[name], *(number & _WORD for number in five), may)

    def append(self, calls: bytes) -> None:
        """Add the calls of another script, which has room for as many calls, and with whose data this one began."""
        self._calls += calls

    @property
    def parts(self) -> tuple[bytes, bytes]:
        """The calls and the data so far."""
        return bytes(self._calls), bytes(self._data)

    def message(self) -> bytes:
        """The message for the stub. At the end of the list is a number that no call has."""
        calls = self._calls + _RECORD.pack(_WORD, 0, 0, 0, 0, 0, 0)
        return bytes(calls.ljust(self._size, b"\0") + self._data)


_WORD = (1 << 64) - 1
_RECORD = struct.Struct("=7Q")


def refusal(message: bytes) -> int | None:
    """The error because of which a stub has given up, if this is what it said of it."""
    return struct.unpack("=QQ", message)[0] if len(message) == 16 and b"\0" in message else None


def program(machine: Machine) -> bytes:
    """The stub as an ELF file (elf(5)): the instructions; message headers; and room for a script."""
    code = b"".join(bytes.fromhex(instruction) for instruction, _ in machine.code)
    start = _EHDR + 3 * _PHDR
    data = _headers()
    head = struct.pack(
        "<4s5B7xHHIQQQIHHHHHH",
        b"\x7fELF", 2, 1, 1, 0, 0, 2, machine.elf, 1, _TEXT + start, _EHDR, 0, 0, _EHDR, _PHDR, 3, 0, 0, 0,
    )  # fmt: skip
    head += _segment(1, 5, 0, _TEXT, start + len(code), start + len(code))
    head += _segment(1, 6, _DATA_OFFSET, _DATA, len(data), _SCRIPT - _DATA + LARGEST)
    head += _segment(0x6474E551, 6, 0, 0, 0, 0)  # PT_GNU_STACK: a stack without executable pages
    return (head + code).ljust(_DATA_OFFSET, b"\0") + data


_EHDR, _PHDR = 64, 56


def _segment(kind: int, flags: int, offset: int, address: int, in_file: int, in_memory: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, flags, offset, address, address, in_file, in_memory, _ALIGNMENT)


def _headers() -> bytes:
    """Two ``struct msghdr`` and what they point to: one to receive the script, one to report and give the streams back."""
    report, received, sent = _DATA + 0xA0, _DATA + 0xC0, _DATA + 0x100
    data = bytearray(0x120)
    _place(data, 0x00, "=QI4xQQQQi4x", 0, 0, _DATA + 0x80, 1, received, 0x40, 0)
    _place(data, 0x40, "=QI4xQQQQi4x", 0, 0, _DATA + 0x90, 1, sent, _CMSG_SPACE, 0)
    _place(data, 0x80, "=QQQQ", _SCRIPT, LARGEST, report, 16)
    _place(data, 0x100, "=Qii3i", _CMSG_LENGTH, 1, 1, 0, 1, 2)  # SOL_SOCKET, SCM_RIGHTS
    return bytes(data)


_CMSG_LENGTH, _CMSG_SPACE = 28, 32


def _place(data: bytearray, offset: int, form: str, *values: int) -> None:
    struct.pack_into(form, data, offset, *values)


__all__ = [
    "ANY_ERROR", "CHANNEL", "HERE", "LARGEST", "MACHINES", "NAME", "Full", "Machine", "Script", "errors", "program", "refusal",
]  # fmt: skip
