"""Docker-style names. Their grammar is known; pulling from registries is not part of this version."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from sandbox.errors import ImageNotFound
from sandbox.images.sources import known_transports

if TYPE_CHECKING:
    from sandbox.images.references import Reference
    from sandbox.images.store import Store

__all__ = ["resolve"]


def resolve(reference: Reference, store: Store) -> NoReturn:  # noqa: ARG001 - the signature of every source
    """Say that registries are not supported, and what is.

    :raises ImageNotFound: always
    """
    local = ", ".join(name for name in known_transports() if name != "docker")
    name = reference.canonical
    raise ImageNotFound(
        f"this version cannot pull {name} from a registry; it knows: {local}",
        operation="find image",
        object=reference.text,
        feature="registries",
        hint=f"fetch it with `skopeo copy docker://{name} oci:DIR:TAG`, then use oci:DIR:TAG",
    )
