"""Images made by hand: layers entry by entry, layouts and archives around them."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sandbox.images.blobs import LayerBlob
from sandbox.images.store import Layer, Store

OCI = "application/vnd.oci.image."
MANIFEST, INDEX, CONFIG = f"{OCI}manifest.v1+json", f"{OCI}index.v1+json", f"{OCI}config.v1+json"
TAR, TAR_GZIP, TAR_ZSTD = (f"{OCI}layer.v1.tar{packed}" for packed in ("", "+gzip", "+zstd"))
WHEN = 1_600_000_000

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", type: bytes = tarfile.REGTYPE, **fields: Any) -> Member:
    """One entry of a layer; fields are those of :class:`tarfile.TarInfo`."""
    info = tarfile.TarInfo(name)
    info.type = type
    info.size = len(content)
    info.mtime = WHEN
    info.mode = 0o755 if type == tarfile.DIRTYPE else 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def file(name: str, content: bytes | str = b"", **fields: Any) -> Member:
    """A regular file."""
    return member(name, content.encode() if isinstance(content, str) else content, **fields)


def directory(name: str, **fields: Any) -> Member:
    """A directory."""
    return member(name, type=tarfile.DIRTYPE, **fields)


def symlink(name: str, target: str, **fields: Any) -> Member:
    """A symbolic link."""
    return member(name, type=tarfile.SYMTYPE, linkname=target, **fields)


def hard_link(name: str, target: str, **fields: Any) -> Member:
    """A hard link."""
    return member(name, type=tarfile.LNKTYPE, linkname=target, **fields)


def fifo(name: str, **fields: Any) -> Member:
    """A FIFO."""
    return member(name, type=tarfile.FIFOTYPE, **fields)


def device(name: str, major: int = 1, minor: int = 3, **fields: Any) -> Member:
    """A character device."""
    return member(name, type=tarfile.CHRTYPE, devmajor=major, devminor=minor, **fields)


def tar(members: Iterable[Member], format: int = tarfile.PAX_FORMAT) -> bytes:
    """An uncompressed archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def raw_header(name: bytes = b"x", *, size: int | bytes = 0, type: bytes = b"0", **fields: bytes) -> bytes:
    """A ustar header with any field set by hand; the checksum is right."""
    places = {"mode": 100, "uid": 108, "gid": 116, "mtime": 136, "link": 157, "magic": 257, "prefix": 345}
    block = bytearray(512)
    block[: len(name)] = name
    written = size if isinstance(size, bytes) else b"%011o\0" % size
    values = {
        "mode": b"0000644\0",
        "uid": b"0000000\0",
        "gid": b"0000000\0",
        "magic": b"ustar\x0000",
        **fields,
    }
    for field, value in values.items():
        block[places[field] : places[field] + len(value)] = value
    block[124 : 124 + len(written)] = written
    block[156:157] = type
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    """Content as it stands in an archive."""
    return content + bytes(-len(content) % 512)


def pax_record(key: str, value: str | bytes) -> bytes:
    """One record of a pax header, its length included."""
    body = f" {key}=".encode() + (value.encode() if isinstance(value, str) else value) + b"\n"
    length = len(body) + 1
    while length != len(str(length)) + len(body):
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def pax_header(*records: bytes, type: bytes = b"x") -> bytes:
    """A pax header of these records."""
    content = b"".join(records)
    return raw_header(b"pax", size=len(content), type=type) + padded(content)


END = bytes(1024)


def sha256(content: bytes) -> str:
    """A digest as OCI writes it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def base64_of(text: str) -> str:
    """Text as credential files have it."""
    return base64.b64encode(text.encode()).decode()


def blob_of(content: bytes, stored: bytes | None = None, **facts: Any) -> LayerBlob:
    """A layer in memory; ``stored`` is what is there instead of ``content`` itself."""
    kept = content if stored is None else stored
    promised = {
        "image": "test",
        "diff_id": sha256(content),
        "digest": sha256(kept),
        "size": len(kept),
        **facts,
    }
    opener: Callable[[], Any] = lambda: io.BytesIO(kept)  # noqa: E731 - carries its type
    return LayerBlob(open=opener, **promised)


def unpack(store: Store, *members: Member) -> Layer:
    """Unpack one layer of these entries."""
    return store.layers([blob_of(tar(members))])[0]


def put(layout: Path, content: bytes, media_type: str, **extra: Any) -> dict[str, Any]:
    """Write a blob into a layout and describe it."""
    digest = sha256(content)
    place = layout / "blobs" / "sha256"
    place.mkdir(parents=True, exist_ok=True)
    (place / digest.partition(":")[2]).write_bytes(content)
    return {"mediaType": media_type, "digest": digest, "size": len(content), **extra}


def put_json(layout: Path, document: Any, media_type: str, **extra: Any) -> dict[str, Any]:
    """Write a JSON document into a layout and describe it."""
    return put(layout, json.dumps(document).encode(), media_type, **extra)


def put_image(
    layout: Path,
    layers: Sequence[bytes],
    *,
    config: dict[str, Any] | None = None,
    pack: Callable[[bytes], bytes] = lambda content: gzip.compress(content, 1, mtime=0),
    media_type: str = TAR_GZIP,
    **extra: Any,
) -> dict[str, Any]:
    """Write an image into a layout and describe its manifest."""
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": put_json(layout, document, CONFIG),
        "layers": [put(layout, pack(layer), media_type) for layer in layers],
    }
    return put_json(layout, manifest, MANIFEST, **extra)


def tagged(descriptor: dict[str, Any], tag: str) -> dict[str, Any]:
    """The descriptor with a tag."""
    return {**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}}


def put_index(layout: Path, *manifests: dict[str, Any]) -> None:
    """Write what makes a directory a layout."""
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))


def make_layout(layout: Path, *layers: bytes, tag: str = "latest", **options: Any) -> Path:
    """A layout with one image."""
    layout.mkdir(parents=True, exist_ok=True)
    put_index(layout, tagged(put_image(layout, layers, **options), tag))
    return layout


def observe(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything about every file below a directory that an image can say; hard links by the first name."""
    seen: dict[str, tuple[Any, ...]] = {}
    first: dict[int, str] = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.lstat()
        name = str(path.relative_to(root))
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = sha256(path.read_bytes())
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISCHR(status.st_mode):
            content = (os.major(status.st_rdev), os.minor(status.st_rdev))
        same = first.setdefault(status.st_ino, name) if not stat.S_ISDIR(status.st_mode) else name
        xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in _xattrs(path)}
        owner = (status.st_uid, status.st_gid)
        seen[name] = (oct(status.st_mode), owner, status.st_mtime_ns, content, same, xattrs)
    return seen


def _xattrs(path: Path) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)
