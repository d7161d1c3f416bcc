"""Build something from a Dockerfile: :func:`build`, and the image source ``build:``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from sandbox._launch import Options
from sandbox.build.context import Context, find_dockerfile
from sandbox.build.dockerfile import parse
from sandbox.build.draft import Draft
from sandbox.build.errors import BuildError
from sandbox.build.executor import Executor, Progress, Settings
from sandbox.build.stages import PROXIES, plan
from sandbox.build.workshop import Workshop, key_of
from sandbox.images.manifests import Manifests
from sandbox.images.references import parse_registry_name
from sandbox.images.store import Store
from sandbox.images.stored import Images, StoredImage

if TYPE_CHECKING:
    from sandbox.images.image import Image
    from sandbox.images.references import Reference

__all__ = ["build", "finished", "resolve"]

_MAX_FILE = 4 << 20


def build(
    context: str | os.PathLike[str] = ".", file: str | os.PathLike[str] | None = None, *, tags: tuple[str, ...] = (),
    target: str | None = None, settings: Settings | None = None, store: Store | None = None,
    progress: Progress | None = None, options: Options | None = None,
) -> StoredImage:  # fmt: skip
    """Build an image from a Dockerfile.

    :param context: the directory that COPY takes files from
    :param file: the Dockerfile; without, ``Dockerfile`` or ``Containerfile`` in the context
    :param tags: what to call the result
    :param target: the stage to stop at
    :param options: how base images are pulled and what pods of steps run under; the environment's, if not given
    :raises BuildError: the file is malformed, or a step failed; ``line`` says where
    :raises ImageError: a base image is not there or is broken
    """
    directory = Path(context)
    where = _dockerfile(directory, file)
    chosen, place = settings or Settings(), store or Store.default()
    names = [parse_registry_name(tag).canonical for tag in tags]
    stages = plan(parse(_text(where), os.fspath(where)), chosen.arguments)
    executor = Executor(stages, Context(directory, where), Workshop(place, options), chosen, progress)
    executor.context.need()
    draft = executor.build(target)
    _check_arguments(executor, chosen.arguments)
    return finished(draft, executor.workshop, names)


def _check_arguments(executor: Executor, given: Mapping[str, str]) -> None:
    """An argument that no ARG takes is most likely a mistyped name."""
    known = executor.used | set(executor.plan.arguments) | PROXIES
    if unused := sorted(set(given) - known):
        raise BuildError(
            f"no ARG of what was built takes `{unused[0]}`", operation="build with argument", object=unused[0],
            hint=f"there are: {', '.join(sorted(executor.used)) or 'none'}",
        )  # fmt: skip


def finished(draft: Draft, workshop: Workshop, names: list[str]) -> StoredImage:
    """Note an image in the store. The same steps give the same image, with the time at which it was made first."""
    document = dict(draft.document)
    steps = [entry.get("created_by") for entry in draft.history]
    key = f"image:{key_of(document, draft.identity, steps)}"
    images = Images(workshop.store)
    digest = workshop.recall(key)
    if digest is not None:
        start = images.get(digest).start
    else:
        start = draft.save(workshop.store)
        workshop.remember(key, start.digest)
    found = images.add(start, image="the image that was built")
    for name in names:
        images.names.set(name, start.digest)
    return attrs.evolve(found, names=tuple(names))


def _dockerfile(directory: Path, file: str | os.PathLike[str] | None) -> Path:
    if file is not None:
        return Path(file)
    found = find_dockerfile(directory)
    if found is None:
        missing = "there is no such directory" if not directory.is_dir() else "there is no Dockerfile in it"
        raise BuildError(missing, operation="build", path=directory, hint="name it with -f, or give another directory")
    return found


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE + 1).decode("utf-8")
    except UnicodeDecodeError:
        raise BuildError("it is not UTF-8", operation="read", path=path) from None
    except OSError as error:
        raise BuildError(operation="read the Dockerfile", path=path, errno=error.errno) from None


def resolve(
    reference: Reference, store: Store, *, pull: str | None = None, lock: str | os.PathLike[str] | None = None
) -> Image:  # fmt: skip
    """``build:DIR`` or ``build:FILE``, whose directory is then the context; quiet, and only what is not known is done.

    :param pull: when registries are asked for base images; what the environment says, if not given, as with ``lock``
    :param lock: a file sandbox.lock, or ``none``
    :raises BuildError: see :func:`build`
    """
    options = Options.from_environment()
    if pull is not None:
        options = attrs.evolve(options, pull=pull)
    if lock is not None:
        options = attrs.evolve(options, lock=None if lock == "none" else os.fspath(lock))
    path = Path(reference.path or ".")
    context, file = (path, None) if path.is_dir() else (path.parent, path)
    found = build(context, file, store=store, options=options)
    return Manifests(store.blobs, reference.text, store).image(found.start)
