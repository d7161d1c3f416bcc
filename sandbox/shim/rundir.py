"""Where running shims are found: one directory each in the runtime directory of the user, gone with the shim.

``/run/sandbox/<id>/`` for root, ``$XDG_RUNTIME_DIR/sandbox/<id>/`` for others (``/tmp/sandbox-<uid>/`` where there is
none). It holds a lock that is held as long as somebody takes care of the directory, and the control socket.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator

from sandbox.linux.idmap import outside_uid

LOCK = "lock"
SOCKET = "shim.sock"
_TRACES = "cgroups"


def base_directory() -> str:
    """The directory that holds the shims' directories; made with mode 0700 if missing, refused if it is another's."""
    uid = os.geteuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if uid == 0 and os.access("/run", os.W_OK):
        base = "/run/sandbox"
    elif runtime and os.path.isdir(runtime) and os.stat(runtime).st_uid == uid:
        base = f"{runtime}/sandbox"
    else:
        # Root of a user namespace is somebody else outside, and /tmp may be shared with other such roots.
        base = f"/tmp/sandbox-{outside_uid()}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(base, 0o700)
    state = os.lstat(base)
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != uid or state.st_mode & 0o077:
        raise PermissionError(f"{base} must be a directory of user {uid} with mode 0700")
    return base


class RuntimeDirectory:
    """The directory of one shim."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.id = os.path.basename(path)
        self._noted: set[str] = set()
        self.socket = f"{path}/{SOCKET}"
        #: In the shim's own mount namespace a tmpfs covers the directory of all shims: scratch and volumes are there.
        self.space = os.path.dirname(path)

    @classmethod
    def create(cls) -> tuple[RuntimeDirectory, int]:
        """A new one, and the descriptor that holds its lock: the directory counts as alive until all copies close."""
        base, name = base_directory(), os.urandom(6).hex()
        # Under a name that nobody looks at until the lock is held: without it, it would count as abandoned.
        directory, final = cls(f"{base}/.{name}"), cls(f"{base}/{name}")
        os.mkdir(directory.path, 0o700)
        lock = directory.lock()
        os.rename(directory.path, final.path)
        return final, lock

    def note_traces(self, paths: Iterable[str]) -> None:
        """Write down what has to be removed if the shim is killed, before it is made."""
        fresh = [path for path in paths if path not in self._noted]
        if fresh:
            with open(f"{self.path}/{_TRACES}", "a") as file:
                file.writelines(f"{path}\n" for path in fresh)
            self._noted.update(fresh)

    def traces(self) -> list[str]:
        """The paths noted."""
        try:
            with open(f"{self.path}/{_TRACES}") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []

    def remove(self) -> None:
        """Remove the directory and the files in it."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.path):
                os.unlink(f"{self.path}/{name}")
            os.rmdir(self.path)

    def lock(self) -> int:
        """Take the lock; :class:`BlockingIOError` if someone holds it."""
        fd = os.open(f"{self.path}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd


def shims() -> Iterator[RuntimeDirectory]:
    """The directories of this user, dead ones too."""
    base = base_directory()
    for name in sorted(os.listdir(base)):
        if not name.startswith(".") and os.path.isdir(f"{base}/{name}"):
            yield RuntimeDirectory(f"{base}/{name}")


def abandoned() -> Iterator[tuple[RuntimeDirectory, int]]:
    """Directories that nobody takes care of any more (client, monitor and shim were all killed), locked for the caller."""
    for directory in shims():
        try:
            yield directory, directory.lock()
        except (BlockingIOError, FileNotFoundError):
            continue
