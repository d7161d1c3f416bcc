"""``sandbox build``: an image from a Dockerfile."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.cli import console
from sandbox.cli.options import Command, Given, Option, UsageError

if TYPE_CHECKING:
    from sandbox.build.dockerfile import Instruction
    from sandbox.build.executor import Settings
    from sandbox.build.stages import Stage

COMMAND = Command(
    "build", "CONTEXT", "Build an image from a Dockerfile; what was done before is not done again.",
    (
        Option("file", "The Dockerfile (CONTEXT/Dockerfile)", "f", "FILE"),
        Option("tag", "Call the image so", "t", "NAME", many=True),
        Option("build-arg", "Give an ARG its value", "", "NAME[=VALUE]", many=True),
        Option("target", "Stop at this stage", "", "STAGE"),
        Option("no-cache", "Do every step again"),
        Option("network", "Network of RUN: `host` (default), `none`", "", "NETWORK"),
        Option("secret", "A file for RUN --mount=type=secret", "", "id=ID,src=FILE", many=True),
        Option("label", "Label the image", "", "NAME=VALUE", many=True),
        Option("local-images", "FROM and --from may name any local image"),
        Option("quiet", "Print the digest only", "q"),
        Option("json", "Print what was built as JSON"),
    ),
    (
        ("sandbox build .", "the Dockerfile of this directory"),
        ("sandbox build -t shop/api:2 --target test api", "a stage of it, with a name"),
        ("sandbox build -f ci/Dockerfile --build-arg PYTHON=3.12 .", "another file, with an argument"),
        ("sandbox build -q . | xargs sandbox run", "build it and run it"),
    ),
    "RUN uses this machine's network, as package managers need it; --network=none and RUN --network=none do without.\n"
    "The steps are shown on standard error.",
)  # fmt: skip


def main(given: Given) -> int:
    """Build, and print what it came to."""
    context = given.one_operand("a directory to build in: `sandbox build .`")
    from sandbox.build.source import build

    begin = time.monotonic()
    show = Shown(quiet=bool(given["quiet"]))
    image = build(context, given["file"], tags=tuple(given["tag"]), target=given["target"], settings=settings(given),
                  progress=show)  # fmt: skip
    if given["json"]:
        facts = {"digest": image.digest, "id": image.id, "names": list(image.names), "size": image.size,
                 "steps": show.steps, "cached": show.hits, "seconds": round(time.monotonic() - begin, 3)}  # fmt: skip
        console.write(f"{json.dumps(facts, indent=2)}\n")
    else:
        console.write("".join(f"{line}\n" for line in (image.digest, *(() if given["quiet"] else image.names))))
    return 0


def settings(given: Given) -> Settings:
    """From the options. Raises :class:`UsageError`."""
    from sandbox.build.executor import Settings

    if given["network"] not in (None, "host", "none"):
        raise UsageError(f"--network={given['network']}: there is `host` and `none`")
    return Settings(
        _pairs(given["build-arg"], "build-arg", from_environment=True), given["network"] or "host", bool(given["no-cache"]),
        dict(_secret(text) for text in given["secret"]), _pairs(given["label"], "label"),
        bool(given["local-images"]),
    )  # fmt: skip


def _pairs(texts: list[str], option: str, *, from_environment: bool = False) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or (not equals and not from_environment):
            raise UsageError(f"--{option}={text}: expected NAME=VALUE")
        if not equals and name not in os.environ:
            raise UsageError(f"--{option}={text}: there is no such environment variable to take the value from")
        found[name] = value if equals else os.environ[name]
    return found


def _secret(text: str) -> tuple[str, Path]:
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    source = parts.get("src") or parts.get("source")
    if not parts.get("id") or not source or set(parts) - {"id", "src", "source", "type"}:
        raise UsageError(f"--secret={text}: expected id=ID,src=FILE")
    path = Path(source).absolute()
    if not path.is_file():
        raise UsageError(f"--secret={text}: there is no file {path}")
    return parts["id"], path


class Shown:
    """Tells on standard error how the build goes."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        #: Steps that make files or might: those that were begun, and those that were known.
        self.steps = self.hits = 0

    def step(self, stage: Stage, number: int, total: int, instruction: Instruction) -> None:
        self.steps += 1
        stage_name = stage.name or (str(stage.index) if stage.index else "")
        where = f"{stage_name} {number}/{total}" if stage_name else f"{number}/{total}"
        self._say(f"[{where}] {' '.join(instruction.source.split())[:200]}")

    def cached(self) -> None:
        self.hits += 1
        self._say("  known")

    def output(self, line: str) -> None:
        self._say(f"  | {line}")

    def _say(self, text: str) -> None:
        if not self._quiet:
            console.complain(text)
