"""Names of images in a store: which manifest a reference like ``docker.io/library/myapp:1`` means here.

A file for each name, ``names/<hash of the name>``, replaced by rename(2): who reads while another writes sees the old
digest or the new one.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sandbox.images.places import store_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.images.store import Store

__all__ = ["TABLES", "Name", "Names"]

#: The tables of a store. What a record of any of them means is kept: ``names`` is what users say, ``cache`` what the
#: library notes for itself (steps of a build), and forgets when it is told to keep nothing it could make again.
TABLES = ("names", "cache")


class Name(NamedTuple):
    """A name and what it means."""

    #: The reference in full, as :attr:`sandbox.images.references.Reference.canonical` has it.
    name: str
    #: Digest of the manifest or index, ``sha256:…``.
    digest: str
    #: When it got this meaning, in seconds since 1970.
    time: float


class Names:
    """A table from names to digests of manifests, shared by all processes that use the store.

    >>> Names(Store.default()).get("docker.io/library/debian:12")
    'sha256:…'
    """

    def __init__(self, store: Store, table: str = "names") -> None:
        """One of :data:`TABLES`."""
        self._store = store
        self._table = table

    def set(self, name: str, digest: str) -> None:
        """Let a name mean an image from now on, whatever it meant before.

        :raises StoreError: the store cannot be written
        """
        store = self._store
        record = {"name": name, "digest": digest, "time": time.time()}
        with store_errors("name image", name, store.root):
            store.places.write(self._path(name), json.dumps(record).encode())

    def get(self, name: str) -> str | None:
        """The digest that a name means; ``None`` if it means nothing here."""
        found = self._read(self._path(name))
        return found.digest if found else None

    def remove(self, name: str) -> bool:
        """Forget a name; false if there was none. The image stays until something collects it."""
        with store_errors("remove name", name, self._store.root):
            try:
                self._path(name).unlink()
            except FileNotFoundError:
                return False
        return True

    def items(self) -> Iterator[Name]:
        """All names, in their order."""
        with store_errors("list names", self._table, self._store.root):
            try:
                paths = list((self._store.root / self._table).iterdir())
            except FileNotFoundError:
                return
        yield from sorted(found for path in paths if (found := self._read(path)) is not None)

    def _path(self, name: str) -> Path:
        return self._store.root / self._table / hashlib.sha256(name.encode()).hexdigest()[:40]

    def _read(self, path: Path) -> Name | None:
        """A record; one that a power failure has emptied is as good as none."""
        with store_errors("read name", path.name, self._store.root):
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                return None
        try:
            record = json.loads(content)
            return Name(str(record["name"]), str(record["digest"]), float(record["time"]))
        except (ValueError, KeyError, TypeError):
            return None
