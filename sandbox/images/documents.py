"""The JSON documents of images: parsed, and their descriptors checked (image-spec, "OCI Content Descriptors").

Documents are taken as the JSON they are; only what is needed to find layers is looked at.
"""

from __future__ import annotations

import json
from typing import Any

import attrs

from sandbox.errors import ImageError
from sandbox.images.platforms import Platform

__all__ = [
    "CONFIGS",
    "INDEXES",
    "LAYERS",
    "MANIFESTS",
    "Descriptor",
    "descriptor",
    "descriptors",
    "parse_json",
    "parse_json_list",
]

_OCI = "application/vnd.oci.image."
_DOCKER = "application/vnd.docker."
INDEXES = (f"{_OCI}index.v1+json", f"{_DOCKER}distribution.manifest.list.v2+json")
MANIFESTS = (f"{_OCI}manifest.v1+json", f"{_DOCKER}distribution.manifest.v2+json")
CONFIGS = (f"{_OCI}config.v1+json", f"{_DOCKER}container.image.v1+json")
LAYERS = frozenset(
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
