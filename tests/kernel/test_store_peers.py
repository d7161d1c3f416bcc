"""Images that other tools wrote, unpacked here and by those tools: file for file the same tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images_helpers as make
import pytest
from gate import requires

from sandbox.images import Store, resolve
from sandbox.images.tree import write_tree

pytestmark = requires("userns")

#: What umoci notes where it cannot give files their owners.
ROOTLESS = "user.rootlesscontainers"

STEPS = r"""
RUN rm /gone && rm -r /opt/old && mkdir -p /opt/old /new/deep && touch /opt/old/c && chmod 1777 /tmp && chmod 4755 /bin/busybox
RUN ln /etc/passwd /new/passwd2 && ln -s nowhere /new/dangling && mkfifo /new/fifo && chown 5:6 /new/deep && \
    dd if=/dev/zero of=/new/sparse bs=1 seek=4000000 count=1 2>/dev/null
RUN rm /link && mkdir -m 750 /link && touch /link/x && rm -r /new/deep && touch -t 200101010101.01 /new/deep
"""
APPLETS = ("sh", "rm", "mkdir", "ln", "chmod", "chown", "mkfifo", "touch", "dd")


def tree() -> bytes:
    folders = [
        make.directory(name, mode=0o755)
        for name in ("bin", "etc", "dev", "proc", "sys", "tmp", "opt", "opt/old")
    ]
    shell = make.file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    links = [make.hard_link(f"bin/{name}", "bin/busybox", mode=0o755) for name in APPLETS]
    files = [
        make.file("etc/passwd", "root:x:0:0::/:/bin/sh\n"), make.file("gone", "x"), make.file("opt/old/a"),
        make.file("ünïcode", "x", uid=7, gid=8, mode=0o600), make.symlink("link", "etc/passwd", uid=3, gid=3),
        make.file("d" * 150 + "/" + "f" * 150, "long"),
    ]  # fmt: skip
    return make.tar([make.directory("./", mode=0o755), *folders, shell, *links, *files])


def seen(root: Path, *, owners: bool = True) -> dict[str, tuple[Any, ...]]:
    """As ``observe``, without what only one of the tools notes."""
    found = make.observe(root)
    for name, (mode, owner, mtime, content, same, xattrs) in found.items():
        kept = {key: value for key, value in xattrs.items() if key != ROOTLESS}
        found[name] = (mode, owner if owners else None, mtime, content, same, kept)
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    for path in [*store.root.glob("layers/*/*"), *tmp_path.glob("ours*")]:
        store.remove_tree(path)


def ours(reference: str, store: Store, where: Path, *, owners: bool = True) -> dict[str, tuple[Any, ...]]:
    write_tree(resolve(reference, store=store), where, store, owners=owners)
    return seen(where, owners=owners)


def run(*argv: str | Path) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


@pytest.fixture(params=["overlay", "vfs"])
def podman(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Podman with a store of its own, and what it builds with; its directories must not have long names."""
    with tempfile.TemporaryDirectory(prefix="podman-") as place:
        yield [
            "podman",
            "--root",
            f"{place}/root",
            "--runroot",
            f"{place}/run",
            "--storage-driver",
            request.param,
        ]
        subprocess.run(["umount", "--lazy", f"{place}/root/overlay"], check=False, capture_output=True)


@requires("root", "podman", "busybox", "overlay")
def test_an_image_that_podman_built_is_the_tree_that_podman_and_umoci_have(
    podman: list[str], tmp_path: Path, store: Store
) -> None:
    """Layers made by overlayfs and by comparing directories; in every form that podman and skopeo write."""
    (tmp_path / "base.tar").write_bytes(tree())
    (tmp_path / "Containerfile").write_text(f"FROM scratch\nADD base.tar /\nENV PATH=/bin\n{STEPS}")
    run(
        *podman,
        "build",
        "-q",
        "--isolation",
        "chroot",
        "--layers",
        "-t",
        "app:1",
        "-f",
        tmp_path / "Containerfile",
        tmp_path,
    )
    theirs = seen(Path(run(*podman, "image", "mount", "app:1").strip()))
    assert len(theirs) > 30
    for form in ("oci-archive", "docker-archive"):
        run(*podman, "save", "-q", "--format", form, "-o", tmp_path / f"{form}.tar", "app:1")
        here = ours(f"{form}:{tmp_path}/{form}.tar", store, tmp_path / f"ours-{form}")
        assert here.pop(".")[:2] == ("0o40755", (0, 0))
        assert here == {name: facts for name, facts in theirs.items() if name != "."}
    if shutil.which("skopeo") and shutil.which("umoci"):
        copy = ("skopeo", "--insecure-policy", "--tmpdir", tmp_path, "copy", "-q")
        run(*copy, f"oci-archive:{tmp_path}/oci-archive.tar", f"oci:{tmp_path}/layout:app")
        run("umoci", "unpack", "--image", f"{tmp_path}/layout:app", tmp_path / "bundle")
        assert ours(f"oci:{tmp_path}/layout:app", store, tmp_path / "ours") == seen(
            tmp_path / "bundle/rootfs"
        )


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
