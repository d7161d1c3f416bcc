"""Whole images that are hostile or broken: refused with an error that says where, and nothing of them in the store.

The fuzzing is the same in every run of CI (``derandomize``); ``FUZZ_EXAMPLES=20000`` makes it long.
"""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images_helpers as make
import pytest
from gate import in_ci, requires
from hypothesis import HealthCheck, given, settings, strategies as st

from sandbox.cli import console
from sandbox.errors import ImageError, ImageVerificationError, SandboxError
from sandbox.images import Store, resolve
from sandbox.images.errors import ImageTooLarge, LayerError, MediaTypeError
from sandbox.images.layers import EntryError, Unpacker
from sandbox.images.limits import DEFAULT_LIMITS, Limits
from sandbox.images.load import load
from sandbox.images.tar import BadArchive, TarStream
from sandbox.images.tree import write_tree

pytestmark = requires("userns")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=in_ci(),
    suppress_health_check=list(HealthCheck),
    database=None,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    for path in store.root.glob("layers/*/*"):
        store.remove_tree(path)


def leftovers(store: Store) -> list[str]:
    """Whatever of an image is in the store: whole blobs of an image that was not added are collected later."""
    kinds = ("layers/*/*", "images/*", "names/*", "tmp/*")
    return [str(path.relative_to(store.root)) for kind in kinds for path in store.root.glob(kind)]


# --- layers -------------------------------------------------------------------------------------------------------


def no_checksum(block: bytes) -> bytes:
    return b"y" + block[1:]


