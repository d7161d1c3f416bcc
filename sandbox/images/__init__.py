"""Images: what a reference like ``oci:./redis:7`` means, and the directories its root is made of.

:func:`resolve` is the way in. Importing this package loads nothing: the helper that unpacks layers lives in
here too and must start fast, with the standard library alone.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # importing typing would double the time that the helper takes to start

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.images.distribution.pins import Pins
    from sandbox.images.image import Image, UserFiles
    from sandbox.images.references import Reference, parse
    from sandbox.images.sources import (
        Source,
        known_transports,
        register_source,
        registered_transports,
        unregister_source,
    )
    from sandbox.images.store import Store

__all__ = [
    "Image",
    "Reference",
    "Source",
    "Store",
    "UserFiles",
    "known_transports",
    "parse",
    "register_source",
    "registered_transports",
    "resolve",
    "unregister_source",
]

_HOME = {
    "Image": "image",
    "UserFiles": "image",
    "Reference": "references",
    "parse": "references",
    "Store": "store",
    "Source": "sources",
    "known_transports": "sources",
    "register_source": "sources",
    "registered_transports": "sources",
    "unregister_source": "sources",
}


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
    from sandbox.images.references import parse
    from sandbox.images.sources import find_builder, find_source, registered_transports
    from sandbox.images.store import Store

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


def __getattr__(name: str) -> object:
    if (module := _HOME.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
