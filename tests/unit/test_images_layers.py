"""What the entries of a layer become on disk: kinds, whiteouts, replacement, implicit directories.

Runs the unpacker inside this process, without its jail and without changing owners, so that it runs for everyone.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import images_helpers as make
import pytest

from sandbox.images.layers import EntryError, Summary, Unpacker
from sandbox.images.limits import DEFAULT_LIMITS
from sandbox.images.tar import TarStream


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """The helper process has none."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir(mode=0o755)
    return path


def unpack(root: Path, *members: make.Member, parents: Sequence[Path] = ()) -> Summary:
    """Unpack a layer of these entries below ``root``."""
    opened = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (root, *parents)]
    try:
        with tempfile.TemporaryFile() as archive:
            archive.write(make.tar(members))
            archive.seek(0)
            unpacker = Unpacker(opened[0], DEFAULT_LIMITS, owners=False, parents=opened[1:])
            return unpacker.unpack(TarStream(archive.fileno(), DEFAULT_LIMITS))
    finally:
        for descriptor in opened:
            os.close(descriptor)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path) -> bool:
    return "user.overlay.opaque" in os.listxattr(path) and os.getxattr(path, "user.overlay.opaque") == b"y"


def test_each_kind_with_its_attributes(root: Path) -> None:
    summary = unpack(
        root,
        make.directory(".", mode=0o711, mtime=5),
        make.directory("./d/", mode=0o1777, mtime=6),
        make.file("d/f", "text", mode=0o640, mtime=7, pax_headers={"SCHILY.xattr.user.note": "x"}),
        make.symlink("d/l", "/etc/passwd", mtime=8),
        make.hard_link("d/h", "./d/f"),
        make.fifo("d/p", mode=0o622, mtime=9),
        make.file("empty", mode=0o444),
    )
    assert summary == Summary(entries=7, skipped=[], implicit=[], opaque=False)
    assert [mode(root), mode(root / "d"), mode(root / "d/f"), mode(root / "d/p")] == [
        0o711,
        0o1777,
        0o640,
        0o622,
    ]
    times = [(root / name).lstat().st_mtime for name in (".", "d", "d/f", "d/l", "d/p")]
    assert times == [5, 6, 7, 8, 9]
    assert (root / "d/f").read_text() == "text"
    assert os.getxattr(root / "d/f", "user.note") == b"x"
    assert (root / "d/l").readlink() == Path("/etc/passwd")
    assert (root / "d/h").samefile(root / "d/f")
    assert stat.S_ISFIFO((root / "d/p").lstat().st_mode)
    assert (root / "empty").read_bytes() == b""


def test_modes_that_forbid_writing_do_not_get_in_the_way(root: Path) -> None:
    unpack(
        root,
        make.directory("d", mode=0o555),
        make.file("d/f", "x", mode=0o400),
        make.directory("d/e", mode=0),
    )
    assert [mode(root / "d"), mode(root / "d/f"), mode(root / "d/e")] == [0o555, 0o400, 0]
    (root / "d").chmod(0o755)
    (root / "d/e").chmod(0o755)


@pytest.mark.parametrize("bits", [0o4755, 0o2755, 0o6711])
def test_set_id_bits_are_kept(root: Path, bits: int) -> None:
    unpack(root, make.file("su", "x", mode=bits), make.directory("d", mode=0o2755))
    assert mode(root / "su") == bits
    assert mode(root / "d") == 0o2755


def test_whiteouts_and_opaque_directories_in_overlay_form(root: Path) -> None:
    summary = unpack(
        root,
        make.directory("d"),
        make.file("d/.wh.gone"),
        make.file("d/.wh..wh..opq"),
        make.file(".wh.top"),
        make.file("implicit/.wh.x"),
    )
    assert is_whiteout(root / "d/gone")
    assert is_whiteout(root / "top")
    assert is_whiteout(root / "implicit/x")
    assert is_opaque(root / "d")
    assert not any(path.name.startswith(".wh.") for path in root.rglob("*"))
    assert summary.implicit == ["implicit"]


