"""An image as a plain root file system in a directory: for chroot(8), systemd-nspawn(1), RootDirectory= or a bundle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.errors import ImageError
from sandbox.images.flatten import Result

if TYPE_CHECKING:
    from sandbox.images.image import Image
    from sandbox.images.store import Store

__all__ = ["write_tree"]


def write_tree(image: Image, target: Path, store: Store, *, owners: bool = True) -> Result:
    """Write all files of an image into a directory that is empty, or not there yet.

    Files get the owners that they have in a container of this user: root's those of the image, an ordinary user's
    sub-ids. Set-user-id programs stay what they are: nobody else should be able to enter the directory.

    :param owners: without, all files belong to the caller
    :raises ImageError: the directory is not empty, the image is the host's own root, or the kernel refuses; what was
        written until then is removed
    """
    if image.kind == "host":
        raise ImageError(
            "it is this machine's own root, not a tree of its own", operation="unpack", object=image.reference,
            hint="name an image that has files of its own, for example dir:PATH or oci:PATH:TAG",
        )  # fmt: skip
    made = _prepare(image, target)
    options = {
        "layers": [str(layer) for layer in reversed(image.layers)],
        "owners": owners and not image.ownership_lost,
    }
    try:
        answer = _run(image, target, store, options)
    except BaseException:
        _clear(target, store, made=made)
        raise
    return Result(**answer)


def _prepare(image: Image, target: Path) -> bool:
    """Make the directory; true if it was not there."""
    try:
        target.mkdir(mode=0o755)
        return True
    except FileExistsError:
        if target.is_dir() and not any(target.iterdir()):
            return False
        raise ImageError(
            "the directory is not empty" if target.is_dir() else "it is not a directory",
            operation="unpack", object=image.reference, path=target, hint="name a directory that does not exist yet",
        ) from None  # fmt: skip
    except OSError as error:
        raise ImageError(
            operation="unpack", object=image.reference, path=target, errno=error.errno
        ) from error


def _run(image: Image, target: Path, store: Store, options: dict[str, Any]) -> dict[str, Any]:
    helper = store.start_helper("flatten", os.fspath(target.absolute()), json.dumps(options))
    try:
        output, problem = helper.communicate()
    except BaseException:
        helper.kill()
        helper.wait()
        raise
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError:
        raise ImageError(
            f"the unpacking process ended with status {helper.returncode}", operation="unpack", object=image.reference,
            logs=problem,
        ) from None  # fmt: skip
    if "error" in answer:
        facts = answer["error"]
        inside = facts.get("path")
        raise ImageError(
            facts.get("detail"), operation="unpack", object=image.reference, errno=facts.get("errno"),
            path=target / inside.lstrip("/") if inside else target,
        )  # fmt: skip
    return answer


def _clear(target: Path, store: Store, *, made: bool) -> None:
    for path in [target] if made else list(target.iterdir()):
        store.remove_tree(path)
