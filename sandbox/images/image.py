"""What a reference resolves to: a root file system and the configuration that came with it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import attrs

from sandbox.images.merged import read_files

if TYPE_CHECKING:
    from sandbox.oci.image import ImageConfig  # noqa: TC004 - attrs does not evaluate annotations

__all__ = ["Image", "UserFiles"]

#: Bytes of /etc/passwd or /etc/group that are read; 4 MiB are some 60,000 users.
USER_FILE_LIMIT = 4 << 20


@attrs.frozen
class UserFiles:
    """The user database of an image, as text in the form of passwd(5) and group(5); empty where there is none."""

    passwd: str = ""
    group: str = ""


@attrs.frozen
class Image:
    """An image that is on this machine, ready to be mounted. Made by :func:`sandbox.images.resolve`.

    >>> resolve("host").kind
    'host'
    """

    #: The reference as the user wrote it.
    reference: str
    #: ``host`` (the host's own root), ``dir`` (one directory) or ``layers`` (an overlay of directories).
    kind: Literal["host", "dir", "layers"]
    #: Directories to stack, lowest first, in overlayfs form (whiteouts are 0:0 character devices, opaque
    #: directories carry ``user.overlay.opaque``). They must never be written to. For ``host`` what lies above the
    #: host's own files, as a rule nothing.
    layers: tuple[Path, ...]
    #: The OCI image configuration; an empty one for ``host`` and ``dir``.
    config: ImageConfig
    #: Digest of the manifest, ``sha256:…``; ``None`` where the source has no manifest.
    digest: str | None = None
    #: The files on disk carry container ids: whoever mounts them as root needs an idmapped mount. ``False``
    #: where they carry the ids of the host that container ids are mapped to.
    id_mapped: bool = False
    #: All files belong to container root, because this user has no sub-ids to store other owners with.
    ownership_lost: bool = False

    @cached_property
    def users(self) -> UserFiles:
        """The image's /etc/passwd and /etc/group, read without following any link out of its root.

        :raises ImageError: one of them is not a regular file, cannot be read or is larger than 4 MiB
        """
        roots = self.layers if self.kind != "host" else (Path("/"), *self.layers)
        files = read_files(roots, ("/etc/passwd", "/etc/group"), limit=USER_FILE_LIMIT, image=self.reference)
        return UserFiles(*((content or b"").decode("utf-8", "surrogateescape") for content in files))
