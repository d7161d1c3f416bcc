"""Unpack one layer into a directory, in the form overlayfs wants.

Standard library and :mod:`sandbox.linux` only. Runs in the helper process (:mod:`sandbox.images.unpack`), whose
root directory already is the target, as root of the user namespace that the ids are meant for. The archive is
not trusted: on top of that jail every directory is opened with openat2(2) ``RESOLVE_IN_ROOT``, and everything
else is done by name relative to a directory descriptor and without following links. What the OCI image
specification calls whiteouts ("Layer", section "Whiteouts") becomes what overlayfs has: a 0:0 character device,
and ``user.overlay.opaque`` on opaque directories (mounts use ``userxattr``).

Decided here:

* Links to directories inside the layer are followed inside the layer, as docker does; ``..`` is refused.
* Device nodes are left out, as podman does without root: no container of ours could open them. A whiteout
  takes their place, so that they still hide what is below.
* Of extended attributes ``user.*`` (without overlayfs's own) and ``security.capability`` are kept. The
  latter is bound to the namespace's root: by the kernel when set without root, by the idmapped mount
  otherwise.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from sandbox.images import tar
from sandbox.images.limits import Limits
from sandbox.images.removal import remove_at
from sandbox.linux.constants import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from sandbox.linux.syscalls import openat2

__all__ = ["IMPLICIT_ROOT_XATTR", "EntryError", "Summary", "Unpacker"]

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_OPAQUE_XATTR = "user.overlay.opaque"
#: On the directory of a layer whose archive says nothing of the root. Overlayfs keeps it to itself.
IMPLICIT_ROOT_XATTR = "user.overlay.sandbox.implicit"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_OPEN_DIRECTORIES = 128
_NOTED = 1000  # names in the summary, of each kind
_IMPLICIT_MODE = 0o755
_LAST_ID = 2**32 - 2  # chown(2) takes the next one for "leave as it is"


class EntryError(Exception):
    """An entry that cannot or must not be unpacked."""

    def __init__(self, detail: str, hint: str | None = None, code: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.code = code
        #: Name of the entry; known to :meth:`Unpacker.unpack`, which sets it.
        self.entry: str | None = None


class Summary(NamedTuple):
    """What unpacking a layer came to."""

    #: Entries of the archive.
    entries: int
    #: Entries that were left out, and extended attributes that were, as ``name [attribute]``.
    skipped: list[str]
    #: Directories (the first 1000) that the archive has no entry for; a lower layer may know their mode and owner.
    implicit: list[str]
    #: Everything below this layer is hidden. Overlayfs knows no opaque root: lower layers must be left out.
    opaque: bool


class _Attributes(NamedTuple):
    """What a directory gets once everything is in it."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int


