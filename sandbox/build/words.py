"""Words of a Dockerfile: quotes, escapes and variables. Pure.

The rules are those of the Dockerfile reference, "Environment replacement": ``$name`` and ``${name}`` with the modifiers
``:-`` ``-`` ``:+`` ``+`` ``:?`` ``?`` of POSIX shells (XCU 2.6.2), and ``#`` ``##`` ``%`` ``%%`` ``/`` ``//`` with
patterns of ``*`` and ``?``. Single quotes keep everything, double quotes keep blanks, the escape character keeps what
follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["WordError", "expand", "expand_text", "split", "split_raw"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPECIAL = "@*#?-$!0123456789"
_BLANKS = " \t\n\r"


class WordError(ValueError):
    """A word is malformed, or a variable that must be set is not."""


def expand(text: str, variables: Mapping[str, str], *, escape: str = "\\") -> str:
    """One value, with its quotes removed and its variables replaced; blanks stay.

    :raises WordError: a quote or brace is not closed, or ``${name:?}`` finds nothing
    """
    return _Reader(text, variables, escape).whole()


def expand_text(text: str, variables: Mapping[str, str], *, escape: str = "\\") -> str:
    """A text whose quotes are part of it, like a heredoc: only variables are replaced, and escapes of ``$`` undone."""
    return _Reader(text, variables, escape, keep_quotes=True).whole()


def split(text: str, variables: Mapping[str, str], *, escape: str = "\\") -> list[str]:
    """The words of a text, expanded. Blanks that come out of variables separate words too, as in a shell."""
    return [word for word in _Reader(text, variables, escape).words() if word]


def split_raw(text: str, *, escape: str = "\\") -> list[str]:
    """The words of a text with their quotes, escapes and variables left in place.

    :raises WordError: a quote is not closed
    """
    words, word, quote, position = [], "", "", 0
    while position < len(text):
        char = text[position]
        position += 1
        if char == escape and quote != "'" and position < len(text):
            word += char + text[position]
            position += 1
            continue
        if char in _BLANKS and not quote:
            words.append(word)
            word = ""
            continue
        if char in "'\"" and quote in ("", char):
            quote = "" if quote else char
        word += char
    if quote:
        raise WordError(f"a {quote} is not closed")
    return [word for word in (*words, word) if word]


class _Reader:
    """One pass over a text."""

    def __init__(
        self, text: str, variables: Mapping[str, str], escape: str, *, keep_quotes: bool = False
    ) -> None:  # fmt: skip
        self._text = text
        self._at = 0
        self._variables = variables
        self._escape = escape
        self._keep_quotes = keep_quotes

    def whole(self) -> str:
        return self._until("")

    def words(self) -> list[str]:
        """Words: a quoted one may be empty, but those who ask do not want it either."""
        found, word = [], ""
        while self._at < len(self._text):
            if self._text[self._at] in _BLANKS:
                self._at += 1
                found.append(word)
                word = ""
                continue
            piece, separates = self._piece()
            if separates and any(char in _BLANKS for char in piece):
                first, *rest = re.split(r"[ \t\n\r]+", piece)
                found += [word + first, *rest[:-1]]
                word = rest[-1]
            else:
                word += piece
        return [*found, word]

    def _until(self, stop: str) -> str:
        """Everything up to one of the characters of ``stop``, which is left to be read."""
        found = ""
        while self._at < len(self._text) and self._text[self._at] not in stop:
            found += self._piece()[0]
        return found

    def _piece(self) -> tuple[str, bool]:
        """The next piece, and whether blanks in it separate words."""
        char = self._text[self._at]
        if char == "$":
            self._at += 1
            return self._dollar(), True
        if char == "'" and not self._keep_quotes:
            return self._single(), False
        if char == '"' and not self._keep_quotes:
            return self._double(), False
        self._at += 1
        if char == self._escape:
            return self._escaped(), False
        return char, False

    def _escaped(self) -> str:
        if self._at == len(self._text):
            return self._escape
        char = self._text[self._at]
        self._at += 1
        return char if not self._keep_quotes or char in ("$", self._escape) else self._escape + char

    def _single(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise WordError("a ' is not closed")
        found = self._text[self._at + 1 : end]
        self._at = end + 1
        return found

    def _double(self) -> str:
        self._at += 1
        found = ""
        while self._at < len(self._text):
            char = self._text[self._at]
            self._at += 1
            if char == '"':
                return found
            if char == "$":
                found += self._dollar()
            elif char == self._escape and self._text[self._at : self._at + 1] in ('"', "$", self._escape):
                found += self._text[self._at : self._at + 1]
                self._at += 1
            else:
                found += char
        raise WordError('a " is not closed')

    # -- variables ------------------------------------------------------------------------------------------------

    def _dollar(self) -> str:
        """What follows a ``$``."""
        if self._text[self._at : self._at + 1] == "{":
            self._at += 1
            return self._braced()
        if match := _NAME.match(self._text, self._at):
            self._at = match.end()
            return self._variables.get(match[0], "")
        char = self._text[self._at : self._at + 1]
        if char and char in _SPECIAL:
            self._at += 1
            return self._variables.get(char, "")
        return "$"

    def _braced(self) -> str:
        match = _NAME.match(self._text, self._at)
        if match is None:
            raise WordError(f"bad substitution `${{{self._text[self._at : self._at + 20]}`")
        self._at = match.end()
        name, value = match[0], self._variables.get(match[0])
        operator = re.compile(r"}|:?[-+?]|##?|%%?|//?").match(self._text, self._at)
        if operator is None:
            raise WordError(f"`${{{name}` is not closed, or has a modifier that does not exist")
        self._at = operator.end()
        if operator[0] == "}":
            return value or ""
        if operator[0][0] == "/":
            pattern = self._until("/}")
            replacement = self._rest(name) if self._next() == "/" else self._closed(name)
            return _replace(value or "", pattern, replacement, every=operator[0] == "//")
        word = self._until("}")
        self._closed(name)
        return self._modified(name, value, operator[0], word)

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _rest(self, name: str) -> str:
        self._at += 1
        found = self._until("}")
        self._closed(name)
        return found

    def _closed(self, name: str) -> str:
        if self._next() != "}":
            raise WordError(f"`${{{name}` is not closed")
        self._at += 1
        return ""

    def _modified(self, name: str, value: str | None, operator: str, word: str) -> str:
        if operator[-1] in "-+?":
            there = value is not None and (operator[0] != ":" or value != "")
            if operator[-1] == "+":
                return word if there else ""
            if operator[-1] == "?" and not there:
                raise WordError(f"{name}: {word or 'not set'}")
            return (value or "") if there else word
        return _trim(value or "", word, operator)


def _pattern(text: str, *, greedy: bool = True) -> str:
    r"""A shell pattern of ``*`` and ``?`` as a regular expression; ``\`` keeps what follows."""
    star = ".*" if greedy else ".*?"
    parts, chars = [], iter(text)
    for char in chars:
        if char == "\\":
            parts.append(re.escape(next(chars, "\\")))
        else:
            parts.append({"*": star, "?": "."}.get(char, re.escape(char)))
    return "".join(parts)


def _trim(value: str, pattern: str, operator: str) -> str:
    greedy = len(operator) == 2
    if operator[0] == "#":
        match = re.match(_pattern(pattern, greedy=greedy), value, re.DOTALL)
        return value[match.end() :] if match else value
    # The shortest suffix is the match that begins last.
    starts = range(len(value) + 1) if greedy else range(len(value), -1, -1)
    whole = re.compile(_pattern(pattern), re.DOTALL)
    return next((value[:start] for start in starts if whole.fullmatch(value, start)), value)


def _replace(value: str, pattern: str, replacement: str, *, every: bool) -> str:
    if not pattern:
        return value
    return re.sub(_pattern(pattern), lambda _: replacement, value, count=0 if every else 1, flags=re.DOTALL)