LAYERS: dict[str, tuple[bytes, str, str | None]] = {
    # what: the layer, a word of the message, the entry that it names
    "dot-dot": (make.tar([make.file("a/../../x")]), "`..` in a name", "a/../../x"),
    "a hard link to outside": (make.tar([make.hard_link("h", "../etc/shadow")]), "leave the root", "h"),
    "a hard link to an absolute name": (make.tar([make.hard_link("h", "/etc/shadow")]), "does not have", "h"),
    "a hard link to a directory": (make.tar([make.directory("d"), make.hard_link("h", "d")]), "a directory", "h"),
    "a link, then a file below it": (
        make.tar([make.symlink("l", "/etc/passwd"), make.file("l/x")]), "is on the way", "l/x",
    ),
    "a loop of links": (
        make.tar([make.symlink("l", "m"), make.symlink("m", "l"), make.file("l/x")]), "a loop of links", "l/x",
    ),
    "a whiteout of the parent": (make.tar([make.file("d/.wh...")]), "a directory above", "d/.wh..."),
    "a whiteout of the directory itself": (make.tar([make.file("d/.wh..")]), "a directory above", "d/.wh.."),
    "a file in a whiteout": (make.tar([make.file(".wh.d/x")]), "used as a directory", ".wh.d/x"),
    "the root is a file": (make.tar([make.file(".", "x")]), "not a directory", "."),
    "an owner that cannot be": (
        make.pax_header(make.pax_record("uid", str(2**32 - 1))) + make.raw_header(b"x") + make.END, "cannot exist", "x",
    ),
    "a file larger than the limit": (
        make.pax_header(make.pax_record("size", str(1 << 41))) + make.raw_header(b"x") + make.END, "limit `file`", None,
    ),
    "a sparse file of an exabyte": (
        make.pax_header(
            make.pax_record("GNU.sparse.size", str(1 << 60)), make.pax_record("GNU.sparse.map", "0,0")
        ) + make.raw_header(b"x") + make.END, "limit `file`", None,
    ),
    "a header larger than the limit": (make.raw_header(b"x", size=1 << 30, type=b"x"), "limit `header`", None),
    "a name longer than the kernel's": (make.tar([make.file("x" * 5000)]), "limit `path`", None),
    "a component longer than the kernel's": (make.tar([make.file("x" * 300)]), "File name too long", "x" * 300),
    "deeper than the limit": (make.tar([make.file("d/" * 300 + "x")]), "directories deep", "d/" * 300 + "x"),
    "a NUL in a name": (
        make.pax_header(make.pax_record("path", b"a\0b")) + make.raw_header(b"x") + make.END, "NUL in a name", None,
    ),
    "a global header that names every entry": (
        make.pax_header(make.pax_record("path", "x"), type=b"g") + make.raw_header(b"y") + make.END, "global header", None,
    ),
    "a pax record of the wrong length": (make.pax_header(b"99 path=x\n") + make.raw_header(b"x"), "pax header", None),
    "a pax header of nothing": (make.pax_header(b"garbage") + make.raw_header(b"x") + make.END, "pax header", None),
    "a pax time that is none": (
        make.pax_header(make.pax_record("mtime", "soon")) + make.raw_header(b"x") + make.END, "bad time", None,
    ),
    "a time that no clock has": (
        make.pax_header(make.pax_record("mtime", "9" * 20)) + make.raw_header(b"x") + make.END, "cannot store", "x",
    ),
    "a bad checksum": (no_checksum(make.raw_header(b"x")) + make.END, "bad checksum", None),
    "a negative size": (make.raw_header(b"x", size=b"\xff" * 12) + make.END, "negative number", None),
    "a number that is none": (make.raw_header(b"x", size=b"9z") + make.END, "bad number", None),
    "a kind that nobody knows": (make.raw_header(b"x", type=b"Q") + make.END, "unknown type", None),
    "cut off in a file": (make.tar([make.file("x", b"y" * 5000)])[:2048], "cut off", None),
    "an archive that ends after an extended header": (
        make.pax_header(make.pax_record("path", "x")) + make.END, "ends after an extended header", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LAYERS)
def test_a_bad_layer_is_refused_by_name(tmp_path: Path, store: Store, what: str) -> None:
    """On top of a good one, so that something could have been left."""
    content, words, entry = LAYERS[what]
    good = make.tar([make.file(f"good-{what[:3]}")])
    layout = make.make_layout(tmp_path / "layout", good, content)
    manifest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    layer = json.loads((layout / "blobs/sha256" / manifest[7:]).read_text())["layers"][1]["digest"]
    with pytest.raises(LayerError) as caught:
        resolve(f"oci:{layout}", store=store)
    assert caught.value.layer == layer
    assert layer in str(caught.value)
    assert words in str(caught.value)
    if entry is not None:
        assert caught.value.entry is not None
        assert caught.value.entry.rstrip("/") == entry
    assert [name for name in leftovers(store) if make.sha256(good)[7:] not in name] == []


HARMLESS: dict[str, tuple[list[make.Member], dict[str, str]]] = {
    # what: the entries; what is there in the end, as path → kind
    "absolute names": ([make.file("/etc/x"), make.directory("//d")], {"etc/x": "file", "d": "directory"}),
    "a link to outside that nobody follows": ([make.symlink("l", "/etc/shadow")], {"l": "link"}),
    "the link is replaced, not followed": (
        [make.symlink("l", "/etc/shadow"), make.file("l", "x")],
        {"l": "file"},
    ),
    "a file twice": ([make.file("f", "1"), make.file("f", "2", mode=0o600)], {"f": "file"}),
    "a file, a directory, a file": (
        [make.file("x"), make.directory("x"), make.file("x", "3")],
        {"x": "file"},
    ),
    "a full directory becomes a file": ([make.file("d/e/f"), make.file("d", "x")], {"d": "file"}),
    "a hard link to itself": ([make.file("f"), make.hard_link("f", "f")], {"f": "file"}),
    "a file and its own whiteout": ([make.file("f"), make.file(".wh.f")], {"f": "file"}),
    "device nodes": (
        [make.device("dev/mem", 1, 1, mode=0o666), make.device("sda", 8, 0)],
        {"dev/mem": "whiteout"},
    ),
    "a fifo": ([make.fifo("p")], {"p": "fifo"}),
    "control characters": ([make.file("a\x1b[2Jb\n")], {"a\x1b[2Jb\n": "file"}),
    "set-user-id": ([make.file("su", "x", mode=0o6755)], {"su": "file"}),
}


def kind_of(path: Path) -> str:
    if path.is_symlink():
        return "link"
    if path.is_char_device():
        return "whiteout" if path.stat().st_rdev == 0 else "device"
    return "fifo" if path.is_fifo() else "directory" if path.is_dir() else "file"


@pytest.mark.parametrize("what", HARMLESS)
def test_what_is_odd_lands_inside_and_is_what_it_should_be(store: Store, what: str) -> None:
    members, expected = HARMLESS[what]
    layer = make.unpack(store, *members)
    assert {name: kind_of(layer.path / name) for name in expected} == expected
    for path in layer.path.rglob("*"):
        assert kind_of(path) != "device"
    assert store.root.stat().st_mode & 0o077 == 0  # set-user-id programs are behind this door


def test_names_that_are_no_text(store: Store) -> None:
    content = make.raw_header(b"\xff\xfe\x80") + make.END
    (layer,) = store.layers([make.blob_of(content)])
    assert os.listdir(os.fsencode(layer.path)) == [b"\xff\xfe\x80"]
    bad = make.raw_header(b"\xff/../x") + make.END
    with pytest.raises(LayerError) as caught:
        store.layers([make.blob_of(bad)])
    assert caught.value.entry == "\\xff/../x"


def deeper(times: int) -> list[make.Member]:
    """Directories as deep as anybody likes, without a long name: each link leads to the end of the last stretch."""
    members = [make.file("d/" * 200 + "x"), make.symlink("l0", "d/" * 199 + "d")]
    for number in range(times):
        below = f"l{number}/" + "d/" * 200
        members += [make.file(f"{below}x"), make.symlink(f"l{number + 1}", below[:-1])]
    return members


def test_a_tree_deeper_than_any_stack_is_removed_again(tmp_path: Path, store: Store) -> None:
    """When it is refused, replaced, written as a plain tree, collected."""
    layer = make.unpack(store, *deeper(7))
    assert layer.entries == 16
    image = make.make_layout(tmp_path / "layout", make.tar(deeper(7)))
    with pytest.raises(ImageError, match="directories deep"):
        write_tree(resolve(f"oci:{image}", store=store), tmp_path / "tree", store)
    assert not (tmp_path / "tree").exists()
    with pytest.raises(LayerError, match="Not a directory"):  # where its links led to is gone
        make.unpack(store, *deeper(7), make.file("d", "a file"))
    with pytest.raises(LayerError):
        make.unpack(store, *deeper(7), make.file("../x"))
    assert list((store.root / "tmp").iterdir()) == []
    for path in store.root.glob("layers/*/*"):
        store.remove_tree(path)
    assert list(store.root.glob("layers/*/*")) == []


def test_attributes_that_would_reach_the_host_stay_out(store: Store) -> None:
    names = ["security.selinux", "security.ima", "trusted.overlay.opaque", "user.overlay.opaque", "user.overlay.redirect",
             "system.posix_acl_access", "user.fine"]  # fmt: skip
    headers = {f"SCHILY.xattr.{name}": "y" for name in names}
    layer = make.unpack(store, make.file("f", pax_headers=headers), make.directory("d", pax_headers=headers))
    for path in (layer.path / "f", layer.path / "d"):
        kept = set(os.listxattr(path)) - (
            {"security.selinux"} if os.path.exists("/sys/fs/selinux/enforce") else set()
        )
        assert kept == {"user.fine"}
    assert len(layer.skipped) == 2 * (len(names) - 1)


# --- documents ----------------------------------------------------------------------------------------------------

LAYER = make.tar([make.file("a", "1")])


def one_image(layout: Path) -> dict[str, Any]:
    layout.mkdir(exist_ok=True)
    return make.put_image(layout, [LAYER])


def refused(layout: Path, store: Store) -> ImageError:
    """By every way in: used from where it is, and taken into the store."""
    with pytest.raises(ImageError) as first:
        resolve(f"oci:{layout}:latest", store=store)
    with pytest.raises(ImageError):
        load(layout, store)
    assert leftovers(store) == []
    return first.value


def test_a_manifest_of_100_megabytes(tmp_path: Path, store: Store) -> None:
    layout = tmp_path / "layout"
    document = one_image(layout)
    path = layout / "blobs/sha256" / document["digest"][7:]
    huge = path.read_bytes()[:-1] + b" " * (100 << 20) + b"}"
    make.put_index(layout, make.tagged(make.put(layout, huge, make.MANIFEST), "latest"))
    assert isinstance(refused(layout, store), ImageTooLarge)
    lie = {**make.put(layout, huge, make.MANIFEST), "size": 500}
    make.put_index(layout, make.tagged(lie, "latest"))
    assert isinstance(refused(layout, store), ImageTooLarge | ImageVerificationError)
    (layout / "index.json").write_bytes(b'{"manifests": [' + b" " * (100 << 20) + b"]}")
    assert isinstance(refused(layout, store), ImageTooLarge)


def test_an_index_that_lists_itself_or_goes_on_for_ever(tmp_path: Path, store: Store) -> None:
    """By digests no index can list itself; damaged ones can, and are damaged. A deep one is possible."""
    layout = tmp_path / "layout"
    inner = one_image(layout)
    for _ in range(DEFAULT_LIMITS.nesting + 1):
        inner = make.put_json(layout, {"schemaVersion": 2, "manifests": [inner]}, make.INDEX)
    make.put_index(layout, make.tagged(inner, "latest"))
    assert "too deep" in str(refused(layout, store))
    digest = make.sha256(b"loop")
    loop = json.dumps({"manifests": [{"mediaType": make.INDEX, "digest": digest, "size": 4}]})
    (layout / "blobs/sha256" / digest[7:]).write_text(loop)
    make.put_index(
        layout, make.tagged({"mediaType": make.INDEX, "digest": digest, "size": len(loop)}, "latest")
    )
    assert isinstance(refused(layout, store), ImageVerificationError)


@pytest.mark.parametrize(
    "media_type", ["", "text/html", make.CONFIG, make.TAR_GZIP, "application/vnd.oci.image.manifest.v1"]
)
def test_media_types_that_are_no_manifest(tmp_path: Path, store: Store, media_type: str) -> None:
    layout = tmp_path / "layout"
    make.put_index(layout, make.tagged({**one_image(layout), "mediaType": media_type}, "latest"))
    error = refused(layout, store)
    assert isinstance(error, MediaTypeError)
    assert make.MANIFEST in str(error)


@pytest.mark.parametrize(
    "media_type", ["application/vnd.oci.image.layer.v1.tar+encrypted", "application/zip", make.MANIFEST]
)
def test_media_types_that_are_no_layer(tmp_path: Path, store: Store, media_type: str) -> None:
    layout = tmp_path / "layout"
    layout.mkdir()
    make.put_index(layout, make.tagged(make.put_image(layout, [LAYER], media_type=media_type), "latest"))
    assert isinstance(refused(layout, store), MediaTypeError)


def test_digests_that_are_paths(tmp_path: Path, store: Store) -> None:
    """A file of the right size that is there already must not pass for a layer of the image."""
    layout = tmp_path / "layout"
    found = one_image(layout)
    manifest = json.loads((layout / "blobs/sha256" / found["digest"][7:]).read_text())
    (tmp_path / "victim").write_bytes(b"x" * manifest["layers"][0]["size"])
    manifest["layers"][0]["digest"] = "sha256:../../../victim"
    make.put_index(layout, make.tagged(make.put_json(layout, manifest, make.MANIFEST), "latest"))
    assert "is not a digest" in str(refused(layout, store))


def test_an_attestation_is_not_an_image(tmp_path: Path, store: Store) -> None:
    layout = tmp_path / "layout"
    note = {"vnd.docker.reference.type": "attestation-manifest"}
    make.put_index(layout, {**one_image(layout), "annotations": note})
    with pytest.raises(ImageError):
        resolve(f"oci:{layout}", store=store)
    assert load(layout, store) == []


# --- fuzzing ------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([10**400, -1, 1 << 63, math.nan, "\ud800", "sha256:" + "a" * 64, "\x1b[2J", "../../x", make.INDEX]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something could be put instead."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    document = copy.deepcopy(document)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return document


def documents(layout: Path) -> dict[str, Any]:
    found = make.put_image(layout, [LAYER], config={"Env": ["A=1"], "Labels": {"a": "b"}, "Cmd": ["x"]})
    manifest = json.loads((layout / "blobs/sha256" / found["digest"][7:]).read_text())
    config = json.loads((layout / "blobs/sha256" / manifest["config"]["digest"][7:]).read_text())
    return {"config": config, "manifest": manifest, "index": {"schemaVersion": 2, "manifests": [found]}}


def rewrite(layout: Path, found: dict[str, Any]) -> None:
    """Put the documents into a layout, each with the right digest of the one below, unless that place is taken."""
    config = make.put_json(layout, found["config"], make.CONFIG)
    manifest = found["manifest"]
    if isinstance(manifest, dict) and found["changed"] == "config":
        manifest = {**manifest, "config": config}
    described = make.put_json(layout, manifest, make.MANIFEST)
    index = found["index"] if found["changed"] == "index" else {"schemaVersion": 2, "manifests": [described]}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps(index))


