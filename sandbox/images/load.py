"""Images from files into a store: OCI layouts and archives, and what ``docker save`` writes."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sandbox.errors import ImageError
from sandbox.images.archive import docker_config, docker_entries, docker_parts, docker_tags, opened
from sandbox.images.documents import CONFIGS, LAYERS, MANIFESTS, Descriptor, parse_json
from sandbox.images.layout import DirectoryBlobs, listed
from sandbox.images.manifests import diff_ids
from sandbox.images.places import store_errors
from sandbox.images.references import Reference, parse_registry_name
from sandbox.images.stored import Images

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.images.archive import ArchiveBlobs
    from sandbox.images.blobs import Blobs
    from sandbox.images.store import Store
    from sandbox.images.stored import StoredImage

__all__ = ["load"]

_PLAIN = "application/vnd.oci.image.layer.v1.tar"
_PACKED = {b"\x1f\x8b": f"{_PLAIN}+gzip", b"\x28\xb5": f"{_PLAIN}+zstd"}
assert {_PLAIN, *_PACKED.values()} <= LAYERS


def load(source: str | Path | BinaryIO, store: Store, *, name: str | None = None) -> list[StoredImage]:
    """Take in every image of a file or layout, under the names that it has there.

    :param source: the path of an archive (compressed or not) or of a layout, or an open file
    :param name: what to call the only image in there, whatever it is called
    :raises ImageError: it is no archive of images, a damaged one, or has several and ``name`` was given
    """
    if not isinstance(source, str | Path):
        with _spooled(source, store) as path:
            return _load(Reference("standard input", "path", path=str(path)), store, name)
    return _load(Reference(str(source), "path", path=str(source)), store, name)


def _load(reference: Reference, store: Store, name: str | None) -> list[StoredImage]:
    loader = _Loader(reference, store, name)
    if os.path.isdir(reference.path):
        return loader.layout(DirectoryBlobs(Path(reference.path)))
    with opened(reference, store) as archive:
        return loader.layout(archive) if "oci-layout" in archive else loader.docker(archive)


@contextmanager
def _spooled(file: BinaryIO, store: Store) -> Iterator[Path]:
    """A copy of a stream, which cannot be read twice."""
    with store_errors("read", "standard input", store.root):
        with store.places.new_file() as (descriptor, path):
            with os.fdopen(os.dup(descriptor), "wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
            yield path


class _Loader:
    def __init__(self, reference: Reference, store: Store, name: str | None) -> None:
        self._reference = reference
        self._store = store
        self._name = parse_registry_name(name).canonical if name is not None else None
        self._images = Images(store)

    def layout(self, blobs: Blobs) -> list[StoredImage]:
        """All images that an OCI layout lists."""
        found: dict[str, tuple[Descriptor, list[str]]] = {}
        for start in listed(blobs, self._reference, self._store):
            if not start.attached:
                found.setdefault(start.digest, (start, []))[1].extend(start.names)
        self._check_number(len(found))
        return [
            self._named(self._images.copy(blobs, start, image=self._reference.text), names)
            for start, names in found.values()
        ]

    def docker(self, archive: ArchiveBlobs) -> list[StoredImage]:
        """All images of a docker archive."""
        entries = docker_entries(archive, self._reference, self._store)
        self._check_number(len(entries))
        return [self._named(self._docker_image(archive, entry), docker_tags(entry)) for entry in entries]

    def _docker_image(self, archive: ArchiveBlobs, entry: dict[str, Any]) -> StoredImage:
        """An image without a manifest is given one; its configuration stays as it is, and so does its id."""
        image, blobs = self._reference.text, self._store.blobs
        config_name, layer_names = docker_parts(entry, image)
        config = docker_config(archive, config_name, self._store.limits.config, image)
        digests = diff_ids(parse_json(config, image, "configuration"), image)
        if len(digests) != len(layer_names):
            detail = f"{len(layer_names)} layers in manifest.json, {len(digests)} in the configuration"
            raise ImageError(detail, operation="read configuration of", object=image)
        pairs = zip(layer_names, digests, strict=True)
        layers = [self._layer(archive, name, diff_id) for name, diff_id in pairs]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFESTS[0],
            "config": _document(blobs.add(config, media_type=CONFIGS[0])),
            "layers": [_document(layer) for layer in layers],
        }
        return self._images.add(
            blobs.add(json.dumps(manifest).encode(), media_type=MANIFESTS[0]), image=image
        )

    def _layer(self, archive: ArchiveBlobs, name: str, diff_id: str) -> Descriptor:
        """A layer as it is stored there; one that is compressed is compared with its digest when it is unpacked."""
        image = self._reference.text
        try:
            file = archive.open(name)
        except FileNotFoundError as error:
            raise ImageError(f"`{name}` is missing", operation="open layer of", object=image) from error
        with file:
            media_type = _PACKED.get(file.peek(2)[:2], _PLAIN)  # type: ignore[attr-defined]  # it is buffered
            promised = diff_id if media_type == _PLAIN else None
            return self._store.blobs.add(file, promised, media_type=media_type, image=image)

    def _check_number(self, found: int) -> None:
        if self._name is not None and found != 1:
            detail = f"there are {found} images: one name is not enough"
            raise ImageError(
                detail, operation="load", object=self._reference.text, hint="load them under their own names"
            )

    def _named(self, image: StoredImage, names: list[str]) -> StoredImage:
        """Give it its names. Where a layout has nothing but a tag, there is no name to be had."""
        canonical = [self._name] if self._name is not None else list(_canonical(names))
        for name in dict.fromkeys(canonical):
            self._images.names.set(name, image.digest)
        return self._images.get(image.digest)


def _canonical(names: list[str]) -> Iterator[str]:
    for name in names:
        if "/" in name or ":" in name:
            try:
                yield parse_registry_name(name).canonical
            except ImageError:
                continue  # somebody else's way to name things


def _document(blob: Descriptor) -> dict[str, Any]:
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}
