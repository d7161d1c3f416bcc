"""The slow beginning of a container, done once: everybody else starts from a copy-on-write clone of what it came to."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import attrs

from sandbox._launch import Options
from sandbox.build.bases import identity
from sandbox.build.commits import draft_below
from sandbox.build.draft import Draft
from sandbox.build.errors import BuildError
from sandbox.build.running import Fixed, layer_of
from sandbox.build.workshop import Workshop, key_of
from sandbox.images import resolve
from sandbox.images.manifests import Manifests
from sandbox.images.store import Store
from sandbox.images.stored import Images
from sandbox.models import Container, as_pod
from sandbox.pods import RunningPod, start

if TYPE_CHECKING:
    from sandbox.images.image import Image

__all__ = ["Prepared", "prepare"]

#: What to do once the container is ready: a function of the running pod, a command, or several of either.
Work = Callable[[RunningPod], object] | Sequence[Any] | str


def prepare(
    container: Container | None = None, /, *, until: Any = None, run: Work | None = None, key: Any = None, **fields: Any
) -> Container:  # fmt: skip
    """A container that starts where this one has got to when it is ready and ``run`` is done.

    Nothing happens before the container that is returned is started for the first time: then the given one is started,
    ``run`` done, the container stopped, and what it has changed of its image kept as a layer. Whoever starts it after that,
    in whatever process, starts from a copy-on-write clone. One process prepares while others wait.

    >>> db = sandbox.prepare(Container(image="postgres:16", env={"POSTGRES_PASSWORD": "x"}), until=Port(5432),
    ...                      run=["psql", "-U", "postgres", "-f", "/schema.sql"])

    :param container: what to start; without one, ``fields`` describe it (:func:`sandbox.as_pod`)
    :param until: when it is ready for ``run``; its own ``ready`` if not given
    :param run: a command for :meth:`~sandbox.RunningPod.exec`, a function that is given the running pod, or a list of
        them. It must succeed
    :param key: what else the result depends on: values, and :class:`pathlib.Path` of files, whose content counts. The
        image, the container's fields, and commands and code of ``run`` count anyway
    :returns: the container with the prepared image in place of its own

    What lies in volumes, bind mounts and tmpfs is no part of the image, and is not kept.
    """
    pod = as_pod(container, **fields)
    if len(pod.containers) != 1:
        raise BuildError("one container at a time", operation="prepare", object=", ".join(pod.names))
    model = pod.containers[0]
    made = Prepared(model, until if until is not None else model.ready, _listed(run), _frozen(key))
    return attrs.evolve(model, image=made)


def _listed(run: Work | None) -> tuple[Any, ...]:
    """A tuple of functions and commands."""
    if run is None:
        return ()
    if callable(run) or isinstance(run, str):
        return (run,)
    if all(isinstance(word, str | os.PathLike) for word in run) and run:
        return (tuple(os.fspath(word) for word in run),)
    return tuple(each if callable(each) or isinstance(each, str) else tuple(map(os.fspath, each)) for each in run)


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(_frozen(each) for each in (sorted(value, key=repr) if isinstance(value, set | frozenset) else value))
    if isinstance(value, dict):
        return tuple((name, _frozen(value[name])) for name in sorted(value))
    return value


@attrs.frozen(repr=False)
class Prepared:
    """An image that is prepared when it is first needed; made by :func:`prepare`."""

    container: Container
    until: Any
    run: tuple[Any, ...]
    key: Any = None

    def __str__(self) -> str:
        return f"{self.container.image}, prepared"

    __repr__ = __str__

    def resolve_image(self, options: Options | None = None) -> Image:
        """The image; prepared now if nobody has done so before. What ``image=`` of a container calls.

        :raises BuildError: the container did not stop when it was asked to
        :raises SandboxError: it did not become ready, or ``run`` failed
        """
        chosen = options or Options.from_environment()
        store = Store(chosen.store) if chosen.store else Store.default()
        workshop = Workshop(store, chosen)
        image = self.below(workshop.options)
        digest = workshop.once(self.name_of(image), lambda: self._made(image, workshop))
        found = Manifests(store.blobs, str(self), store).image(Images(store).get(digest).start)
        return attrs.evolve(image, layers=(*image.layers, *found.layers)) if image.kind == "host" else found

    def below(self, options: Options) -> Image:
        """The image that the container is started from, the first time."""
        given = self.container.image
        if not isinstance(given, str):
            made: Image = given.resolve_image(options)
            return made
        return resolve(given, store=options.store, pull=self.container.pull or options.pull, lock=options.lock)

    def name_of(self, image: Image) -> str:
        """What the result is kept under: it changes with everything that the result depends on."""
        model = attrs.asdict(attrs.evolve(self.container, image="host", ready=None), value_serializer=_plain)
        inputs = [identity(image), _facts(model), _facts(self.until)]
        return f"prepared:{key_of(*inputs, [_facts(each) for each in self.run], _facts(self.key))}"

    def _made(self, image: Image, workshop: Workshop) -> Draft:
        """Do the slow part."""
        # Above the host's own files there are only layers of this kind: they are no image that others could use.
        below = Draft.scratch() if image.kind == "host" else draft_below(image, workshop)
        model = attrs.evolve(self.container, image=Fixed(image), ready=self.until)
        with start(model, options=workshop.options) as pod:
            for each in self.run:
                if callable(each):
                    each(pod)
                else:
                    pod.exec(each, check=True)
            self._stop(pod)
            layer = layer_of(pod.containers[model.name], workshop)
        return below.noted(f"prepared: {self}", layer)

    def _stop(self, pod: RunningPod) -> None:
        """Cleanly: what was killed may not have written what it should have."""
        status = pod.stop()
        if status == -9:
            raise BuildError(
                f"it did not stop within {self.container.stop_timeout:g} seconds and had to be killed",
                operation="prepare", object=self.container.name, logs=pod.logs(tail=20),
                hint="give it more time (stop_timeout=), or the signal that it stops at (stop_signal=)",
            )  # fmt: skip


def _plain(_instance: Any, _field: Any, value: Any) -> Any:
    return dict(value) if hasattr(value, "items") else value


def _facts(value: Any) -> Any:
    """A value as JSON that is the same wherever it is the same. Code counts by what it does, files by their content."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Path):
        return ["file", _digest(value)]
    if isinstance(value, dict):
        return [[str(name), _facts(value[name])] for name in sorted(value, key=str)]
    if isinstance(value, list | tuple):
        return [_facts(each) for each in value]
    return _facts_of_code(value)


def _facts_of_code(value: Any) -> Any:
    if isinstance(value, CodeType):
        return [value.co_code.hex(), list(value.co_names), [_facts(each) for each in value.co_consts]]
    if isinstance(value, functools.partial):
        return [_facts(value.func), _facts(value.args), _facts(value.keywords)]
    if (code := getattr(value, "__code__", None)) is not None:
        cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        return [_facts(code), _facts(cells), _facts(getattr(value, "__defaults__", None))]
    if attrs.has(type(value)):
        return [type(value).__qualname__, _facts(attrs.asdict(value, recurse=False))]
    text = repr(value)
    if re.search(r" at 0x[0-9a-f]+>", text):
        raise BuildError(
            f"nobody can tell in another process whether it is the same {text}", operation="prepare with",
            object=type(value).__qualname__, hint="give `run` a function that makes it, and what it depends on as `key`",
        )  # fmt: skip
    return text


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BuildError(operation="read", path=path, errno=error.errno) from None
