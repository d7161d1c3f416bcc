"""Dockerfiles and Containerfiles, taken apart: instructions with their flags, heredocs and lines. Pure.

After the Dockerfile reference ("Format", "Parser directives", "Here-Documents"). No parser on PyPI reads heredocs and says
where it failed, so this one is ours: strict, and every error has its line. Variables are not replaced here; that depends
on the stage (:mod:`sandbox.build.plan`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import attrs

from sandbox.build.errors import DockerfileError
from sandbox.build.words import WordError, split_raw

__all__ = ["HEREDOC", "KEYWORDS", "Dockerfile", "Heredoc", "Instruction", "parse", "parse_instruction"]

KEYWORDS = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD",
    "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
#: Instructions that take ``--flags``, and those whose arguments may be a JSON list.
_WITH_FLAGS = frozenset({"ADD", "COPY", "FROM", "HEALTHCHECK", "RUN"})
_WITH_JSON = frozenset({"ADD", "CMD", "COPY", "ENTRYPOINT", "RUN", "SHELL", "VOLUME"})
_WITHHEREDOCS = frozenset({"ADD", "COPY", "RUN"})
_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.*?)\s*")
HEREDOC = re.compile(r"(\d*)<<(-?)([\"']?)([^\s\"'<]+)\3")
_MAX_SIZE = 4 << 20


@attrs.frozen
class Heredoc:
    """A text that an instruction brings along."""

    name: str
    content: str
    #: Variables in it are replaced: its name was not quoted.
    expand: bool
    #: Tabs at the start of its lines were removed (``<<-``).
    strip: bool = False


@attrs.frozen
class Instruction:
    """One instruction.

    >>> parse_instruction("COPY --chown=1:2 a b /c").words
    ('a', 'b', '/c')
    """

    keyword: str
    #: As written, in their order; a flag without a value has the value ``""``.
    flags: tuple[tuple[str, str], ...]
    #: What follows the flags, lines joined, as it was written.
    text: str
    #: The arguments of the exec form; ``None`` for the shell form.
    json: tuple[str, ...] | None
    heredocs: tuple[Heredoc, ...]
    #: ``FILE:LINE`` where it begins.
    place: str
    #: The escape character of its file.
    escape: str = "\\"
    #: Who wrote it: the program that builds (``caller``), a ``file``, or a base ``image`` (its ONBUILD).
    author: str = "caller"

    @property
    def words(self) -> tuple[str, ...]:
        """The arguments of the exec form, or the words of the text with quotes and variables in place."""
        if self.json is not None:
            return self.json
        try:
            return tuple(split_raw(self.text, escape=self.escape))
        except WordError as error:
            raise self.error(str(error)) from None

    @property
    def source(self) -> str:
        """The instruction as one line, for people and for the history of an image."""
        flags = "".join(f" --{name}={value}" if value else f" --{name}" for name, value in self.flags)
        return f"{self.keyword}{flags} {self.text}".rstrip()

    def flag(self, name: str) -> str | None:
        """The value of a flag, or None."""
        return dict(self.flags).get(name)

    def allow(self, *names: str) -> None:
        """Refuse flags that are not among ``names``, by name."""
        for name, _ in self.flags:
            if name not in names:
                known = f"known are: {', '.join(f'--{each}' for each in names)}" if names else "it has none"
                raise self.error(f"{self.keyword} has no flag --{name}", hint=known)

    def error(self, detail: str, *, hint: str | None = None) -> DockerfileError:
        """The error for this instruction."""
        return DockerfileError(detail, operation="parse", object=self.keyword, line=self.place, step=self.source,
                               hint=hint)  # fmt: skip


@attrs.frozen
class Dockerfile:
    """A file, taken apart."""

    instructions: tuple[Instruction, ...]
    #: ``syntax``, ``escape``, ``check`` where they are given.
    directives: dict[str, str]


def parse(text: str, name: str = "Dockerfile") -> Dockerfile:
    """Take a Dockerfile apart.

    :param name: what errors call the file
    :raises DockerfileError: with file and line
    """
    if len(text) > _MAX_SIZE:
        raise DockerfileError(f"larger than {_MAX_SIZE} bytes", operation="parse", object=name, line=name)
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    directives, first = _directives(lines, name)
    reader = _Lines(lines, first, name, directives.get("escape", "\\"))
    found = tuple(reader.instructions())
    if not found:
        raise DockerfileError("there are no instructions in it", operation="parse", object=name, line=name)
    return Dockerfile(found, directives)


def parse_instruction(text: str, *, place: str = "", escape: str = "\\") -> Instruction:
    """One instruction (of ``ONBUILD``, of Python), heredocs included."""
    [found] = _Lines(text.split("\n"), 0, place, escape, numbered=False).instructions()
    return found


def _directives(lines: list[str], name: str) -> tuple[dict[str, str], int]:
    """Parser directives stand before everything else, comments included."""
    found: dict[str, str] = {}
    for number, line in enumerate(lines):
        match = _DIRECTIVE.fullmatch(line.strip())
        if match is None or (key := match[1].lower()) not in ("syntax", "escape", "check"):
            return found, number
        place = f"{name}:{number + 1}"
        if key in found:
            raise DockerfileError(f"the directive {key} is given twice", operation="parse", object=name, line=place)
        if key == "escape" and match[2] not in ("\\", "`"):
            detail = f"the escape character is \\ or `, not {match[2]!r}"
            raise DockerfileError(detail, operation="parse", object=name, line=place)
        found[key] = match[2]
    return found, len(lines)


class _Lines:
    """The lines of a file, on the way to becoming instructions."""

    def __init__(self, lines: list[str], first: int, name: str, escape: str, *, numbered: bool = True) -> None:
        self._lines = lines
        self._next = first
        self._name = name
        self._escape = escape
        self._numbered = numbered
        self._continued = re.compile(rf"(?:^|(?<!{re.escape(escape)})){re.escape(escape)}[ \t]*$")

    def instructions(self) -> Iterator[Instruction]:
        while self._next < len(self._lines):
            line = self._lines[self._next]
            if not line.strip() or line.lstrip().startswith("#"):
                self._next += 1
                continue
            begin = self._next
            if text := self._joined().strip():
                yield self._instruction(text, begin)

    def _joined(self) -> str:
        """A line with those that continue it; comments and empty lines between them are dropped."""
        text = ""
        while self._next < len(self._lines):
            line = self._lines[self._next]
            self._next += 1
            if text and (not line.strip() or line.lstrip().startswith("#")):
                continue
            match = self._continued.search(line)
            if match is None:
                return text + line
            text += line[: match.start()]
            text = text or " "
        return text

    def _instruction(self, text: str, begin: int) -> Instruction:
        keyword, rest = (*text.split(None, 1), "")[:2]
        keyword = keyword.upper()
        place = f"{self._name}:{begin + 1}" if self._numbered else self._name
        bare = Instruction(keyword, (), rest, None, (), place, self._escape, author="file")
        if keyword not in KEYWORDS:
            raise _unknown(bare)
        if not rest and keyword not in ("CMD", "ENTRYPOINT"):
            raise bare.error(f"{keyword} needs an argument")
        flags, rest = _flags(rest, bare) if keyword in _WITH_FLAGS else ((), rest)
        arguments = _json_list(rest) if keyword in _WITH_JSON else None
        heredocs = self._heredocs(keyword, rest, bare) if arguments is None else ()
        return attrs.evolve(bare, flags=flags, text=rest, json=arguments, heredocs=heredocs)

    def _heredocs(self, keyword: str, rest: str, bare: Instruction) -> tuple[Heredoc, ...]:
        if keyword == "ONBUILD":
            keyword = rest.partition(" ")[0].upper()
        if keyword not in _WITHHEREDOCS or "<<" not in rest:
            return ()
        try:
            words = split_raw(rest, escape=self._escape)
        except WordError:
            return ()  # not for us to judge: it is a shell's
        starts = [match for word in words if (match := HEREDOC.fullmatch(word))]
        return tuple(self._heredoc(match, bare) for match in starts)

    def _heredoc(self, match: re.Match[str], bare: Instruction) -> Heredoc:
        strip, quote, name = bool(match[2]), match[3], match[4]
        content: list[str] = []
        while self._next < len(self._lines):
            line = self._lines[self._next]
            self._next += 1
            plain = line.lstrip("\t") if strip else line
            if plain == name:
                return Heredoc(name, "".join(f"{each}\n" for each in content), not quote, strip)
            content.append(plain)
        raise bare.error(f"the heredoc {name} has no end", hint=f"end it with a line that is `{name}` and nothing else")


def _unknown(instruction: Instruction) -> DockerfileError:
    import difflib

    near = difflib.get_close_matches(instruction.keyword, KEYWORDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(KEYWORDS)}"
    return instruction.error(f"there is no instruction {instruction.keyword!r}", hint=hint)


def _flags(rest: str, bare: Instruction) -> tuple[tuple[tuple[str, str], ...], str]:
    """``--name[=value]`` in front of the arguments. A value may be quoted."""
    found: list[tuple[str, str]] = []
    while rest.startswith("--"):
        match = re.match(r"--([A-Za-z][A-Za-z0-9-]*)(=((?:\"[^\"]*\"|'[^']*'|[^\s\"'])*))?(?:\s+|$)", rest)
        if match is None:
            if re.match(r"--(\s|$)", rest):
                return tuple(found), rest[2:].lstrip()
            raise bare.error(f"a bad flag: `{rest.split(maxsplit=1)[0]}`")
        found.append((match[1], re.sub(r"[\"']", "", match[3] or "")))
        rest = rest[match.end() :]
    return tuple(found), rest


def _json_list(text: str) -> tuple[str, ...] | None:
    """The exec form. What is no list of texts is the shell form, as it always was."""
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return tuple(found) if isinstance(found, list) and all(isinstance(each, str) for each in found) else None
