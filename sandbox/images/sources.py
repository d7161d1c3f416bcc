"""Where images come from: one source per transport, and the table that a plug-in can add to."""

from __future__ import annotations

import functools
import importlib
import os
from typing import TYPE_CHECKING, Protocol, cast

from sandbox.errors import ImageError

if TYPE_CHECKING:
    from sandbox.images.image import Image
    from sandbox.images.references import Reference
    from sandbox.images.store import Store

__all__ = [
    "Builder",
    "Source",
    "find_builder",
    "find_source",
    "known_transports",
    "register_source",
    "registered_transports",
    "unregister_source",
]

#: Module of each transport of our own; imported when it is first needed.
_MODULES = {
    "host": "sandbox.images.host",
    "dir": "sandbox.images.directory",
    "path": "sandbox.images.directory",
    "oci": "sandbox.images.layout",
    "oci-archive": "sandbox.images.archive",
    "docker-archive": "sandbox.images.archive",
    "docker": "sandbox.images.registry",
    "docker-daemon": "sandbox.images.daemons",
    "containers-storage": "sandbox.images.daemons",
    # These run programs to make an image, and lie above this package: they are named here, and imported by nobody.
    "build": "sandbox.build.source",
    "mmdebstrap": "sandbox.build.mmdebstrap",
}

#: A bare path may be a directory with a Dockerfile.
_BUILDERS = frozenset({"build", "path"})

_registered: dict[str, Source] = {}

_module = functools.cache(importlib.import_module)


class Source(Protocol):
    """Something that turns references of one transport into images. A module with such a function will do."""

    def resolve(self, reference: Reference, store: Store) -> Image:
        """The image behind a reference, with its layers in the store.

        :param reference: taken apart; for a registered transport ``reference.path`` is all after ``name:``
        :param store: where unpacked layers live
        :raises ImageError: it is not there (:class:`~sandbox.errors.ImageNotFound`), does not verify
            (:class:`~sandbox.errors.ImageVerificationError`) or cannot be unpacked
        """
        ...


class Builder(Protocol):
    """A source of our own whose images may be built on those of registries."""

    def resolve(
        self, reference: Reference, store: Store, *, pull: str | None = None, lock: str | os.PathLike[str] | None = None
    ) -> Image:  # fmt: skip
        """As :meth:`Source.resolve`; ``pull`` and ``lock`` as for :func:`sandbox.images.resolve`."""
        ...


def register_source(transport: str, source: Source) -> None:
    """Add a source, so that references like ``transport:rest`` are resolved by it.

    :raises ImageError: the transport is one of our own or belongs to another source already
    """
    taken = transport in _MODULES or _registered.get(transport, source) is not source
    if taken or not transport or not transport.replace("-", "").isalnum() or transport != transport.lower():
        raise ImageError(
            "the name is taken" if taken else "a transport's name has lower-case letters, digits and -",
            operation="register image source",
            object=transport,
            hint=f"known are: {', '.join(known_transports())}",
        )
    _registered[transport] = source


def unregister_source(transport: str) -> None:
    """Forget a source that :func:`register_source` added; nothing happens if there is none."""
    _registered.pop(transport, None)


def registered_transports() -> tuple[str, ...]:
    """The transports that were added, in the order of their registration."""
    return tuple(_registered)


def known_transports() -> tuple[str, ...]:
    """Every transport a reference may start with."""
    return tuple(name for name in (*_MODULES, *_registered) if name != "path")


def find_builder(transport: str) -> Builder | None:
    """The source for a transport, if it asks registries for the images that it builds on."""
    return cast("Builder", _module(_MODULES[transport])) if transport in _BUILDERS else None


def find_source(transport: str) -> Source:
    """The source for a transport, imported if it is one of our own."""
    if transport in _registered:
        return _registered[transport]
    return cast("Source", _module(_MODULES[transport]))
