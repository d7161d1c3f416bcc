"""Removing from a store: images that were told to go, and whatever nothing refers to.

What to remove is decided while nobody can take anything into use (:meth:`Places.alone`), and renamed away in the same
breath; that is short. The files are removed after that, without a lock that anybody waits for. What a living process
uses stays: it noted so before it looked (:meth:`Places.use`). A collector that is killed has removed something or not;
what it had renamed away is swept by the next one.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sandbox.images.blobstore import path_of
from sandbox.images.layout import DirectoryBlobs
from sandbox.images.names import TABLES, Names
from sandbox.images.places import store_errors
from sandbox.images.stored import Images

if TYPE_CHECKING:
    from sandbox.images.store import Store

__all__ = ["Garbage", "Inventory", "Reach", "Thing", "prune", "remove", "users_of"]

#: `layers/sha256/<diff id>[+id map][+on-<what is below>]`
_LAYER = re.compile(
    r"layers/(?P<layer>[a-z0-9]+/[0-9a-f]+)(?:\+[0-9a-f]{16})?(?:\+on-(?P<chain>[0-9a-f]{16}))?"
)


@attrs.frozen
class Thing:
    """Something in a store: an image's record, a blob, an unpacked layer."""

    #: Its path below the root of the store.
    name: str
    #: Bytes. Of an unpacked layer those of its archive.
    size: int


@attrs.frozen
class Garbage:
    """What was removed, or would be."""

    #: Digests of images that nothing names.
    images: tuple[str, ...] = ()
    #: Names that were forgotten.
    names: tuple[str, ...] = ()
    blobs: tuple[Thing, ...] = ()
    layers: tuple[Thing, ...] = ()
    #: Downloads that nobody went on with, and caches of builds.
    leftovers: tuple[Thing, ...] = ()

    @property
    def things(self) -> tuple[Thing, ...]:
        """All that takes space."""
        return (*self.blobs, *self.layers, *self.leftovers)

    @property
    def size(self) -> int:
        """Bytes that go."""
        return sum(thing.size for thing in self.things)


def prune(store: Store, *, everything: bool = False, dry_run: bool = False) -> Garbage:
    """Remove what nothing refers to: images without a name, blobs and unpacked layers of no image.

    :param everything: also images that have a name, and what the library could make again; what a living process
        uses stays all the same
    :param dry_run: only tell what would be removed
    :raises StoreError: the store cannot be written
    """
    with store_errors("prune", "the image store", store.root), _removal(store) as trash:
        with store.places.alone():
            inventory = Inventory(store)
            tables = () if everything else TABLES
            roots = {name.digest for table in tables for name in Names(store, table).items()}
            garbage = inventory.unreachable(roots | inventory.images_in_use())
            left = (*_broken_off(store, inventory.used), *(inventory.build_caches() if everything else ()))
            garbage = attrs.evolve(garbage, leftovers=left)
            if not dry_run:
                trash(inventory, garbage)
                store.places.drop_free_locks()
    return garbage


def remove(store: Store, digests: Iterable[str]) -> Garbage:
    """Remove images whatever they are called, and what no other image needs of theirs.

    What a living process uses stays until it ends; :func:`prune` removes it then.

    :raises StoreError: the store cannot be written
    """
    going = set(digests)
    with store_errors("remove", ", ".join(sorted(going)), store.root), _removal(store) as trash:
        with store.places.alone():
            inventory = Inventory(store)
            named = {name.digest for rows in inventory.names.values() for name in rows}
            garbage = inventory.unreachable(
                (inventory.records | named) - going, among=inventory.reachable(going)
            )
            trash(inventory, garbage)
    return garbage


def users_of(store: Store, digest: str) -> set[int]:
    """Living processes, other than this one, that use an image."""
    with store_errors("look up users of", digest, store.root):
        found = store.places.in_use(by_others=True).get(path_of(digest), set())
    return set(found)


@attrs.frozen
class Reach:
    """What a set of images needs."""

    #: Paths of blobs.
    blobs: frozenset[str]
    #: Unpacked layers, as `sha256/<diff id>`.
    layers: frozenset[str]
    #: What each stack of layers below another is called in its name.
    chains: frozenset[str]

    def has_layer(self, name: str) -> bool:
        """Whether an unpacked layer, by its path below the root of the store, is one of them."""
        match = _LAYER.fullmatch(name)
        if match is None or match["layer"] not in self.layers:
            return False
        return match["chain"] is None or match["chain"] in self.chains