@FUZZ
@given(data=st.data())
def test_any_document_is_used_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    base = tmp_path_factory.getbasetemp() / "fuzz-json"
    layout = base / "layout"
    layout.mkdir(parents=True, exist_ok=True)
    store = Store(base / "store")
    found = documents(layout)
    which = data.draw(st.sampled_from(["config", "manifest", "index"]))
    path = data.draw(st.sampled_from(list(places(found[which]))))
    found[which] = replaced(found[which], path, data.draw(JSON))
    rewrite(layout, {**found, "changed": which})
    for way in (lambda: resolve(f"oci:{layout}", store=store), lambda: load(layout, store)):
        try:
            way()
        except SandboxError as error:
            console.encoded(str(error))  # a person must be able to read it, whatever was in there
            error.to_dict()
    assert list((base / "store/tmp").glob("*")) == []
    assert sorted(path.name for path in base.iterdir()) in (["layout", "store"], ["layout"])


BASE = make.tar([
    make.directory("d", mode=0o755), make.file("d/f", b"x" * 700, pax_headers={"SCHILY.xattr.user.a": "b"}),
    make.symlink("l", "d"), make.hard_link("h", "d/f"), make.fifo("p"), make.device("c"), make.file("d/.wh.x"),
    make.file("long/" * 30 + "x", "y"), make.file("d/.wh..wh..opq"),
])  # fmt: skip
FIELDS = {"name": (0, 100), "mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136, 12),
          "type": (156, 1), "link": (157, 100), "magic": (257, 8), "major": (329, 8), "prefix": (345, 155)}  # fmt: skip
