"""Read a tar stream front to back: ustar, pax and GNU headers, sparse files. Standard library only.

Written for untrusted input and for speed: it never seeks, holds one header at a time, checks every number
and length before use, and hands file contents from its read buffer straight to the kernel. Formats: POSIX.1-2017 pax(1)
"EXTENDED DESCRIPTION" and GNU tar's manual, "Basic Tar Format" and "Storing Sparse Files".
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sandbox.images.limits import Limits

__all__ = ["BadArchive", "Entry", "Sparse", "TarStream", "TooLarge"]

BLOCK = 512
_CHUNK = 1 << 20
_ADLER_PRIME = 65521

#: Type flags, POSIX and GNU.
REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = (
    b"0",
    b"1",
    b"2",
    b"3",
    b"4",
    b"5",
    b"6",
)
_KNOWN_TYPES = frozenset(b"01234567S")
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK, _SPARSE, _VOLUME = b"x", b"g", b"L", b"K", b"S", b"V"
_EXTENSIONS = frozenset(b"xgLKV")
_NULL_BLOCK = bytes(BLOCK)
#: Keys that a global header must not set: one value for every entry makes no sense, and readers disagree
#: about it.
_NEVER_GLOBAL = (b"path", b"linkpath", b"size", b"GNU.sparse.")


class BadArchive(Exception):
    """The stream is not a well-formed tar archive."""


class TooLarge(BadArchive):
    """The stream goes beyond a limit; ``limit`` names it."""

    def __init__(self, limit: str, allowed: int) -> None:
        super().__init__(f"larger than the limit `{limit}` of {allowed}")
        self.limit = limit


class Sparse(NamedTuple):
    """Where the data of a sparse file belongs."""

    #: Offset and length of each piece of data, ascending.
    pieces: tuple[tuple[int, int], ...]
    #: Size of the file, holes included.
    size: int


class Entry:
    """One entry of the archive, extended headers applied."""

    __slots__ = (
        "device",
        "gid",
        "link",
        "mode",
        "mtime_ns",
        "name",
        "size",
        "sparse",
        "type",
        "uid",
        "xattrs",
    )

    def __init__(self, block: bytes) -> None:
        self.name = _text(block, 0, 100)
        self.mode = _number(block, 100, 8, "mode") & 0o7777
        self.uid = _number(block, 108, 8, "uid")
        self.gid = _number(block, 116, 8, "gid")
        #: Bytes of data that follow in the archive; for a sparse file not the size of the file.
        self.size = _number(block, 124, 12, "size")
        self.mtime_ns = _number(block, 136, 12, "mtime", signed=True) * 1_000_000_000
        self.type = block[156:157]
        self.link = _text(block, 157, 100)
        self.device = (0, 0)
        self.xattrs: dict[bytes, bytes] = {}
        self.sparse: Sparse | None = None
        if self.type in b"34":
            self.device = (_number(block, 329, 8, "devmajor"), _number(block, 337, 8, "devminor"))
        if block[257:263] == b"ustar\0" and block[345]:
            self.name = _text(block, 345, 155) + b"/" + self.name
        if self.type in (b"\0", b"7"):
            self.type = REGULAR


class _Extended:
    """What extended headers say about the entry that follows them."""

    def __init__(self) -> None:
        self.found = False
        self.name: bytes | None = None
        self.link: bytes | None = None
        self._pax: dict[bytes, bytes] = {}
        self._pieces: list[tuple[int, int]] = []

    def take_records(self, content: bytes) -> None:
        """A pax header; the repeated records of sparse format 0.0 are kept apart, in their order."""
        offset = None
        for key, value in _pax_records(content):
            if key == b"GNU.sparse.offset":
                offset = _decimal(value)
            elif key == b"GNU.sparse.numbytes" and offset is not None:
                self._pieces.append((offset, _decimal(value)))
            else:
                self._pax[key] = value

    def apply(self, entry: Entry) -> None:
        """Extended headers go before what the entry's own header says."""
        if self.name is not None:
            entry.name = self.name
        if self.link is not None:
            entry.link = self.link
        for key, value in self._pax.items():
            if key.startswith(b"SCHILY.xattr."):
                entry.xattrs[key[13:]] = value
            elif (field := _FIELDS.get(key)) is not None:
                name, convert = field
                setattr(entry, name, convert(value))
        if entry.type == REGULAR and entry.sparse is None:
            entry.sparse = _pax_sparse(self._pax, self._pieces)
            entry.name = self._pax.get(b"GNU.sparse.name", entry.name)


