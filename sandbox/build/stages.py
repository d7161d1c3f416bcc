"""From instructions to stages, and what variables FROM sees. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from sandbox.build.context import Context
from sandbox.build.dockerfile import Dockerfile, Instruction
from sandbox.build.errors import DockerfileError
from sandbox.build.meta import expanded
from sandbox.images.platforms import Platform, host_platform

__all__ = ["PROXIES", "Plan", "Stage", "arguments_of", "plan"]

#: Build arguments that need no ARG and do not make a step another one (Dockerfile reference, "Predefined ARGs").
PROXIES = frozenset(
    spelling
    for name in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    for spelling in (name, name.upper())
)


@attrs.frozen
class Stage:
    """One FROM and what follows it."""

    index: int
    name: str
    #: What it starts from: an image reference, ``scratch``, or the name of an earlier stage.
    base: str
    instructions: tuple[Instruction, ...]
    start: Instruction
    #: Where its COPY takes files from, if not where the build's does.
    context: Context | None = None


@attrs.frozen
class Plan:
    """A Dockerfile, ready to be carried out."""

    stages: tuple[Stage, ...]
    #: Values of ARG before the first FROM, and of those that every build has.
    arguments: Mapping[str, str]

    def find(self, name: str, before: int | None = None) -> Stage | None:
        """The stage of a name or number among those before the stage ``before``; the last of a name counts."""
        stages = self.stages[:before]
        for stage in reversed(stages):
            if name.lower() == stage.name.lower() and name:
                return stage
        return stages[int(name)] if name.isdecimal() and int(name) < len(stages) else None

    def target(self, name: str | None) -> Stage:
        """The stage that is to be built. Raises :class:`DockerfileError` for one that does not exist."""
        if name is None:
            return self.stages[-1]
        found = self.find(name)
        if found is None:
            there = ", ".join(stage.name or str(stage.index) for stage in self.stages)
            raise DockerfileError(f"there is no stage `{name}`", operation="build", hint=f"the stages are {there}")
        return found


def plan(file: Dockerfile, given: Mapping[str, str] | None = None) -> Plan:
    """Take a Dockerfile apart into stages.

    :param given: build arguments of the caller
    :raises DockerfileError: something stands before the first FROM that is no ARG, or a FROM is wrong
    """
    arguments = _predefined()
    stages: list[Stage] = []
    body: list[Instruction] = []
    for instruction in file.instructions:
        if instruction.keyword == "FROM":
            stages = _closed(stages, body)
            body = []
            stages.append(_stage(instruction, len(stages), arguments))
        elif stages:
            body.append(instruction)
        elif instruction.keyword == "ARG":
            arguments |= arguments_of(instruction, arguments, given or {})
        else:
            raise instruction.error(f"{instruction.keyword} stands before FROM", hint="only ARG may")
    if not stages:
        raise file.instructions[0].error("there is no FROM")
    return Plan(tuple(_closed(stages, body)), arguments)


def _closed(stages: Sequence[Stage], body: Sequence[Instruction]) -> list[Stage]:
    return [*stages[:-1], *(attrs.evolve(stage, instructions=tuple(body)) for stage in stages[-1:])]


def _stage(instruction: Instruction, index: int, arguments: Mapping[str, str]) -> Stage:
    instruction.allow("platform")
    words = instruction.words
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
        raise instruction.error(f"a bad FROM: `{instruction.text}`", hint="write FROM IMAGE [AS NAME]")
    base = expanded(instruction, words[0], arguments)
    if not base:
        raise instruction.error(f"`{words[0]}` is empty", hint="give the ARG a default, or --build-arg")
    if platform := instruction.flag("platform"):
        _check_platform(instruction, expanded(instruction, platform, arguments))
    name = words[2] if len(words) == 3 else ""
    if name and (not name[0].isalpha() or not name.replace("-", "").replace("_", "").replace(".", "").isalnum()):
        raise instruction.error(f"`{name}` cannot be the name of a stage", hint="it begins with a letter")
    return Stage(index, name, base, (), instruction)


def _check_platform(instruction: Instruction, wanted: str) -> None:
    here = host_platform()
    system, _, rest = wanted.partition("/")
    architecture, _, variant = rest.partition("/")
    if not here.runs(Platform(system, architecture or here.architecture, variant)):
        raise instruction.error(f"--platform={wanted}: this machine is {here}", hint="build it on a machine of that kind")


def arguments_of(instruction: Instruction, known: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """What an ARG gives a value to: the caller's, else its default, which sees what was given before.

    One without either is not in the answer.
    """
    instruction.allow()
    found: dict[str, str] = {}
    for word in instruction.words:
        name, equals, default = word.partition("=")
        if not name.replace("_", "a").isalnum() or name[0].isdecimal():
            raise instruction.error(f"`{name}` cannot be the name of an argument")
        if name in given:
            found[name] = given[name]
        elif equals:
            found[name] = expanded(instruction, default, {**known, **found})
    return found


def _predefined() -> dict[str, str]:
    """Dockerfile reference, "Automatic platform ARGs in the global scope"."""
    here = host_platform()
    facts = {"PLATFORM": str(here), "OS": here.os, "ARCH": here.architecture, "VARIANT": here.variant}
    return {f"{side}{name}": value for side in ("BUILD", "TARGET") for name, value in facts.items()}
