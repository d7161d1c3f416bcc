"""Which files of a build context count: the rules of ``.dockerignore``. Pure.

As the Dockerfile reference has them: patterns of Go's ``filepath.Match`` plus ``**`` for any number of directories, a
pattern that starts with ``!`` brings back, the last pattern that fits decides, and what lies in a directory that is left
out is left out with it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

__all__ = ["Ignore", "PatternError", "glob_to_regex", "read_patterns"]


class PatternError(ValueError):
    """A pattern is malformed."""


class Ignore:
    r"""The patterns of one file.

    >>> Ignore.parse("*.pyc\n!keep.pyc").excludes("a.pyc")
    True
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._rules = [(pattern.startswith("!"), _compiled(pattern.removeprefix("!"))) for pattern in patterns]
        #: Whether something in a directory that is left out may be brought back.
        self.brings_back = any(back for back, _ in self._rules)

    @classmethod
    def parse(cls, text: str) -> Ignore:
        """The rules in the text of a ``.dockerignore``; see :func:`read_patterns`."""
        return cls(read_patterns(text))

    def excludes(self, path: str) -> bool:
        """Whether a path (relative to the context, with ``/``) is left out, itself or by a directory above it."""
        parts = path.split("/")
        prefixes = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        excluded = False
        for back, rule in self._rules:
            # Only a rule of the other kind can change what is known so far.
            if back == excluded and any(rule.fullmatch(prefix) for prefix in prefixes):
                excluded = not back
        return excluded


def read_patterns(text: str) -> list[str]:
    """The patterns in the text of a ``.dockerignore``, in their clean form.

    :raises PatternError: names the line
    """
    patterns = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        pattern = line.strip()
        if line.startswith("#") or not pattern:
            continue
        back = pattern.startswith("!")
        clean = _clean(pattern[1:].strip() if back else pattern)
        try:
            _compiled(clean)
        except PatternError as error:
            raise PatternError(f"line {number}: {error}") from None
        if back and not clean:
            raise PatternError(f"line {number}: nothing follows the `!`")
        patterns.append(f"!{clean}" if back else clean)
    return [pattern for pattern in patterns if pattern]


def _clean(pattern: str) -> str:
    """As Go's ``filepath.Clean`` and without a slash in front: ``/a/`` and ``./a`` are ``a``; ``.`` is nothing."""
    clean = posixpath.normpath(pattern).lstrip("/") if pattern else ""
    return "" if clean == "." else clean


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(glob_to_regex(pattern, deep=True), re.DOTALL)


def glob_to_regex(pattern: str, *, deep: bool = False) -> str:
    """A pattern of Go's ``filepath.Match`` as a regular expression: ``*`` and ``?`` do not match ``/``.

    :param deep: ``**`` matches any number of directories
    :raises PatternError: a bracket is not closed or empty, or an escape ends the pattern
    """
    found, at = "", 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if deep and char == "*" and pattern[at : at + 1] == "*":
            at += 1
            while pattern[at : at + 1] == "*":
                at += 1
            if pattern[at : at + 1] == "/":
                at += 1
                found += "(?:.*/)?"
            else:
                found += ".*"
        elif char in "*?":
            found += "[^/]*" if char == "*" else "[^/]"
        elif char == "[":
            piece, at = _bracket(pattern, at)
            found += piece
        elif char == "\\":
            if at == len(pattern):
                raise PatternError(f"`{pattern}` ends with an escape")
            found += re.escape(pattern[at])
            at += 1
        else:
            found += re.escape(char)
    return found


def _bracket(pattern: str, at: int) -> tuple[str, int]:
    """``[abc]``, ``[^a-z]``: the expression, and where the pattern goes on."""
    negated = pattern[at : at + 1] == "^"
    at += negated
    members: list[tuple[str, str]] = []
    while pattern[at : at + 1] != "]" or not members:
        low, at = _member(pattern, at)
        high = low
        if pattern[at : at + 1] == "-":
            high, at = _member(pattern, at + 1)
        if high < low:
            raise PatternError(f"`{pattern}` has an empty range `{low}-{high}`")
        members.append((low, high))
    inside = "".join(f"{re.escape(low)}-{re.escape(high)}" for low, high in members)
    return (f"[^/{inside}]" if negated else f"(?!/)[{inside}]"), at + 1


def _member(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at : at + 1] == "\\":
        at += 1
    elif pattern[at : at + 1] in ("-", "]"):
        raise PatternError(f"`{pattern}` has a bad bracket expression")
    if at >= len(pattern):
        raise PatternError(f"`{pattern}` has a bracket that is not closed")
    return pattern[at], at + 1
