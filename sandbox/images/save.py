"""Images of a store as one file: an OCI archive that docker reads too, or the archive of older ``docker save``.

The same image gives the same bytes: members have no times and no owners, and a fixed order.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from typing import TYPE_CHECKING, Any, BinaryIO

from sandbox.images.blobs import PlainLayer, missing
from sandbox.images.blobstore import path_of
from sandbox.images.manifests import Manifests
from sandbox.images.places import store_errors
from sandbox.images.stored import Images

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sandbox.images.documents import Descriptor
    from sandbox.images.store import Store
    from sandbox.images.stored import StoredImage

__all__ = ["FORMATS", "save"]

FORMATS = ("oci-archive", "docker-archive")


def save(images: Sequence[StoredImage], store: Store, file: BinaryIO, form: str = "oci-archive") -> None:
    """Write images to a file, which need not be seekable.

    :param form: one of :data:`FORMATS`. In an OCI archive layers stay as they came, so digests stay the same; the
        archive of docker has them uncompressed
    :raises ImageError: a blob is missing or damaged
    :raises OSError: the file cannot be written
    """
    for image in images:
        Images(store).check_complete(image, "save", (*image.names, image.digest)[0])
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        writer = _Writer(archive, store)
        if form == "oci-archive":
            writer.oci(images)
        else:
            writer.docker(images)


class _Writer:
    def __init__(self, archive: tarfile.TarFile, store: Store) -> None:
        self._archive = archive
        self._store = store
        self._written: set[str] = set()

    def oci(self, images: Sequence[StoredImage]) -> None:
        manifests = [document for image in images for document in _listed(image)]
        self._add_json("oci-layout", {"imageLayoutVersion": "1.0.0"})
        self._add_json("index.json", {"schemaVersion": 2, "manifests": manifests})
        for folder in ("blobs", "blobs/sha256"):  # skopeo, without root, stumbles over directories without an entry
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            self._archive.addfile(info)
        for image in images:
            for blob in (image.parts.manifest, image.parts.config, *image.parts.layers):
                self._add_blob(blob, image.digest)
        entries = [
            _entry(image, path_of(image.id), [path_of(layer.digest) for layer in image.parts.layers])
            for image in images
        ]
        self._add_json("manifest.json", entries)

    def docker(self, images: Sequence[StoredImage]) -> None:
        entries = []
        for image in images:
            config = f"{_value(image.id)}.json"
            content = Manifests(self._store.blobs, image.digest, self._store).config(image.parts)
            self._add(config, len(content), io.BytesIO(content))
            layers = list(self._plain_layers(image))
            entries.append(_entry(image, config, layers))
        self._add_json("manifest.json", entries)

    def _plain_layers(self, image: StoredImage) -> Iterator[str]:
        """Each layer uncompressed, once; its size must be known before its first byte is written."""
        for blob in Images(self._store).layer_blobs(image):
            name = f"{_value(blob.diff_id)}.tar"
            if name not in self._written:
                with store_errors("decompress", image.digest, self._store.root):
                    plain = tempfile.TemporaryFile(dir=self._store.scratch())  # noqa: SIM115 - closed below
                with plain:
                    with PlainLayer(blob, self._store.limits) as layer:
                        for piece in layer:
                            with store_errors("decompress", image.digest, self._store.root):
                                plain.write(piece)
                        layer.verify()
                    size = plain.tell()
                    plain.seek(0)
                    self._add(name, size, plain)
            yield name

    def _add_blob(self, blob: Descriptor, image: str) -> None:
        name = path_of(blob.digest)
        if name not in self._written:
            try:
                file = self._store.blobs.open(name)
            except OSError as error:
                raise missing(image, "blob", blob.digest, error) from error
            with file:
                self._add(name, blob.size, file)

    def _add_json(self, name: str, document: Any) -> None:
        content = json.dumps(document).encode()
        self._add(name, len(content), io.BytesIO(content))

    def _add(self, name: str, size: int, file: Any) -> None:
        if name in self._written:
            return
        info = tarfile.TarInfo(name)
        info.size = size
        self._archive.addfile(info, file)
        self._written.add(name)


def _listed(image: StoredImage) -> Iterator[dict[str, Any]]:
    """An image in an index: once for each of its names. Podman takes the one annotation, docker the other."""
    manifest = image.parts.manifest
    described = {"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size}
    for name in image.names:
        notes = {"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name}
        yield {**described, "annotations": notes}
    if not image.names:
        yield described


def _entry(image: StoredImage, config: str, layers: list[str]) -> dict[str, Any]:
    """An image in ``manifest.json``."""
    return {"Config": config, "RepoTags": [name for name in image.names if "@" not in name], "Layers": layers}


def _value(digest: str) -> str:
    return digest.partition(":")[2]
