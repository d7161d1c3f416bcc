"""The configuration of an image that came without one."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

from sandbox.images.platforms import host_platform

if TYPE_CHECKING:
    from sandbox.oci.image import ImageConfig

__all__ = ["empty_config"]


@cache
def empty_config() -> ImageConfig:
    """An OCI image configuration that sets nothing, for this machine's platform."""
    from sandbox import oci

    platform = host_platform()
    document = {
        "architecture": platform.architecture,
        "os": platform.os,
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    return oci.load_image_config(json.dumps(document))
