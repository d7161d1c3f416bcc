"""An image in the making: its configuration, its layers, how they came to be; and its way into the store."""

from __future__ import annotations

import copy
import datetime as dt
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from sandbox.images.blobs import read_document
from sandbox.images.documents import CONFIGS, MANIFESTS, Descriptor, descriptor, descriptors, parse_json
from sandbox.images.manifests import Manifests, diff_ids, image_from
from sandbox.images.platforms import Platform, host_platform

if TYPE_CHECKING:
    from sandbox.images.image import Image
    from sandbox.images.store import Store

__all__ = ["LAYER_TYPE", "Draft", "LayerRef", "now"]

#: Layers are kept as they are; whoever pushes or saves them may compress them.
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


#: What an image takes over from the one that it is built on; docker's has more, about the container that made it.
_INHERITED = frozenset({"architecture", "os", "os.version", "os.features", "variant", "author", "config"})
_OF_A_CONTAINER = frozenset({
    "Hostname", "Domainname", "AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce", "Image",
})  # fmt: skip


def now() -> str:
    """The time, as configurations have it (RFC 3339)."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@attrs.frozen
class LayerRef:
    """A layer in the store's blobs."""

    #: Digest of the uncompressed archive.
    diff_id: str
    #: The blob.
    blob: Descriptor


@attrs.frozen
class Draft:
    """An image in the making. Values: every change gives a new one.

    >>> Draft.scratch().configured(Cmd=["sh"]).config
    {'Cmd': ['sh']}
    """

    #: The image configuration (image-spec, "OCI Image Configuration") without ``rootfs`` and ``history``.
    document: Mapping[str, Any]
    layers: tuple[LayerRef, ...] = ()
    history: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def scratch(cls, platform: Platform | None = None) -> Draft:
        """An image with nothing in it."""
        ours = platform or host_platform()
        document = {"architecture": ours.architecture, "os": ours.os, "config": {}}
        return cls({**document, "variant": ours.variant} if ours.variant else document)

    @classmethod
    def known(cls, store: Store, digest: str) -> Draft:
        """An image of the store, to go on from.

        :param digest: of its manifest
        :raises ImageError: a document is missing or damaged
        """
        blobs, limits = store.blobs, store.limits
        text = read_document(blobs, digest, None, limit=limits.manifest, image=digest, what="manifest")
        manifest = parse_json(text, digest, "manifest")
        start = descriptor(manifest.get("config"), digest, "manifest, config")
        text = read_document(blobs, start.digest, start.size, limit=limits.config, image=digest, what="configuration")
        config = parse_json(text, digest, "configuration")
        found = descriptors(manifest, "layers", digest, "manifest")
        layers = tuple(LayerRef(*pair) for pair in zip(diff_ids(config, digest), found, strict=True))
        document = {key: value for key, value in config.items() if key in _INHERITED}
        inner = config.get("config") or {}
        document["config"] = {key: value for key, value in inner.items() if key not in _OF_A_CONTAINER}
        return cls(document, layers, tuple(config.get("history") or ()))

    @property
    def config(self) -> Mapping[str, Any]:
        """How containers of the image run: the member ``config``."""
        found: Mapping[str, Any] = self.document["config"]
        return found

    @property
    def env(self) -> dict[str, str]:
        """Its environment variables."""
        return dict(line.partition("=")[::2] for line in self.config.get("Env") or ())

    @property
    def identity(self) -> list[str]:
        """What the content of its root depends on."""
        return [layer.diff_id for layer in self.layers]

    def configured(self, **members: Any) -> Draft:
        """With members of ``config`` set; None takes one away."""
        config = {**copy.deepcopy(dict(self.config)), **members}
        config = {key: value for key, value in config.items() if value is not None}
        return attrs.evolve(self, document={**self.document, "config": config})

    def noted(self, text: str, layer: LayerRef | None = None, *, created: str | None = None) -> Draft:
        """With one more step in its history, and the layer that the step made."""
        entry: dict[str, Any] = {"created": created or now(), "created_by": text}
        if layer is None:
            entry["empty_layer"] = True
        return attrs.evolve(
            self, layers=self.layers if layer is None else (*self.layers, layer), history=(*self.history, entry)
        )  # fmt: skip

    def config_bytes(self) -> bytes:
        """The configuration as a blob."""
        created = self.history[-1].get("created") if self.history else None
        document = {
            **({"created": created} if created else {}), **self.document,
            "rootfs": {"type": "layers", "diff_ids": self.identity}, "history": list(self.history),
        }  # fmt: skip
        return json.dumps(document, separators=(",", ":")).encode()

    def save(self, store: Store) -> Descriptor:
        """Put configuration and manifest into the store; the manifest's descriptor."""
        config = store.blobs.add(self.config_bytes(), media_type=CONFIGS[0])
        manifest = {
            "schemaVersion": 2, "mediaType": MANIFESTS[0], "config": _described(config),
            "layers": [_described(layer.blob) for layer in self.layers],
        }  # fmt: skip
        return store.blobs.add(json.dumps(manifest, separators=(",", ":")).encode(), media_type=MANIFESTS[0])

    def image(self, store: Store, name: str) -> Image:
        """The image, unpacked, as containers are started from it.

        :param name: what errors call it
        """
        manifests = Manifests(store.blobs, name, store)
        blobs = [layer.blob for layer in self.layers]
        openers = [manifests.opener(blob) for blob in blobs]
        return image_from(name, self.config_bytes(), blobs, openers, store=store, digest=None)


def _described(blob: Descriptor) -> dict[str, Any]:
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}
