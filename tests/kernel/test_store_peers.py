"""Images that other tools wrote, unpacked here and by those tools: file for file the same tree."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import images_helpers as make
import pytest
from gate import requires
from peer_images import CAPABILITY, REMOVED, Containers, builder, context, names_in_layers, ours, run, seen

from sandbox.images import Store, resolve
from sandbox.images.tree import write_tree

pytestmark = requires("userns")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    for path in [*store.root.glob("layers/*/*"), *tmp_path.glob("ours*")]:
        store.remove_tree(path)


#: An ordinary user who has no sub-ids, and whose files are root's outside: able to read what root may read.
AS_SOMEBODY = ("unshare", "--user", "--map-user=54321", "--map-group=54321")
BUILDERS = [
    pytest.param(kind, marks=requires("root", kind.partition("-")[0], "busybox", "overlay", "skopeo"))
    for kind in ("buildah-overlay", "buildah-vfs", "docker", "podman-overlay", "podman-vfs")
]


class Built(NamedTuple):
    """What a tool has built: as it sees it, in every form that it writes, and as a layout."""

    tree: dict[str, tuple[Any, ...]]
    archives: dict[str, Path]
    layout: str
    ignored: set[str]


@pytest.fixture(scope="module", params=BUILDERS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Layers made by overlayfs and by comparing directories."""
    home = tmp_path_factory.mktemp("built")
    with builder(request.param) as tool:
        tool.build(context(home / "context"))
        (home / "tree").mkdir()
        tree = seen(tool.tree(home / "tree"))
        archives = {form: home / f"{form}.tar" for form in tool.forms}
        for form, archive in archives.items():
            tool.save(form, archive)
    source, layout = f"docker-archive:{archives['docker-archive']}", f"{home}/layout:app"
    run("skopeo", "--insecure-policy", "--tmpdir", home, "copy", "-q", source, f"oci:{layout}")
    return Built(tree, archives, layout, {".", *tool.added})  # what the root itself is like, no layer tells


