"""How much an image may ask of this machine. Standard library only: the unpacking helper reads these too."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DEFAULT_LIMITS", "Limits"]


class Limits(NamedTuple):
    """Upper bounds, each far above what real images need; sizes are bytes."""

    #: A manifest or index. The distribution specification has registries accept 4 MiB.
    manifest: int = 4 << 20
    #: An image configuration.
    config: int = 16 << 20
    #: Layers of one image; the kernel stacks no more than 500 (overlayfs, ``OVL_MAX_STACK``).
    layers: int = 500
    #: An uncompressed layer.
    layer: int = 64 << 30
    #: A file's size as ls(1) shows it, holes of sparse files included.
    file: int = 1 << 40
    #: Entries of one layer.
    entries: int = 4_000_000
    #: A path in a layer: ``PATH_MAX``.
    path: int = 4096
    #: Directories within one another.
    depth: int = 256
    #: An extended header (pax, GNU long name, sparse map) of one entry.
    header: int = 1 << 20
    #: Uncompressed to compressed size, judged once a layer is larger than :attr:`ratio_from`.
    ratio: int = 200
    #: Real images have layers of zeros (1000 : 1) that are small; bombs are large.
    ratio_from: int = 1 << 30
    #: Depth of an index within an index.
    nesting: int = 4

    def decompressed(self, stored: int) -> tuple[str, int]:
        """(the limit that counts, how many bytes may come) of a layer or archive of which ``stored`` bytes were read."""
        by_ratio = max(self.ratio_from, self.ratio * stored)
        return ("ratio", by_ratio) if stored and by_ratio < self.layer else ("layer", self.layer)


DEFAULT_LIMITS = Limits()
