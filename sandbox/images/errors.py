"""What can be wrong with an image, in more detail than :mod:`sandbox.errors` has it. Standard library only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.errors import ImageError, ImageNotFound

if TYPE_CHECKING:
    from typing import Unpack

    from sandbox.errors import Facts

__all__ = ["ImageTooLarge", "LayerError", "MediaTypeError", "PlatformNotFound", "StoreError"]


class LayerError(ImageError):
    """A layer cannot be unpacked: broken, hostile, or more than this machine can store.

    :ivar layer: digest of the layer, ``"sha256:…"``
    :ivar entry: name of the entry of the archive, as written there; ``None`` where it is about all of it
    """

    facts = (*ImageError.facts, "layer", "entry")

    def __init__(
        self,
        detail: str | None = None,
        *,
        layer: str | None = None,
        entry: str | None = None,
        **facts: Unpack[Facts],
    ) -> None:
        super().__init__(detail, **facts)
        self.layer = layer
        self.entry = entry

    def _reason(self) -> str:
        about = [f"layer {self.layer}"] if self.layer else []
        about += [f"entry `{self.entry}`"] if self.entry is not None else []
        return ": ".join(part for part in (", ".join(about), super()._reason()) if part)


class ImageTooLarge(LayerError):
    """An image goes beyond one of :class:`sandbox.images.limits.Limits`; ``feature`` names the limit."""


class MediaTypeError(ImageError):
    """A document or layer is of a type that this version cannot use."""


class PlatformNotFound(ImageNotFound):
    """A multi-platform image has nothing for this machine.

    :ivar wanted: this machine's platform, ``"linux/amd64"``
    :ivar available: the platforms there are
    """

    facts = (*ImageNotFound.facts, "wanted", "available")

    def __init__(
        self,
        detail: str | None = None,
        *,
        wanted: str | None = None,
        available: tuple[str, ...] = (),
        **facts: Unpack[Facts],
    ) -> None:
        super().__init__(detail, **facts)
        self.wanted = wanted
        self.available = tuple(available)

    def _reason(self) -> str:
        there = ", ".join(self.available) or "none"
        about = f"nothing for {self.wanted}; available: {there}" if self.wanted else ""
        return "; ".join(part for part in (super()._reason(), about) if part)


class StoreError(ImageError):
    """The store itself failed: no space, no permission, a file system without extended attributes."""