class Inventory:
    """What is in a store at a moment at which nobody takes anything into use."""

    def __init__(self, store: Store) -> None:
        self._root = store.root
        self._limit = store.limits.config
        self._files = DirectoryBlobs(store.root)
        self.used = store.places.in_use()
        self.images = Images(store)
        self.records = self.images.digests()
        self.blobs = {path_of(digest): size for digest, size in store.blobs.items()}
        self.layers = dict(_layers(store.root))
        self.names = {table: list(Names(store, table).items()) for table in TABLES}

    def images_in_use(self) -> set[str]:
        """Images that living processes have looked at in order to use them."""
        return {digest for digest in self.records if path_of(digest) in self.used}

    def build_caches(self) -> Iterator[Thing]:
        """What steps of builds keep for each other (``RUN --mount=type=cache``); their sizes are not known."""
        for path in sorted(self._root.glob("build-caches/*")):
            name = str(path.relative_to(self._root))
            if path.name.removesuffix(".lock") not in {used.partition("/")[2] for used in self.used}:
                yield Thing(name, path.stat().st_size if path.is_file() else 0)

    def reachable(self, digests: Iterable[str]) -> Reach:
        """Follow manifests as far as their blobs are there."""
        blobs: set[str] = set()
        layers: set[str] = set()
        chains: set[str] = set()
        pending = list(digests)
        while pending:
            digest = pending.pop()
            name = path_of(digest)
            if name in blobs:
                continue
            blobs.add(name)
            layers.add(digest.replace(":", "/"))  # caches name layers too: as they are uncompressed
            document = self._document(name)
            pending += _digests(document.get("manifests"))
            blobs.update(path_of(digest) for digest in _digests(document.get("layers")))
            for digest in _digests([document.get("config")]):
                blobs.add(path_of(digest))
                diff_ids = self._diff_ids(path_of(digest))
                layers.update(each.replace(":", "/") for each in diff_ids)
                chains.update(_chains(diff_ids))
        return Reach(frozenset(blobs), frozenset(layers), frozenset(chains))

    def unreachable(self, roots: set[str], *, among: Reach | None = None) -> Garbage:
        """What is not needed by ``roots`` nor in use.

        :param among: look no further than these
        """
        needed = self.reachable(roots)
        return Garbage(
            images=tuple(sorted(self.records - roots)),
            names=tuple(
                sorted(n.name for rows in self.names.values() for n in rows if n.digest not in roots)
            ),
            blobs=tuple(
                Thing(name, size)
                for name, size in self.blobs.items()
                if name not in self.used and name not in needed.blobs and (not among or name in among.blobs)
            ),
            layers=tuple(
                Thing(name, size)
                for name, size in self.layers.items()
                if name not in self.used
                and not needed.has_layer(name)
                and (not among or among.has_layer(name))
            ),
        )

    def _document(self, name: str) -> dict[str, Any]:
        """A JSON object; of what is none, or not there, nothing follows."""
        try:
            with self._files.open(name) as file:
                start = file.read(1)
                document = json.loads(start + file.read(self._limit)) if start == b"{" else None
        except (OSError, ValueError, RecursionError):
            return {}
        return document if isinstance(document, dict) else {}

    def _diff_ids(self, config: str) -> list[str]:
        rootfs = self._document(config).get("rootfs")
        found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _digests(values: object) -> list[str]:
    if not isinstance(values, list):
        return []
    return [v["digest"] for v in values if isinstance(v, dict) and isinstance(v.get("digest"), str)]


def _chains(diff_ids: list[str]) -> Iterator[str]:
    """See :meth:`sandbox.images.store.Store._with_parents`."""
    for end in range(1, len(diff_ids) + 1):
        yield hashlib.sha256(" ".join(diff_ids[:end]).encode()).hexdigest()[:16]


def _layers(root: Path) -> Iterator[tuple[str, int]]:
    for home in root.glob("layers/*/*"):
        try:
            size = int(json.loads((home / "layer.json").read_bytes())["size"])
        except (OSError, ValueError, KeyError, TypeError):
            size = 0
        yield str(home.relative_to(root)), size


def _broken_off(store: Store, used: Collection[str]) -> Iterator[Thing]:
    """What pulls have begun and left (see :mod:`sandbox.images.distribution.download`)."""
    for path in sorted(store.root.glob("partial/*")):
        digest = path.name.replace("-", ":", 1)
        with suppress(BlockingIOError, FileNotFoundError):
            with store.places.lock(f"blob-{digest}", wait=False):
                if path_of(digest) not in used:
                    yield Thing(str(path.relative_to(store.root)), path.stat().st_size)


@contextmanager
def _removal(store: Store) -> Iterator[_Trash]:
    """Something to put garbage into; it is emptied at the end, with what earlier collectors did not get to."""
    store.places.sweep(store.remove_tree)
    with store.places.lock("trash"):
        trash = _Trash(store)
        try:
            yield trash
        finally:
            trash.empty()


class _Trash:
    """A directory in ``tmp`` on its way out."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._place = store.places.directory("tmp") / f"trash~{uuid.uuid4().hex[:12]}"

    def __call__(self, inventory: Inventory, garbage: Garbage) -> None:
        """Take everything away, what refers to something before what it refers to."""
        for name in garbage.names:
            for table in TABLES:
                Names(self._store, table).remove(name)
        for digest in garbage.images:
            inventory.images.forget(digest)
        self._place.mkdir(mode=0o700)
        for number, thing in enumerate(garbage.things):
            with suppress(FileNotFoundError):
                (self._store.root / thing.name).rename(self._place / str(number))

    def empty(self) -> None:
        if self._place.exists():
            self._store.remove_tree(self._place)