class Unpacker:
    """Puts the entries of one archive below one directory."""

    def __init__(
        self, root: int, limits: Limits, *, owners: bool = True, parents: Sequence[int] = ()
    ) -> None:
        """Prepare for the directory behind the descriptor ``root``, which must be empty and nobody else's.

        :param owners: whether ids are stored; without, all files belong to the caller
        :param parents: roots of the layers below, uppermost first: where they have a directory that the
            archive has no entry for, it is made like theirs
        """
        self._root = root
        self._limits = limits
        self._owners = owners
        self._parents = parents
        self._directories: dict[bytes, int] = {b"": root}
        self._pending: dict[bytes, _Attributes] = {}
        self._implicit: set[bytes] = set()
        self._whited_out: set[bytes] = set()
        self._opaque = False
        self._closing: list[int] = []
        self._skipped: list[str] = []
        self._always_chown = os.fstat(root).st_gid != 0

    def unpack(self, archive: tar.TarStream) -> Summary:
        """Unpack a whole archive.

        :raises EntryError: an entry is refused, by us or by the kernel
        :raises sandbox.images.tar.BadArchive: the archive is damaged
        """
        try:
            for entry in archive:
                self._take(entry, archive)
            self._finish()
        finally:
            self._forget()
            self._close()
        implicit = sorted(_show(path) for path in self._implicit)[:_NOTED]
        return Summary(archive.count, self._skipped, implicit, self._opaque)

    def _take(self, entry: tar.Entry, archive: tar.TarStream) -> None:
        """One entry; whatever goes wrong with it carries its name."""
        try:
            self._add(entry, archive)
        except EntryError as error:
            error.entry = _show(entry.name)
            raise
        except OSError as error:
            raise _refusal(error, entry.name, entry.uid, entry.gid) from error
        except (OverflowError, ValueError) as error:  # of the os functions, before any system call
            failed = EntryError(f"a value that the kernel cannot store: {error}")
            failed.entry = _show(entry.name)
            raise failed from error
        if self._closing:
            self._close()

    def _add(self, entry: tar.Entry, archive: tar.TarStream) -> None:
        parts = [part for part in entry.name.split(b"/") if part and part != b"."]
        if b".." in parts:
            raise EntryError("`..` in a name: it would leave the root of the image")
        if not parts:
            return self._root_entry(entry)
        if len(parts) > self._limits.depth:
            raise EntryError(f"more than {self._limits.depth} directories deep")
        if entry.uid > _LAST_ID or entry.gid > _LAST_ID:
            raise EntryError(f"owner {entry.uid}:{entry.gid} cannot exist")
        name = parts.pop()
        if _WHITEOUT in entry.name and any(part.startswith(_WHITEOUT) for part in parts):
            raise EntryError("a whiteout is used as a directory")
        directory = b"/".join(parts)
        if name.startswith(_WHITEOUT):
            return self._whiteout(directory, name, entry)
        parent = self._directory(directory)
        path = directory + b"/" + name if directory else name
        if entry.type == tar.REGULAR:
            return self._file(parent, name, path, entry, archive)
        if entry.type == tar.DIRECTORY:
            return self._make_directory(parent, name, path, entry)
        return self._special(parent, name, path, entry)

    # -- one kind each
    # ---------------------------------------------------------------------------------------------

    def _file(self, parent: int, name: bytes, path: bytes, entry: tar.Entry, archive: tar.TarStream) -> None:
        try:
            file = os.open(name, _CREATE, entry.mode & 0o777, dir_fd=parent)
        except FileExistsError:
            self._clear(parent, name, path)
            file = os.open(name, _CREATE, entry.mode & 0o777, dir_fd=parent)
        try:
            if entry.sparse is not None:
                archive.copy_sparse(file, entry.sparse)
            elif entry.size:
                archive.copy(file)
            if self._owners and (entry.uid or entry.gid or self._always_chown):
                os.chown(file, entry.uid, entry.gid)
            if entry.mode & 0o7000:
                os.chmod(file, entry.mode)
            if entry.xattrs:
                self._set_xattrs(file, entry)
            os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(file)

    def _make_directory(self, parent: int, name: bytes, path: bytes, entry: tar.Entry) -> None:
        opaque = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not _is_directory(parent, name):
                opaque = path in self._whited_out
                self._clear(parent, name, path)
                os.mkdir(name, 0o700, dir_fd=parent)
        self._implicit.discard(path)
        self._pending[path] = _Attributes(entry.mode, entry.uid, entry.gid, entry.mtime_ns)
        if opaque:
            self._make_opaque(path)
        if entry.xattrs:
            self._set_xattrs(self._directory(path), entry)

    def _special(self, parent: int, name: bytes, path: bytes, entry: tar.Entry) -> None:
        try:
            self._make_node(parent, name, path, entry)
        except FileExistsError:
            if entry.type == tar.HARD_LINK and self._same_file(parent, name, entry):
                return
            self._clear(parent, name, path)
            self._make_node(parent, name, path, entry)

    def _make_node(self, parent: int, name: bytes, path: bytes, entry: tar.Entry) -> None:
        if entry.type == tar.HARD_LINK:
            source, link = self._link_target(entry)
            os.link(link, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            return
        if entry.type == tar.SYMLINK:
            os.symlink(entry.link, name, dir_fd=parent)
        elif entry.type == tar.FIFO:
            os.mkfifo(name, entry.mode & 0o777, dir_fd=parent)
        else:
            self._hide(parent, name, path)
            if entry.device != (0, 0):
                self._note(f"{_show(entry.name)} [device node]")
            return
        if self._owners and (entry.uid or entry.gid or self._always_chown):
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.xattrs:
            self._note(*(f"{_show(entry.name)} [{_show(key)}]" for key in entry.xattrs))
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _root_entry(self, entry: tar.Entry) -> None:
        if entry.type != tar.DIRECTORY:
            raise EntryError("the root of the image is not a directory")
        self._pending[b""] = _Attributes(entry.mode, entry.uid, entry.gid, entry.mtime_ns)
        if entry.xattrs:
            self._set_xattrs(self._root, entry)

    def _link_target(self, entry: tar.Entry) -> tuple[int, bytes]:
        """Directory and name of what a hard link points to; it must be in this layer, and before the link."""
        parts = [part for part in entry.link.split(b"/") if part and part != b"."]
        if not parts or b".." in parts:
            raise EntryError(f"hard link to `{_show(entry.link)}`: it would leave the root of the image")
        name = parts.pop()
        directory = b"/".join(parts)
        try:
            parent = self._open(directory)
            mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        except OSError as error:
            gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
            absent = f"hard link to `{_show(entry.link)}`, which this layer does not have"
            raise EntryError(absent, code=None if gone else error.errno) from error
        if stat.S_ISDIR(mode):
            raise EntryError(f"hard link to `{_show(entry.link)}`, which is a directory")
        return parent, name

    def _same_file(self, parent: int, name: bytes, entry: tar.Entry) -> bool:
        """A second link entry for a name that already is that link; clearing it could remove the only copy."""
        source, link = self._link_target(entry)
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
        return os.path.samestat(there, os.stat(link, dir_fd=source, follow_symlinks=False))

    # -- whiteouts
    # -------------------------------------------------------------------------------------------------

    def _whiteout(self, directory: bytes, name: bytes, entry: tar.Entry) -> None:
        if name == _OPAQUE:
            self._directory(directory)
            self._make_opaque(directory)
            return
        if name.startswith(_AUFS):
            self._note(f"{_show(entry.name)} [aufs]")
            return
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise EntryError("a whiteout of nothing, or of a directory above")
        parent = self._directory(directory)
        path = directory + b"/" + hidden if directory else hidden
        try:
            self._hide(parent, hidden, path)
        except FileExistsError:  # it hides what lower layers have, not what this one has
            if _is_directory(parent, hidden):
                self._make_opaque(path)

    def _hide(self, parent: int, name: bytes, path: bytes) -> None:
        os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
        self._whited_out.add(path)

    def _make_opaque(self, path: bytes) -> None:
        os.setxattr(self._directory(path), _OPAQUE_XATTR, b"y")
        self._opaque = self._opaque or not path

    # -- directories
    # -----------------------------------------------------------------------------------------------

    def _directory(self, path: bytes) -> int:
        """An open directory; made if the archive had no entry for it."""
        found = self._directories.get(path)
        if found is not None:
            return found
        try:
            return self._open(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise _on_the_way(path, error) from error
        return self._make_implicit(path)

    def _open(self, path: bytes) -> int:
        found = self._directories.get(path)
        if found is None:
            found = openat2(os.fsdecode(path), _OPEN_DIRECTORY, resolve=_INSIDE, dir_fd=self._root)
            if len(self._directories) > _OPEN_DIRECTORIES:
                self._forget()
            self._directories[path] = found
        return found

    def _make_implicit(self, path: bytes) -> int:
        upper, _, name = path.rpartition(b"/")
        parent = self._directory(upper)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError as error:
            if path not in self._whited_out:
                raise _on_the_way(path, error) from error
            self._clear(parent, name, path)
            os.mkdir(name, 0o700, dir_fd=parent)
            self._pending[path] = _Attributes(_IMPLICIT_MODE, 0, 0, 0)
            self._make_opaque(path)
            return self._open(path)
        self._pending[path] = self._as_below(path)
        self._implicit.add(path)
        if len(self._implicit) > self._limits.entries:
            raise tar.TooLarge("entries", self._limits.entries)
        return self._open(path)

    def _as_below(self, path: bytes) -> _Attributes:
        """Attributes of the same directory in the uppermost layer below that has it."""
        for root in self._parents:
            try:
                below = openat2(os.fsdecode(path), _OPEN_DIRECTORY, resolve=_INSIDE, dir_fd=root)
            except OSError:
                continue
            try:
                status = os.fstat(below)
            finally:
                os.close(below)
            return _Attributes(status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime_ns)
        return _Attributes(_IMPLICIT_MODE, 0, 0, 0)

    def _clear(self, parent: int, name: bytes, path: bytes) -> None:
        """Remove what a later entry replaces. Paths may have led through it: start afresh with directories."""
        if _is_directory(parent, name):
            remove_at(parent, name)
            self._drop_pending(path)
        else:
            os.unlink(name, dir_fd=parent)
        self._whited_out.discard(path)
        self._forget()

    def _drop_pending(self, path: bytes) -> None:
        inside = path + b"/"
        for known in [known for known in self._pending if known == path or known.startswith(inside)]:
            del self._pending[known]
            self._implicit.discard(known)

    def _forget(self) -> None:
        """Forget open directories; they stay open until the entry is done, which may be using them."""
        self._closing += [descriptor for path, descriptor in self._directories.items() if path]
        self._directories = {b"": self._root}

    def _close(self) -> None:
        for descriptor in self._closing:
            os.close(descriptor)
        self._closing = []

    def _finish(self) -> None:
        """Give directories their attributes, deepest first: until now all were ours alone, and changing."""
        self._forget()
        self._close()
        if b"" not in self._pending:
            with suppress(
                OSError
            ):  # where there are no such attributes, the uppermost layer's root is as good
                os.setxattr(self._root, IMPLICIT_ROOT_XATTR, b"y")
            os.utime(self._root, ns=(0, 0))
        for path in sorted(self._pending, key=lambda path: path.count(b"/"), reverse=True):
            try:
                self._dress(path, self._pending[path])
            except OSError as error:
                attributes = self._pending[path]
                raise _refusal(error, path, attributes.uid, attributes.gid) from error
            except OverflowError as error:
                failed = EntryError(f"a value that the kernel cannot store: {error}")
                failed.entry = _show(path)
                raise failed from error

    def _dress(self, path: bytes, attributes: _Attributes) -> None:
        directory = self._root
        if path:
            flags = _OPEN_DIRECTORY | os.O_NOFOLLOW
            directory = openat2(os.fsdecode(path), flags, resolve=_INSIDE, dir_fd=self._root)
        try:
            if self._owners:
                os.chown(directory, attributes.uid, attributes.gid)
            os.chmod(directory, attributes.mode)
            os.utime(directory, ns=(attributes.mtime_ns, attributes.mtime_ns))
        finally:
            if path:
                os.close(directory)

    # -- the rest
    # --------------------------------------------------------------------------------------------------

    def _set_xattrs(self, descriptor: int, entry: tar.Entry) -> None:
        for key, value in entry.xattrs.items():
            kept = key.startswith(b"user.") and not key.startswith(b"user.overlay.")
            if kept or (key == b"security.capability" and entry.type == tar.REGULAR):
                os.setxattr(descriptor, key, value)
            else:
                self._note(f"{_show(entry.name)} [{_show(key)}]")

    def _note(self, *skipped: str) -> None:
        if len(self._skipped) < _NOTED:
            self._skipped.extend(skipped)


def _is_directory(parent: int, name: bytes) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _on_the_way(path: bytes, error: OSError) -> EntryError:
    """Why a directory of an entry's name cannot be used."""
    if error.errno == errno.EEXIST:
        return EntryError(f"`{_show(path)}` is on the way, which is not a directory")
    if error.errno == errno.ELOOP:
        return EntryError(f"`{_show(path)}` is on the way, a loop of links")
    return EntryError(f"open `{_show(path)}`", code=error.errno)


def _refusal(error: OSError, name: bytes, uid: int, gid: int) -> EntryError:
    """The kernel's refusal in the words of images."""
    hint = None
    if error.errno == errno.EINVAL and (uid or gid):
        hint = f"owner {uid}:{gid} may be outside of the ids that this user has; see subuid(5)"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space, or put the store elsewhere with SANDBOX_STORE"
    elif error.errno == errno.EOPNOTSUPP:
        hint = "the store's file system has no extended attributes; put it elsewhere with SANDBOX_STORE"
    failed = EntryError("", hint, error.errno)
    failed.entry = _show(name)
    return failed


def _show(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
