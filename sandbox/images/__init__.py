"""Images: what a reference like ``oci:./redis:7`` means, and the directories its root is made of.

:func:`resolve` is the way in. Importing this package loads nothing: the helper that unpacks layers lives in
here too and must start fast, with the standard library alone.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would double the time that the helper takes to start

if TYPE_CHECKING:
    from sandbox.images.image import Image, UserFiles
    from sandbox.images.references import Reference, parse
    from sandbox.images.resolution import resolve
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
    "resolve": "resolution",
    "Store": "store",
    "Source": "sources",
    "known_transports": "sources",
    "register_source": "sources",
    "registered_transports": "sources",
    "unregister_source": "sources",
}


def __getattr__(name: str) -> object:
    """Fetch a public name from its module, and keep it here for the next time (PEP 562)."""
    if (module := _HOME.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return value