def test_a_whiteout_hides_what_is_below_not_what_its_own_layer_has(root: Path) -> None:
    unpack(
        root,
        make.file("before", "kept"), make.file(".wh.before"),
        make.file(".wh.after"), make.file("after", "kept"),
        make.directory("d1"), make.file("d1/f"), make.file(".wh.d1"),
        make.file(".wh.d2"), make.directory("d2"),
        make.file(".wh.d3"), make.file("d3/f", "in a directory without an entry"),
        make.file(".wh.twice"), make.file(".wh.twice"),
    )  # fmt: skip
    assert (root / "before").read_text() == (root / "after").read_text() == "kept"
    for name in ("d1", "d2", "d3"):
        assert is_opaque(root / name), name
    assert (root / "d1/f").exists()
    assert (root / "d3/f").exists()
    assert is_whiteout(root / "twice")


def test_an_opaque_root_is_reported_because_overlayfs_has_no_such_thing(root: Path) -> None:
    assert unpack(root, make.file(".wh..wh..opq"), make.file("f")).opaque
    assert (root / "f").exists()


def test_leftovers_of_aufs_are_skipped(root: Path) -> None:
    summary = unpack(root, make.directory(".wh..wh.plnk"), make.file(".wh..wh.aufs"))
    assert list(root.iterdir()) == []
    assert len(summary.skipped) == 2


def test_device_nodes_are_left_out_but_still_hide_what_is_below(root: Path) -> None:
    summary = unpack(
        root, make.device("null", 1, 3), make.device("whiteout", 0, 0), make.file("was"), make.device("was")
    )
    assert all(is_whiteout(root / name) for name in ("null", "whiteout", "was"))
    assert summary.skipped == ["null [device node]", "was [device node]"]


def test_only_harmless_extended_attributes_are_kept(root: Path) -> None:
    names = ["user.ok", "user.overlay.opaque", "user.overlay.redirect", "trusted.overlay.opaque",
             "security.selinux", "security.ima", "system.posix_acl_access"]  # fmt: skip
    headers = {f"SCHILY.xattr.{name}": "y" for name in names}
    summary = unpack(root, make.directory("d", pax_headers=headers), make.file("f", pax_headers=headers),
                     make.symlink("l", "f", pax_headers={"SCHILY.xattr.user.ok": "y"}))  # fmt: skip
    for path in (root / "d", root / "f"):
        assert [name for name in os.listxattr(path) if name != "security.selinux"] == ["user.ok"]
    assert summary.skipped == [f"{path} [{name}]" for path in ("d/", "f") for name in names[1:]] + [
        "l [user.ok]"
    ]


def test_later_entries_replace_earlier_ones(root: Path) -> None:
    unpack(
        root,
        make.file("a", "first"), make.file("a", "second", mode=0o600),
        make.directory("b", mode=0o700), make.file("b/deep/inside"), make.file("b", "now a file"),
        make.file("c", "file"), make.directory("c", mode=0o750), make.file("c/f"),
        make.symlink("d", "/nowhere"), make.directory("d"), make.file("d/f", "in the directory"),
        make.directory("e", mode=0o700), make.file("e/f"), make.directory("e", mode=0o755),
        make.file("f", "x"), make.symlink("f", "a"),
        make.file("g", "x"), make.hard_link("g", "a"),
        make.hard_link("g", "a"),
        make.fifo("h"), make.file("h", "no fifo"),
    )  # fmt: skip
    assert ((root / "a").read_text(), mode(root / "a")) == ("second", 0o600)
    assert (root / "b").read_text() == "now a file"
    assert (mode(root / "c"), (root / "c/f").exists()) == (0o750, True)
    assert not (root / "d").is_symlink()
    assert (root / "d/f").read_text() == "in the directory"
    assert (mode(root / "e"), (root / "e/f").exists()) == (0o755, True)
    assert (root / "f").readlink() == Path("a")
    assert (root / "g").samefile(root / "a")
    assert (root / "h").read_text() == "no fifo"


def test_paths_are_looked_up_afresh_after_a_replacement(root: Path) -> None:
    unpack(
        root,
        make.directory("one"), make.directory("two"),
        make.symlink("way", "one"), make.file("way/f", "1"),
        make.symlink("way", "two"), make.file("way/f", "2"),
        make.directory("way"), make.file("way/f", "3"),
    )  # fmt: skip
    assert [(root / name / "f").read_text() for name in ("one", "two", "way")] == ["1", "2", "3"]


def test_links_to_directories_are_followed_inside_the_layer(root: Path) -> None:
    unpack(root, make.directory("usr/lib"), make.symlink("lib", "/usr/lib"), make.file("lib/x", "1"),
           make.symlink("up", "../../../usr"), make.file("up/lib/y", "2"))  # fmt: skip
    assert (root / "usr/lib/x").read_text() == "1"
    assert (root / "usr/lib/y").read_text() == "2"


