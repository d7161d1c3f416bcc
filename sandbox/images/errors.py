"""What can be wrong with an image, in more detail than :mod:`sandbox.errors` has it. Standard library only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.errors import ImageError, ImageNotFound

if TYPE_CHECKING:
    from typing import Unpack

    from sandbox.errors import Facts

__all__ = [
    "AuthenticationError",
    "ImageTooLarge",
    "LayerError",
    "MediaTypeError",
    "PlatformNotFound",
    "RateLimited",
    "RegistryError",
    "StoreError",
]


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


class RegistryError(ImageError):
    """A registry could not be reached, or refused.

    :ivar registry: its host as it was asked, ``"registry-1.docker.io"``
    :ivar status: HTTP status of its answer; ``None`` if there was none
    :ivar code: the registry's own word for it, ``"MANIFEST_UNKNOWN"`` (distribution-spec, "Error Codes")
    :ivar temporary: the same request may well succeed a little later
    """

    facts = (*ImageError.facts, "registry", "status", "code", "temporary")

    def __init__(
        self,
        detail: str | None = None,
        *,
        registry: str | None = None,
        status: int | None = None,
        code: str | None = None,
        temporary: bool = False,
        **facts: Unpack[Facts],
    ) -> None:
        super().__init__(detail, **facts)
        self.registry = registry
        self.status = status
        self.code = code
        self.temporary = temporary

    def _reason(self) -> str:
        known = self.registry is None or self.registry in (self.object or "")
        about = f"{self.registry} answered {self.status}" if self.registry and self.status else self.registry
        about = about if self.status or not known else None
        return ": ".join(part for part in (about, super()._reason()) if part)


class AuthenticationError(RegistryError):
    """A registry wants other credentials than those it was given, or any."""


class RateLimited(RegistryError):
    """A registry answers no more requests for a while.

    :ivar retry_after: seconds it asks to wait; ``None`` if it does not say
    """

    facts = (*RegistryError.facts, "retry_after")

    def __init__(
        self,
        detail: str | None = None,
        *,
        retry_after: float | None = None,
        registry: str | None = None,
        status: int | None = None,
        code: str | None = None,
        temporary: bool = True,
        **facts: Unpack[Facts],
    ) -> None:
        super().__init__(
            detail, registry=registry, status=status, code=code, temporary=temporary, **facts
        )
        self.retry_after = retry_after