class TarStream:
    """An archive read from a descriptor; iterate over it for its entries.

    The data of an entry must be taken with :meth:`copy` or :meth:`copy_sparse` before the next entry is
    asked for; what is left is skipped.
    """

    def __init__(self, descriptor: int, limits: Limits) -> None:
        self._descriptor = descriptor
        self._limits = limits
        self._buffer = b""
        self._position = 0
        self._left = 0  # bytes of the current entry's data that nobody took yet
        self._padding = 0
        #: Entries seen so far.
        self.count = 0

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            self.count += 1
            if self.count > self._limits.entries:
                raise TooLarge("entries", self._limits.entries)
            yield entry
        self._drain()

    def copy(self, target: int) -> None:
        """Append what is left of the current entry's data to an open file."""
        self._copy(target, self._left)

    def copy_sparse(self, target: int, sparse: Sparse) -> None:
        """Write the current entry's data where it belongs in an empty file and give the file its size."""
        for offset, length in sparse.pieces:
            os.lseek(target, offset, os.SEEK_SET)
            self._copy(target, length)
        os.ftruncate(target, sparse.size)

    def _next(self) -> Entry | None:
        """The next entry with the headers in front of it; ``None`` at the end of the archive."""
        extended = _Extended()
        while (block := self._header()) is not None:
            if block[156] in _EXTENSIONS:
                self._extend(extended, block)
                continue
            entry = self._entry(block)
            if extended.found:
                extended.apply(entry)
            self._begin(entry)
            return entry
        if extended.found:
            raise BadArchive("the archive ends after an extended header")
        return None

    def _extend(self, extended: _Extended, block: bytes) -> None:
        """Take in a header that is about the entry after it."""
        kind = block[156:157]
        content = self._extension(block)
        if kind == _PAX:
            extended.take_records(content)
        elif kind == _PAX_GLOBAL:
            _check_global(content)
        elif kind == _LONG_NAME:
            extended.name = content.split(b"\0", 1)[0]
        elif kind == _LONG_LINK:
            extended.link = content.split(b"\0", 1)[0]
        extended.found = extended.found or kind in (_PAX, _LONG_NAME, _LONG_LINK)

    def _entry(self, block: bytes) -> Entry:
        entry = Entry(block)
        if entry.type == _SPARSE:
            entry.sparse = self._old_sparse(block)
            entry.type = REGULAR
        elif entry.type[0] not in _KNOWN_TYPES:
            raise BadArchive(f"unknown type of entry {entry.type!r} (`{_show(entry.name)}`)")
        return entry

    def _begin(self, entry: Entry) -> None:
        """Check what belongs together, and note how much data follows."""
        if entry.type == REGULAR and entry.name.endswith(b"/") and not entry.size:
            entry.type = DIRECTORY  # how archives older than POSIX spell directories
        if len(entry.name) > self._limits.path or len(entry.link) > self._limits.path:
            raise TooLarge("path", self._limits.path)
        if b"\0" in entry.name or b"\0" in entry.link:
            raise BadArchive(f"NUL in a name (`{_show(entry.name)}`)")
        self._left = entry.size if entry.type == REGULAR else 0  # as GNU tar and Go: links carry none
        self._padding = -self._left % BLOCK
        if entry.type == REGULAR:
            self._check_size(entry)

    def _check_size(self, entry: Entry) -> None:
        if entry.sparse is not None and entry.sparse.pieces == ((-1, -1),):
            entry.sparse = self._sparse_map_in_data(entry.sparse.size)
        size = entry.size
        if entry.sparse is not None:
            _check_sparse(entry.sparse, self._left)
            size = max(size, entry.sparse.size)
        if size > self._limits.file:
            raise TooLarge("file", self._limits.file)

    # -- headers
    # ---------------------------------------------------------------------------------------------------

    def _header(self) -> bytes | None:
        """The next header block with a good checksum; ``None`` at the end."""
        self._skip(self._left + self._padding)
        self._left = self._padding = 0
        block = self._take(BLOCK, at_end_ok=True)
        if not block or block == _NULL_BLOCK:
            return None
        promised = _number(block, 148, 8, "checksum")
        # Adler-32's lower half is 1 + the sum of all bytes, at the speed of C; the checksum counts itself
        # as blanks.
        expected = (1 + promised - 8 * 0x20 + sum(block[148:156])) % _ADLER_PRIME
        if zlib.adler32(block) & 0xFFFF != expected and _signed_checksum(block) != promised:
            raise BadArchive("bad checksum of a header: this is not a tar archive, or it is damaged")
        return block

    def _extension(self, block: bytes) -> bytes:
        size = _number(block, 124, 12, "size")
        if size > self._limits.header:
            raise TooLarge("header", self._limits.header)
        content = self._take(size)
        self._skip(-size % BLOCK)
        return content

    # -- sparse files
    # ----------------------------------------------------------------------------------------------

    def _old_sparse(self, block: bytes) -> Sparse:
        """Type ``S``: a map of four pieces in the header, 21 more in each block that follows."""
        size = _number(block, 483, 12, "realsize")
        pieces = _old_sparse_pieces(block, 386, 4)
        more = block[482]
        while more:
            block = self._take(BLOCK)
            pieces += _old_sparse_pieces(block, 0, 21)
            more = block[504]
            if len(pieces) * 24 > self._limits.header:
                raise TooLarge("header", self._limits.header)
        return Sparse(tuple(pieces), size)

    def _sparse_map_in_data(self, size: int) -> Sparse:
        """Format 1.0: the map is at the start of the data, as decimal lines, padded to a block."""
        count = self._sparse_line()
        if count * 4 > self._limits.header:
            raise TooLarge("header", self._limits.header)
        pieces = tuple((self._sparse_line(), self._sparse_line()) for _ in range(count))
        padding = (self._left + self._padding) % BLOCK
        self._left -= padding
        if self._left < 0:
            raise BadArchive("the map of a sparse file is longer than its data")
        self._skip(padding)
        return Sparse(pieces, size)

    def _sparse_line(self) -> int:
        digits = b""
        while not digits.endswith(b"\n"):
            if len(digits) > 20 or not self._left:
                raise BadArchive("bad map of a sparse file")
            digits += self._take(1)
            self._left -= 1
        return _decimal(digits[:-1])

    # -- bytes
    # -----------------------------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Replace a used-up buffer; false at the end of the stream."""
        self._buffer = os.read(self._descriptor, _CHUNK)
        self._position = 0
        return bool(self._buffer)

    def _take(self, length: int, at_end_ok: bool = False) -> bytes:
        """Exactly so many bytes; none at all at the end of the stream if that is fine here."""
        end = self._position + length
        if end <= len(self._buffer):
            taken = self._buffer[self._position : end]
            self._position = end
            return taken
        parts, have = [], 0
        while have < length:
            part = self._buffer[self._position : self._position + length - have]
            self._position += len(part)
            parts.append(part)
            have += len(part)
            if have < length and not self._fill():
                if at_end_ok and not have:
                    return b""
                raise BadArchive("the archive is cut off")
        return b"".join(parts)

    def _skip(self, length: int) -> None:
        while length:
            step = min(length, len(self._buffer) - self._position)
            self._position += step
            length -= step
            if length and not self._fill():
                raise BadArchive("the archive is cut off")

    def _copy(self, target: int, length: int) -> None:
        self._left -= length
        while length:
            if self._position == len(self._buffer) and not self._fill():
                raise BadArchive("the archive is cut off")
            view = memoryview(self._buffer)[self._position : self._position + length]
            written = os.write(target, view)
            self._position += written
            length -= written

    def _drain(self) -> None:
        """Take what follows the end of the archive, so that whoever writes it sees no broken pipe."""
        while self._fill():
            pass


