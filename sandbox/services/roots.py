"""Images as root directories of services.

A manager of root mounts the image's layers on each other, read-only, by a mount unit of its own: nothing is copied, and
nothing is left when that unit is stopped, or its manager gone. The manager of an ordinary user may not mount, so there
the image has to be a single directory.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import SandboxError, UnsupportedFeature
from sandbox.services.managers import errors_of_systemd

if TYPE_CHECKING:
    from sandbox.images import Image
    from sandbox.services.managers import Home

__all__ = ["Root"]

_TOP = "/run/sandbox-roots"
#: What systemd mounts on in the root of a service; it would make those that are missing, in the image itself.
_MOUNT_POINTS = ("proc", "sys", "dev", "run", "tmp", "var/tmp")


class Root:
    """The root directory of an image, as long as it is needed. ``path`` is None for the host's own root.

    :raises ImageError: the image is unknown or broken
    :raises UnsupportedFeature: this manager cannot put its layers together
    """

    def __init__(self, reference: str, home: Home) -> None:
        from sandbox.images import resolve

        self._home = home
        self._unit: str | None = None
        image = resolve(reference)
        self.path: Path | None = None
        if image.kind == "host":
            return
        _check(image)
        if home.root:
            self.path = Path(_TOP, f"{home.token}-{os.urandom(4).hex()}")
            self._mount(image, self.path)
        else:
            self.path = _single(image)

    def _mount(self, image: Image, place: Path) -> None:
        from sandbox_systemd.bus import Variant

        what, kind, options = _mount_of(image)
        unit = f"{escape(str(place))}.mount"
        properties = [
            ("Description", Variant("s", f"Image {image.reference}")),
            ("CollectMode", Variant("s", "inactive-or-failed")), ("What", Variant("s", what)),
            ("Type", Variant("s", kind)), ("Options", Variant("s", options)),
        ]  # fmt: skip
        if (client := self._home.client) is not None:
            properties += [("BindsTo", Variant("as", [client])), ("After", Variant("as", [client]))]
        with errors_of_systemd("mount image", image.reference):
            self._home.manager.start_transient(unit, properties)
        self._unit = unit

    def close(self) -> None:
        """Unmount it."""
        from sandbox_systemd.errors import NoSuchUnit

        if self._unit is None or self.path is None:
            return
        unit, self._unit = self._unit, None
        with errors_of_systemd("unmount image", self.path.name), contextlib.suppress(NoSuchUnit):
            self._home.manager.stop(unit)
        # systemd makes the directory and leaves it; a private manager's /run has gone with it, or is ours.
        with contextlib.suppress(OSError):
            self.path.rmdir()


def _mount_of(image: Image) -> tuple[str, str, str]:
    """(what, type, options) for mount(8); an overlay of one directory is not an overlay."""
    layers = [os.path.abspath(layer) for layer in reversed(image.layers)]
    if len(layers) == 1:
        return layers[0], "none", "bind,ro"
    if bad := next((layer for layer in layers if set(layer) & set(":,\\")), None):
        raise UnsupportedFeature("the path has a character that overlayfs gives a meaning", operation="mount image",
                                 object=image.reference, path=bad, hint="keep images elsewhere (SANDBOX_STORE)")  # fmt: skip
    return "overlay", "overlay", f"ro,userxattr,lowerdir={':'.join(layers)}"


def _single(image: Image) -> Path:
    if len(image.layers) == 1:
        return Path(os.path.abspath(image.layers[0]))
    raise UnsupportedFeature(
        f"it has {len(image.layers)} layers, and the manager of an ordinary user cannot mount them on each other",
        operation="use image", object=image.reference, feature="mounting by the manager",
        hint="use an image of one layer, or a directory (dir:PATH), or the system's manager as root",
    )  # fmt: skip


def _check(image: Image) -> None:
    """Everything that systemd mounts on must be there: nothing is made in an image."""
    missing = [name for name in _MOUNT_POINTS if not any((layer / name).is_dir() for layer in image.layers)]
    if missing:
        raise SandboxError(
            f"it has no directory /{missing[0]}", operation="use image", object=image.reference,
            hint=f"mkdir -p {' '.join(missing)} in it: systemd mounts there",
        )  # fmt: skip


def escape(path: str) -> str:
    r"""A path as the name of its mount unit (systemd.unit(5), "String Escaping for Inclusion in Unit Names").

    >>> escape("/run/sandbox-roots/a")
    'run-sandbox\\x2droots-a'
    """
    plain = path.strip("/")
    return "".join(
        "-" if char == "/" else char if char.isalnum() or char in ":_." else f"\\x{ord(char):02x}" for char in plain
    )
