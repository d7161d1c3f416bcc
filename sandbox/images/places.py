"""The directories of a store, who uses what is in them, and what the dead left behind. Standard library only.

::

    tmp/<name>~<random>   a directory in the making; `locks/<name>` is held by whoever makes it
    tmp/<random>          a file in the making, flock(2)ed by whoever writes it
    locks/<name>          one lock for each thing that only one process at a time may make
    leases/<pid>-<random> what a process uses, a line each; the process holds its lock as long as it lives
    lock                  held shared while something is taken into use, alone while it is decided what to remove

Nothing goes by age or by process number: a lock that is free belongs to the dead, however they died. What ends up
under its final name got there by rename(2), whole.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandbox.images.errors import StoreError

__all__ = ["Places", "store_errors"]

_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW

#: Leases of this process, by store: they last until it ends, whatever becomes of the objects.
_ours: dict[Path, _Lease] = {}
_guard = threading.Lock()


class Places:
    """What lies where below the root of a store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, name: str) -> Path:
        """A directory of the store; nobody else may enter it: there are set-user-id programs inside."""
        path = self.root / name
        try:
            path.mkdir(mode=0o700, exist_ok=True)
        except FileNotFoundError:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    @contextmanager
    def lock(self, name: str, wait: bool = True) -> Iterator[int]:
        """Hold the lock of something that is being made, as a descriptor that can be inherited.

        :raises BlockingIOError: someone else holds it and ``wait`` is false
        """
        descriptor = _locked(self.directory("locks") / name.replace("/", "-"), wait=wait)
        try:
            yield descriptor
        finally:
            os.close(descriptor)  # not unlocked: a helper that still runs keeps it held

    @contextmanager
    def new_file(self) -> Iterator[tuple[int, Path]]:
        """An empty file in ``tmp``, open for writing; it is removed at the end unless it was renamed."""
        path = self.directory("tmp") / uuid.uuid4().hex
        descriptor = _locked(path)
        try:
            yield descriptor, path
        finally:
            with suppress(FileNotFoundError):
                path.unlink()
            os.close(descriptor)

    def write(self, path: Path, content: bytes) -> None:
        """Make or replace a small file: readers see the old content or the new."""
        with self.new_file() as (descriptor, temporary):
            os.write(descriptor, content)
            self.directory(str(path.parent.relative_to(self.root)))
            temporary.rename(path)

    def sweep(self, remove: Callable[[Path], None], held: str | None = None) -> None:
        """Remove what the dead left behind in ``tmp``: everything whose lock is free, or held by the caller.

        :param remove: removes a directory, whoever its files belong to
        :param held: the name of the lock that the caller holds
        """
        for path in list(self.directory("tmp").iterdir()):
            name, directory, _ = path.name.partition("~")
            with suppress(BlockingIOError, FileNotFoundError):
                if not directory:
                    descriptor = _locked(path, wait=False, create=False)
                    path.unlink()
                    os.close(descriptor)
                elif held is not None and name == held.replace("/", "-"):
                    remove(path)
                else:
                    with self.lock(name, wait=False):
                        remove(path)

    def drop_free_locks(self) -> None:
        """Remove the files of locks that nobody holds."""
        for path in list(self.directory("locks").iterdir()):
            with suppress(BlockingIOError, FileNotFoundError):
                descriptor = _locked(path, wait=False, create=False)
                path.unlink()
                os.close(descriptor)

    # -- who uses what
    # -------------------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """While something is taken into use: nobody decides meanwhile what to remove."""
        with self._gate(fcntl.LOCK_SH):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While it is decided what to remove: nobody takes anything into use meanwhile."""
        with self._gate(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _gate(self, operation: int) -> Iterator[None]:
        self.directory("leases")
        descriptor = os.open(self.root / "lock", _OPEN, 0o600)
        try:
            fcntl.flock(descriptor, operation)
            yield
        finally:
            os.close(descriptor)

    def use(self, *things: str) -> None:
        """Note that this process uses things of the store, like ``blobs/sha256/…``, until it ends.

        Things that are noted are not removed, whether they are there already or not: note first, then look.
        """
        with _guard:
            lease = _ours.get(self.root)
            fresh = [thing for thing in things if lease is None or thing not in lease.things]
            if not fresh:
                return
            try:
                with self.together():
                    if lease is None or not lease.exists():
                        lease = _ours[self.root] = _Lease(self.directory("leases"))
                    lease.add(fresh)
            except OSError as error:
                if error.errno != errno.EROFS:  # a store that is part of a read-only machine loses nothing
                    raise

    def in_use(self, *, by_others: bool = False) -> dict[str, set[int]]:
        """What living processes use, and who they are.

        :param by_others: leave out what only this process uses
        """
        found: dict[str, set[int]] = {}
        for path in list(self.directory("leases").iterdir()):
            pid = int(path.name.partition("-")[0])
            with suppress(FileNotFoundError):
                try:
                    descriptor = _locked(path, wait=False, create=False)
                    path.unlink()  # its owner is dead
                    os.close(descriptor)
                except BlockingIOError:
                    for thing in path.read_text().splitlines():
                        if not by_others or pid != os.getpid():
                            found.setdefault(thing, set()).add(pid)
        return found


class _Lease:
    """What this process uses of one store."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._descriptor = _locked(self._path, flags=os.O_APPEND)  # forks of this process have it too
        self.things: set[str] = set()

    def exists(self) -> bool:
        """False once somebody has removed the whole store."""
        return self._path.exists()

    def add(self, things: list[str]) -> None:
        os.write(self._descriptor, "".join(f"{thing}\n" for thing in things).encode())
        self.things.update(things)


def _locked(path: Path, *, wait: bool = True, create: bool = True, flags: int = 0) -> int:
    """Open and lock a file that others may be about to remove: what is locked is what the path names."""
    while True:
        descriptor = os.open(path, (_OPEN if create else _OPEN & ~os.O_CREAT) | flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextmanager
def store_errors(operation: str, object: str, root: Path) -> Iterator[None]:
    """Turn the kernel's refusals into the store's error.

    :raises StoreError: for every OSError
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            operation=operation,
            object=object,
            path=error.filename if isinstance(error.filename, str) else root,
            errno=error.errno,
            hint=f"the store is {root}; SANDBOX_STORE puts it elsewhere",
        ) from error
