"""OCI documents: load them, change them, write them again, and make them from models. No I/O.

>>> spec = loads('{"ociVersion": "1.2.0", "root": {"path": "rootfs"}}')
>>> dumps(spec)
'{"ociVersion": "1.2.0", "root": {"path": "rootfs"}}'

Loading and dumping gives the same document back, unknown members included; a bad document is a
:class:`~sandbox.errors.SpecError` with the path of what is wrong in it. The modules load on first use: cattrs is not
needed by programs that only look at :mod:`sandbox.oci.capabilities`.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from sandbox.oci.converter import to_dict
    from sandbox.oci.host import DeviceNumbers, Host
    from sandbox.oci.image import Descriptor, ImageConfig, Index, Manifest
    from sandbox.oci.runtime import Spec
    from sandbox.oci.translate import etc_hosts, resources_to_oci, seccomp_of, stop_signal, to_spec

__all__ = [
    "Descriptor",
    "DeviceNumbers",
    "Host",
    "ImageConfig",
    "Index",
    "Manifest",
    "Spec",
    "dumps",
    "etc_hosts",
    "from_dict",
    "load_image_config",
    "load_index",
    "load_manifest",
    "loads",
    "resources_to_oci",
    "seccomp_of",
    "stop_signal",
    "to_dict",
    "to_spec",
]


def loads(text: str | bytes) -> Spec:
    """The runtime configuration (``config.json``) in ``text``."""
    from sandbox.oci import converter, runtime

    return converter.from_json(text, runtime.Spec, "runtime configuration")


def from_dict(document: dict[str, Any]) -> Spec:
    """The runtime configuration in plain dicts and lists, as :func:`json.loads` gives it."""
    from sandbox.oci import converter, runtime

    return converter.from_dict(document, runtime.Spec, "runtime configuration")


def load_image_config(text: str | bytes) -> ImageConfig:
    """The image configuration in ``text``."""
    from sandbox.oci import converter, image

    return converter.from_json(text, image.ImageConfig, "image configuration")


def load_manifest(text: str | bytes) -> Manifest:
    """The image manifest in ``text``."""
    from sandbox.oci import converter, image

    return converter.from_json(text, image.Manifest, "image manifest")


def load_index(text: str | bytes) -> Index:
    """The image index in ``text``."""
    from sandbox.oci import converter, image

    return converter.from_json(text, image.Index, "image index")


def dumps(document: Spec | ImageConfig | Manifest | Index | Descriptor, *, indent: int | None = None) -> str:
    """A document as JSON text."""
    from sandbox.oci import converter

    return converter.to_json(document, indent)


_HOMES = {
    "converter": ("to_dict",),
    "host": ("DeviceNumbers", "Host"),
    "image": ("Descriptor", "ImageConfig", "Index", "Manifest"),
    "runtime": ("Spec",),
    "translate": ("etc_hosts", "resources_to_oci", "seccomp_of", "stop_signal", "to_spec"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Fetch a public name from its module on first use (PEP 562)."""
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
