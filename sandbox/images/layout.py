"""OCI image layouts: ``oci:PATH[:TAG]`` (image-spec, "OCI Image Layout")."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sandbox.errors import ImageError, ImageNotFound
from sandbox.images.errors import ImageTooLarge
from sandbox.images.manifests import Descriptor, Manifests, choose, descriptors, parse_json

if TYPE_CHECKING:
    from sandbox.images.blobs import Blobs
    from sandbox.images.image import Image
    from sandbox.images.references import Reference
    from sandbox.images.store import Store

__all__ = ["DirectoryBlobs", "from_layout", "listed", "resolve"]

_VERSION = "1."


class DirectoryBlobs:
    """The files below a directory; links to regular files are fine, FIFOs and devices are not waited for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, name: str) -> BinaryIO:
        """Open a file below the directory; see :class:`~sandbox.images.blobs.Blobs`."""
        path = self._root / name
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(None, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb")


def resolve(reference: Reference, store: Store) -> Image:
    """The image in a layout directory.

    :raises ImageNotFound: there is no layout, or nothing with that tag or digest in it; lists what there is
    """
    root = Path(reference.path)
    if not root.is_dir():
        raise ImageNotFound(
            "there is no such directory", operation="find image", object=reference.text, path=root,
            hint="an OCI layout is a directory with a file `oci-layout`; archives are oci-archive:PATH",
        )  # fmt: skip
    return from_layout(DirectoryBlobs(root), reference, store)


def from_layout(blobs: Blobs, reference: Reference, store: Store) -> Image:
    """The image of a reference in a layout, wherever that is."""
    found = listed(blobs, reference, store)
    return Manifests(blobs, reference.text, store).image(_select(found, reference))


def listed(blobs: Blobs, reference: Reference, store: Store) -> list[Descriptor]:
    """What the index of a layout lists.

    :raises ImageNotFound: this is no layout
    :raises ImageError: it is one of a later version, or a bad one
    """
    _check_version(blobs, reference, store)
    index = parse_json(_read(blobs, "index.json", reference, store), reference.text, "index.json")
    return descriptors(index, "manifests", reference.text, "index.json")


def _check_version(blobs: Blobs, reference: Reference, store: Store) -> None:
    document = parse_json(_read(blobs, "oci-layout", reference, store), reference.text, "oci-layout")
    version = document.get("imageLayoutVersion")
    if not isinstance(version, str) or not version.startswith(_VERSION):
        detail = f"version {version!r} of the image layout is not known, only {_VERSION}x"
        raise ImageError(detail, operation="read oci-layout of", object=reference.text)


def _read(blobs: Blobs, name: str, reference: Reference, store: Store) -> bytes:
    limit = store.limits.manifest
    try:
        with blobs.open(name) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ImageNotFound(
            f"this is no OCI layout: `{name}` cannot be read",
            operation="find image",
            object=reference.text,
            errno=error.errno,
        ) from error
    if len(content) > limit:
        detail = f"`{name}` is larger than {limit} bytes"
        raise ImageTooLarge(detail, operation="read", object=reference.text, feature="manifest")
    return content


def _select(found: list[Descriptor], reference: Reference) -> Descriptor:
    """The manifest that was asked for; without tag or digest the only one, or the one called latest."""
    fitting = [
        each
        for each in found
        if (not reference.tag or reference.tag in each.names)
        and (reference.digest == each.digest if reference.digest else not each.attached)
    ]
    if not reference.tag and not reference.digest and len({each.digest for each in fitting}) > 1:
        fitting = [each for each in fitting if "latest" in each.names] or _one_image(fitting)
    if not fitting:
        raise _not_found(found, reference)
    return fitting[0] if len(fitting) == 1 else choose(fitting, reference.text)


def _one_image(found: list[Descriptor]) -> list[Descriptor]:
    """Several untagged manifests with platforms are one image for several platforms."""
    return found if all(each.platform and not each.names for each in found) else []


def _not_found(found: list[Descriptor], reference: Reference) -> ImageNotFound:
    there = sorted({name for each in found for name in each.names})
    listing = ", ".join(there) if there else ", ".join(each.digest for each in found) or "nothing"
    wanted = reference.tag or reference.digest
    return ImageNotFound(
        f"it has no `{wanted}`" if wanted else "it has several images and none is called latest",
        operation="find image",
        object=reference.text,
        hint=f"there is: {listing}",
    )
