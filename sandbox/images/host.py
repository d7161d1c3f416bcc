"""The image ``host``: the host's own root file system, to be shown below a throw-away overlay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.images.config import empty_config
from sandbox.images.image import Image

if TYPE_CHECKING:
    from sandbox.images.references import Reference
    from sandbox.images.store import Store

__all__ = ["resolve"]


def resolve(reference: Reference, store: Store) -> Image:  # noqa: ARG001 - the signature of every source
    """The host as an image: no layers of its own, an empty configuration, files under their host ids."""
    return Image(reference.text, "host", layers=(), config=empty_config())
