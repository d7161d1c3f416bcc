"""From an index to a manifest to layers: the part that every source with an OCI or docker manifest shares.

Documents are taken as the JSON they are: only what is needed to find layers is looked at, with the checks of
image-spec 1.1 ("OCI Image Index", "OCI Image Manifest"); the configuration goes through :mod:`sandbox.oci`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from sandbox.errors import ImageError, SpecError
from sandbox.images.blobs import Blobs, LayerBlob, read_document
from sandbox.images.documents import (
    CONFIGS,
    INDEXES,
    LAYERS,
    MANIFESTS,
    Descriptor,
    descriptor,
    descriptors,
    parse_json,
    parse_json_list,
)
from sandbox.images.errors import ImageTooLarge, MediaTypeError, PlatformNotFound
from sandbox.images.image import Image
from sandbox.images.platforms import host_platform
from sandbox.images.store import Store

if TYPE_CHECKING:
    from sandbox.oci.image import ImageConfig

__all__ = [
    "Descriptor",
    "Manifests",
    "Parts",
    "choose",
    "descriptors",
    "diff_ids",
    "image_from",
    "load_config",
    "parse_json",
    "parse_json_list",
]


@attrs.frozen
class Parts:
    """What an image for this machine consists of, as its checked documents say."""

    #: From what the search began at to the manifest: indexes, then the manifest itself.
    documents: tuple[Descriptor, ...]
    config: Descriptor
    #: Lowest first.
    layers: tuple[Descriptor, ...]

    @property
    def manifest(self) -> Descriptor:
        """The manifest for this machine."""
        return self.documents[-1]

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Everything that has to be there for the image to be there."""
        return (*self.documents, self.config, *self.layers)


class Manifests:
    """Finds the manifest for this machine among the blobs of one place."""

    def __init__(self, blobs: Blobs, image: str, store: Store) -> None:
        self._blobs = blobs
        self._image = image
        self._store = store

    def image(self, start: Descriptor) -> Image:
        """The image behind a manifest or index.

        :raises ImageVerificationError: a document or layer is not what its descriptor says
        :raises MediaTypeError: it is of a type that is no image
        :raises PlatformNotFound: an index has nothing for this machine
        """
        parts = self.parts(start)
        openers = [self.opener(layer) for layer in parts.layers]
        config = self.config(parts)
        digest = parts.manifest.digest
        return image_from(self._image, config, parts.layers, openers, store=self._store, digest=digest)

    def parts(self, start: Descriptor) -> Parts:
        """The documents from a manifest or index on; layers are not looked at. Raises what :meth:`image` does."""
        documents, manifest = self._manifest(start, self._store.limits.nesting)
        config = descriptor(manifest.get("config"), self._image, "manifest, config")
        if config.media_type not in CONFIGS:
            raise self._unknown("configuration", config, CONFIGS)
        layers = descriptors(manifest, "layers", self._image, "manifest")
        for layer in layers:
            if layer.media_type not in LAYERS:
                raise self._unknown("layer", layer, sorted(LAYERS))
        return Parts(documents, config, tuple(layers))

    def config(self, parts: Parts) -> bytes:
        """The configuration of an image, verified."""
        return self._read(parts.config, self._store.limits.config, "configuration")

    def opener(self, layer: Descriptor) -> Callable[[], Any]:
        """What opens the bytes of a layer as they are stored."""
        algorithm, _, value = layer.digest.partition(":")
        return lambda: self._blobs.open(f"blobs/{algorithm}/{value}")

    def _manifest(self, start: Descriptor, depth: int) -> tuple[tuple[Descriptor, ...], dict[str, Any]]:
        """Follow indexes to a manifest that runs here; the documents on the way, and the last one's content."""
        what = "index" if start.media_type in INDEXES else "manifest"
        if start.media_type not in INDEXES + MANIFESTS:
            raise self._unknown("manifest", start, INDEXES + MANIFESTS)
        document = parse_json(self._read(start, self._store.limits.manifest, what), self._image, what)
        if document.get("mediaType", start.media_type) != start.media_type:
            detail = f"the {what} says it is {document['mediaType']!r}, its descriptor {start.media_type!r}"
            raise MediaTypeError(detail, operation="read", object=self._image)
        if what == "manifest":
            return (start,), document
        if not depth:
            raise ImageTooLarge("indexes within indexes, too deep", operation="read", object=self._image)
        found = descriptors(document, "manifests", self._image, "index")
        rest, manifest = self._manifest(choose(found, self._image), depth - 1)
        return (start, *rest), manifest

    def _read(self, blob: Descriptor, limit: int, what: str) -> bytes:
        return read_document(self._blobs, blob.digest, blob.size, limit=limit, image=self._image, what=what)

    def _unknown(self, what: str, found: Descriptor, known: Sequence[str]) -> MediaTypeError:
        return MediaTypeError(
            f"the {what} {found.digest} has media type `{found.media_type}`",
            operation="read",
            object=self._image,
            hint=f"known are: {', '.join(known)}",
        )


def choose(found: Sequence[Descriptor], image: str) -> Descriptor:
    """The first entry of an index for this machine; an exact variant goes before a compatible one.

    :raises PlatformNotFound: there is none
    """
    here = host_platform()
    usable = [each for each in found if not each.attached]
    fitting = [each for each in usable if each.platform is not None and here.runs(each.platform)]
    fitting.sort(key=lambda each: each.platform != here)
    unmarked = [each for each in usable if each.platform is None]
    if not fitting and not unmarked:
        there = tuple(sorted({str(each.platform) for each in usable}))
        raise PlatformNotFound(operation="find image", object=image, wanted=str(here), available=there)
    return (fitting or unmarked)[0]


def image_from(
    image: str,
    config: bytes,
    layers: Sequence[Descriptor | None],
    openers: Sequence[Callable[[], Any]],
    *,
    store: Store,
    digest: str | None,
) -> Image:
    """Unpack layers as their configuration says, and put the image together.

    :param layers: descriptors, lowest first; ``None`` where only the configuration promises a digest
    :param openers: what opens the bytes of each
    """
    digests = diff_ids(parse_json(config, image, "configuration"), image)
    if len(digests) != len(layers):
        detail = f"{len(layers)} layers in the manifest, {len(digests)} in the configuration"
        raise ImageError(detail, operation="read configuration of", object=image)
    if not layers:
        raise ImageError("it has no layers, so there is nothing to run", operation="open image", object=image)
    blobs = [
        LayerBlob(image, diff_id, opener, layer.digest if layer else None, layer.size if layer else None)
        for diff_id, layer, opener in zip(digests, layers, openers, strict=True)
    ]
    unpacked = store.layers(blobs)
    return Image(
        image,
        "layers",
        layers=tuple(layer.path for layer in unpacked),
        config=load_config(config, image),
        digest=digest,
        id_mapped=store.id_mapped,
        ownership_lost=store.ownership_lost,
    )


def load_config(config: bytes, image: str) -> ImageConfig:
    """A configuration as a class.

    :raises ImageError: it is not what the specification says
    """
    from sandbox import oci

    try:
        return oci.load_image_config(config.decode())
    except (SpecError, UnicodeDecodeError) as error:
        raise ImageError(str(error), operation="read configuration of", object=image) from error


def diff_ids(config: dict[str, Any], image: str) -> list[str]:
    """Digests of the uncompressed layers, lowest first, as a configuration has them."""
    rootfs = config.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ImageError(
            "`rootfs.diff_ids` is not a list of digests", operation="read configuration of", object=image
        )
    return found