def without(names: set[str], tree: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    return {name: facts for name, facts in tree.items() if name not in names}


def test_an_image_is_the_tree_that_its_builder_has(built: Built, tmp_path: Path, store: Store) -> None:
    assert built.tree["capable"][-1] == {"security.capability": CAPABILITY}
    for form, archive in built.archives.items():
        assert names_in_layers(archive) >= REMOVED
        here = ours(f"{form}:{archive}", store, tmp_path / f"ours-{form}")
        assert without(built.ignored, here) == without(built.ignored, built.tree)


@requires("umoci")
def test_an_image_is_the_tree_that_umoci_has(built: Built, tmp_path: Path, store: Store) -> None:
    run("umoci", "unpack", "--image", built.layout, tmp_path / "bundle")
    assert ours(f"oci:{built.layout}", store, tmp_path / "ours") == seen(tmp_path / "bundle/rootfs")


@requires("umoci")
def test_an_image_is_the_tree_that_umoci_has_as_an_ordinary_user(built: Built, tmp_path: Path) -> None:
    unpack = (sys.executable, "-m", "sandbox.cli", "unpack", "--no-owners")
    run(*AS_SOMEBODY, *unpack, f"oci:{built.layout}", tmp_path / "ours", SANDBOX_STORE=str(tmp_path / "store"))
    run(*AS_SOMEBODY, "umoci", "unpack", "--rootless", "--image", built.layout, tmp_path / "bundle")
    here, theirs = seen(tmp_path / "ours"), seen(tmp_path / "bundle/rootfs")
    assert here["capable"][-1] == {"security.capability": CAPABILITY}, "umoci may not set it"
    assert without({"capable"}, here) == without({"capable"}, theirs)


@requires("rootless", "subuid", "busybox", "overlay", "buildah")
@pytest.mark.parametrize("kind", ["buildah-overlay", "buildah-vfs"])
def test_an_image_that_an_ordinary_user_built_is_the_tree_that_the_builder_has(
    kind: str, tmp_path: Path, store: Store
) -> None:
    """With the owners that both have in a container of this user."""
    with builder(kind) as tool:
        assert isinstance(tool, Containers)
        tool.build(context(tmp_path / "context", most=65_535))
        for form in tool.forms:
            tool.save(form, tmp_path / f"{form}.tar")
            write_tree(resolve(f"{form}:{tmp_path}/{form}.tar", store=store), tmp_path / f"ours-{form}", store)
        theirs, *here = tool.seen_by_its_user(*(tmp_path / f"ours-{form}" for form in tool.forms))
    assert theirs["greatest"][1] == (65_535, 65_534)
    for tree in here:
        assert without({"."}, tree) == without({"."}, theirs)


def layers() -> list[bytes]:
    """Whatever layers can do to each other."""
    lower = [
        make.directory("./", mode=0o750, mtime=5), make.directory("keep"), make.file("keep/a", "a"), make.file("keep/b", "b"),
        make.directory("hide"), make.file("hide/old"), make.file("gone"), make.file("file-to-dir"),
        make.directory("dir-to-file"),
        make.file("dir-to-file/x"), make.symlink("link-to-dir", "keep"), make.file("one", "1"), make.hard_link("two", "one"),
        make.directory("moded", mode=0o700, mtime=7),
    ]  # fmt: skip
    upper = [
        make.file(".wh.gone"), make.file("keep/.wh.b"), make.directory("hide"), make.file("hide/.wh..wh..opq"),
        make.file("hide/new", "new"), make.directory("file-to-dir"), make.file("file-to-dir/in"), make.file("dir-to-file", "x"),
        make.file("one", "changed"), make.file("moded/deep/file", "x"), make.file("odd name \\\t\"'", "x"),
        make.symlink("dangling", "/nowhere"), make.fifo("pipe", mode=0o622), make.file("su", "x", mode=0o4711),
        make.file("xattr", "x", pax_headers={"SCHILY.xattr.user.note": "y"}), make.file("nano", mtime=1.25),
    ]  # fmt: skip
    top = [
        make.file("hide/.wh.new"),
        make.file("file-to-dir/.wh..wh..opq"),
        make.file("moded/deep/.wh.file"),
        make.file("late"),
    ]
    return [make.tar(lower), make.tar(upper), make.tar(top)]


@requires("umoci")
@pytest.mark.parametrize("packed", ["tar", "gzip", "zstd"])
def test_layers_on_top_of_each_other_are_what_umoci_makes_of_them(
    tmp_path: Path, store: Store, packed: str
) -> None:
    """As root with owners; as an ordinary user both without."""
    root = os.geteuid() == 0
    if packed == "zstd":
        zstandard = pytest.importorskip("zstandard")
        options: dict[str, Any] = {"pack": zstandard.ZstdCompressor().compress, "media_type": make.TAR_ZSTD}
        reference = make.make_layout(tmp_path / "zstd", *layers(), **options)
    else:
        plain: dict[str, Any] = {"pack": bytes, "media_type": make.TAR} if packed == "tar" else {}
        reference = make.make_layout(tmp_path / "packed", *layers(), **plain)
    layout = make.make_layout(tmp_path / "layout", *layers())  # umoci does not know zstd
    rootless = [] if root else ["--rootless"]
    run("umoci", "unpack", *rootless, "--image", f"{layout}:latest", tmp_path / "bundle")
    theirs = seen(tmp_path / "bundle/rootfs", owners=root)
    here = ours(f"oci:{reference}", store, tmp_path / "ours", owners=root)
    for name in (
        "moded",
        "moded/deep",
    ):  # no entry tells their times: to umoci they are those of the unpacking
        assert here[name][:2] == theirs[name][:2]
        del here[name], theirs[name]
    assert here == theirs
    assert {"keep/a", "hide", "file-to-dir", "late"} < set(here)
    assert not {"gone", "keep/b", "hide/old", "hide/new", "file-to-dir/in", "moded/deep/file"} & set(here)


def test_the_trees_of_both_kinds_of_users_have_the_same_files(tmp_path: Path, store: Store) -> None:
    """A plain tree has all that the layers have: holes, links, attributes, and nothing of overlayfs."""
    sparse = make.raw_header(b"sparse", size=1 << 20, mode=b"0000600\0")
    rest = make.tar([make.file("a", "x"), make.hard_link("b", "a"), make.file("big", b"y" * 700_000)])
    map_of_hole = make.pax_header(
        make.pax_record("GNU.sparse.size", str(8 << 20)),
        make.pax_record("GNU.sparse.map", f"{4 << 20},{1 << 20}"),
    )
    layer = map_of_hole + sparse + b"z" * (1 << 20) + rest
    layout = make.make_layout(tmp_path / "layout", layer, make.tar([make.file(".wh.nothing")]))
    here = ours(f"oci:{layout}", store, tmp_path / "ours", owners=False)
    root = tmp_path / "ours"
    assert sorted(here) == [".", "a", "b", "big", "sparse"]
    assert (root / "a").stat().st_ino == (root / "b").stat().st_ino
    status = (root / "sparse").stat()
    assert status.st_size == 8 << 20
    assert status.st_blocks * 512 < 4 << 20
    assert (root / "sparse").read_bytes() == bytes(4 << 20) + b"z" * (1 << 20) + bytes(3 << 20)
    assert (root / "big").read_bytes() == b"y" * 700_000
    assert {owner for _, owner, *_ in make.observe(root).values()} == {(os.getuid(), os.getgid())}


@requires("subuid")
def test_a_plain_tree_has_the_owners_of_the_layers(tmp_path: Path, store: Store) -> None:
    layout = make.make_layout(
        tmp_path / "layout", make.tar([make.file("f", uid=5, gid=6), make.symlink("l", "f", uid=7)])
    )
    image = resolve(f"oci:{layout}", store=store)
    write_tree(image, tmp_path / "ours", store)
    for name in ("f", "l"):
        there, here = (image.layers[0] / name).lstat(), (tmp_path / "ours" / name).lstat()
        assert (here.st_uid, here.st_gid) == (there.st_uid, there.st_gid)
    assert (tmp_path / "ours/f").stat().st_uid not in ({0} if os.geteuid() == 0 else {os.getuid()})


@requires("root")
def test_a_tree_that_cannot_be_written_is_taken_away_again(tmp_path: Path, store: Store) -> None:
    small = tmp_path / "small"
    small.mkdir()
    layout = make.make_layout(
        tmp_path / "layout", make.tar([make.file("a"), make.file("d/big", os.urandom(4 << 20))])
    )
    run("mount", "-t", "tmpfs", "-o", "size=1m", "none", small)
    try:
        from sandbox.errors import ImageError

        with pytest.raises(ImageError, match="No space left on device") as caught:
            write_tree(resolve(f"oci:{layout}", store=store), small / "out", store)
        assert str(caught.value.path).endswith("out/d/big")
        assert list(small.iterdir()) == []
    finally:
        run("umount", small)
