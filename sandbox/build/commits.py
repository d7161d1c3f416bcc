"""Make an image of what a container has become."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sandbox.build.bases import draft_of, stored
from sandbox.build.draft import Draft
from sandbox.build.running import layer_of
from sandbox.build.workshop import Workshop
from sandbox.errors import SandboxError, UnsupportedFeature
from sandbox.images.references import parse_registry_name
from sandbox.images.store import Store
from sandbox.images.stored import Images

if TYPE_CHECKING:
    from sandbox._container import RunningContainer
    from sandbox.images.image import Image

__all__ = ["commit", "draft_below"]


def commit(
    container: RunningContainer, tag: str | None = None, *, pause: bool = True, message: str | None = None,
    changes: Mapping[str, Any] | None = None, store: Store | None = None,
) -> str:  # fmt: skip
    """See :meth:`sandbox.RunningContainer.commit`."""
    workshop = Workshop(store or Store.default())
    name = parse_registry_name(tag).canonical if tag else None
    below = draft_below(container.image, workshop)
    with _still(container) if pause else contextlib.nullcontext():
        layer = layer_of(container, workshop)
    draft = below.configured(**(changes or {})).noted(message or f"commit of {container.name}", layer)
    start = draft.save(workshop.store)
    Images(workshop.store).add(start, name=name, image=tag or "the image of a container")
    return tag or start.digest


def draft_below(image: Image, workshop: Workshop) -> Draft:
    """The image that a container was started from, to go on from."""
    if image.kind == "host":
        raise UnsupportedFeature(
            "the image `host` is this machine itself", operation="make an image of", object=image.reference,
            feature="commit", hint="start the container from another image: debian:12, dir:PATH, mmdebstrap:bookworm",
        )  # fmt: skip
    if not image.layers:
        raise UnsupportedFeature(
            "only the process that started it knows what its image is made of", operation="make an image of",
            object=image.reference, feature="commit", hint="call commit() where the pod was started",
        )  # fmt: skip
    return stored(image, workshop.store) or draft_of(image, workshop)


@contextlib.contextmanager
def _still(container: RunningContainer) -> Iterator[None]:
    """Nothing is written meanwhile, where the kernel can stop it; an ended container is still anyway."""
    try:
        container.freeze()
    except SandboxError:  # no cgroup of its own, or it has ended
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(SandboxError):
            container.thaw()
