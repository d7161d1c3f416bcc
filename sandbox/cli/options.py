"""Options of subcommands: one table per subcommand gives the parser and the help.

Parsed the way getopt(3) and podman do: options end at ``--``, and where operands may be a program's command line at the
first operand, so what follows an image belongs to the program. Short options may be put together (``-it``), long ones
cut as long as they are unique.
"""

from __future__ import annotations

import getopt
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sandbox.cli import console


class UsageError(Exception):
    """The command line is wrong; the text says where."""


class Option(NamedTuple):
    """One option. With ``value`` (what to call its value in the help) it takes one, else it is a switch."""

    name: str
    text: str
    short: str = ""
    value: str = ""
    #: May be given more than once; the values are a list.
    many: bool = False

    @property
    def spelling(self) -> str:
        """As the help shows it."""
        value = f"={self.value}" if self.value else ""
        return f"{f'-{self.short}' if self.short else '  '} --{self.name}{value}"


class Command(NamedTuple):
    """A subcommand: its operands, its purpose in one sentence, its options, examples with their meaning."""

    name: str
    operands: str
    purpose: str
    options: tuple[Option, ...]
    examples: tuple[tuple[str, str], ...]
    notes: str = ""
    #: Options may follow operands, because no operand is a program's argument.
    mixed: bool = False

    def help(self) -> str:
        """The text of ``--help``."""
        rows = [(option.spelling, option.text) for option in self._all()]
        parts = [
            f"sandbox {self.name} [OPTIONS...] {self.operands}".rstrip(), console.bold(self.purpose),
            "Options:\n" + console.columns(rows), "Examples:\n" + console.columns(self.examples),
        ]  # fmt: skip
        return "\n\n".join([*parts, *filter(None, [self.notes])]) + "\n"

    def _all(self) -> tuple[Option, ...]:
        return (Option("help", "Show this help", "h"), *self.options)

    def run(self, main: Callable[[Given], int], arguments: Sequence[str]) -> int:
        """Do it with what was given, or show the help; the exit status."""
        given = self.parse(arguments)
        return 0 if given is None else main(given)

    def parse(self, arguments: Sequence[str]) -> Given | None:
        """The options given and the operands; None if the help was asked for (and shown)."""
        options = self._all()
        short = "".join(option.short + (":" if option.value else "") for option in options if option.short)
        long = [option.name + ("=" if option.value else "") for option in options]
        try:
            read = getopt.gnu_getopt if self.mixed else getopt.getopt
            pairs, operands = read(list(arguments), short, long)
        except getopt.GetoptError as error:
            raise UsageError(str(error)) from None
        spellings = {f"--{option.name}": option for option in options}
        spellings |= {f"-{option.short}": option for option in options if option.short}
        given = Given({option.name: [] if option.many else None for option in options}, list(operands))
        for spelling, value in pairs:
            given.take(spellings[spelling], value)
        if given["help"]:
            console.write(self.help())
            return None
        return given


class Given:
    """What was given: ``given["memory"]`` is a value, a list of values, True, or None."""

    def __init__(self, values: dict[str, Any], operands: list[str]) -> None:
        self._values = values
        self.operands = operands

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def take(self, option: Option, value: str) -> None:
        """One more option from the command line."""
        if option.many:
            self._values[option.name].append(value)
        else:
            self._values[option.name] = value if option.value else True

    def one_operand(self, what: str) -> str:
        """The only operand. Raises :class:`UsageError`."""
        if len(self.operands) != 1:
            raise UsageError(f"expected {what}" if not self.operands else f"unexpected `{self.operands[1]}`")
        return self.operands[0]

    def some_operands(self, what: str) -> list[str]:
        """At least one operand. Raises :class:`UsageError`."""
        if not self.operands:
            raise UsageError(f"expected {what}")
        return self.operands

    def two_operands(self, what: str) -> tuple[str, str]:
        """Exactly two operands. Raises :class:`UsageError`."""
        if len(self.operands) != 2:
            raise UsageError(f"expected {what}" if len(self.operands) < 2 else f"unexpected `{self.operands[2]}`")
        return self.operands[0], self.operands[1]

    def no_operands(self) -> None:
        """There must be none. Raises :class:`UsageError`."""
        if self.operands:
            raise UsageError(f"unexpected `{self.operands[0]}`")


def number(text: str | None, option: str) -> float | None:
    """The number of seconds given to an option. Raises :class:`UsageError`."""
    if text is None:
        return None
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        raise UsageError(f"--{option}={text}: not a number of seconds") from None
    if not 0 <= value < 1e9:
        raise UsageError(f"--{option}={text}: not a number of seconds")
    return value
