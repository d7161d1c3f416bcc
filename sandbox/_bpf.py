"""Smaller seccomp filters.

The kernel checks, compiles and walks a filter every time a process loads it, which takes longer the longer it is; a
container pays that at each start and each exec. libseccomp writes one comparison for each system call. Most of what it
says is constant over ranges of numbers, so :func:`shrink` asks its program about every number, and where one argument
matters about every range of its values, and writes the answers as binary searches. Only what has no ranges goes on to what
libseccomp wrote for it alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sandbox.linux.bpf import (
    AND,
    ARCH,
    ARCHITECTURES,
    JA,
    JEQ,
    JGE,
    JGT,
    LD,
    NR,
    RET,
    Instruction,
    NeedsWord,
    UnknownInstruction,
    decode,
    encode,
    evaluate,
    run,
)

#: Numbers below this are looked up; there are fewer than 500 on any architecture. Others go to libseccomp's program.
_NUMBERS = 1024
_FARTHEST = 255


def shrink(program: bytes, remainder: bytes, architectures: Sequence[str]) -> bytes:
    """An equivalent filter, or ``program`` itself if that would not be shorter.

    ``remainder`` is libseccomp's program for those rules of the profile that are not about ranges of one argument.
    """
    code, rest = decode(program), decode(remainder)
    try:
        assembler = _Assembler()
        assembler.add(LD, ARCH)
        known = [ARCHITECTURES[name] for name in architectures]
        for arch in known:
            assembler.jump(JEQ, arch, f"{arch} yes", f"{arch} no")
            assembler.label(f"{arch} no")
            assembler.far(f"after {arch}")
            assembler.label(f"{arch} yes")
            _Table(assembler, code, rest, arch).write()
            assembler.label(f"after {arch}")
        assembler.label("rest")
        result = [*assembler.resolve(), *rest]
    except (KeyError, UnknownInstruction, _TooFarError):
        return program
    return encode(result) if len(result) < len(code) else program


class _TooFarError(Exception):
    """A jump that one byte cannot hold."""


class _Assembler:
    """Instructions with labels instead of distances; all jumps lead forward."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, str | None, str | None]] = []
        self._labels: dict[str, int] = {}

    def add(self, code: int, k: int) -> None:
        """An instruction that does not jump."""
        self._code.append((code, k, None, None))

    def jump(self, code: int, k: int, then: str, otherwise: str) -> None:
        """A comparison of the accumulator with ``k``; its targets are at most 255 instructions away."""
        self._code.append((code, k, then, otherwise))

    def far(self, target: str) -> None:
        """A jump of any distance."""
        self._code.append((JA, 0, target, None))

    def label(self, name: str) -> None:
        """The next instruction is called ``name``."""
        self._labels[name] = len(self._code)

    def resolve(self) -> list[Instruction]:
        """The instructions."""
        result = []
        for position, (code, k, then, otherwise) in enumerate(self._code):
            jt, jf = (0 if name is None else self._labels[name] - position - 1 for name in (then, otherwise))
            if code == JA:
                result.append(Instruction(code, 0, 0, jt))
                continue
            if max(jt, jf) > _FARTHEST:
                raise _TooFarError
            result.append(Instruction(code, jt, jf, k))
        return result


#: What to do for a range: return an action, ask the rest (None), or look at the word at this offset.
_Answer = int | None | NeedsWord


class _Table:
    """The searches for one architecture."""

    def __init__(self, out: _Assembler, code: Sequence[Instruction], rest: Sequence[Instruction], arch: int) -> None:
        self._out, self._code, self._rest, self._arch = out, code, rest, arch
        self._returns: dict[int, str] = {}
        self._inner: list[tuple[str, int, int]] = []
        #: Values at which some comparison of the program changes its mind.
        constants = {i.k for i in code if i.code in (JEQ, JGT, JGE)}
        masks = {i.k for i in code if i.code == AND} | {0xFFFFFFFF}
        ends = {(k | ~mask & 0xFFFFFFFF) + 1 for k in constants for mask in masks}
        self._edges = sorted({0} | {value for value in constants | ends if value <= 0xFFFFFFFF})

    def write(self) -> None:
        """The search over numbers, those over arguments, and the returns that all share."""
        self._out.add(LD, NR)
        self._search("nr", list(self._numbers()))
        for name, nr, offset in self._inner:
            self._out.label(name)
            self._out.add(LD, offset)
            self._search(name, list(self._values(nr, offset)))
        for action, name in self._returns.items():
            self._out.label(name)
            self._out.add(RET, action)
        self._out.label(f"{self._arch} rest")
        self._out.far("rest")

    def _numbers(self) -> Iterator[tuple[int, str]]:
        """(first number, where to go) of each run of equal answers."""
        previous = ""
        for nr in range(_NUMBERS):
            target = self._target(nr)
            if target != previous:
                yield nr, target
                previous = target
        yield _NUMBERS, f"{self._arch} rest"

    def _target(self, nr: int) -> str:
        try:
            return self._return(evaluate(self._code, self._arch, nr))
        except NeedsWord as needed:
            try:
                evaluate(self._rest, self._arch, nr)
            except NeedsWord:
                return f"{self._arch} rest"
            name = f"{self._arch} {nr}"
            self._inner.append((name, nr, needed.offset))
            return name

    def _values(self, nr: int, offset: int) -> Iterator[tuple[int, str]]:
        """The same over the values of one word; a second word that matters is more than can be told here."""
        previous = ""
        for value in self._edges:
            try:
                target = self._return(run(self._code, {NR: nr, ARCH: self._arch, offset: value}))
            except NeedsWord:
                raise UnknownInstruction(f"system call {nr} looks at several arguments") from None
            if target != previous:
                yield value, target
                previous = target

    def _return(self, action: int) -> str:
        return self._returns.setdefault(action, f"{self._arch} return {action}")

    def _search(self, name: str, ranges: list[tuple[int, str]]) -> None:
        if len(ranges) == 1:
            # The block before falls through to here, so a lone answer needs a jump of its own.
            self._out.far(ranges[0][1])
            return
        middle = len(ranges) // 2
        threshold = ranges[middle][0]
        sides = []
        for side, half in (("low", ranges[:middle]), ("high", ranges[middle:])):
            sides.append(half[0][1] if len(half) == 1 else f"{self._arch} {name} {side} {threshold}")
        self._out.jump(JGE, threshold, sides[1], sides[0])
        for half, label in ((ranges[:middle], sides[0]), (ranges[middle:], sides[1])):
            if len(half) > 1:
                self._out.label(label)
                self._search(f"{name}", half)
