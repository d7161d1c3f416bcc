"""The helper process that touches the files of layers. Standard library and :mod:`sandbox.linux` only.

It runs as root of the user namespace that the ids on disk are meant for, with the layer's directory as its
root directory, reads an uncompressed archive from standard input, and writes one JSON object to standard
output. A process of its own, because root directory, umask and ids belong to a whole process, and because
the caller (which decompresses and hashes meanwhile) then has the second processor.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from sandbox.images.layers import EntryError, Unpacker
from sandbox.images.limits import Limits
from sandbox.images.removal import remove
from sandbox.images.tar import BadArchive, TarStream, TooLarge
from sandbox.linux.capabilities import mask
from sandbox.linux.syscalls import capset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["command", "main"]

#: What giving files their owners, modes and attributes takes, capabilities(7).
_CAPABILITIES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SETFCAP")
_BOOT = "import sys; sys.path[:0] = [sys.argv[1]]; from sandbox.images.unpack import main; main(sys.argv[2:])"


def command(verb: str, *arguments: str) -> list[str]:
    """The command line that runs :func:`main` in a fresh, isolated interpreter."""
    library = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [sys.executable, "-I", "-S", "-c", _BOOT, library, verb, *arguments]


def main(arguments: list[str]) -> None:
    """``unpack DIRECTORY OPTIONS`` (options are JSON), ``flatten DIRECTORY OPTIONS`` or ``remove DIRECTORY``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides: it closes the pipe
    verb, directory, *rest = arguments
    if verb == "unpack":
        result = _unpack(directory, json.loads(rest[0]))
    elif verb == "flatten":
        result = _flatten(directory, json.loads(rest[0]))
    else:
        result = _remove(directory)
    sys.stdout.write(json.dumps(result))
    sys.stdout.flush()
    os._exit(0 if "error" not in result else 1)  # nothing is worth a millisecond of tidying up


def _unpack(directory: str, options: dict[str, Any]) -> dict[str, Any]:
    os.umask(0)
    limits = Limits(*options["limits"])
    parents = [os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for parent in options["parents"]]
    archive = TarStream(0, limits)
    try:
        root = _enter(directory)
    except OSError as error:
        return {"error": {"detail": f"lock the unpacking process into {directory}", "errno": error.errno}}
    try:
        return Unpacker(root, limits, owners=options["owners"], parents=parents).unpack(archive)._asdict()
    except TooLarge as error:
        return {"error": {"detail": str(error), "limit": error.limit}}
    except BadArchive as error:
        return {"error": {"detail": f"{error} (after {archive.count} entries)"}}
    except EntryError as error:
        facts = {"detail": error.detail, "hint": error.hint, "errno": error.code, "entry": error.entry}
        return {"error": {name: value for name, value in facts.items() if value}}
    except OSError as error:
        return {"error": {"detail": "reading the archive", "errno": error.errno}}


def _flatten(directory: str, options: dict[str, Any]) -> dict[str, Any]:
    from sandbox.images.flatten import Flattener

    os.umask(0)
    sys.setrecursionlimit(10_000)  # three calls for each directory on the way down
    try:
        layers = [os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for layer in options["layers"]]
        return Flattener(layers, _enter(directory), owners=options["owners"]).copy()._asdict()
    except OSError as error:
        path = error.filename if isinstance(error.filename, str) else None
        own = (
            error.strerror if error.strerror != os.strerror(error.errno or 0) else None
        )  # ours, not the kernel's
        return {"error": {"detail": own, "errno": None if own else error.errno, "path": path}}


def _enter(directory: str) -> int:
    """Make the layer's directory this process's root directory, and return a descriptor of it.

    Of root's powers only those over files are kept.
    """
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    os.fchdir(root)
    os.chroot(".")
    keep = mask(_CAPABILITIES)
    capset(keep, keep, 0)
    return root


def _remove(path: str) -> dict[str, Any]:
    """Remove what the caller has no power over."""
    try:
        remove(path)
    except OSError as error:
        return {"error": {"detail": str(error.filename), "errno": error.errno}}
    return {}
