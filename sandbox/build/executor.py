"""Carry out a Dockerfile: stage by stage, step by step, each step that makes files once."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from sandbox.build import files, mounts
from sandbox.build.bases import base, check_reach
from sandbox.build.context import Context
from sandbox.build.dockerfile import Instruction, parse_instruction
from sandbox.build.draft import Draft, LayerRef
from sandbox.build.errors import BuildError
from sandbox.build.known_files import KnownFiles
from sandbox.build.meta import META, apply, expanded, shell_of, working_directory
from sandbox.build.running import Job, run
from sandbox.build.stages import PROXIES, Plan, Stage, arguments_of
from sandbox.build.workshop import Workshop, key_of
from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from sandbox.images.image import Image
    from sandbox.models import Mount

__all__ = ["Executor", "Progress", "Settings", "Silent"]

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Progress(Protocol):
    """Is told how a build goes."""

    def step(self, stage: Stage, number: int, total: int, instruction: Instruction) -> None:
        """A step begins; ``number`` counts within its stage, from 1."""

    def cached(self) -> None:
        """The step's result was there already."""

    def output(self, line: str) -> None:
        """A line that a command has written."""


class Silent:
    """Tells nobody."""

    def step(self, stage: Stage, number: int, total: int, instruction: Instruction) -> None:
        """Nothing."""

    def cached(self) -> None:
        """Nothing."""

    def output(self, line: str) -> None:
        """Nothing."""


@attrs.frozen
class Settings:
    """How to build, whatever it is."""

    #: Values for ARG.
    arguments: Mapping[str, str] = attrs.field(factory=dict)
    #: ``host`` or ``none``: the network of RUN unless it says otherwise.
    network: str = "host"
    #: Do every step again, whatever is known.
    no_cache: bool = False
    #: Files for ``RUN --mount=type=secret``: id → path on the host.
    secrets: Mapping[str, Path] = attrs.field(factory=dict)
    #: More labels of the result.
    labels: Mapping[str, str] = attrs.field(factory=dict)
    #: FROM and ``--from`` in a Dockerfile may name anything here, not only stages and images of the store and of registries.
    local_images: bool = False


class Executor:
    """One build."""

    def __init__(
        self, plan: Plan, context: Context, workshop: Workshop, settings: Settings, progress: Progress | None = None
    ) -> None:  # fmt: skip
        self.plan = plan
        self.context = context
        self.workshop = workshop
        self.settings = settings
        self.progress: Progress = progress or Silent()
        self._done: dict[int, Draft] = {}
        self._known: dict[Path, KnownFiles] = {}
        #: Arguments that some ARG took.
        self.used: set[str] = set()

    def build(self, target: str | None = None) -> Draft:
        """The draft of a stage, the last one if none is named.

        :raises BuildError: a step failed; ``line`` says which
        """
        draft = self.stage(self.plan.target(target))
        if self.settings.labels:
            draft = draft.configured(Labels={**(draft.config.get("Labels") or {}), **self.settings.labels})
        return draft

    def stage(self, stage: Stage) -> Draft:
        """A stage, with those it needs before it; each is built once."""
        if stage.index not in self._done:
            self._done[stage.index] = _Run(self, stage).carry_out()
        return self._done[stage.index]

    def digest(self, context: Context, patterns: Sequence[str], exclude: Iterable[str] = ()) -> str:
        """What files of a context come to (:meth:`Context.digest`); those that have not changed are not read again."""
        directory = context.need()
        if directory not in self._known:
            self._known[directory] = KnownFiles(self.workshop.store, directory, forget=self.settings.no_cache)
        found = context.digest(patterns, exclude, self._known[directory].digest)
        self._known[directory].save()
        return found

    def source(self, name: str, before: int, by: Instruction) -> Draft:
        """What ``--from`` and FROM name: an earlier stage, or an image."""
        found = self.plan.find(name, before)
        if found is not None:
            return self.stage(found)
        if not (by.author == "caller" or (by.author == "file" and self.settings.local_images)):
            check_reach(name, by)
        return base(name, self.workshop)