def test_odd_spellings_of_names(root: Path) -> None:
    unpack(root, make.file("/absolute", "1"), make.file(".//a/.//b", "2"), make.directory("c/"),
           make.file(b"caf\xe9".decode("utf-8", "surrogateescape"), "3"), make.file("new\nline"))  # fmt: skip
    assert (root / "absolute").read_text() == "1"
    assert (root / "a/b").read_text() == "2"
    assert os.path.exists(os.fsencode(root) + b"/caf\xe9")
    assert (root / "new\nline").exists()


def test_directories_without_an_entry_look_like_those_of_the_layers_below(root: Path, tmp_path: Path) -> None:
    middle, lowest = tmp_path / "middle", tmp_path / "lowest"
    for below, bits in ((middle, 0o1777), (lowest, 0o700)):
        (below / "tmp").mkdir(parents=True)
        (below / "tmp").chmod(bits)
    (lowest / "only").mkdir(mode=0o711)
    os.utime(lowest / "only", (77, 77))
    members = [make.file("tmp/x"), make.file("only/x"), make.file("nowhere/x")]
    summary = unpack(root, *members, parents=[middle, lowest])
    assert summary.implicit == ["nowhere", "only", "tmp"]
    assert [mode(root / name) for name in summary.implicit] == [0o755, 0o711, 0o1777]
    assert [int((root / name).stat().st_mtime) for name in ("nowhere", "only")] == [0, 77]


def test_a_link_in_a_layer_below_does_not_lead_out_of_it(root: Path, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    (tmp_path / "secret").mkdir(mode=0o700)
    (below / "d").symlink_to(tmp_path / "secret")
    unpack(root, make.file("d/x"), parents=[below])
    assert mode(root / "d") == 0o755


def test_a_file_of_many_directories_closes_what_it_opens(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    unpack(root, *(make.file(f"d{number}/e/f", str(number)) for number in range(400)))
    assert len(os.listdir("/proc/self/fd")) == before
    assert (root / "d399/e/f").read_text() == "399"


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ([make.file("f"), make.file("f/g")], "`f` is on the way, which is not a directory"),
        ([make.symlink("l", "nowhere"), make.file("l/g")], "`l` is on the way, which is not a directory"),
        ([make.symlink("l", "l"), make.file("l/g")], "`l` is on the way, a loop of links"),
        ([make.file(".wh.d"), make.file("d/e"), make.file(".wh.d/f")], "a whiteout is used as a directory"),
        ([make.file(".wh.")], "a whiteout of nothing"),
        ([make.file("d/.wh..")], "a whiteout of nothing, or of a directory above"),
        ([make.file("d/.wh...")], "a whiteout of nothing, or of a directory above"),
        ([make.file(".")], "the root of the image is not a directory"),
        ([make.symlink("./", "/etc")], "the root of the image is not a directory"),
        ([make.hard_link("h", "absent")], "hard link to `absent`, which this layer does not have"),
        ([make.directory("d"), make.hard_link("h", "d")], "hard link to `d`, which is a directory"),
        ([make.file("x" * 300)], "File name too long"),
        ([make.file("d/" * 300 + "x")], "more than 256 directories deep"),
        ([make.file("f", mtime=2**64)], "a value that the kernel cannot store"),
        ([make.directory("f", mtime=2**64)], "a value that the kernel cannot store"),
        ([make.file("f", uid=2**32 - 1)], "owner 4294967295:0 cannot exist"),
        ([make.file("f", gid=2**40)], "cannot exist"),
        (
            [make.file("f", pax_headers={"SCHILY.xattr.user.a\0b": "x"})],
            "a value that the kernel cannot store",
        ),
        ([make.file("f", pax_headers={"SCHILY.xattr.user.x": "y" * 70_000})], ""),
    ],
)
def test_what_cannot_be_unpacked_is_an_error_that_names_the_entry(
    root: Path, members: list[make.Member], complaint: str
) -> None:
    with pytest.raises(EntryError) as caught:
        unpack(root, *members)
    text = f"{caught.value.detail} {os.strerror(caught.value.code) if caught.value.code else ''}"
    assert complaint in text
    assert text.strip()
    assert (caught.value.entry or "").rstrip("/") == members[-1][0].name.rstrip("/")
