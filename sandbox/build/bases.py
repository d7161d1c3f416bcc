"""What FROM and ``--from`` name: images to go on from, whatever they come from."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox import oci
from sandbox.build.copying import Order
from sandbox.build.draft import Draft
from sandbox.build.errors import BuildError
from sandbox.build.mmdebstrap import is_harmless
from sandbox.build.workshop import Workshop, key_of, layers_of
from sandbox.images import registered_transports, resolve
from sandbox.images.references import parse

if TYPE_CHECKING:
    from sandbox.build.dockerfile import Instruction
    from sandbox.images.image import Image
    from sandbox.images.store import Store

__all__ = ["base", "check_reach", "draft_of", "identity", "stored"]

#: Members of a configuration that every draft makes anew.
_OWN = ("rootfs", "history", "created")
#: Lists of installed packages, and directories that programs are put into.
_CHANGING = (
    "/var/lib/dpkg/status", "/var/lib/rpm/rpmdb.sqlite", "/usr/lib/sysimage/rpm/rpmdb.sqlite", "/lib/apk/db/installed",
    "/var/lib/pacman/local", "/usr/bin", "/usr/lib", "/usr/local/bin", "/etc",
)  # fmt: skip


def base(reference: str, workshop: Workshop) -> Draft:
    """The image of a reference, with its layers among the store's blobs. ``scratch`` is nothing at all.

    :raises ImageError: there is no such image, or it cannot be used
    """
    if reference == "scratch":
        return Draft.scratch()
    store = workshop.store
    parsed = parse(reference, registered_transports())
    if parsed.transport == "host":
        raise BuildError(
            "the image `host` is this machine itself", operation="build from", object=reference,
            hint="start from an image of its own: debian:12, dir:PATH, mmdebstrap:bookworm",
        )  # fmt: skip
    options = workshop.options
    image = resolve(reference, store=store, pull=options.pull, lock=options.lock or "none")
    return stored(image, store) or draft_of(image, workshop)


def check_reach(reference: str, by: Instruction) -> None:
    """Whether an instruction that is not the caller's own may name this image.

    A build reads the files of its context and nothing else of this machine, and runs nothing outside of a sandbox: neither
    ``dir:/home/me`` nor ``mmdebstrap:…?aptopt=…``, whose options are commands, is a Dockerfile's to name.

    :raises BuildError: it may not
    """
    if reference == "scratch":
        return
    parsed = parse(reference, registered_transports())
    if parsed.transport == "docker" or (parsed.transport == "mmdebstrap" and by.author == "file" and is_harmless(parsed)):
        return
    if by.author == "image":
        raise BuildError(
            "ONBUILD of a base image may name stages and images of the store and of registries only", operation="build from",
            object=reference, hint="do the step in the Dockerfile itself",
        )  # fmt: skip
    raise BuildError(
        "a Dockerfile may name stages, images of the store and of registries, and mmdebstrap:SUITE?include=PACKAGE,… only",
        operation="build from", object=reference,
        hint="`sandbox build --local-images`, if you trust it with all that you may read; or build it in Python: sandbox.Image",
    )  # fmt: skip


def stored(image: Image, store: Store) -> Draft | None:
    """The image with the layers that it came with, if the store has kept them all (SANDBOX_KEEP_BLOBS)."""
    if image.digest is None or not store.blobs.has(image.digest):
        return None
    draft = Draft.known(store, image.digest)
    return draft if all(store.blobs.has(layer.blob.digest, layer.blob.size) for layer in draft.layers) else None


def draft_of(image: Image, workshop: Workshop) -> Draft:
    """An image that only its unpacked layers are known of: its root becomes one layer, once."""

    def flat() -> Draft:
        order = Order(target="/", patterns=("",), owner=None, lenient=True)
        layer = workshop.copy([], layers_of(image), order)
        document = {name: value for name, value in oci.to_dict(image.config).items() if name not in _OWN}
        return Draft({**document, "config": document.get("config") or {}}).noted(f"FROM {image.reference}", layer)

    digest = workshop.once(f"flat:{key_of(identity(image), image.ownership_lost)}", flat)
    return Draft.known(workshop.store, digest)


def identity(image: Image) -> str:
    """What tells an image from others: its digest, or what its directory looks like from outside."""
    if image.kind == "host":
        return f"host {_packages()} {' '.join(str(layer) for layer in image.layers)}"
    return image.digest or _fingerprint(image.layers)


def _packages() -> str:
    """What changes on this machine when programs are installed or removed."""
    found = []
    for path in _CHANGING:
        with contextlib.suppress(OSError):
            state = os.stat(path)
            found.append((path, state.st_mtime_ns, state.st_size))
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _fingerprint(layers: tuple[Path, ...]) -> str:
    """What directories look like from outside: it changes when something in them does, as make(1) would see it."""
    hashed = hashlib.sha256()
    for layer in layers:
        for directory, names, files in os.walk(layer, onerror=None):
            names.sort()
            for name in sorted([*names, *files]):
                path = os.path.join(directory, name)
                state = os.lstat(path)
                facts = (state.st_mode, state.st_uid, state.st_gid, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
                hashed.update(repr((path, facts)).encode("utf-8", "surrogateescape"))
    return hashed.hexdigest()
