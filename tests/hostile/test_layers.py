"""Layers that try to get out of their root directory, or to harm who unpacks them.

Twice: through the store, where the helper process is locked into the layer's directory, and through the unpacker alone,
without that jail, because each of the two has to hold by itself.
"""

from __future__ import annotations

import gzip
import io
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import images_helpers as make
import pytest
from gate import requires
from hypothesis import HealthCheck, given, settings, strategies as st

from sandbox.errors import ImageError, ImageVerificationError
from sandbox.images.blobs import LayerBlob
from sandbox.images.errors import ImageTooLarge, LayerError
from sandbox.images.layers import EntryError, Unpacker
from sandbox.images.limits import DEFAULT_LIMITS, Limits
from sandbox.images.store import Store
from sandbox.images.tar import BadArchive, TarStream

Way = Callable[[Path, bytes], None]


def through_the_store(outside: Path, content: bytes) -> None:
    Store(outside.parent / "store").layers([make.blob_of(content)])


def without_the_jail(outside: Path, content: bytes) -> None:
    root = outside.parent / "root"
    root.mkdir()
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    before = os.umask(0)
    try:
        with tempfile.TemporaryFile() as archive:
            archive.write(content)
            archive.seek(0)
            unpacker = Unpacker(descriptor, DEFAULT_LIMITS, owners=False)
            unpacker.unpack(TarStream(archive.fileno(), DEFAULT_LIMITS))
    finally:
        os.umask(before)
        os.close(descriptor)


@pytest.fixture(params=[pytest.param(through_the_store, marks=requires("userns")), without_the_jail])
def way(request: pytest.FixtureRequest) -> Way:
    chosen: Way = request.param
    return chosen


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory next to the root, with a file that must stay as it is."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "victim").write_text("untouched")
    return path


def state(outside: Path) -> list[tuple[str, str, int, int]]:
    files = sorted(outside.rglob("*"))
    return [(path.name, path.read_text(), path.stat().st_mode, path.stat().st_nlink) for path in files]


def attacks(target: Path) -> dict[str, list[make.Member]]:
    """Ways to reach ``target``, a directory outside of the root, by absolute and by relative names."""
    dots = "../" * 20
    relative = dots + str(target)[1:]
    victim = f"{target}/victim"
    return {
        "dot-dot": [make.file(f"{relative}/victim", "x")],
        "dot-dot in the middle": [make.directory("a"), make.file(f"a/{relative}/victim", "x")],
        "dot-dot directory": [make.directory(f"{relative}/new")],
        "dot-dot whiteout": [make.file(f"{relative}/.wh.victim")],
        "dot-dot opaque": [make.file(f"{relative}/.wh..wh..opq")],
        "absolute": [make.file(victim, "x")],
        "absolute directory": [make.directory(f"{target}/new")],
        "link then write": [make.symlink("l", victim), make.file("l", "x")],
        "link to directory then write": [make.symlink("l", str(target)), make.file("l/victim", "x")],
        "relative link then write": [make.symlink("l", relative), make.file("l/victim", "x")],
        "link to link then write": [
            make.symlink("l", str(target)),
            make.symlink("m", "l"),
            make.file("m/victim", "x"),
        ],
        "link then directory": [make.symlink("l", str(target)), make.directory("l/new")],
        "link then directory attributes": [make.symlink("l", str(target)), make.directory("l/", mode=0)],
        "directory, then a link in its place": [
            make.directory("d", mode=0o700),
            make.symlink("d", str(target)),
            make.file("d/victim", "x"),
        ],
        "directory with pending attributes becomes a link": [
            make.directory("d", mode=0, mtime=1),
            make.file("d/x"),
            make.symlink("d", str(target)),
        ],
        "link then whiteout": [make.symlink("l", str(target)), make.file("l/.wh.victim")],
        "link then opaque": [make.symlink("l", str(target)), make.file("l/.wh..wh..opq")],
        "link then fifo": [make.symlink("l", str(target)), make.fifo("l/fifo")],
        "link then link": [make.symlink("l", str(target)), make.symlink("l/new", "x")],
        "hard link to outside": [make.hard_link("h", victim), make.file("h", "x")],
        "hard link to outside, relative": [make.hard_link("h", f"{relative}/victim"), make.file("h", "x")],
        "hard link through a link": [make.symlink("l", str(target)), make.hard_link("h", "l/victim")],
        "hard link to a link": [make.symlink("l", victim), make.hard_link("h", "l"), make.file("h", "x")],
        "hard link into outside": [
            make.symlink("l", str(target)),
            make.file("f"),
            make.hard_link("l/f", "f"),
        ],
        "through proc": [make.symlink("p", "/proc/self/cwd"), make.file(f"p{target}/victim", "x")],
        "through a descriptor": [make.symlink("p", "/proc/self/fd/3"), make.file("p/victim", "x")],
        "whiteout of the root": [make.file(".wh..")],
        "whiteout of what is above": [make.file(".wh...")],
        "replace the root by a link": [make.symlink(".", str(target)), make.file("victim", "x")],
    }


