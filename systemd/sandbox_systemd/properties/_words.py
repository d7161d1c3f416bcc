"""Words as systemd splits, quotes and escapes them (systemd.syntax(7), "Quoting").

Where a property takes words, how they are read differs in small ways: what separates them, whether quotes are taken off,
whether a backslash begins a C escape or only protects the next character. :class:`Scanner` knows these ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

WHITESPACE = " \t\n\r"
_SIMPLE_ESCAPES = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    "\\": "\\", '"': '"', "'": "'", "s": " ",
}  # fmt: skip
_HEX_LENGTHS = {"x": 2, "u": 4, "U": 8}
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
_OCTAL_DIGITS = frozenset("01234567")


class Syntax(NamedTuple):
    """How words are read."""

    separators: str = WHITESPACE
    #: Quotes are taken off; without it they are characters like others.
    unquote: bool = True
    #: A backslash begins a C escape; an unknown one is an error. Without it, the backslash goes, the next one stays.
    c_escapes: bool = False
    #: A backslash stays as it is.
    keep_backslashes: bool = False
    #: A backslash protects a separator or itself, and is an error before anything else that is no C escape.
    escaped_separators: bool = False
    #: Two separators in a row have an empty word between them.
    empty_words: bool = False


#: What most properties take.
PLAIN = Syntax()
#: Environment, and the words of a command line.
C_STYLE = Syntax(c_escapes=True)


class Scanner:
    """Takes words off the front of a text."""

    def __init__(self, text: str) -> None:
        #: What is left; None when the end has been reached, which is not the same as an empty rest.
        self.rest: str | None = text

    @property
    def after(self) -> str:
        return self.rest or ""

    def word(self, syntax: Syntax = PLAIN) -> str | None:
        """The next word, or None. Raises ValueError for quotes that do not close and for unknown escapes."""
        if self.rest is None:
            return None
        text, start = self.rest, 0
        if not syntax.empty_words:
            start = len(text) - len(text.lstrip(syntax.separators))
            if start == len(text):
                self.rest = None
                return None
        return self._scan(text, start, syntax)

    def words(self, syntax: Syntax = PLAIN) -> Iterator[str]:
        while (word := self.word(syntax)) is not None:
            yield word

    def _scan(self, text: str, position: int, syntax: Syntax) -> str:
        found = bytearray()
        quote = ""
        while position < len(text):
            character = text[position]
            if character == "\\" and not syntax.keep_backslashes:
                step, value = _escape(text, position + 1, syntax)
                found += value
                position += 1 + step
                continue
            position += 1
            if quote:
                quote = "" if character == quote else quote
                if quote:
                    found += character.encode()
            elif syntax.unquote and character in "'\"":
                quote = character
            elif character in syntax.separators:
                self._stop_after(text, position, syntax)
                return _decoded(found)
            else:
                found += character.encode()
        if quote:
            raise ValueError("a quote is not closed")
        self.rest = None
        return _decoded(found)

    def _stop_after(self, text: str, position: int, syntax: Syntax) -> None:
        rest = text[position:]
        if not syntax.empty_words:
            rest = rest.lstrip(syntax.separators)
        self.rest = rest if rest or syntax.empty_words else None


def split(text: str, syntax: Syntax = PLAIN) -> list[str]:
    """All words of a text."""
    return list(Scanner(text).words(syntax))


def _decoded(found: bytearray) -> str:
    try:
        return found.decode()
    except UnicodeDecodeError:
        raise ValueError("what the escapes stand for is not UTF-8") from None


def _escape(text: str, position: int, syntax: Syntax) -> tuple[int, bytes]:
    """What stands after a backslash: how many characters, and what they mean."""
    if position >= len(text):
        raise ValueError("a backslash ends the text")
    character = text[position]
    if syntax.c_escapes:
        try:
            return c_escape(text, position)
        except ValueError:
            if not syntax.escaped_separators:
                raise
    if syntax.escaped_separators:
        if character not in syntax.separators and character != "\\":
            raise ValueError(f"unknown escape \\{character}")
        return 1, character.encode()
    return 1, character.encode()


def c_escape(text: str, position: int, *, accept_nul: bool = False) -> tuple[int, bytes]:
    """The C escape whose backslash stands before ``position``: its length, and the bytes that it stands for."""
    character = text[position : position + 1]
    if character in _SIMPLE_ESCAPES:
        return 1, _SIMPLE_ESCAPES[character].encode()
    if character in _HEX_LENGTHS:
        length = _HEX_LENGTHS[character]
        digits, base, step = text[position + 1 : position + 1 + length], 16, 1 + length
        allowed = _HEX_DIGITS
    else:
        length, base, step = 3, 8, 3
        digits, allowed = text[position : position + 3], _OCTAL_DIGITS
    if len(digits) != length or not allowed.issuperset(digits):
        raise ValueError(f"unknown escape \\{character}")
    value = int(digits, base)
    if value == 0 and not accept_nul:
        raise ValueError("an escape stands for NUL")
    return step, _encoded(value, eight_bit=character not in {"u", "U"})


def _encoded(value: int, *, eight_bit: bool) -> bytes:
    if eight_bit:
        if value > 255:
            raise ValueError("an octal escape is more than a byte")
        return bytes([value])
    if value > 0x10FFFF or 0xD800 <= value <= 0xDFFF:
        raise ValueError(f"U+{value:04X} is no character")
    return chr(value).encode()


def unescape(text: str, *, accept_nul: bool = False) -> bytes:
    """A text all of whose C escapes stand for something. Raises ValueError for others."""
    found = bytearray()
    position = 0
    while position < len(text):
        if text[position] != "\\":
            found += text[position].encode()
            position += 1
            continue
        step, value = c_escape(text, position + 1, accept_nul=accept_nul)
        found += value
        position += 1 + step
    return bytes(found)


def escape(data: bytes) -> str:
    """The text that :func:`unescape` takes for these bytes: printable ASCII, and escapes."""
    plain = frozenset(range(0x20, 0x7F)) - {ord("\\")}
    return "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in data)


def quote(word: str) -> str:
    """The word as one word of a text, whatever is in it; the same with C escapes and without."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def protect(word: str, separators: str) -> str:
    """The word with a backslash before each separator and backslash."""
    return "".join("\\" + letter if letter in separators or letter == "\\" else letter for letter in word)
