"""The file that the shim executes, where its containers could change it.

A script in a container may name ``/proc/self/exe`` as its interpreter. For the first program of a container, and of an exec,
that is what the process executed before: Python, by the very file of the host and past all namespaces. Executed with the
container's own dynamic loader, it hands that file to code of the container, which may change its mode if it belongs to an id
that is mapped there: the caller's own, as with pyenv, uv, conda or in a user namespace. (To write to it is refused as long as
it runs.) The system's Python belongs to nobody who is mapped. For others the shim executes it again, from a read-only mount.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from sandbox.linux import constants as c, syscalls
from sandbox.linux.idmap import IdMap
from sandbox.linux.mounts import read_only_clone
from sandbox.runtime.failure import Failure

_SELF = "/proc/self/exe"
_BOOT = "import sys; sys.path[:0] = [sys.argv[1]]; from sandbox.shim.server import resume; resume(sys.argv[2:])"


def is_exposed(idmap: IdMap) -> bool:
    """Whether the file could be changed by who is mapped in ``idmap``; asked in the namespaces of the shim."""
    owner = os.stat(_SELF).st_uid
    mapped = any(r.outside <= owner < r.outside + r.count for r in idmap.uids)
    # An owner that is not mapped here looks like one that is (overflowuid), but we have no power over its files.
    return mapped and os.access(_SELF, os.W_OK)


def protect() -> None:
    """Mount the file read-only over itself, for whoever executes it from now on in this mount namespace."""
    path = os.readlink(_SELF)
    if not os.path.exists(path) or not os.path.samefile(path, _SELF):
        raise _failure(path, "the file has been replaced since this Python was started", "start again")
    fd = read_only_clone(path)
    syscalls.move_mount(fd, path, flags=c.MOVE_MOUNT_F_EMPTY_PATH)
    os.close(fd)


def execute_again(arguments: list[str], descriptors: tuple[int, ...]) -> NoReturn:
    """Execute it with :func:`.server.resume`, which gets ``arguments``; the descriptors stay open."""
    for fd in descriptors:
        os.set_inheritable(fd, True)
    library = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", _BOOT, library, *arguments])


def check(idmap: IdMap) -> None:
    """After :func:`execute_again`."""
    if is_exposed(idmap):
        raise _failure(sys.executable, "it starts another file than itself", "use the Python that it starts")


def _failure(path: str, cause: str, hint: str) -> Failure:
    return Failure("ShimError", operation="protect the interpreter from containers", object=path, cause=cause, hint=hint)
