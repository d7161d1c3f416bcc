"""sandbox.lock: which image a name means, for everybody who uses the file, on every machine.

::

    version = 1

    [images."docker.io/library/redis:7"]
    digest = "sha256:…"                     # what the registry calls it: an index, or a manifest

    [images."docker.io/library/redis:7".platforms]
    "linux/amd64" = "sha256:…"              # the manifest for each kind of machine

The digest is what is pulled; it fixes the platforms' manifests too, which are there to be read and compared.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sandbox.errors import ImageError, ImageNotFound
from sandbox.images.blobs import read_document
from sandbox.images.documents import INDEXES, descriptors, parse_json
from sandbox.images.platforms import Platform

if TYPE_CHECKING:
    from sandbox.images.references import Reference
    from sandbox.images.store import Store
    from sandbox.images.stored import StoredImage

__all__ = ["FILE_NAME", "Pin", "Pins", "pin_of"]

FILE_NAME = "sandbox.lock"
_VERSION = 1
_DIGEST = re.compile(r"sha(?:256|384|512):[0-9a-f]{64,128}")
_HEAD = """\
# Which image each name means. Made by `sandbox lock`, to be kept under version control:
# `sandbox lock IMAGE...` adds names, `sandbox lock` asks the registries anew about all of them.
"""


@attrs.frozen
class Pin:
    """What one name means."""

    digest: str
    #: ``linux/amd64`` → digest of its manifest.
    platforms: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Pins:
    """The content of a sandbox.lock."""

    #: Where it is from, for messages.
    path: Path
    #: Canonical name → pin.
    images: Mapping[str, Pin] = attrs.field(factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pins:
        """Read a file.

        :raises ImageError: there is none, or it is not one of these
        """
        import tomllib

        place = Path(path)
        try:
            document = tomllib.loads(place.read_text("utf-8"))
        except OSError as error:
            raise ImageError(
                operation="read pinned images", path=place, errno=error.errno,
                hint="`sandbox lock IMAGE...` makes such a file",
            ) from error  # fmt: skip
        except ValueError as error:
            raise _bad(place, str(error)) from error
        if document.get("version") != _VERSION:
            raise _bad(place, f"version {document.get('version')!r} is not known, only {_VERSION}")
        tables = document.get("images", {})
        if not isinstance(tables, dict):
            raise _bad(place, "`images` is not a table")
        return cls(place, {name: _pin(place, name, table) for name, table in tables.items()})

    def pinned(self, reference: Reference) -> Reference:
        """The reference with its digest. One that has a digest needs no pin.

        :raises ImageNotFound: the file does not have it
        """
        if reference.digest:
            return reference
        if (pin := self.images.get(reference.canonical)) is None:
            raise ImageNotFound(
                f"{self.path} does not say which image this is", operation="find image", object=reference.text,
                hint=f"pin it with `sandbox lock {reference.text}`, or go without the file: `--sandbox-lock none`, "
                     "SANDBOX_LOCK=none",
            )  # fmt: skip
        return attrs.evolve(reference, digest=pin.digest)

    def save(self) -> None:
        """Write the file; readers see the old content or the new.

        :raises ImageError: it cannot be written
        """
        text = "\n".join([_HEAD, f"version = {_VERSION}", *(_table(*item) for item in sorted(self.images.items()))])
        try:
            descriptor, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}-")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(text)
                    os.fchmod(file.fileno(), _mode(self.path))
                os.replace(temporary, self.path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            raise ImageError(operation="write pinned images", path=self.path, errno=error.errno) from error


def pin_of(image: StoredImage, store: Store) -> Pin:
    """The pin of an image that is in the store."""
    from sandbox.images.manifests import Manifests

    called, limits = image.start.digest, store.limits
    if image.start.media_type in INDEXES:
        content = read_document(
            store.blobs, called, image.start.size, limit=limits.manifest, image=called, what="index"
        )
        found = descriptors(parse_json(content, called, "index"), "manifests", called, "index")
        platforms = {
            str(each.platform): each.digest for each in found if each.platform is not None and not each.attached
        }
    else:
        config = parse_json(
            Manifests(store.blobs, called, store).config(image.parts), called, "configuration"
        )
        facts = [str(config.get(name) or "") for name in ("os", "architecture", "variant")]
        platforms = {str(Platform(*facts)): called}
    return Pin(called, platforms)


def _mode(path: Path) -> int:
    """As the file is, or as a new one would be."""
    try:
        return path.stat().st_mode & 0o7777
    except FileNotFoundError:
        mask = os.umask(0o077)
        os.umask(mask)
        return 0o666 & ~mask


def _table(name: str, pin: Pin) -> str:
    key = _quoted(name)
    lines = ["", f"[images.{key}]", f"digest = {_quoted(pin.digest)}"]
    if pin.platforms:
        lines += ["", f"[images.{key}.platforms]"]
        lines += [f"{_quoted(platform)} = {_quoted(digest)}" for platform, digest in sorted(pin.platforms.items())]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """As a basic string of TOML: JSON's, but that characters stand for themselves, and DEL does not."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _pin(path: Path, name: str, table: Any) -> Pin:
    digest = table.get("digest") if isinstance(table, dict) else None
    platforms = table.get("platforms", {}) if isinstance(table, dict) else {}
    digests = [digest, *platforms.values()] if isinstance(platforms, dict) else [None]
    if not all(isinstance(each, str) and _DIGEST.fullmatch(each) for each in digests):
        raise _bad(path, f"the digests of `{name}` are not digests")
    return Pin(str(digest), platforms)


def _bad(path: Path, cause: str) -> ImageError:
    return ImageError(
        "it is not a list of pinned images", operation="read pinned images", path=path, cause=cause,
        hint="make it anew with `sandbox lock IMAGE...`",
    )  # fmt: skip
