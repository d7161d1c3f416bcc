"""Instructions that only change the configuration of an image. Pure.

What each of them does to the members of ``config`` is image-spec's "OCI Image Configuration", and docker's extensions of
it (``Healthcheck``, ``OnBuild``, ``Shell``), which podman reads as well.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from sandbox.build.dockerfile import Instruction, parse_instruction
from sandbox.build.draft import Draft
from sandbox.build.words import WordError, expand, split

__all__ = ["META", "apply", "expanded", "pairs", "shell_of", "shell_words", "working_directory"]

_SHELL = ("/bin/sh", "-c")
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def expanded(instruction: Instruction, text: str, variables: Mapping[str, str]) -> str:
    """One value of an instruction, with variables replaced.

    :raises DockerfileError: it is malformed
    """
    try:
        return expand(text, variables, escape=instruction.escape)
    except WordError as error:
        raise instruction.error(str(error)) from None


def pairs(instruction: Instruction, variables: Mapping[str, str]) -> dict[str, str]:
    """``key=value …`` of ENV and LABEL, or the old form ``key value``."""
    words = instruction.words
    if "=" not in words[0]:
        key, _, value = instruction.text.partition(" ")
        if instruction.keyword == "LABEL" or not value.strip():
            raise instruction.error(f"`{words[0]}` has no value", hint=f"write {instruction.keyword} name=value")
        return {expanded(instruction, key, variables): expanded(instruction, value.strip(), variables)}
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            hint = "a value with blanks needs quotes"
            raise instruction.error(f"`{word}` is not of the form name=value", hint=hint)
        found[expanded(instruction, key, variables)] = expanded(instruction, value, variables)
    return found


def shell_of(draft: Draft) -> list[str]:
    """What runs the shell form: SHELL, else ``/bin/sh -c``."""
    return list(draft.config.get("Shell") or _SHELL)


def shell_words(instruction: Instruction, draft: Draft) -> list[str]:
    """A command as a list: the exec form, or the text for the shell."""
    return list(instruction.json) if instruction.json is not None else [*shell_of(draft), instruction.text]


def working_directory(draft: Draft, text: str = "") -> str:
    """An absolute path, normal, seen from the working directory so far."""
    return posixpath.normpath(posixpath.join("/", draft.config.get("WorkingDir") or "/", text)).replace("//", "/")


def apply(draft: Draft, instruction: Instruction, variables: Mapping[str, str], *, own_command: bool) -> Draft:
    """The draft with what an instruction changes.

    :param own_command: CMD was given in this stage: ENTRYPOINT drops an inherited one only
    :raises DockerfileError: the instruction is malformed
    """
    if instruction.keyword != "HEALTHCHECK":
        instruction.allow()
    if instruction.keyword == "MAINTAINER":
        author = expanded(instruction, instruction.text, variables)
        return attrs.evolve(draft, document={**draft.document, "author": author})
    members = _MEMBERS[instruction.keyword](draft, instruction, variables)
    if instruction.keyword == "ENTRYPOINT" and not own_command:
        members["Cmd"] = None
    return draft.configured(**members)


def _command(instruction: Instruction, draft: Draft) -> list[str] | None:
    return shell_words(instruction, draft) if instruction.text else None


def _one(instruction: Instruction, variables: Mapping[str, str]) -> str:
    value = expanded(instruction, instruction.text, variables)
    if not value:
        raise instruction.error(f"{instruction.keyword} needs an argument, and `{instruction.text}` is empty here")
    return value


def _words(instruction: Instruction, variables: Mapping[str, str]) -> list[str]:
    try:
        return split(instruction.text, variables, escape=instruction.escape)
    except WordError as error:
        raise instruction.error(str(error)) from None


def _ports(instruction: Instruction, variables: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in _words(instruction, variables):
        match = _PORT.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if match is None or not first <= last <= 65535:
            raise instruction.error(f"`{word}` is not a port", hint="write 80, 53/udp or 8000-8010/tcp")
        found |= {f"{port}/{(match[3] or 'tcp').lower()}": {} for port in range(first, last + 1)}
    return found


def _volumes(instruction: Instruction, variables: Mapping[str, str]) -> dict[str, Any]:
    if instruction.json is not None:
        paths = [expanded(instruction, path, variables) for path in instruction.json]
    else:
        paths = _words(instruction, variables)
    if not all(paths):
        raise instruction.error("a volume has no path")
    return {path: {} for path in paths}


def _healthcheck(instruction: Instruction) -> dict[str, Any]:
    instruction.allow("interval", "timeout", "start-period", "start-interval", "retries")
    kind, _, rest = instruction.text.partition(" ")
    if kind.upper() == "NONE":
        if rest.strip() or instruction.flags:
            raise instruction.error("HEALTHCHECK NONE takes nothing else")
        return {"Test": ["NONE"]}
    if kind.upper() != "CMD" or not rest.strip():
        raise instruction.error("HEALTHCHECK is NONE, or CMD with a command")
    inner = parse_instruction(f"CMD {rest.strip()}", place=instruction.place, escape=instruction.escape)
    test = ["CMD", *inner.json] if inner.json is not None else ["CMD-SHELL", inner.text]
    found: dict[str, Any] = {"Test": test}
    for flag, member in (("interval", "Interval"), ("timeout", "Timeout"), ("start-period", "StartPeriod"),
                         ("start-interval", "StartInterval")):  # fmt: skip
        if (value := instruction.flag(flag)) is not None:
            found[member] = _nanoseconds(instruction, flag, value)
    if (retries := instruction.flag("retries")) is not None:
        if not retries.isdecimal():
            raise instruction.error(f"--retries={retries}: not a number")
        found["Retries"] = int(retries)
    return found


def _nanoseconds(instruction: Instruction, flag: str, text: str) -> int:
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise instruction.error(f"--{flag}={text}: not a duration", hint="write 30s, 1m30s or 500ms")
    return round(sum(float(number) * _UNITS[unit] for number, unit in parts))


def _trigger(instruction: Instruction) -> str:
    """Checked now, used by whoever builds on the image."""
    body = "".join(f"{heredoc.content}{heredoc.name}\n" for heredoc in instruction.heredocs)
    text = f"{instruction.text}\n{body}" if body else instruction.text
    inner = parse_instruction(text, place=instruction.place, escape=instruction.escape)
    if inner.keyword in ("ONBUILD", "FROM", "MAINTAINER"):
        raise instruction.error(f"ONBUILD {inner.keyword} is not allowed")
    return text


def _env(draft: Draft, instruction: Instruction, variables: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in {**draft.env, **pairs(instruction, variables)}.items()]


def _shell(instruction: Instruction) -> list[str]:
    if not instruction.json:
        raise instruction.error("SHELL needs the exec form", hint='write SHELL ["/bin/bash", "-c"]')
    return list(instruction.json)


def _added(draft: Draft, member: str, more: Mapping[str, Any]) -> dict[str, Any]:
    return {member: {**(draft.config.get(member) or {}), **more}}


#: What each instruction sets in ``config``, of a draft and with variables.
_MEMBERS: dict[str, Callable[[Draft, Instruction, Mapping[str, str]], dict[str, Any]]] = {
    "CMD": lambda draft, each, _: {"Cmd": _command(each, draft)},
    "ENTRYPOINT": lambda draft, each, _: {"Entrypoint": _command(each, draft)},
    "ENV": lambda draft, each, variables: {"Env": _env(draft, each, variables)},
    "LABEL": lambda draft, each, variables: _added(draft, "Labels", pairs(each, variables)),
    "EXPOSE": lambda draft, each, variables: _added(draft, "ExposedPorts", _ports(each, variables)),
    "VOLUME": lambda draft, each, variables: _added(draft, "Volumes", _volumes(each, variables)),
    "USER": lambda _, each, variables: {"User": _one(each, variables)},
    "STOPSIGNAL": lambda _, each, variables: {"StopSignal": _one(each, variables)},
    "SHELL": lambda _, each, __: {"Shell": _shell(each)},
    "HEALTHCHECK": lambda _, each, __: {"Healthcheck": _healthcheck(each)},
    "ONBUILD": lambda draft, each, _: {"OnBuild": [*(draft.config.get("OnBuild") or ()), _trigger(each)]},
}

#: Instructions that :func:`apply` knows.
META = frozenset({*_MEMBERS, "MAINTAINER"})