@pytest.mark.parametrize("attack", attacks(Path("/x")))
def test_nothing_gets_out_of_the_root(way: Way, outside: Path, attack: str) -> None:
    refused = None
    before = state(outside), outside.stat().st_mode, outside.stat().st_mtime_ns
    members = attacks(outside)[attack]
    try:
        way(outside, make.tar(members))
    except (LayerError, EntryError) as error:
        refused = (error.entry or "").rstrip("/")
    assert (state(outside), outside.stat().st_mode, outside.stat().st_mtime_ns) == before
    assert refused in (None, *(info.name.rstrip("/") for info, _ in members))
    assert "victim" not in {path.name for path in Path.cwd().iterdir()}


REFUSED = ["dot-dot", "dot-dot in the middle", "dot-dot whiteout", "hard link to outside", "whiteout of the root",
           "hard link through a link", "link to directory then write", "replace the root by a link"]  # fmt: skip


@requires("userns")
@pytest.mark.parametrize("attack", REFUSED)
def test_refusals_name_layer_and_entry_and_leave_nothing(outside: Path, attack: str) -> None:
    members = attacks(outside)[attack]
    store = Store(outside.parent / "store")
    blob = make.blob_of(make.tar(members))
    with pytest.raises(LayerError) as caught:
        store.layers([blob])
    assert caught.value.layer == blob.digest
    assert caught.value.entry
    assert f"layer {blob.digest}, entry `{caught.value.entry}`" in str(caught.value)
    assert leftovers(store) == []


def leftovers(store: Store) -> list[Path]:
    return [
        path for name in ("tmp", "layers") for path in (store.root / name).rglob("*") if not path.is_dir()
    ]


NAMES = st.sampled_from(["a", "b", "a/b", "a/b/c", "l", "l/a", "l/m", "l/m/a", "./", "..", "../a", "a/../b", "/a", "//",
                         ".wh.a", "a/.wh.b", ".wh..wh..opq", "a/.wh..wh..opq", "l/.wh.a", ".wh.", ".wh.l"])  # fmt: skip
TARGETS = st.sampled_from(
    ["a", "b", "l", "a/b", ".", "..", "../..", "OUT", "OUT/victim", "../outside", "/", "l/a"]
)
KINDS = st.sampled_from([make.file, make.directory, make.symlink, make.hard_link, make.fifo, make.device])


