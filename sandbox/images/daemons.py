"""Images of other engines: ``docker-daemon:NAME`` and ``containers-storage:NAME``, through their own programs.

What such an engine has is asked for its id, and taken into the store once, under a name made of that id.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sandbox.errors import ImageError, ImageNotFound
from sandbox.images.load import load
from sandbox.images.manifests import Manifests
from sandbox.images.places import store_errors
from sandbox.images.stored import Images

if TYPE_CHECKING:
    from sandbox.images.image import Image
    from sandbox.images.references import Reference
    from sandbox.images.store import Store

__all__ = ["resolve"]


class _Engine(NamedTuple):
    """A program that has images."""

    program: str
    #: Prints the id of an image, or its configuration, whose digest that is.
    identify: Callable[[str], list[str]]
    #: Writes an image as an archive into a file, which is its standard output as well.
    save: Callable[[str, Path], list[str]]


_DOCKER = _Engine(
    "docker",
    lambda name: ["image", "inspect", "--format", "{{.Id}}", name],
    lambda name, _: ["image", "save", name],
)
_PODMAN = _Engine(
    "podman",
    lambda name: ["image", "inspect", "--format", "{{.Id}}", name],
    lambda name, _: ["image", "save", "--quiet", "--format", "oci-archive", name],
)
_SKOPEO = _Engine(
    "skopeo",
    lambda name: ["inspect", "--config", "--raw", f"containers-storage:{name}"],
    lambda name, path: ["copy", "--quiet", f"containers-storage:{name}", f"oci-archive:{path}"],
)


def resolve(reference: Reference, store: Store) -> Image:
    """The image that an engine has by this name.

    :raises ImageNotFound: the engine's program is not installed, or does not have the image
    :raises ImageError: what it gives is no image
    """
    if reference.path.startswith("-"):
        raise ImageError("a name does not begin with `-`", operation="find image", object=reference.text)
    engine = _engine(reference)
    answer = _run(engine, engine.identify(reference.path), reference)
    digits = answer.decode("ascii", "replace").strip().removeprefix("sha256:")
    if not digits.isalnum():
        digits = hashlib.sha256(answer).hexdigest()
    images = Images(store)
    name = f"localhost/{reference.transport}:{digits[:64]}"
    found = images.look_up(name)
    if found is None:
        _take(engine, reference, store, name)
        found = images.find(name)
    return Manifests(store.blobs, reference.text, store).image(found.start)


def _engine(reference: Reference) -> _Engine:
    """The program to ask. Only skopeo takes a storage in brackets, containers-transports(5)."""
    if reference.transport == "docker-daemon":
        candidates = [_DOCKER]
    else:
        candidates = [_SKOPEO] if reference.path.startswith("[") else [_PODMAN, _SKOPEO]
    for engine in candidates:
        if shutil.which(engine.program) is not None:
            return engine
    names = " or ".join(engine.program for engine in candidates)
    raise ImageNotFound(
        f"{names} would have to be installed",
        operation="find image", object=reference.text, feature=reference.transport,
        hint=f"install {candidates[0].program}, or use a name of a registry",
    )  # fmt: skip


def _take(engine: _Engine, reference: Reference, store: Store, name: str) -> None:
    with store_errors("write archive", reference.text, store.root), store.places.new_file() as (descriptor, path):
        _run(engine, engine.save(reference.path, path), reference, output=descriptor)
        load(path, store, name=name)


def _run(engine: _Engine, arguments: Sequence[str], reference: Reference, output: int = subprocess.PIPE) -> bytes:
    done = subprocess.run(
        [engine.program, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip()
        raise ImageNotFound(
            f"{engine.program} ended with {done.returncode}", operation="find image", object=reference.text,
            cause=words[-1000:] or None, hint=f"`{engine.program} {' '.join(arguments[:2])}` has to work for this user",
        )  # fmt: skip
    return done.stdout or b""
