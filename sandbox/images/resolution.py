"""From a reference to an image: which source it belongs to, and what that needs to know."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sandbox.images.references import parse
from sandbox.images.sources import find_builder, find_source, registered_transports
from sandbox.images.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.images.distribution.pins import Pins
    from sandbox.images.image import Image

__all__ = ["resolve"]


def resolve(
    reference: str,
    *,
    store: Store | str | Path | None = None,
    pull: str | None = None,
    lock: str | Path | None = None,
) -> Image:
    """The image behind a reference, verified and unpacked.

    :param reference: ``host``, ``dir:PATH``, ``oci:PATH[:TAG]``, ``oci-archive:PATH[:TAG]``,
        ``docker-archive:PATH[:NAME]``, a path (``./rootfs``), what a registered source knows, the name, digest
        or id of an image in the store, or a name that a registry knows (``redis:7``)
    :param store: where images are kept; by default this user's store, see :meth:`Store.default`
    :param pull: when a registry is asked: ``always``, ``missing`` (if the store does not have it) or ``never``; by default
        what ``SANDBOX_PULL`` says, else ``missing``
    :param lock: a file sandbox.lock, which says what names mean (:mod:`sandbox.images.distribution.pins`), or ``none``;
        by default what ``SANDBOX_LOCK`` says, else none
    :raises ImageNotFound: there is no such image
    :raises ImageVerificationError: a blob is not what its digest or size says
    :raises ImageError: the reference or the image is bad; the message has the layer and the entry
    """
    parsed = parse(reference, registered_transports())
    place = store if isinstance(store, Store) else Store(store) if store is not None else Store.default()
    if parsed.transport == "docker":
        from sandbox.images import registry

        policy = pull or os.environ.get("SANDBOX_PULL") or "missing"
        return registry.resolve(parsed, place, pull=policy, pins=_pins(lock))
    if builder := find_builder(parsed.transport):
        return builder.resolve(parsed, place, pull=pull, lock=lock)
    return find_source(parsed.transport).resolve(parsed, place)


def _pins(lock: str | Path | None) -> Pins | None:
    path = lock or os.environ.get("SANDBOX_LOCK") or "none"
    if path == "none":
        return None
    from sandbox.images.distribution.pins import Pins

    return Pins.load(path)
