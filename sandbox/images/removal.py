"""Removing trees that strangers have made. Standard library only.

A layer can make directories as deep as it likes, through its own links; neither our stack nor the number of our descriptors
may depend on that. What lies too deep is moved up to the top, and removed from there.
"""

from __future__ import annotations

import errno
import os
import uuid

__all__ = ["remove", "remove_at"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEP = 50


def remove(path: str | bytes) -> None:
    """Remove a tree or a file; nothing happens if there is none."""
    try:
        remove_at(None, path)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise


def remove_at(parent: int | None, name: str | bytes) -> None:
    """Remove a tree or a file in an open directory. Links are removed, never followed.

    :raises OSError: the kernel refuses
    """
    try:
        top = os.open(name, _DIRECTORY, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(name, dir_fd=parent)
        return
    try:
        while os.listdir(top):
            _empty(top, top, 0)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _empty(directory: int, top: int, depth: int) -> None:
    with os.scandir(directory) as entries:
        children = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in children:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
        elif depth == _DEEP:
            os.rename(name, uuid.uuid4().hex, src_dir_fd=directory, dst_dir_fd=top)
        else:
            child = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                _empty(child, top, depth + 1)
            finally:
                os.close(child)
            os.rmdir(name, dir_fd=directory)
