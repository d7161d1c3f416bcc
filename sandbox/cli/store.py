"""What the subcommands for images share: the store, images found in it, images as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox.images.image import Image
    from sandbox.images.store import Store
    from sandbox.images.stored import Images, StoredImage
    from sandbox.oci.image import ImageConfig

#: Digits of an id that are shown to people.
_SHORT = 12


def images() -> Images:
    """The images of this user's store."""
    from sandbox.images.store import Store
    from sandbox.images.stored import Images

    return Images(Store.default())


def resolved(reference: str) -> tuple[Image, Store]:
    """An image wherever it is, unpacked in this user's store; the environment may say when registries are asked."""
    from sandbox._launch import Options
    from sandbox.images import resolve
    from sandbox.images.store import Store

    options, store = Options.from_environment(), Store.default()
    return resolve(reference, store=store, pull=options.pull, lock=options.lock), store


def short(digest: str) -> str:
    """The beginning of a digest, without its algorithm."""
    return digest.partition(":")[2][:_SHORT]


def config_of(found: Images, image: StoredImage) -> ImageConfig:
    """An image's configuration. Raises :class:`~sandbox.errors.ImageError`."""
    from sandbox.images.layout import DirectoryBlobs
    from sandbox.images.manifests import Manifests, load_config

    manifests = Manifests(DirectoryBlobs(found.store.root), image.digest, found.store)
    return load_config(manifests.config(image.parts), image.digest)


def row(found: Images, image: StoredImage) -> dict[str, Any]:
    """Everything that ``--json`` tells about an image."""
    config = config_of(found, image)
    unpacked = unpacked_sizes(found.store, config.rootfs.diff_ids)
    return {
        "names": list(image.names),
        "id": image.id,
        "digest": image.digest,
        "manifest": image.parts.manifest.digest,
        "platform": "/".join(filter(None, (config.os, config.architecture, config.variant))),
        "created": config.created,
        "stored": image.time,
        "size": image.size,
        "unpacked": sum(unpacked.values()) if len(unpacked) == len(set(config.rootfs.diff_ids)) else None,
        "layers": [layer.digest for layer in image.parts.layers],
    }


def unpacked_sizes(store: Store, diff_ids: Iterable[str]) -> dict[str, int]:
    """Bytes of those layers that are unpacked already, by their digests."""
    found = {}
    for diff_id in diff_ids:
        layer = store.unpacked(diff_id)
        if layer is not None:
            found[diff_id] = layer.size
    return found


def when(created: str | None) -> str:
    """How long ago a time of RFC 3339 was; empty if there is none, or it is none."""
    import datetime as dt
    import time

    from sandbox.cli.ps import age

    try:
        seconds = time.time() - dt.datetime.fromisoformat(created or "").timestamp()
    except (ValueError, OverflowError):
        return ""
    years = seconds / (365.25 * 86400)
    return f"{years:.0f} years" if years >= 2 else age(seconds)
