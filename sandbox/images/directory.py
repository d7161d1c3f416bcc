"""Images that are a directory: a root file system (``dir:PATH``), or a bare path, where what is there decides."""

from __future__ import annotations

import errno
import functools
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from sandbox.errors import ImageError, ImageNotFound
from sandbox.images.config import empty_config
from sandbox.images.image import Image
from sandbox.images.sources import find_builder
from sandbox.linux.idmap import is_privileged

if TYPE_CHECKING:
    from sandbox.images.references import Reference
    from sandbox.images.store import Store

__all__ = ["resolve"]

#: What a root file system has at least one of; a directory without any is most likely a mistyped path.
_SIGNS_OF_A_ROOT = ("bin", "sbin", "usr", "etc", "lib", "nix", "proc", "dev", "init")


#: To make a Path takes longer than to look at what it names, and each start of a pod comes through here.
_path = functools.lru_cache(maxsize=128)(Path)


def resolve(
    reference: Reference, store: Store, *, pull: str | None = None, lock: str | os.PathLike[str] | None = None
) -> Image:  # fmt: skip
    """``dir:PATH`` as one layer; for a bare path the transport that fits what is there.

    :param pull: for what a Dockerfile there is built on, as ``lock``; see :func:`sandbox.images.resolve`
    :raises ImageNotFound: nothing is there
    :raises ImageError: it is neither a root file system nor an OCI layout nor an image archive
    """
    path = str(_path(reference.path))
    status = _status(reference, path)
    if reference.transport == "path" and stat.S_ISREG(status.st_mode):
        from sandbox.images import archive

        return archive.resolve(reference, store)
    if not stat.S_ISDIR(status.st_mode):
        raise _error(reference, "not a directory", "write dir:PATH with the directory of a root file system")
    if _is_file(f"{path}/oci-layout"):
        return _layout(reference, store)
    if reference.transport == "path" and any(
        _is_file(f"{path}/{name}") for name in ("Dockerfile", "Containerfile")
    ):
        builder = find_builder("build")
        assert builder is not None
        return builder.resolve(reference, store, pull=pull, lock=lock)
    return _root(reference, _real(path))


def _layout(reference: Reference, store: Store) -> Image:
    if reference.transport == "dir":
        raise _error(reference, "this is an OCI image layout", f"write oci:{reference.path}[:TAG]")
    from sandbox.images import layout

    return layout.resolve(attrs.evolve(reference, transport="oci"), store)


def _root(reference: Reference, path: str) -> Image:
    """One layer; files of a root file system made by root carry container ids, a user's own are the user's."""
    if not any(os.path.lexists(f"{path}/{name}") for name in _SIGNS_OF_A_ROOT):
        hint = f"a root file system has directories like {', '.join(_SIGNS_OF_A_ROOT[:4])}"
        raise _error(reference, "this directory does not look like a root file system", hint)
    return Image(
        reference.text, "dir", layers=(_path(path),), config=empty_config(), id_mapped=is_privileged()
    )


def _real(path: str) -> str:
    """As realpath(3), which takes twice as long to find out that there are no links on the way, as nearly always."""
    if not path.startswith("/") or path.startswith("//") or ".." in path:
        return os.path.realpath(path)
    above = ""
    for name in path[1:].split("/"):
        above = f"{above}/{name}"
        if os.path.islink(above):
            return os.path.realpath(path)
    return path


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return False


def _status(reference: Reference, path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageNotFound(
            operation="find image",
            object=reference.text,
            path=Path(path),
            errno=error.errno,
            hint=None
            if os.path.isabs(path)
            else f"relative paths start at the current directory, {Path.cwd()}",
        ) from error
    except OSError as error:
        raise ImageError(
            operation="find image", object=reference.text, path=Path(path), errno=error.errno
        ) from error


def _error(reference: Reference, detail: str, hint: str) -> ImageError:
    return ImageError(detail, operation="open image", object=reference.text, path=reference.path, hint=hint)
