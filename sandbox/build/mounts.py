"""``RUN --mount``: what a command sees for its time only (Dockerfile reference, "RUN --mount")."""

from __future__ import annotations

import contextlib
import fcntl
import os
import posixpath
from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from sandbox.build.copying import Order
from sandbox.build.dockerfile import Instruction
from sandbox.build.draft import Draft
from sandbox.build.meta import expanded
from sandbox.build.workshop import key_of, layers_of
from sandbox.models import Mount

if TYPE_CHECKING:
    from sandbox.build.executor import Executor
    from sandbox.build.stages import Stage

__all__ = ["Mounts", "Wanted", "parse"]

_TYPES = ("bind", "cache", "secret", "tmpfs")
_NAMES = {"dst": "target", "destination": "target", "src": "source", "ro": "readonly", "rw": "readwrite"}
_KNOWN = {
    "bind": {"from", "source", "target", "readonly", "readwrite"},
    "cache": {"id", "target", "sharing", "mode", "readonly", "from", "source", "uid", "gid"},
    "secret": {"id", "target", "required", "mode", "uid", "gid"},
    "tmpfs": {"target", "size"},
}


@attrs.frozen
class Wanted:
    """One ``--mount``, taken apart."""

    type: str
    target: str
    options: Mapping[str, str]


def parse(instruction: Instruction, variables: Mapping[str, str], cwd: str) -> list[Wanted]:
    """The mounts of a RUN.

    :raises DockerfileError: names the option that is not known
    """
    return [_one(instruction, value, variables, cwd) for name, value in instruction.flags if name == "mount"]


def _one(instruction: Instruction, text: str, variables: Mapping[str, str], cwd: str) -> Wanted:
    options: dict[str, str] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        options[_NAMES.get(name.strip().lower(), name.strip().lower())] = expanded(instruction, value, variables)
    kind = options.pop("type", "bind")
    if kind not in _TYPES:
        raise instruction.error(f"--mount=type={kind} is not supported", hint=f"there is {', '.join(_TYPES)}")
    for name in options:
        if name not in _KNOWN[kind]:
            known = ", ".join(sorted(_KNOWN[kind]))
            raise instruction.error(f"--mount=type={kind} has no `{name}`", hint=f"known are: {known}")
    if kind == "bind" and options.get("readwrite", "false") not in ("false", "0"):
        hint = "COPY the files, or make a copy of them in the step"
        raise instruction.error("--mount=type=bind,rw is not supported: a bind mount is read-only", hint=hint)
    target = options.get("target")
    if kind == "secret":
        name = options.get("id") or posixpath.basename(target or "")
        options["id"] = name
        target = target or f"/run/secrets/{name}"
    if not target:
        raise instruction.error(f"--mount=type={kind} needs a target")
    return Wanted(kind, posixpath.normpath(posixpath.join("/", cwd, target)), options)


class Mounts:
    """Makes the mounts of one RUN; what has to be undone goes on the stack."""

    def __init__(self, executor: Executor, stage: Stage, instruction: Instruction, stack: contextlib.ExitStack) -> None:
        self._executor = executor
        self._stage = stage
        self._instruction = instruction
        self._stack = stack
        self._context = stage.context or executor.context

    def key(self, wanted: Wanted) -> list[object]:
        """What the result of the step depends on: not what lies in a cache or a secret."""
        options = sorted((name, value) for name, value in wanted.options.items() if wanted.type != "secret")
        return [wanted.type, wanted.target, options, self._content(wanted) if wanted.type == "bind" else ""]

    def _content(self, wanted: Wanted) -> object:
        if origin := wanted.options.get("from"):
            return self._executor.source(origin, self._stage.index, self._instruction).identity
        return self._executor.digest(self._context, [wanted.options.get("source", ".")])

    def mount(self, wanted: Wanted) -> Mount:
        """What the pod gets."""
        match wanted.type:
            case "bind":
                return self._bind(wanted)
            case "cache":
                return self._cache(wanted)
            case "secret":
                return self._secret(wanted)
            case _:
                return Mount(wanted.target, type="tmpfs", size=wanted.options.get("size"))

    def script(self, target: str, text: str) -> Mount:
        """A script of a heredoc, to be executed."""
        path = self._stack.enter_context(self._executor.workshop.folder()) / "script"
        path.write_text(text)
        path.chmod(0o755)
        return Mount(target, str(path), read_only=True)

    def _bind(self, wanted: Wanted) -> Mount:
        """The files as a layer of their own, so that a context shows without what is ignored, owned by root."""
        workshop, context = self._executor.workshop, self._context
        source = wanted.options.get("source", ".")
        if origin := wanted.options.get("from"):
            draft = self._executor.source(origin, self._stage.index, self._instruction)
            place = layers_of(draft.image(workshop.store, origin)) if draft.layers else []
            order = Order(target="/files/", patterns=(source,), owner=None, lenient=True)
            layer = workshop.copy([], place, order)
        else:
            layer = workshop.copy([], context.need(), Order(target="/files/", patterns=(source,)), ignore=context.ignore)
        if layer is None:
            raise self._instruction.error(f"--mount=type=bind: there is nothing in `{source}`")
        files = Draft.scratch().noted("files", layer).image(workshop.store, "bind mount").layers[0] / "files"
        single = files / posixpath.basename(source.rstrip("/"))
        as_file = posixpath.basename(source.rstrip("/")) not in ("", ".") and single.is_file() and not single.is_symlink()
        return Mount(wanted.target, str(single if as_file else files), read_only=True)

    def _cache(self, wanted: Wanted) -> Mount:
        options = wanted.options
        for name in ("from", "source", "uid", "gid"):
            if options.get(name, "0") != "0":
                raise self._instruction.error(f"--mount=type=cache,{name}= is not supported")
        places = self._executor.workshop.store.places
        path = places.directory("build-caches") / key_of(options.get("id") or wanted.target)[:32]
        places.use(f"build-caches/{path.name}")  # `sandbox prune` leaves it alone as long as this process lives
        try:
            path.mkdir(mode=0o700)
            path.chmod(int(options.get("mode", "0755"), 8))
        except FileExistsError:
            pass
        if options.get("sharing", "shared") != "shared":
            lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
        return Mount(wanted.target, str(path), read_only=options.get("readonly", "false") not in ("false", "0"))

    def _secret(self, wanted: Wanted) -> Mount:
        path = self._executor.settings.secrets.get(wanted.options["id"])
        if path is None:
            if wanted.options.get("required", "false") not in ("false", "0"):
                hint = f"give it with --secret id={wanted.options['id']},src=FILE"
                raise self._instruction.error(f"the secret `{wanted.options['id']}` was not given", hint=hint)
            return Mount(posixpath.dirname(wanted.target), type="tmpfs", mode=0o755)
        return Mount(wanted.target, os.fspath(path), read_only=True)