class _Run:
    """One stage on its way."""

    def __init__(self, executor: Executor, stage: Stage) -> None:
        self._executor = executor
        self._workshop = executor.workshop
        self._stage = stage
        self._draft = Draft.scratch()
        self._image: tuple[list[str], Image] | None = None
        self._arguments: dict[str, str] = {}
        self._own_command = False
        self._number = 0
        self._total = len(stage.instructions) + 1

    def carry_out(self) -> Draft:
        with _at(self._stage.start):
            self._tell(self._stage.start)
            self._draft = self._executor.source(self._stage.base, self._stage.index, self._stage.start)
        if "PATH" not in self._draft.env:
            self._draft = self._draft.configured(Env=[f"PATH={_PATH}", *(self._draft.config.get("Env") or ())])
        for instruction in (*self._triggers(), *self._stage.instructions):
            with _at(instruction):
                self._tell(instruction)
                self._step(instruction)
        return self._draft

    def _tell(self, instruction: Instruction) -> None:
        self._number += 1
        self._executor.progress.step(self._stage, self._number, self._total, instruction)

    def _triggers(self) -> list[Instruction]:
        """What the base image wants done in images that are built on it; once, not in theirs in turn."""
        texts = self._draft.config.get("OnBuild") or ()
        if texts:
            self._draft = self._draft.configured(OnBuild=None)
        self._total += len(texts)
        found = (parse_instruction(text, place=f"{self._stage.start.place} (ONBUILD)") for text in texts)
        return [attrs.evolve(instruction, author="image") for instruction in found]

    @property
    def variables(self) -> dict[str, str]:
        """What ``$name`` means here: the environment goes before arguments."""
        return {**self._arguments, **self._draft.env}

    @property
    def image(self) -> Image:
        """The layers so far, unpacked."""
        if self._image is None or self._image[0] != self._draft.identity:
            found = self._draft.image(self._workshop.store, self._stage.name or self._stage.base)
            self._image = (self._draft.identity, found)
        return self._image[1]

    def _image_or_none(self) -> Image | None:
        return self.image if self._draft.layers else None

    def _step(self, instruction: Instruction) -> None:
        if instruction.keyword in META:
            self._own_command |= instruction.keyword == "CMD"
            draft = apply(self._draft, instruction, self.variables, own_command=self._own_command)
            self._draft = draft.noted(instruction.source)
        elif instruction.keyword == "ARG":
            self._declare(instruction)
        elif instruction.keyword == "WORKDIR":
            self._work_in(instruction)
        elif instruction.keyword == "RUN":
            self._run(instruction)
        else:
            self._copy(instruction)

    def _declare(self, instruction: Instruction) -> None:
        executor = self._executor
        names = [word.partition("=")[0] for word in instruction.words]
        known = {name: value for name, value in executor.plan.arguments.items() if name in names}
        executor.used.update(names)
        own = arguments_of(instruction, self.variables, executor.settings.arguments)
        # One without a default takes the value of before the first FROM.
        self._arguments |= {**known, **own}
        self._draft = self._draft.noted(instruction.source)

    def _work_in(self, instruction: Instruction) -> None:
        instruction.allow()
        path = working_directory(self._draft, expanded(instruction, instruction.text, self.variables))
        self._draft = self._draft.configured(WorkingDir=path)
        user = self._draft.config.get("User") or ""
        key = key_of("directory", self._draft.identity, path, user)

        def work() -> LayerRef | None:
            order = files.directory(path, user, instruction, self._image_or_none())
            return self._workshop.copy(self._below(), None, order)

        self._layer(instruction, key, work)

    def _copy(self, instruction: Instruction) -> None:
        job = files.prepare(instruction, self.variables, working_directory(self._draft))
        with contextlib.ExitStack() as stack:
            source = self._source(instruction, job, stack)
            key = key_of("copy", self._draft.identity, job.key, source.key)

            def work() -> LayerRef | None:
                order = files.settled(job, instruction, self._image_or_none(), source)
                return self._workshop.copy(self._below(), source.place(), order, ignore=source.ignore)

            self._layer(instruction, key, work)

    def _source(self, instruction: Instruction, job: files.CopyJob, stack: contextlib.ExitStack) -> files.Source:
        if job.origin is not None:
            draft = self._executor.source(job.origin, self._stage.index, instruction)
            return files.from_image(draft, self._workshop.store, job)
        if job.urls:
            return files.downloaded(instruction, job, self._workshop, stack)
        return files.from_context(self._stage.context or self._executor.context, job, self._executor.digest)

    def _below(self) -> list[str]:
        """The layers so far, for the helper."""
        return [str(layer) for layer in self.image.layers] if self._draft.layers else []

    # -- RUN ------------------------------------------------------------------------------------------------------

    def _run(self, instruction: Instruction) -> None:
        instruction.allow("mount", "network", "security")
        settings = self._executor.settings
        network = instruction.flag("network") or "default"
        network = settings.network if network == "default" else network
        if network not in ("host", "none"):
            raise instruction.error(f"--network={network}: there is `host`, `none` and `default`")
        if (instruction.flag("security") or "sandbox") != "sandbox":
            raise instruction.error("--security=insecure is not supported", hint="run the step outside of the build")
        argv, script = _command(instruction, shell_of(self._draft))
        env = self.variables
        with contextlib.ExitStack() as stack:
            wanted = mounts.parse(instruction, self.variables, working_directory(self._draft))
            ready = mounts.Mounts(self._executor, self._stage, instruction, stack)
            key = key_of(
                "run", self._draft.identity, argv, script, env, self._draft.config.get("User"),
                working_directory(self._draft), network, [ready.key(mount) for mount in wanted],
            )  # fmt: skip

            def work() -> LayerRef | None:
                own: list[Mount] = [ready.mount(mount) for mount in wanted]
                if script is not None:
                    own.append(ready.script(argv[0], script))
                return run(self._job(instruction, argv, env, network, own), self._workshop, self._executor.progress.output)

            self._layer(instruction, key, work)

    def _job(
        self, instruction: Instruction, argv: list[str], env: Mapping[str, str], network: str, own: Iterable[Mount]
    ) -> Job:  # fmt: skip
        given = self._executor.settings.arguments
        proxies = {name: value for name, value in given.items() if name in PROXIES}
        if not self._draft.layers:
            raise instruction.error("there is nothing in the image that could run", hint="COPY a program first")
        return Job(
            self.image, tuple(argv), {**proxies, **env}, self._draft.config.get("User") or None,
            working_directory(self._draft), network, tuple(own), instruction.text or " ".join(argv),
        )  # fmt: skip

    # -- layers ---------------------------------------------------------------------------------------------------

    def _layer(self, instruction: Instruction, key: str, work: Any) -> None:
        """Add the layer that a step makes, made now or before; one process makes it while others wait."""
        store = self._workshop.store
        name = f"step:{key}"
        if not self._executor.settings.no_cache and self._recalled(name, instruction):
            return
        with store.places.lock(f"build-{key}"):
            if not self._executor.settings.no_cache and self._recalled(name, instruction):
                return
            layer = work()
            draft = self._draft.noted(instruction.source, layer)
            self._workshop.remember(name, draft.save(store).digest)
        self._draft = draft

    def _recalled(self, name: str, instruction: Instruction) -> bool:
        digest = self._workshop.recall(name)
        if digest is None:
            return False
        store = self._workshop.store
        known = Draft.known(store, digest)
        if not all(store.blobs.has(layer.blob.digest, layer.blob.size) for layer in known.layers):
            return False
        made = known.layers[-1] if len(known.layers) > len(self._draft.layers) else None
        self._executor.progress.cached()
        self._draft = self._draft.noted(instruction.source, made, created=known.history[-1].get("created"))
        return True


def _command(instruction: Instruction, shell: list[str]) -> tuple[list[str], str | None]:
    """What RUN executes, and the text of a script where a heredoc is one (it begins with ``#!``)."""
    if instruction.json is not None:
        return list(instruction.json), None
    documents = instruction.heredocs
    if not documents:
        return [*shell, instruction.text], None
    alone = len(documents) == 1 and instruction.text.lstrip("<-\"'").rstrip("\"'") == documents[0].name
    if alone and documents[0].content.startswith("#!"):
        return [posixpath.join("/dev/pipes", documents[0].name)], documents[0].content
    if alone:
        return [*shell, documents[0].content], None
    bodies = "".join(f"{each.content}{each.name}\n" for each in documents)
    return [*shell, f"{instruction.text}\n{bodies}"], None


@contextlib.contextmanager
def _at(instruction: Instruction) -> Iterator[None]:
    """Errors say which step they belong to."""
    try:
        yield
    except BuildError as error:
        error.line = error.line or instruction.place or None
        error.step = error.step or instruction.source
        raise
    except SandboxError as error:
        if getattr(error, "line", None) is None:
            error.add_note(f"  in {instruction.place or 'step'}: {instruction.source}")
        raise
