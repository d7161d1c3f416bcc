"""Images that are described in Python: the instructions of a Dockerfile as methods."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import attrs

from sandbox._launch import Options
from sandbox.build.context import Context
from sandbox.build.dockerfile import Heredoc, Instruction
from sandbox.build.errors import BuildError
from sandbox.build.executor import Executor, Progress, Settings
from sandbox.build.source import finished
from sandbox.build.stages import Plan, Stage
from sandbox.build.workshop import Workshop
from sandbox.images.references import parse_registry_name
from sandbox.images.store import Store

if TYPE_CHECKING:
    from sandbox.images import image as images
    from sandbox.images.stored import StoredImage

__all__ = ["Image"]

Path = str | os.PathLike[str]


@attrs.frozen
class _Step:
    """One instruction; ``origin`` is the image that its files come from, where that is described in Python too."""

    instruction: Instruction
    origin: Image | None = None


@attrs.frozen(init=False, repr=False)
class Image:
    """An image that is made when it is first needed, each step once. Every method gives a new one.

    >>> redis = Image("debian:12").run("apt-get update && apt-get install -y redis").copy("redis.conf", "/etc/redis")
    >>> sandbox.start(image=redis.cmd("redis-server"), ready=Port(6379))

    Steps mean what the instructions of their names mean in a Dockerfile, ``$name`` of environment variables included. What
    was done before is not done again, in whatever process: layers are kept in the store under everything they depend on.
    """

    #: The reference that it starts from; ``"scratch"`` for nothing.
    base: str
    #: Where :meth:`copy` finds its sources.
    context: str
    _steps: tuple[_Step, ...]

    def __init__(self, base: str | Image = "scratch", *, context: Path | None = None) -> None:
        """Start from an image.

        :param context: the directory that :meth:`copy` takes files from; the current one, if not given
        """
        if isinstance(base, Image):
            reference, place, steps = base.base, base.context, base._steps  # noqa: SLF001 - one of us
        else:
            reference, place, steps = base, ".", ()
        self.__attrs_init__(reference, os.path.abspath(place if context is None else context), steps)

    def __repr__(self) -> str:
        return f"<Image {self.base!r} and {len(self._steps)} steps>"

    def __str__(self) -> str:
        return f"{self.base} and {len(self._steps)} steps"

    # -- steps ----------------------------------------------------------------------------------------------------

    def run(self, command: str | Sequence[str], *, network: str | None = None, mounts: Sequence[str] = ()) -> Self:
        """Run a command; a string is given to the shell, a list executed as it is.

        :param network: ``"host"`` or ``"none"`` for this step only
        :param mounts: as ``RUN --mount`` takes them: ``"type=cache,target=/root/.cache"``
        """
        flags = [*(("mount", mount) for mount in mounts), *([("network", network)] if network else [])]
        return self._command("RUN", command, flags)

    def copy(
        self, *paths: Path, source: str | Image | None = None, chown: str | int | None = None,
        chmod: int | None = None, exclude: Sequence[str] = (),
    ) -> Self:  # fmt: skip
        """Copy files: sources (patterns) in the context, and where to, at the end.

        :param source: another image to copy from, instead of the context
        :param chown: ``"user:group"`` of the copies; root if not given, or what they are in another image
        :param chmod: mode of the copies
        :param exclude: patterns of what is left out of directories
        """
        return self._files("COPY", paths, source, chown, chmod, exclude)

    def add(self, *paths: Path, chown: str | int | None = None, chmod: int | None = None, checksum: str | None = None) -> Self:
        """As :meth:`copy`, but archives are unpacked and URLs fetched.

        :param checksum: ``"sha256:…"`` of what a URL gives; fetched only if the step has to be done, then
        """
        return self._files("ADD", paths, None, chown, chmod, (), [("checksum", checksum)] if checksum else [])

    def write(self, path: str, text: str, *, chown: str | int | None = None, chmod: int | None = None) -> Self:
        """A file with this text."""
        content = text if text.endswith("\n") else f"{text}\n"
        flags = _owner_flags(chown, chmod)
        document = Heredoc("text", content, expand=False)
        return self._step("COPY", f"<<text {path}", flags, words=("<<text", path), heredocs=(document,))

    def env(self, variables: Mapping[str, object] | None = None, /, **more: object) -> Self:
        """Set environment variables, for the steps that follow and for containers."""
        return self._pairs("ENV", {**(variables or {}), **more})

    def label(self, labels: Mapping[str, object] | None = None, /, **more: object) -> Self:
        """Set labels."""
        return self._pairs("LABEL", {**(labels or {}), **more})

    def workdir(self, path: str) -> Self:
        """Set the working directory, and make it."""
        return self._step("WORKDIR", path)

    def user(self, user: str | int) -> Self:
        """Set who runs the steps that follow, and containers."""
        return self._step("USER", str(user))

    def cmd(self, command: str | Sequence[str]) -> Self:
        """Set the command of containers."""
        return self._command("CMD", command)

    def entrypoint(self, command: str | Sequence[str]) -> Self:
        """Set what runs the command of containers."""
        return self._command("ENTRYPOINT", command)

    def expose(self, *ports: int | str) -> Self:
        """Note ports that containers listen on: ``80``, ``"53/udp"``."""
        return self._step("EXPOSE", " ".join(str(port) for port in ports))

    def volume(self, *paths: str) -> Self:
        """Note directories that are meant for volumes."""
        return self._step("VOLUME", json.dumps(paths), words=paths)

    def shell(self, *command: str) -> Self:
        """Set what runs commands that are strings."""
        return self._step("SHELL", json.dumps(command), words=command)

    def stop_signal(self, signal: str) -> Self:
        """Set the signal that asks containers to stop."""
        return self._step("STOPSIGNAL", signal)

    # -- results --------------------------------------------------------------------------------------------------

    def build(
        self, *tags: str, settings: Settings | None = None, store: Store | None = None, progress: Progress | None = None
    ) -> StoredImage:  # fmt: skip
        """Make it now, and give it names.

        :raises BuildError: a step failed; ``line`` says where in the program it was described
        """
        return self._build(Workshop(store or Store.default()), tags, settings, progress)

    def _build(
        self, workshop: Workshop, tags: Sequence[str] = (), settings: Settings | None = None,
        progress: Progress | None = None,
    ) -> StoredImage:  # fmt: skip
        names = [parse_registry_name(tag).canonical for tag in tags]
        executor = Executor(self._plan(), Context(self.context), workshop, settings or Settings(), progress)
        return finished(executor.build(), executor.workshop, names)

    def resolve_image(self, options: Options | None = None) -> images.Image:
        """The image, unpacked; made if it is not there yet. What ``image=`` of a container calls."""
        from sandbox.images.manifests import Manifests

        chosen = options or Options.from_environment()
        store = Store(chosen.store) if chosen.store else Store.default()
        found = self._build(Workshop(store, chosen))
        return Manifests(store.blobs, str(self), store).image(found.start)

    def _plan(self) -> Plan:
        stages: list[Stage] = []
        self._add_to(stages, {})
        return Plan(tuple(stages), {})

    def _add_to(self, stages: list[Stage], known: dict[Image, str]) -> str:
        """Append the stages that make this image; the name of its own."""
        if self in known:
            return known[self]
        instructions = []
        for step in self._steps:
            instruction = step.instruction
            if step.origin is not None:
                name = step.origin._add_to(stages, known)  # noqa: SLF001 - one of us
                instruction = attrs.evolve(instruction, flags=(("from", name), *instruction.flags))
            instructions.append(instruction)
        known[self] = name = f"image-{len(stages)}"
        start = Instruction("FROM", (), self.base, None, (), "")
        stages.append(Stage(len(stages), name, self.base, tuple(instructions), start, Context(self.context)))
        return name

    # -- instructions ---------------------------------------------------------------------------------------------

    def _step(
        self, keyword: str, text: str, flags: Sequence[tuple[str, str]] = (), *, words: Sequence[str] | None = None,
        origin: Image | None = None, heredocs: tuple[Heredoc, ...] = (),
    ) -> Self:  # fmt: skip
        if not text.strip():
            raise BuildError(f"{keyword} needs an argument", operation="describe image", object=str(self))
        step = _Step(
            Instruction(keyword, tuple(flags), text, None if words is None else tuple(words), heredocs, _caller()), origin
        )
        made = type(self)(self)
        object.__setattr__(made, "_steps", (*self._steps, step))
        return made

    def _command(self, keyword: str, command: str | Sequence[str], flags: Sequence[tuple[str, str]] = ()) -> Self:
        if isinstance(command, str):
            return self._step(keyword, command, flags)
        words = [os.fspath(word) for word in command]
        return self._step(keyword, json.dumps(words), flags, words=words)

    def _pairs(self, keyword: str, values: Mapping[str, object]) -> Self:
        text = " ".join(f"{name}={_quoted(str(value))}" for name, value in values.items())
        return self._step(keyword, text)

    def _files(
        self, keyword: str, paths: Sequence[Path], source: str | Image | None, chown: str | int | None,
        chmod: int | None, exclude: Sequence[str], more: Sequence[tuple[str, str]] = (),
    ) -> Self:  # fmt: skip
        words = [os.fspath(path) for path in paths]
        flags = [*_owner_flags(chown, chmod), *(("exclude", pattern) for pattern in exclude), *more]
        if isinstance(source, str):
            flags.insert(0, ("from", source))
        origin = source if isinstance(source, Image) else None
        return self._step(keyword, json.dumps(words), flags, words=words, origin=origin)


def _owner_flags(chown: str | int | None, chmod: int | None) -> list[tuple[str, str]]:
    return [
        *([("chown", str(chown))] if chown is not None else []),
        *([("chmod", f"{chmod:04o}")] if chmod is not None else []),
    ]


def _quoted(value: str) -> str:
    """In double quotes: blanks stay, variables are replaced."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _caller() -> str:
    """Where in the program the step is described: the first place that is not in here."""
    for frame in _frames():
        if frame.f_code.co_filename != __file__:
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return ""


def _frames() -> Iterator[Any]:
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back
