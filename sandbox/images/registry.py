"""Docker-style names: images that the store has, or that a registry gives."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from sandbox.errors import ImageError, ImageNotFound

if TYPE_CHECKING:
    from sandbox.images.distribution.pins import Pins
    from sandbox.images.image import Image
    from sandbox.images.references import Reference
    from sandbox.images.store import Store

__all__ = ["resolve"]

_POLICIES = ("always", "missing", "never")


def resolve(
    reference: Reference, store: Store, *, pull: str = "missing", pins: Pins | None = None
) -> Image:  # fmt: skip
    """The image of a name, unpacked.

    :param pull: ``always`` asks the registry each time, ``missing`` if the store does not have it, ``never`` not at all
    :param pins: what names mean, instead of what the store or a registry says
    :raises ImageNotFound: there is none, or none is to be fetched, or none is pinned
    :raises ImageError: whatever else fetching and unpacking raise
    """
    if pull not in _POLICIES:
        raise ImageError(
            f"there is no pull policy `{pull}`", operation="find image", object=reference.text,
            hint=f"choose from {', '.join(_POLICIES)}",
        )  # fmt: skip
    local = pull != "always"
    if local and pins is None and (found := _stored(reference, store, healed=pull != "never")) is not None:
        return found
    from sandbox.images.distribution.registries_conf import canonical

    wanted = canonical(reference)
    if pins is not None:
        wanted = pins.pinned(wanted)
    if local and wanted != reference and (found := _stored(wanted, store, healed=pull != "never")) is not None:
        return found
    if pull == "never":
        raise ImageNotFound(
            f"the store {store.root} does not have {wanted.canonical}, and nothing is fetched",
            operation="find image", object=reference.text, cause="the pull policy is `never`",
            hint=f"fetch it once with `sandbox pull {reference.text}`",
        )  # fmt: skip
    from sandbox.images.distribution.progress import when_slow
    from sandbox.images.distribution.pull import pull as fetch

    image = fetch(wanted, store, policy=pull, progress=when_slow(f"pulling {reference.text}")).image
    assert image is not None
    return image


def _stored(reference: Reference, store: Store, *, healed: bool) -> Image | None:
    """What the store has of this name, digest or id; ``None`` if that is nothing.

    :param healed: also if something of it has gone, because it will be fetched again
    """
    from sandbox.images.manifests import Manifests
    from sandbox.images.stored import Images

    images = Images(store)
    start = images.start_of(reference.canonical)
    if start is None and not reference.digest:
        start = images.start_of(reference.text)
    if start is None:
        return None
    try:
        return Manifests(store.blobs, reference.text, store).image(start)
    except ImageError as error:
        if healed and error.errno == errno.ENOENT:
            return None
        raise