def _check_global(content: bytes) -> None:
    for key, _ in _pax_records(content):
        if key.startswith(_NEVER_GLOBAL):
            raise BadArchive(f"a global header sets `{_show(key)}`")


def _text(block: bytes, start: int, length: int) -> bytes:
    return block[start : start + length].split(b"\0", 1)[0]


def _number(block: bytes, start: int, length: int, field: str, signed: bool = False) -> int:
    """An octal number, or GNU's base 256 where the first bit is set."""
    if block[start] & 0x80:
        value = int.from_bytes(block[start : start + length], "big", signed=block[start] == 0xFF)
        if value > 0:
            value -= 0x80 << 8 * (length - 1)
    else:
        digits = block[start : start + length].split(b"\0", 1)[0].strip()
        if not digits:
            return 0
        if not digits.isdigit() or b"8" in digits or b"9" in digits:
            raise BadArchive(f"bad number {digits!r} in the field `{field}` of a header")
        value = int(digits, 8)
    if value < 0 and not signed:
        raise BadArchive(f"negative number in the field `{field}` of a header")
    return value


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise BadArchive(f"bad number {value[:30]!r} in a pax header")
    return int(value)


def _nanoseconds(value: bytes) -> int:
    """Seconds with an optional fraction, possibly negative, as nanoseconds, rounded towards the past."""
    sign = -1 if value.startswith(b"-") else 1
    seconds, _, fraction = value.removeprefix(b"-").partition(b".")
    if not (seconds + fraction).isdigit() or not seconds or len(seconds) > 20:
        raise BadArchive(f"bad time {value[:40]!r} in a pax header")
    return sign * (int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0")))


#: Records of a pax header: the field each of them overrides, and how its value reads.
_FIELDS: dict[bytes, tuple[str, Callable[[bytes], object]]] = {
    b"path": ("name", bytes),
    b"linkpath": ("link", bytes),
    b"size": ("size", _decimal),
    b"uid": ("uid", _decimal),
    b"gid": ("gid", _decimal),
    b"mtime": ("mtime_ns", _nanoseconds),
}


def _pax_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    r"""``length key=value\n``, the length counting the whole record."""
    position = 0
    while position < len(content):
        blank = content.find(b" ", position, position + 20)
        digits = content[position:blank] if blank > 0 else b""
        if not digits.isdigit():
            raise BadArchive("bad length of a record in a pax header")
        end = position + int(digits)
        key, equals, value = content[blank + 1 : end - 1].partition(b"=")
        if end > len(content) or content[end - 1 : end] != b"\n" or not equals or not key:
            raise BadArchive("bad record in a pax header")
        yield key, value
        position = end


def _pax_sparse(pax: dict[bytes, bytes], pieces: list[tuple[int, int]]) -> Sparse | None:
    """The sparse map of a pax header, formats 0.0 and 0.1; for 1.0 a mark that it is still in the data."""
    if pax.get(b"GNU.sparse.major") == b"1":
        return Sparse(((-1, -1),), _decimal(pax.get(b"GNU.sparse.realsize", b"")))
    if (size := pax.get(b"GNU.sparse.size")) is None:
        return None
    if (flat := pax.get(b"GNU.sparse.map")) is not None:
        numbers = [_decimal(number) for number in flat.split(b",")] if flat else []
        pieces = list(zip(numbers[::2], numbers[1::2], strict=False))
    return Sparse(tuple(pieces), _decimal(size))


def _old_sparse_pieces(block: bytes, start: int, count: int) -> list[tuple[int, int]]:
    pieces = []
    for place in range(start, start + 24 * count, 24):
        if not block[place]:
            break
        pieces.append((_number(block, place, 12, "offset"), _number(block, place + 12, 12, "numbytes")))
    return pieces


def _check_sparse(sparse: Sparse, data: int) -> None:
    end = 0
    for offset, length in sparse.pieces:
        if offset < end:
            raise BadArchive("the pieces of a sparse file overlap")
        end = offset + length
    if end > sparse.size or sum(length for _, length in sparse.pieces) != data:
        raise BadArchive("the map of a sparse file does not fit its data")


def _signed_checksum(block: bytes) -> int:
    """As some historic programs computed it, with signed bytes."""
    total = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:])
    return total + 8 * 0x20


def _show(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
