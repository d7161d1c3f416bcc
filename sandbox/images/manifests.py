"""From an index to a manifest to layers: the part that every source with an OCI or docker manifest shares.

Documents are taken as the JSON they are: only what is needed to find layers is looked at, with the checks of
image-spec 1.1 ("OCI Image Index", "OCI Image Manifest"); the configuration goes through :mod:`sandbox.oci`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from sandbox.errors import ImageError, SpecError
from sandbox.images.blobs import Blobs, LayerBlob, read_document
from sandbox.images.errors import ImageTooLarge, MediaTypeError, PlatformNotFound
from sandbox.images.image import Image
from sandbox.images.platforms import Platform, host_platform
from sandbox.images.store import Store

__all__ = ["Descriptor", "Manifests", "choose", "descriptors", "image_from", "parse_json", "parse_json_list"]

_OCI = "application/vnd.oci.image."
_DOCKER = "application/vnd.docker."
_INDEXES = (f"{_OCI}index.v1+json", f"{_DOCKER}distribution.manifest.list.v2+json")
_MANIFESTS = (f"{_OCI}manifest.v1+json", f"{_DOCKER}distribution.manifest.v2+json")
_CONFIGS = (f"{_OCI}config.v1+json", f"{_DOCKER}container.image.v1+json")
_LAYERS = frozenset(
    [
        f"{_OCI}layer.{kind}v1.tar{packed}"
        for kind in ("", "nondistributable.")
        for packed in ("", "+gzip", "+zstd")
    ]
    + [
        f"{_DOCKER}image.rootfs.{kind}diff.tar{packed}"
        for kind in ("", "foreign.")
        for packed in ("", ".gzip", ".zstd")
    ]
)


@attrs.frozen
class Descriptor:
    """What a document says about a blob (image-spec, "OCI Content Descriptors")."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    #: Name that annotations give it.
    names: tuple[str, ...] = ()
    #: It describes something else, like a signature or build record: never what a user asked to run.
    attached: bool = False


def parse_json(content: bytes, image: str, what: str) -> dict[str, Any]:
    """A JSON object.

    :raises ImageError: it is something else
    """
    document = _parse(content, image, what)
    if not isinstance(document, dict):
        raise _bad(image, what, "not a JSON object")
    return document


def parse_json_list(content: bytes, image: str, what: str) -> list[dict[str, Any]]:
    """A JSON list of objects.

    :raises ImageError: it is something else
    """
    document = _parse(content, image, what)
    if not isinstance(document, list) or not all(isinstance(each, dict) for each in document):
        raise _bad(image, what, "not a list of JSON objects")
    return document


def _parse(content: bytes, image: str, what: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _bad(image, what, f"not JSON: {error}") from error


def _bad(image: str, what: str, detail: str) -> ImageError:
    return ImageError(detail, operation=f"read {what} of", object=image)


def descriptors(document: dict[str, Any], member: str, image: str, what: str) -> list[Descriptor]:
    """The descriptors in a list of a document."""
    found = document.get(member)
    if not isinstance(found, list):
        raise _bad(image, what, f"`{member}` is not a list")
    return [descriptor(item, image, f"{what}, {member}[{number}]") for number, item in enumerate(found)]


def descriptor(value: object, image: str, what: str) -> Descriptor:
    """One descriptor, checked."""
    if not isinstance(value, dict):
        raise _bad(image, what, "not a descriptor")
    digest, size = value.get("digest"), value.get("size")
    if not isinstance(digest, str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise _bad(image, what, "a descriptor needs a digest and a size")
    notes = value.get("annotations")
    notes = notes if isinstance(notes, dict) else {}
    named = (notes.get("org.opencontainers.image.ref.name"), notes.get("io.containerd.image.name"))
    return Descriptor(
        media_type=str(value.get("mediaType") or ""),
        digest=digest,
        size=size,
        platform=_platform(value.get("platform")),
        names=tuple(name for name in named if isinstance(name, str)),
        attached="vnd.docker.reference.type" in notes,
    )


def _platform(value: object) -> Platform | None:
    if not isinstance(value, dict):
        return None
    return Platform(
        str(value.get("os", "")), str(value.get("architecture", "")), str(value.get("variant") or "")
    )


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
        chosen, manifest = self._manifest(start, self._store.limits.nesting)
        config = self._config(manifest)
        layers = descriptors(manifest, "layers", self._image, "manifest")
        for layer in layers:
            if layer.media_type not in _LAYERS:
                raise self._unknown("layer", layer, sorted(_LAYERS))
        openers = [self._opener(layer) for layer in layers]
        return image_from(self._image, config, layers, openers, store=self._store, digest=chosen.digest)

    def _opener(self, layer: Descriptor) -> Callable[[], Any]:
        algorithm, _, value = layer.digest.partition(":")
        return lambda: self._blobs.open(f"blobs/{algorithm}/{value}")

    def _config(self, manifest: dict[str, Any]) -> bytes:
        config = descriptor(manifest.get("config"), self._image, "manifest, config")
        if config.media_type not in _CONFIGS:
            raise self._unknown("configuration", config, _CONFIGS)
        return self._read(config, self._store.limits.config, "configuration")

    def _manifest(self, start: Descriptor, depth: int) -> tuple[Descriptor, dict[str, Any]]:
        """Follow indexes to a manifest that runs here."""
        what = "index" if start.media_type in _INDEXES else "manifest"
        if start.media_type not in _INDEXES + _MANIFESTS:
            raise self._unknown("manifest", start, _INDEXES + _MANIFESTS)
        document = parse_json(self._read(start, self._store.limits.manifest, what), self._image, what)
        if document.get("mediaType", start.media_type) != start.media_type:
            detail = f"the {what} says it is {document['mediaType']!r}, its descriptor {start.media_type!r}"
            raise MediaTypeError(detail, operation="read", object=self._image)
        if what == "manifest":
            return start, document
        if not depth:
            raise ImageTooLarge("indexes within indexes, too deep", operation="read", object=self._image)
        found = descriptors(document, "manifests", self._image, "index")
        return self._manifest(choose(found, self._image), depth - 1)

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
    diff_ids = _diff_ids(parse_json(config, image, "configuration"), image)
    if len(diff_ids) != len(layers):
        detail = f"{len(layers)} layers in the manifest, {len(diff_ids)} in the configuration"
        raise ImageError(detail, operation="read configuration of", object=image)
    if not layers:
        raise ImageError("it has no layers, so there is nothing to run", operation="open image", object=image)
    blobs = [
        LayerBlob(image, diff_id, opener, layer.digest if layer else None, layer.size if layer else None)
        for diff_id, layer, opener in zip(diff_ids, layers, openers, strict=True)
    ]
    unpacked = store.layers(blobs)
    return Image(
        image,
        "layers",
        layers=tuple(layer.path for layer in unpacked),
        config=_load_config(config, image),
        digest=digest,
        id_mapped=store.id_mapped,
        ownership_lost=store.ownership_lost,
    )


def _load_config(config: bytes, image: str) -> Any:
    from sandbox import oci

    try:
        return oci.load_image_config(config.decode())
    except (SpecError, UnicodeDecodeError) as error:
        raise ImageError(str(error), operation="read configuration of", object=image) from error


def _diff_ids(config: dict[str, Any], image: str) -> list[str]:
    rootfs = config.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ImageError(
            "`rootfs.diff_ids` is not a list of digests", operation="read configuration of", object=image
        )
    return found