@given(st.lists(st.tuples(KINDS, NAMES, TARGETS, st.sampled_from([0o755, 0o700, 0, 0o4777])), max_size=10))
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_of_entries_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, recipe: list[tuple[Callable[..., make.Member], str, str, int]]
) -> None:
    base = tmp_path_factory.mktemp("fuzz", numbered=True)
    outside = base / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    members = []
    for kind, name, target, mode in recipe:
        linked = kind in (make.symlink, make.hard_link)
        arguments = [target.replace("OUT", str(outside))] if linked else []
        members.append(kind(name, *arguments, mode=mode))
    try:
        without_the_jail(outside, make.tar(members))
    except EntryError as error:
        named = error.entry
    else:
        named = ""
    assert named is not None
    assert state(outside) == [("victim", "untouched", (outside / "victim").stat().st_mode, 1)]
    assert sorted(path.name for path in base.iterdir()) == ["outside", "root"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", Limits(layer=64 << 20, ratio=20, ratio_from=8 << 20, entries=1000))


def refused(store: Store, blob: LayerBlob) -> ImageError:
    with pytest.raises(ImageError) as caught:
        store.layers([blob])
    assert leftovers(store) == []
    assert list((store.root / "tmp").iterdir()) == []
    return caught.value


pytestmark_store = requires("userns")


@pytestmark_store
def test_a_gzip_bomb_is_stopped_by_its_ratio(store: Store) -> None:
    content = make.tar([make.file("zeros", bytes(40 << 20))])
    error = refused(store, make.blob_of(content, gzip.compress(content)))
    assert isinstance(error, ImageTooLarge)
    assert error.feature == "ratio"


@pytestmark_store
def test_a_large_layer_is_stopped_by_its_size(store: Store) -> None:
    content = make.tar([make.file("big", os.urandom(1 << 20) * 70)])
    error = refused(store, make.blob_of(content))
    assert isinstance(error, ImageTooLarge)
    assert error.feature == "layer"


@pytestmark_store
def test_too_many_entries(store: Store) -> None:
    content = make.tar(make.file(f"f{number}") for number in range(1001))
    error = refused(store, make.blob_of(content))
    assert isinstance(error, ImageTooLarge)
    assert error.feature == "entries"


@pytestmark_store
@pytest.mark.parametrize("cut", [1, 300, 511, 512, 700, 1500])
def test_truncated_streams(store: Store, cut: int) -> None:
    content = make.tar([make.file("a", b"x" * 2000)])[:2560]
    packed = gzip.compress(content)
    whole = make.blob_of(content, packed)
    error = refused(store, make.blob_of(content, packed[: -min(cut, len(packed) - 20)], digest=whole.digest))
    assert isinstance(error, ImageVerificationError)
    honest = content[:-cut]  # everything verifies, and still it is cut off
    error = refused(store, make.blob_of(honest))
    assert isinstance(error, LayerError)
    assert "cut off" in str(error)


@pytestmark_store
@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"digest": make.sha256(b"other")}, make.sha256(b"other")),
        ({"diff_id": make.sha256(b"other")}, make.sha256(b"other")),
        ({"size": 7}, "expected 7"),
        ({"size": 10**9}, f"expected {10**9}"),
    ],
)
def test_every_promise_about_a_layer_is_checked(store: Store, facts: dict[str, object], named: str) -> None:
    content = make.tar([make.file("a", b"x" * 5000)])
    error = refused(store, make.blob_of(content, gzip.compress(content), **facts))
    assert isinstance(error, ImageVerificationError)
    assert named in str(error)


@pytestmark_store
def test_damage_is_told_from_hostility(store: Store) -> None:
    """A flipped bit makes nonsense of everything after it; the message is about the bit, not the nonsense."""
    content = make.tar([make.file(f"d/{number}", os.urandom(50_000)) for number in range(40)])
    for packed in (gzip.compress(content), content):
        damaged = bytearray(packed)
        damaged[1000:1004] = b"\xff\0\xff\0"
        error = refused(store, make.blob_of(content, bytes(damaged), digest=make.sha256(packed)))
        assert isinstance(error, ImageVerificationError)


@pytestmark_store
@pytest.mark.parametrize(
    "content",
    [b"", b"\x1f\x8b", b"\x1f\x8b\x08garbage", b"not a tar" * 100, b"\x28\xb5\x2f\xfdgarbage", bytes(100)],
    ids=["empty", "gzip magic", "gzip garbage", "text", "zstd garbage", "zeros"],
)
def test_bytes_that_are_no_layer(store: Store, content: bytes) -> None:
    blob = make.blob_of(content)
    if not content:
        assert store.layers([blob])[0].entries == 0
    else:
        assert "layer" in str(refused(store, blob))


@pytestmark_store
def test_a_source_that_breaks_off(store: Store) -> None:
    class Broken(io.RawIOBase):
        reads = itertools.count()

        def read(self, size: int = -1) -> bytes:
            if next(self.reads) > 2:
                raise OSError(5, "Input/output error")
            return make.raw_header(b"f%d" % next(self.reads)) * 100

    error = refused(store, LayerBlob("test", make.sha256(b""), Broken))  # type: ignore[arg-type]
    assert "Input/output error" in str(error)


@pytestmark_store
@pytest.mark.parametrize(
    "diff_id",
    ["", "sha256:", "md5:" + "a" * 32, "sha256:../../x", "sha256:" + "g" * 64, "sha512:" + "a" * 64],
)
def test_digests_that_are_none(store: Store, diff_id: str) -> None:
    with pytest.raises(ImageError, match="is not a digest"):
        store.layers([make.blob_of(b"x", diff_id=diff_id)])
    assert not (store.root / "layers").exists() or not list((store.root / "layers").rglob("diff"))


@given(st.binary(max_size=3000))
@settings(max_examples=100, deadline=None)
def test_random_bytes_are_refused_or_empty(content: bytes) -> None:
    with tempfile.TemporaryFile() as archive:
        archive.write(content)
        archive.seek(0)
        try:
            found = list(TarStream(archive.fileno(), DEFAULT_LIMITS))
        except BadArchive:
            found = []
    assert found == []
