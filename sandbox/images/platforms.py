"""Which of the images in a multi-platform index is ours. Names are those of Go's GOOS and GOARCH."""

from __future__ import annotations

import os
from functools import cache
from typing import NamedTuple

__all__ = ["Platform", "host_platform"]

#: uname(2) machine → architecture and variant as image indexes spell them.
_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv8l": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "riscv64": ("riscv64", ""),
    "s390x": ("s390x", ""),
    "loongarch64": ("loong64", ""),
    "mips64": ("mips64le", ""),
}


class Platform(NamedTuple):
    """An operating system and an architecture; ``variant`` may be empty."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in self if part)

    def runs(self, other: Platform) -> bool:
        """Whether a machine of this platform runs images of the other one. 32-bit ARM runs older variants."""
        if (self.os, self.architecture) != (other.os, other.architecture):
            return False
        if self.architecture == "arm" and self.variant and other.variant:
            return other.variant <= self.variant
        return other.variant in ("", self.variant) or not self.variant


@cache
def host_platform() -> Platform:
    """The platform of this machine."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)
