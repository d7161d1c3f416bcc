"""Local archives that ADD unpacks: tar, plain or compressed with gzip, bzip2 or xz. Standard library only.

Entries are written on into the layer, never to a file system. Names are taken as docker takes them: below the target, with
``..`` refused.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from typing import BinaryIO

from sandbox.build.tarwriter import Member, TarWriter

__all__ = ["ArchiveError", "is_archive", "repack"]

_CHUNK = 1 << 20
_ZSTD = b"\x28\xb5\x2f\xfd"


class ArchiveError(ValueError):
    """An archive is damaged, or has what cannot be put into a layer."""


def is_archive(file: BinaryIO) -> bool:
    """Whether this is a tar archive, by its content, as docker decides it.

    :raises ArchiveError: it is one most likely, compressed with zstd
    """
    start = file.read(4)
    file.seek(0)
    if start == _ZSTD and os.fsdecode(getattr(file, "name", "") or "").endswith((".tar.zst", ".tzst")):
        raise ArchiveError("an archive compressed with zstd cannot be unpacked here; use RUN tar, or another compression")
    try:
        with tarfile.open(fileobj=file, mode="r:*") as archive:
            found = archive.next() is not None
    except (tarfile.TarError, EOFError, OSError):
        found = False
    file.seek(0)
    return found


def repack(
    file: BinaryIO, target: str, owner: tuple[int, int] | None, place: Callable[..., str], out: TarWriter
) -> None:  # fmt: skip
    """Write what is in an archive as entries below ``target``.

    :param owner: of everything; None for what the archive says
    :param place: where in the root a path goes; is told with ``directory=True`` of entries for directories
    :raises ArchiveError: it is damaged, or an entry would lead out of the target
    """
    try:
        with tarfile.open(fileobj=file, mode="r:*", errorlevel=2) as archive:
            for member in archive:
                _entry(archive, member, target, owner, place, out)
    except (tarfile.TarError, EOFError) as error:
        raise ArchiveError(f"the archive is damaged: {error}") from error


def _entry(
    archive: tarfile.TarFile, member: tarfile.TarInfo, target: str, owner: tuple[int, int] | None,
    place: Callable[..., str], out: TarWriter,
) -> None:  # fmt: skip
    name = _below(member.name, member.name)
    if not name:
        return
    uid, gid = owner or (member.uid, member.gid)
    where = os.fsencode(place(f"{target}/{name}".lstrip("/"), directory=member.isdir()))
    entry = Member(where, b"5", member.mode, uid, gid, int(member.mtime))
    if member.isdir():
        out.add(entry)
    elif member.issym():
        out.add(entry._replace(kind=b"2", link=os.fsencode(member.linkname)))
    elif member.islnk():
        link = place(f"{target}/{_below(member.linkname, member.name)}".lstrip("/"))
        out.add(entry._replace(kind=b"1", link=os.fsencode(link)))
    elif member.isfifo():
        out.add(entry._replace(kind=b"6"))
    elif member.isfile():
        content = archive.extractfile(member)
        assert content is not None
        out.add(entry._replace(kind=b"0", size=member.size))
        out.stream(iter(lambda: content.read(_CHUNK), b""), member.size)
    else:
        raise ArchiveError(f"`{member.name}` is a device")


def _below(name: str, entry: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ArchiveError(f"`{entry}`: `..` would lead out of the target")
    return "/".join(parts)
