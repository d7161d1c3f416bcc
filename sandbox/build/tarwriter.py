"""Write a tar archive front to back, the same bytes for the same entries. Standard library only.

The form of layers that every tool reads: ustar headers, and pax extended headers (POSIX.1-2017 pax(1)) only where those
are too small or there are extended attributes (``SCHILY.xattr.``). No sparse members, which image-spec 1.1 ("Layer",
section "Sparse files") advises against: holes become zeros. Times are whole seconds, as docker has them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["Member", "TarWriter", "WhiteoutName"]

_BLOCK = 512
_CHUNK = 1 << 20
_ZEROS = bytes(_BLOCK)
_NO_ATTRIBUTES: Mapping[bytes, bytes] = MappingProxyType({})
#: Largest number of the octal fields of 8 and 12 bytes.
_SMALL, _LARGE = 0o7777777, 0o77777777777


class WhiteoutName(ValueError):
    """A file has a name that means something else in a layer."""


class Member(NamedTuple):
    """One entry; ``name`` has no slash in front, ``kind`` is a type flag of :mod:`sandbox.images.tar`."""

    name: bytes
    kind: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    #: Seconds.
    mtime: int = 0
    size: int = 0
    link: bytes = b""
    xattrs: Mapping[bytes, bytes] = _NO_ATTRIBUTES


class TarWriter:
    """Writes entries to a function that takes bytes."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        #: Entries so far.
        self.count = 0

    def add(self, member: Member, *, whiteout: bool = False) -> None:
        """One header. Of a regular file exactly ``size`` bytes have to follow (:meth:`copy`, :meth:`data`).

        :raises WhiteoutName: it would be taken for a whiteout, and is none
        """
        name, link = member.name, member.link
        if not whiteout and name.rpartition(b"/")[2].startswith(b".wh."):
            raise WhiteoutName(f"`{os.fsdecode(name)}`: a name that begins with .wh. would hide another file in a layer")
        if member.kind == b"5" and not name.endswith(b"/"):
            name += b"/"
        records: dict[bytes, bytes] = {b"SCHILY.xattr." + key: value for key, value in member.xattrs.items()}
        prefix, short = _split(name, records)
        if len(link) > 100 or not link.isascii():
            records[b"linkpath"] = link
        for key, number, most in ((b"uid", member.uid, _SMALL), (b"gid", member.gid, _SMALL),
                                  (b"size", member.size, _LARGE), (b"mtime", member.mtime, _LARGE)):  # fmt: skip
            if not 0 <= number <= most:
                records[key] = b"%d" % number
        if records:
            self._extended(records)
        self._write(_header(member._replace(name=short, link=link[:100]), prefix))
        self.count += 1

    def data(self, content: bytes) -> None:
        """The content of the entry that was just added."""
        self._write(content)
        self._pad(len(content))

    def copy(self, source: int, size: int) -> None:
        """The content of the entry that was just added, from a descriptor."""
        self.stream(iter(lambda: os.read(source, _CHUNK), b""), size)

    def stream(self, pieces: Iterator[bytes], size: int) -> None:
        """The content of the entry that was just added. What has shrunk meanwhile ends in zeros, what has grown is cut."""
        left = size
        for piece in pieces if left else ():
            self._write(piece[:left])
            left -= min(left, len(piece))
            if not left:
                break
        while left:
            piece = bytes(min(left, _CHUNK))
            self._write(piece)
            left -= len(piece)
        self._pad(size)

    def close(self) -> None:
        """The end of the archive."""
        self._write(_ZEROS * 2)

    def _pad(self, size: int) -> None:
        if rest := -size % _BLOCK:
            self._write(bytes(rest))

    def _extended(self, records: dict[bytes, bytes]) -> None:
        body = b"".join(_record(key, records[key]) for key in sorted(records))
        self._write(_header(Member(b"PaxHeaders/entry", b"x", 0o644, size=len(body)), b""))
        self.data(body)


def _split(name: bytes, records: dict[bytes, bytes]) -> tuple[bytes, bytes]:
    """Prefix and name of a ustar header; a pax record for names that do not fit, or are no ASCII."""
    if name.isascii() and len(name) <= 100:
        return b"", name
    if name.isascii() and len(name) <= 256:
        at = name.rfind(b"/", 0, 156)
        if at > 0 and len(name) - at - 1 <= 100 and at + 1 < len(name):
            return name[:at], name[at + 1 :]
    records[b"path"] = name
    return b"", name[:100]


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE``; the length counts its own digits."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + len(str(len(rest)))
    length = len(rest) + len(str(length))
    return b"%d" % length + rest


def _header(member: Member, prefix: bytes) -> bytes:
    block = bytearray(_BLOCK)
    block[0 : len(member.name)] = member.name
    block[100:108] = b"%07o\0" % (member.mode & 0o7777)
    block[108:116] = b"%07o\0" % (member.uid if 0 <= member.uid <= _SMALL else 0)
    block[116:124] = b"%07o\0" % (member.gid if 0 <= member.gid <= _SMALL else 0)
    block[124:136] = b"%011o\0" % (member.size if member.size <= _LARGE else 0)
    block[136:148] = b"%011o\0" % (member.mtime if 0 <= member.mtime <= _LARGE else 0)
    block[148:156] = b" " * 8
    block[156:157] = member.kind
    block[157 : 157 + len(member.link)] = member.link
    block[257:265] = b"ustar\x0000"
    block[329:337] = block[337:345] = b"0000000\0"
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
