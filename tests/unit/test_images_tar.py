"""The tar reader: every dialect it knows, and every way in which a header can lie."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import images_helpers as make
import pytest
from hypothesis import given, settings, strategies as st

from sandbox.images.limits import DEFAULT_LIMITS, Limits
from sandbox.images.tar import BadArchive, Entry, TarStream, TooLarge


def read(content: bytes, limits: Limits = DEFAULT_LIMITS) -> list[tuple[Entry, bytes]]:
    """All entries with their data."""
    return list(_entries(content, limits))


def _entries(content: bytes, limits: Limits) -> Iterator[tuple[Entry, bytes]]:
    with tempfile.TemporaryFile() as archive, tempfile.TemporaryFile() as target:
        archive.write(content)
        archive.seek(0)
        stream = TarStream(archive.fileno(), limits)
        for entry in stream:
            os.ftruncate(target.fileno(), 0)
            os.lseek(target.fileno(), 0, os.SEEK_SET)
            if entry.sparse is not None:
                stream.copy_sparse(target.fileno(), entry.sparse)
            else:
                stream.copy(target.fileno())
            yield entry, os.pread(target.fileno(), 1 << 20, 0)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_says_the_same(format: int) -> None:
    members = [
        make.directory("d", mode=0o1777, uid=1, gid=2),
        make.file("d/" + "n" * 90, b"x" * 1000, mode=0o4711),
        make.file(("p" * 50 + "/") * 2 + "file", b"in the prefix field"),
        make.symlink("d/link", "../target"),
        make.hard_link("d/hard", "d/" + "n" * 90),
        make.fifo("d/fifo"),
        make.device("d/null", 1, 3),
    ]
    found = read(make.tar(members, format))
    assert [(e.name.decode().rstrip("/"), e.type, e.mode, e.uid, e.gid) for e, _ in found] == [
        (info.name, info.type, info.mode, info.uid, info.gid) for info, _ in members
    ]
    assert [data for _, data in found] == [data for _, data in members]
    assert [e.link.decode() for e, _ in found] == [info.linkname for info, _ in members]
    assert found[-1][0].device == (1, 3)
    assert {e.mtime_ns for e, _ in found} == {make.WHEN * 1_000_000_000}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_large_ids_and_links(format: int) -> None:
    name, target = "d/" * 150 + "ü" * 50, "t/" * 200
    ((entry, _),) = read(
        make.tar([make.symlink(name, target, uid=3_000_000, gid=2**31, mtime=2**34)], format)
    )
    assert (entry.name.decode(), entry.link.decode()) == (name, target)
    assert (entry.uid, entry.gid, entry.mtime_ns) == (3_000_000, 2**31, 2**34 * 1_000_000_000)


def test_negative_base_256_times_are_before_1970() -> None:
    mtime = b"\xff" + (-5).to_bytes(11, "big", signed=True)
    ((entry, _),) = read(make.raw_header(mtime=mtime) + make.END)
    assert entry.mtime_ns == -5_000_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.5", 1_500_000_000), ("0.123456789", 123_456_789), ("-1.25", -1_250_000_000), ("7", 7_000_000_000),
     ("1.0000000009", 1_000_000_000)],
)  # fmt: skip
def test_times_of_pax_headers_keep_their_nanoseconds(text: str, expected: int) -> None:
    ((entry, _),) = read(make.pax_header(make.pax_record("mtime", text)) + make.raw_header() + make.END)
    assert entry.mtime_ns == expected


def test_extended_attributes_may_be_binary() -> None:
    value = b"\x00=\n\xff"
    header = make.pax_header(make.pax_record("SCHILY.xattr.user.x", value), make.pax_record("comment", "no"))
    (first, _), (second, _) = read(header + make.raw_header() + make.raw_header(b"y") + make.END)
    assert first.xattrs == {b"user.x": value}
    assert second.xattrs == {}


def test_v7_directories_have_a_slash_and_nothing_else() -> None:
    ((entry, _),) = read(make.raw_header(b"old/", type=b"\0", magic=bytes(8)) + make.END)
    assert entry.type == b"5"


@pytest.mark.parametrize("end", [b"", bytes(512), bytes(1024), bytes(20 * 512), bytes(1024) + b"trailing"])
def test_the_end_may_be_marked_in_any_usual_way(end: bytes) -> None:
    assert len(read(make.raw_header() + end)) == 1


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=posix", "--sparse-version=0.0"],
                                     ["--format=posix", "--sparse-version=0.1"],
                                     ["--format=posix", "--sparse-version=1.0"]])  # fmt: skip
@pytest.mark.parametrize("pieces", [0, 1, 3, 60])
def test_sparse_files_of_gnu_tar(tmp_path: Path, options: list[str], pieces: int) -> None:
    size = 1_000_000
    with (tmp_path / "holes").open("wb") as file:
        for number in range(pieces):
            file.seek(number * 16384)
            file.write(b"%d" % number * 700)
        file.truncate(size)
    expected = (tmp_path / "holes").read_bytes()
    command = ["tar", "-C", str(tmp_path), *options, "-S", "-cf", "-", "holes"]
    content = subprocess.run(command, capture_output=True, check=True).stdout
    ((entry, data),) = read(content + make.END)
    assert entry.name == b"holes"
    assert entry.sparse is not None
    assert len(content) < size / 2 or pieces == 60
    assert data == expected


BAD = {
    "checksum": make.raw_header()[:-1] + b"!",
    "text": b"this is no archive at all".ljust(512, b"."),
    "cut off header": make.raw_header()[:300],
    "cut off data": make.raw_header(size=1000) + b"x" * 700,
    "size with a nine": make.raw_header(size=b"00000000009\0"),
    "size with a sign": make.raw_header(size=b"-0000000001\0"),
    "size with an underscore": make.raw_header(size=b"0000000_001\0"),
    "negative size in base 256": make.raw_header(size=b"\xff" * 12),
    "unknown type": make.raw_header(type=b"Z"),
    "multi-volume": make.raw_header(type=b"M"),
    "pax without entry": make.pax_header(make.pax_record("path", "x")) + make.END,
    "pax length of zero": make.pax_header(b"0 path=x\n") + make.raw_header(),
    "pax length beyond the header": make.pax_header(b"99 path=x\n") + make.raw_header(),
    "pax length negative": make.pax_header(b"-9 path=x\n") + make.raw_header(),
    "pax without newline": make.pax_header(b"8 path=xx") + make.raw_header(),
    "pax without equals sign": make.pax_header(b"8 pathx\n") + make.raw_header(),
    "pax without key": make.pax_header(b"6 =xx\n") + make.raw_header(),
    "pax size": make.pax_header(make.pax_record("size", "1e3")) + make.raw_header(),
    "pax size negative": make.pax_header(make.pax_record("size", "-1")) + make.raw_header(),
    "pax time": make.pax_header(make.pax_record("mtime", "nan")) + make.raw_header(),
    "pax time empty": make.pax_header(make.pax_record("mtime", "")) + make.raw_header(),
    "pax NUL in name": make.pax_header(make.pax_record("path", "x\0y")) + make.raw_header(),
    "global path": make.pax_header(make.pax_record("path", "x"), type=b"g") + make.raw_header(),
    "global size": make.pax_header(make.pax_record("size", "5"), type=b"g") + make.raw_header(),
    "sparse pieces overlap": make.pax_header(
        make.pax_record("GNU.sparse.size", "10"), make.pax_record("GNU.sparse.map", "4,4,0,4")
    ) + make.raw_header(size=8) + make.padded(b"12345678"),
    "sparse map beyond the file": make.pax_header(
        make.pax_record("GNU.sparse.size", "10"), make.pax_record("GNU.sparse.map", "4,8")
    ) + make.raw_header(size=8) + make.padded(b"12345678"),
    "sparse map longer than the data": make.pax_header(
        make.pax_record("GNU.sparse.size", "1000"), make.pax_record("GNU.sparse.map", "0,600")
    ) + make.raw_header(size=8) + make.padded(b"12345678"),
    "sparse 1.0 without a map": make.pax_header(
        make.pax_record("GNU.sparse.major", "1"), make.pax_record("GNU.sparse.minor", "0"),
        make.pax_record("GNU.sparse.realsize", "9"),
    ) + make.raw_header(size=3) + make.padded(b"abc"),
    "sparse 1.0 map larger than the data": make.pax_header(
        make.pax_record("GNU.sparse.major", "1"), make.pax_record("GNU.sparse.realsize", "9"),
    ) + make.raw_header(size=6) + make.padded(b"9\n0\n1\n"),
}  # fmt: skip


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_what_is_not_well_formed_is_refused(content: bytes) -> None:
    with pytest.raises(BadArchive) as caught:
        read(content)
    assert str(caught.value)


@pytest.mark.parametrize(
    ("limit", "content"),
    [
        ("header", make.raw_header(size=2**21, type=b"x")),
        ("header", make.raw_header(size=2**33, type=b"L")),
        ("path", make.pax_header(make.pax_record("path", "x" * 5000)) + make.raw_header()),
        ("path", make.pax_header(make.pax_record("linkpath", "x" * 5000)) + make.raw_header(type=b"2")),
        ("file", make.pax_header(make.pax_record("size", str(2**50))) + make.raw_header()),
        (
            "file",
            make.pax_header(
                make.pax_record("GNU.sparse.size", str(2**60)), make.pax_record("GNU.sparse.map", "")
            )
            + make.raw_header(),
        ),
        ("entries", make.raw_header() * 11),
    ],
)
def test_limits_have_names(limit: str, content: bytes) -> None:
    with pytest.raises(TooLarge) as caught:
        read(content, Limits(entries=10))
    assert caught.value.limit == limit


VALID = make.tar(
    [make.directory("a"), make.file("a/" + "b" * 120, b"z" * 700), make.symlink("a/c", "d" * 120)]
)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_archives_are_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    content = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    for start in range(0, len(content), 512):  # damage beyond the checksum
        if content[start + 257 : start + 262] == b"ustar":
            content[start + 148 : start + 156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    try:
        found = read(bytes(content[: data.draw(st.integers(0, len(content)))]), Limits(file=1 << 20))
    except BadArchive:
        return
    assert len(found) <= 3


@given(st.lists(st.tuples(st.text("abc/é", min_size=1, max_size=200), st.binary(max_size=2000)), max_size=5))
@settings(max_examples=50, deadline=None)
def test_what_tarfile_writes_is_what_we_read(files: list[tuple[str, bytes]]) -> None:
    members = [make.file(name.rstrip("/") + "x", content) for name, content in files]
    for dialect in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        content = make.tar(members, dialect)
        found = [(entry.name.decode(), data) for entry, data in read(content)]
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            assert found == [(info.name, data) for info, (_, data) in zip(archive, members, strict=True)]
