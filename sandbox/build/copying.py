"""COPY, ADD and WORKDIR: from files to a layer, without a container. Standard library and :mod:`sandbox.linux` only.

It runs in the helper process (:mod:`sandbox.build.helper`), which sees the root file system so far and the sources, and
writes the archive of what the step adds. After the Dockerfile reference, "COPY" and "ADD".
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sandbox.build.changes import attributes
from sandbox.build.ignore import Ignore
from sandbox.build.tarwriter import Member, TarWriter
from sandbox.build.tree import Tree

__all__ = ["CopyError", "Order", "copy"]

_NEW_DIRECTORY = 0o755
_KINDS = {stat.S_IFREG: b"0", stat.S_IFDIR: b"5", stat.S_IFLNK: b"2", stat.S_IFIFO: b"6"}


class CopyError(Exception):
    """The step cannot be done; the text says what is in the way."""


class Order(NamedTuple):
    """What is to be copied.

    ``target``: absolute, with a slash at its end where it has to be a directory. ``owner``: uid and gid of everything
    copied, None to keep the sources' own. ``mode``: of everything copied, None to keep. ``texts``: files that come with
    their content, as (name, content). ``archives``: local archives are unpacked (ADD). ``parents``: owner of the
    directories that have to be made on the way. ``mtime``: of those, and of the texts. ``lenient``: devices are left out.
    ``archive_owner``: of what is unpacked, None for what the archive says.
    """

    target: str
    patterns: tuple[str, ...] = ()
    owner: tuple[int, int] | None = (0, 0)
    mode: int | None = None
    texts: tuple[tuple[str, str], ...] = ()
    archives: bool = False
    exclude: tuple[str, ...] = ()
    parents: tuple[int, int] = (0, 0)
    mtime: int = 0
    lenient: bool = False
    archive_owner: tuple[int, int] | None = None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Order:
        """From the message that the client sends."""
        fields = dict(document)
        for name in ("patterns", "exclude", "parents"):
            fields[name] = tuple(fields[name])
        for name in ("owner", "archive_owner"):
            fields[name] = None if fields[name] is None else tuple(fields[name])
        fields["texts"] = tuple((name, text) for name, text in fields["texts"])
        return cls(**fields)


def copy(root: Tree, source: Tree | None, order: Order, out: TarWriter) -> None:
    """Write the layer that a step makes on top of ``root``.

    :raises CopyError: there is no such source, or the target is no place for it
    :raises OSError: a source cannot be read
    """
    _Copy(root, source, order, out).run()
    out.close()


class _Copy:
    """One step."""

    def __init__(self, root: Tree, source: Tree | None, order: Order, out: TarWriter) -> None:
        self._root = root
        self._source = source
        self._order = order
        self._out = out
        self._made: set[str] = set()
        self._links: dict[tuple[int, int], str] = {}
        self._exclude = Ignore(order.exclude) if order.exclude else None

    def run(self) -> None:
        sources = list(self._sources())
        order = self._order
        target = self._root.real(order.target)
        if not sources and not order.texts:
            self.directory(target)  # WORKDIR
            return
        there = self._root.look(target)
        is_directory = order.target.endswith("/") or (there is not None and stat.S_ISDIR(there.st_mode)) or not target
        if len(sources) + len(order.texts) > 1 and not is_directory:
            raise CopyError(f"several sources, and `{order.target}` is not a directory (it does not end with a slash)")
        for name, text in order.texts:
            self._text(f"{target}/{name}" if is_directory else target, text.encode("utf-8", "surrogateescape"))
        for name, path, state in sources:
            self._top(name, path, state, target, is_directory=is_directory)

    def _sources(self) -> Iterator[tuple[str, str, os.stat_result]]:
        """Name, path and state of the sources that were named; a link that was named is followed, and keeps its name."""
        for pattern in self._order.patterns:
            assert self._source is not None
            found = self._source.glob(pattern)
            if not found:
                raise CopyError(f"there is no `{pattern}`")
            for path in found:
                real = self._source.real(path)
                if (state := self._source.look(real)) is None:
                    raise CopyError(f"`{path}` is a link that leads nowhere")
                yield os.path.basename(path), real, state

    def _top(
        self, name: str, path: str, state: os.stat_result, target: str, *, is_directory: bool
    ) -> None:  # fmt: skip
        assert self._source is not None
        if stat.S_ISDIR(state.st_mode):
            self._contents(path, state, target)
            return
        if self._order.archives and stat.S_ISREG(state.st_mode) and self._unpack(path, target):
            return
        place = f"{target}/{name}" if is_directory else target
        self._entry(path, state, place.lstrip("/"))

    def _contents(self, path: str, state: os.stat_result, target: str) -> None:
        """What lies in a directory, not the directory itself."""
        assert self._source is not None
        there = self._root.look(target)
        if there is not None and not stat.S_ISDIR(there.st_mode):
            raise CopyError(f"`{path}` is a directory, and `/{target}` is none")
        if there is None and target:
            self.directory(os.path.dirname(target))
            self._directory_entry(target, state)
        for inner, inner_state in self._source.walk(path):
            below = inner[len(path) :].lstrip("/")
            if self._exclude is not None and self._exclude.excludes(below):
                continue
            self._entry(inner, inner_state, f"{target}/{below}".lstrip("/"))

    # -- entries --------------------------------------------------------------------------------------------------

    def directory(self, path: str) -> None:
        """An entry for a directory that others lie in: as it is in the root, or made."""
        if not path or path in self._made:
            return
        self.directory(os.path.dirname(path))
        there = self._root.look(path)
        if there is None:
            self._made.add(path)
            self._out.add(Member(os.fsencode(path), b"5", _NEW_DIRECTORY, *self._order.parents, self._order.mtime))
            return
        if not stat.S_ISDIR(there.st_mode):
            raise CopyError(f"`/{path}` is not a directory")
        self._made.add(path)
        fd = self._root.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._out.add(Member(os.fsencode(path), b"5", there.st_mode, there.st_uid, there.st_gid,
                                 int(there.st_mtime), xattrs=attributes(fd)))  # fmt: skip
        finally:
            os.close(fd)

    def _place(self, place: str, *, directory: bool = False) -> str:
        """Where in the root something goes: links of directories on the way are followed, and all of them have entries.

        :param directory: it is a directory, and will have an entry of its own
        """
        above, _, name = place.rpartition("/")
        real = self._root.real(above)
        self.directory(real)
        found = f"{real}/{name}".lstrip("/")
        if directory:
            found = self._root.real(found)
            self._made.add(found)
        return found

    def _entry(self, path: str, state: os.stat_result, place: str) -> None:
        if stat.S_ISDIR(state.st_mode):
            self._directory_entry(place, state)
            return
        place = self._place(place)
        self._check_replaced(place)
        kind = _KINDS.get(stat.S_IFMT(state.st_mode))
        assert self._source is not None
        if kind == b"0":
            self._file(path, state, place)
        elif kind == b"2":
            self._add(place, kind, state, link=self._source.read_link(path))
        elif kind is not None:
            self._add(place, kind, state)
        elif not stat.S_ISSOCK(state.st_mode) and not self._order.lenient:
            raise CopyError(f"`{path}` is a device")

    def _check_replaced(self, place: str) -> None:
        there = self._root.look(place)
        if there is not None and stat.S_ISDIR(there.st_mode):
            raise CopyError(f"`/{place}` is a directory, and would be replaced by a file")

    def _directory_entry(self, place: str, state: os.stat_result) -> None:
        """A directory of the source; one that is in the root already keeps its attributes."""
        place = self._place(place)
        real = self._root.real(place)
        there = self._root.look(real)
        if there is not None and stat.S_ISDIR(there.st_mode):
            self.directory(real)
        elif there is not None and not stat.S_ISLNK(there.st_mode):
            raise CopyError(f"`/{place}` is not a directory")
        elif real not in self._made:
            self._made.add(real)
            self._add(real, b"5", state)

    def _file(self, path: str, state: os.stat_result, place: str) -> None:
        key = state.st_dev, state.st_ino
        if state.st_nlink > 1 and (first := self._links.get(key)) is not None:
            self._add(place, b"1", state, link=first)
            return
        self._links[key] = place
        assert self._source is not None
        fd = self._source.open(path)
        try:
            state = os.fstat(fd)
            if not stat.S_ISREG(state.st_mode):
                raise CopyError(f"`{path}` turned into something else meanwhile")
            self._add(place, b"0", state, size=state.st_size, xattrs=attributes(fd) if self._order.owner is None else {})
            self._out.copy(fd, state.st_size)
        finally:
            os.close(fd)

    def _add(
        self, place: str, kind: bytes, state: os.stat_result, *, size: int = 0, link: str = "",
        xattrs: Mapping[bytes, bytes] | None = None,
    ) -> None:  # fmt: skip
        uid, gid = self._order.owner or (state.st_uid, state.st_gid)
        mode = state.st_mode if self._order.mode is None or kind == b"2" else self._order.mode
        self._out.add(Member(os.fsencode(place), kind, mode, uid, gid, int(state.st_mtime), size, os.fsencode(link),
                             xattrs or {}))  # fmt: skip

    def _text(self, place: str, content: bytes) -> None:
        place = self._place(place.lstrip("/"))
        self._check_replaced(place)
        uid, gid = self._order.owner or (0, 0)
        mode = 0o644 if self._order.mode is None else self._order.mode
        self._out.add(Member(os.fsencode(place), b"0", mode, uid, gid, self._order.mtime, len(content)))
        self._out.data(content)

    def _unpack(self, path: str, target: str) -> bool:
        """Unpack a local archive into the target; False if it is none."""
        from sandbox.build import archives

        assert self._source is not None
        with open(self._source.open(path), "rb") as file:
            if not archives.is_archive(file):
                return False
            self.directory(self._root.real(target))
            archives.repack(file, self._root.real(target), self._order.archive_owner, self._place, self._out)
        return True