VALUES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"0" * 11, b"7" * 11, b"\x80" + b"\xff" * 11, b"\xff" * 12, b"../../x", b"/", b".", b"..", b"d/f", b"l/x",
                     b"x", b"g", b"L", b"K", b"S", b"1", b"2", b"5", b".wh..wh..opq", b".wh.d", b"\0"]),
    st.integers(0, 1 << 40).map(lambda number: b"%011o" % number),
)  # fmt: skip


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """An archive with some header fields replaced, their checksums right, and maybe a few bytes gone."""
    content = bytearray(BASE)
    headers = [place for place in range(0, len(BASE), 512) if BASE[place + 257 : place + 262] == b"ustar"]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(headers))
        start, length = FIELDS[draw(st.sampled_from(sorted(FIELDS)))]
        value = draw(VALUES)[:length]
        content[place + start : place + start + length] = value.ljust(length, b"\0")
        block = content[place : place + 512]
        block[148:156] = b" " * 8
        content[place + 148 : place + 156] = b"%06o\0 " % sum(block)
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


def unpack_without_jail(content: bytes, root: Path) -> None:
    root.mkdir()
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    before = os.umask(0)
    limits = Limits(file=1 << 24, entries=500)
    try:
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            Unpacker(descriptor, limits, owners=False).unpack(TarStream(file.fileno(), limits))
    finally:
        os.umask(before)
        os.close(descriptor)


@FUZZ
@given(content=archives())
def test_any_archive_is_unpacked_or_refused_and_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    base = tmp_path_factory.mktemp("fuzz-tar", numbered=True)
    open_before = len(os.listdir("/proc/self/fd"))
    try:
        unpack_without_jail(content, base / "root")
    except (EntryError, BadArchive):
        pass
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert [path.name for path in base.iterdir()] == ["root"]
    # The archive may have shut its own directories to everybody but root.
    subprocess.run(["chmod", "-R", "u+rwX", base / "root"], check=True)
    for path in (base / "root").rglob("*"):
        assert kind_of(path) != "device"


@settings(FUZZ, max_examples=max(EXAMPLES // 10, 1))
@given(content=archives())
def test_what_is_refused_leaves_nothing_in_the_store(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    store = Store(tmp_path_factory.getbasetemp() / "fuzz-store")
    blob = make.blob_of(content)
    named: str | None = blob.diff_id
    try:
        store.layers([blob])
        done = True
    except LayerError as error:
        named, done = error.layer, False
    assert named == blob.diff_id
    assert (store.unpacked(blob.diff_id) is not None) == done
    assert list((store.root / "tmp").iterdir()) == []
