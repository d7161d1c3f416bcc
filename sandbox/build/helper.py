"""The helper process that reads trees and writes layers. Standard library and :mod:`sandbox.linux` only.

A process of its own, because what it reads belongs to ids that the caller may have no power over: it becomes root of a user
namespace with those ids (or, for root's own store, is simply root). It writes an archive to standard output, and what went
wrong, as one JSON object, to standard error.

``changes "FD USERNS"``: the scratch file system of a container that :func:`sandbox.runtime.rootfs.note_made` has prepared,
and the container's user namespace
``copy ORDER``: a step of a build; ``ORDER`` is JSON, see :class:`sandbox.build.copying.Order`, with ``root`` and ``source``:
lists of layers, lowest first, or the path of a directory
"""

from __future__ import annotations

import json
import os
import signal
import sys

from sandbox.build.archives import ArchiveError
from sandbox.build.changes import read_parts, write_changes
from sandbox.build.copying import CopyError, Order, copy
from sandbox.build.ignore import Ignore, PatternError
from sandbox.build.tarwriter import TarWriter, WhiteoutName
from sandbox.build.tree import Tree
from sandbox.linux import constants as c, syscalls
from sandbox.linux.errors import KernelError
from sandbox.linux.idmap import become_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["command", "main"]

_BOOT = "import sys; sys.path[:0] = [sys.argv[1]]; from sandbox.build.helper import main; main(sys.argv[2:])"
_BUFFER = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def command(verb: str, *arguments: str) -> list[str]:
    """The command line that runs :func:`main` in a fresh, isolated interpreter."""
    library = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [sys.executable, "-I", "-S", "-c", _BOOT, library, verb, *arguments]


def main(arguments: list[str]) -> None:
    """``changes FD`` or ``copy ORDER``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides: it closes the pipe
    verb, argument = arguments
    with open(1, "wb", buffering=_BUFFER, closefd=False) as stream:
        try:
            out = TarWriter(stream.write)
            if verb == "changes":
                scratch, user_namespace = argument.split()
                _changes(int(scratch), int(user_namespace), out)
            else:
                _copy(json.loads(argument), out)
            stream.flush()
        except (CopyError, ArchiveError, WhiteoutName, PatternError) as error:
            _tell({"detail": str(error)})
        except OSError as error:
            where = error.object if isinstance(error, KernelError) else error.filename
            _tell({"errno": error.errno, "path": os.fsdecode(where) if isinstance(where, str | bytes) else None})
    os._exit(0)


def _tell(facts: dict[str, Any]) -> None:
    sys.stderr.write(json.dumps(facts))
    sys.stderr.flush()
    os._exit(1)


def _changes(scratch: int, user_namespace: int, out: TarWriter) -> None:
    # Only now: nobody in there may be able to read this interpreter's files.
    syscalls.setns(user_namespace, c.CLONE_NEWUSER)
    become_root()
    with open(os.open("made", os.O_RDONLY | os.O_CLOEXEC, dir_fd=scratch), encoding="utf-8") as file:
        parts = read_parts(file.read())
    write_changes(scratch, parts, out)


def _copy(document: dict[str, Any], out: TarWriter) -> None:
    root, source, ignore = document.pop("root"), document.pop("source"), document.pop("ignore")
    order = Order.from_json(document)
    if any(isinstance(place, list) and len(place) != 1 for place in (root, source)):
        # Before anything is opened: overlayfs takes no layer from another mount namespace.
        syscalls.unshare(c.CLONE_NEWNS)
        syscalls.mount(None, "/", None, c.MS_PRIVATE | c.MS_REC)
    roots = [_opened(place) for place in (root, source) if place is not None]
    with Tree(_merged(roots[0])) as base:
        if source is None:
            copy(base, None, order, out)
            return
        with Tree(_merged(roots[1]), Ignore(ignore) if ignore else None) as tree:
            copy(base, tree, order, out)


def _opened(place: Sequence[str] | str) -> list[int]:
    return [os.open(path, _DIRECTORY) for path in ([place] if isinstance(place, str) else place)]


def _merged(layers: Sequence[int]) -> int:
    """A descriptor of what several layers look like together: a read-only overlay, in our own mount namespace.

    A tmpfs (it covers /tmp, for us only) holds short links to the layers, so that neither the option string's page nor its
    separators limit them.
    """
    if len(layers) == 1:
        return layers[0]
    syscalls.mount("sandbox", "/tmp", "tmpfs", c.MS_NODEV, "mode=0700")
    os.chdir("/tmp")
    os.mkdir("root")
    for number, fd in enumerate(layers):
        os.symlink(f"/proc/self/fd/{fd}", str(number))
    if layers:
        lower = ":".join(str(number) for number in reversed(range(len(layers))))
        syscalls.mount("overlay", "root", "overlay", c.MS_RDONLY | c.MS_NODEV, f"lowerdir={lower},userxattr")
    return os.open("root", _DIRECTORY)
