"""From a reference to an image: directories, layouts, sources of plug-ins, and where the store is."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import images_helpers as make
import pytest
from gate import requires

from sandbox.errors import ImageError, ImageNotFound
from sandbox.images import Image, Reference, Store, register_source, resolve, unregister_source
from sandbox.images.errors import ImageTooLarge, MediaTypeError, PlatformNotFound
from sandbox.images.platforms import Platform, host_platform

pytestmark = requires("userns")

LAYER = make.tar([make.directory("etc"), make.file("etc/passwd", "app:x:10:20::/srv:/bin/sh\n")])
UPPER = make.tar([make.directory("etc"), make.file("etc/group", "app:x:20:\n"), make.file("etc/.wh.absent")])
HERE = host_platform()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return make.make_layout(tmp_path / "layout", LAYER, UPPER, config={"Env": ["A=1"], "Cmd": ["x"]})


def index_of(layout: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((layout / "index.json").read_text())
    return document


# --- host and directories ---------------------------------------------------------------------------------------------


def test_host(store: Store) -> None:
    image = resolve("host", store=store)
    assert (image.kind, image.layers, image.digest, image.id_mapped) == ("host", (), None, False)
    assert "root:" in image.users.passwd
    assert image.config.architecture == HERE.architecture
    assert not store.root.exists()


def test_a_directory(tmp_path: Path, store: Store) -> None:
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    (tmp_path / "rootfs/etc/passwd").write_text("a:x:1:1::/:/bin/sh\n")
    image = resolve(f"dir:{tmp_path}/rootfs", store=store)
    assert (image.kind, image.layers, image.digest) == ("dir", (tmp_path / "rootfs",), None)
    assert image.id_mapped == (os.geteuid() == 0)
    assert image.users.passwd == "a:x:1:1::/:/bin/sh\n"
    assert image.users.group == ""


def test_a_directory_is_looked_at_anew_each_time(tmp_path: Path, store: Store) -> None:
    for name in ("first", "second"):
        (tmp_path / name / "etc").mkdir(parents=True)
    link, reference = tmp_path / "link", f"dir:{tmp_path}/link"
    link.symlink_to("first")
    image = resolve(reference, store=store)
    assert (image.layers, image.users.passwd) == ((tmp_path / "first",), "")
    (tmp_path / "first/etc/passwd").write_text("a:x:1:1::/:/bin/sh\n")
    assert resolve(reference, store=store).users.passwd == "a:x:1:1::/:/bin/sh\n"
    link.unlink()
    link.symlink_to(tmp_path / "second")
    assert resolve(reference, store=store).layers == (tmp_path / "second",)
    link.unlink()
    (tmp_path / "first").rename(link)
    assert resolve(reference, store=store).layers == (link,)
    (link / "oci-layout").write_text("{}")
    with pytest.raises(ImageError, match="this is an OCI image layout"):
        resolve(reference, store=store)
    (link / "oci-layout").unlink()
    (link / "etc/passwd").unlink()
    (link / "etc").rmdir()
    with pytest.raises(ImageError, match="does not look like a root file system"):
        resolve(reference, store=store)


@pytest.mark.parametrize(
    "way", ["a/link/b/rootfs", "a/../a/link/b/rootfs", "a/real/b/", "a/absolute", "a//real/./b"]
)
def test_a_directory_is_where_all_links_lead(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    real = tmp_path / "a/real/b"
    (real / "bin").mkdir(parents=True)
    (real / "rootfs").symlink_to(".")
    (tmp_path / "a/link").symlink_to("real")
    (tmp_path / "a/absolute").symlink_to(tmp_path / "a/link/b")
    monkeypatch.chdir(tmp_path)
    for reference in (f"dir:{tmp_path}/{way}", f"dir:{way}", f"./{way}"):
        assert resolve(reference, store=store).layers == (real,)


def test_paths_mean_what_is_there(
    tmp_path: Path, store: Store, layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rootfs/bin").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("./rootfs", store=store).kind == "dir"
    assert resolve(str(layout), store=store).kind == "layers"
    with tarfile.open(tmp_path / "image.tar", "w") as archive:
        archive.add(layout, ".")
    assert resolve("./image.tar", store=store).layers == resolve("./layout", store=store).layers


@pytest.mark.parametrize(
    ("reference", "error", "complaint"),
    [
        ("dir:nowhere", ImageNotFound, "No such file or directory"),
        ("./nowhere", ImageNotFound, "relative paths start at"),
        ("oci:nowhere", ImageNotFound, "no such directory"),
        ("oci-archive:nowhere", ImageNotFound, "No such file"),
        ("docker-archive:nowhere", ImageNotFound, "No such file"),
        ("dir:empty", ImageError, "does not look like a root file system"),
        ("dir:layout", ImageError, "write oci:layout"),
        ("oci:empty", ImageNotFound, "this is no OCI layout"),
        ("dir:file", ImageError, "not a directory"),
        ("./file", ImageError, "not an archive of an image"),
        ("docker-archive:fifo", ImageError, "not a regular file"),
        ("./fifo", ImageError, "not a directory"),
        ("oci-archive:empty", ImageError, "not a regular file"),
        ("oci:layout:nope", ImageNotFound, "there is: latest"),
        (f"oci:layout@sha256:{'a' * 64}", ImageNotFound, "there is: latest"),
    ],
)
def test_what_is_not_there_or_something_else(
    tmp_path: Path,
    layout: Path,
    monkeypatch: pytest.MonkeyPatch,
    reference: str,
    error: type[Exception],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not an archive")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(error) as caught:
        resolve(reference, store=tmp_path / "store")
    assert complaint in str(caught.value)
    assert reference in str(caught.value)


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_a_layout(layout: Path, store: Store) -> None:
    image = resolve(f"oci:{layout}:latest", store=store)
    assert image.digest == index_of(layout)["manifests"][0]["digest"]
    assert image.config.config is not None
    assert (image.config.config.env, image.config.config.cmd) == (("A=1",), ("x",))
    lower, upper = image.layers
    assert (lower / "etc/passwd").read_bytes().startswith(b"app:")
    assert sorted(path.name for path in (upper / "etc").iterdir()) == ["absent", "group"]
    assert (image.users.passwd, image.users.group) == ("app:x:10:20::/srv:/bin/sh\n", "app:x:20:\n")


@pytest.mark.parametrize("suffix", ["", ":latest", "@{digest}", ":latest@{digest}"])
def test_ways_to_ask_for_the_same_image(layout: Path, store: Store, suffix: str) -> None:
    digest = index_of(layout)["manifests"][0]["digest"]
    assert resolve(f"oci:{layout}{suffix.format(digest=digest)}", store=store).digest == digest


def test_several_images_in_a_layout(tmp_path: Path, store: Store) -> None:
    layout = make.make_layout(tmp_path / "layout", LAYER)
    one = make.tagged(make.put_image(layout, [LAYER]), "one")
    two = make.tagged(make.put_image(layout, [UPPER]), "two")
    make.put_index(layout, one, two)
    assert resolve(f"oci:{layout}:two", store=store).digest == two["digest"]
    with pytest.raises(ImageNotFound, match="none is called latest") as caught:
        resolve(f"oci:{layout}", store=store)
    assert caught.value.hint == "there is: one, two"
    make.put_index(layout, one, make.tagged(two, "latest"))
    assert resolve(f"oci:{layout}", store=store).digest == two["digest"]


@requires("zstd")
@pytest.mark.parametrize(
    ("media_type", "pack"),
    [
        (make.TAR, bytes),
        (make.TAR_GZIP, gzip.compress),
        (
            make.TAR_GZIP,
            lambda content: gzip.compress(content[:700]) + gzip.compress(content[700:]) + bytes(100),
        ),
        (make.TAR_GZIP, bytes),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", gzip.compress),
        (make.TAR_ZSTD, lambda content: __import__("zstandard").compress(content)),
        (
            make.TAR_ZSTD,
            lambda content: (
                __import__("zstandard").compress(content[:700])
                + b"\x50\x2a\x4d\x18\x04\0\0\0skip"
                + __import__("zstandard").compress(content[700:])
            ),
        ),
    ],
    ids=["plain", "gzip", "two members", "mislabelled", "docker", "zstd", "zstd frames"],
)
def test_compressions(tmp_path: Path, store: Store, media_type: str, pack: Callable[[bytes], bytes]) -> None:
    layout = make.make_layout(tmp_path / "layout", LAYER, pack=pack, media_type=media_type)
    (layer,) = resolve(f"oci:{layout}", store=store).layers
    assert (layer / "etc/passwd").exists()


def test_zstd_without_the_library_says_what_to_install(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    packed = b"\x28\xb5\x2f\xfd" + bytes(50)
    layout = make.make_layout(tmp_path / "layout", LAYER, pack=lambda _: packed, media_type=make.TAR_ZSTD)
    with pytest.raises(MediaTypeError, match=r"pip install 'pytest-sandbox\[zstd\]'"):
        resolve(f"oci:{layout}", store=store)


def platform(architecture: str, os: str = "linux", variant: str = "") -> dict[str, str]:
    return {"os": os, "architecture": architecture, **({"variant": variant} if variant else {})}


def test_ours_is_picked_from_an_index_and_an_index_in_an_index(tmp_path: Path, store: Store) -> None:
    layout = tmp_path / "layout"
    foreign = make.put_image(layout, [UPPER], platform=platform("vax"))
    record = {
        **make.put_image(layout, [LAYER, LAYER], platform=platform("unknown", "unknown")),
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    ours = make.put_image(layout, [LAYER], platform=platform(HERE.architecture))
    inner = make.put_json(layout, {"schemaVersion": 2, "manifests": [foreign, record, ours]}, make.INDEX)
    outer = make.put_json(layout, {"schemaVersion": 2, "manifests": [inner]}, make.INDEX)
    make.put_index(layout, make.tagged(outer, "multi"))
    assert resolve(f"oci:{layout}:multi", store=store).digest == ours["digest"]
    make.put_index(layout, foreign, ours)
    assert resolve(f"oci:{layout}", store=store).digest == ours["digest"]


def test_no_platform_fits(tmp_path: Path, store: Store) -> None:
    layout = tmp_path / "layout"
    found = [
        make.put_image(layout, [LAYER], platform=platform(*names))
        for names in (("vax",), ("arm", "plan9", "v5"))
    ]
    inner = make.put_json(layout, {"manifests": found}, make.INDEX)
    make.put_index(layout, inner)
    with pytest.raises(PlatformNotFound) as caught:
        resolve(f"oci:{layout}", store=store)
    assert caught.value.available == ("linux/vax", "plan9/arm/v5")
    assert f"nothing for {HERE}; available: linux/vax, plan9/arm/v5" in str(caught.value)


@pytest.mark.parametrize(
    ("here", "there", "runs"),
    [
        (Platform("linux", "amd64"), Platform("linux", "amd64"), True),
        (Platform("linux", "amd64"), Platform("windows", "amd64"), False),
        (Platform("linux", "arm64", "v8"), Platform("linux", "arm64"), True),
        (Platform("linux", "arm", "v7"), Platform("linux", "arm", "v6"), True),
        (Platform("linux", "arm", "v6"), Platform("linux", "arm", "v7"), False),
        (Platform("linux", "amd64"), Platform("linux", "386"), False),
    ],
)
def test_which_platform_runs_what(here: Platform, there: Platform, runs: bool) -> None:
    assert here.runs(there) is runs


def nested(layout: Path, depth: int) -> dict[str, Any]:
    found = make.put_image(layout, [LAYER])
    for _ in range(depth):
        found = make.put_json(layout, {"manifests": [found]}, make.INDEX)
    return found


def test_indexes_within_indexes_end_somewhere(tmp_path: Path, store: Store) -> None:
    layout = tmp_path / "layout"
    make.put_index(layout, nested(layout, 4))
    assert resolve(f"oci:{layout}", store=store).kind == "layers"
    make.put_index(layout, nested(layout, 5))
    with pytest.raises(ImageTooLarge, match="too deep"):
        resolve(f"oci:{layout}", store=store)


def test_identical_layers_are_one_directory(tmp_path: Path, store: Store) -> None:
    layout = make.make_layout(tmp_path / "layout", LAYER, UPPER, LAYER)
    first, _, third = resolve(f"oci:{layout}", store=store).layers
    assert first == third


def test_an_opaque_root_hides_all_layers_below(tmp_path: Path, store: Store) -> None:
    fresh = make.tar([make.file(".wh..wh..opq"), make.file("only")])
    layout = make.make_layout(tmp_path / "layout", LAYER, fresh, UPPER)
    assert len(resolve(f"oci:{layout}", store=store).layers) == 2


def test_directories_without_an_entry_follow_the_layers_below(tmp_path: Path, store: Store) -> None:
    base = make.tar([make.directory("tmp", mode=0o1777)])
    other = make.tar([make.directory("tmp", mode=0o700)])
    on_top = make.tar([make.file("tmp/x")])
    modes = []
    for number, layers in enumerate([(base, on_top), (other, on_top), (on_top,)]):
        layout = make.make_layout(tmp_path / f"layout{number}", *layers)
        top = resolve(f"oci:{layout}", store=store).layers[-1]
        again = resolve(f"oci:{layout}", store=store).layers[-1]
        assert top == again
        modes.append((top / "tmp").stat().st_mode & 0o7777)
    assert modes == [0o1777, 0o700, 0o755]


# --- sources of plug-ins ----------------------------------------------------------------------------------------------


class Elsewhere:
    def resolve(self, reference: Reference, store: Store) -> Image:
        return Image(
            reference.text, "dir", layers=(store.root / reference.path,), config=resolve("host").config
        )


def test_a_registered_source_gets_its_references(store: Store) -> None:
    source = Elsewhere()
    register_source("else-where", source)
    register_source("else-where", source)
    try:
        assert resolve("else-where:a:b/../c", store=store).layers == (store.root / "a:b/../c",)
        with pytest.raises(ImageError, match="else-where"):
            resolve("nope:./x", store=store)
        with pytest.raises(ImageError, match="the name is taken"):
            register_source("else-where", Elsewhere())
    finally:
        unregister_source("else-where")
    with pytest.raises(ImageError, match="unknown transport"):
        resolve("else-where:./x", store=store)


@pytest.mark.parametrize("name", ["oci", "docker", "", "Upper", "with space", "a:b"])
def test_names_that_no_source_may_have(name: str) -> None:
    with pytest.raises(ImageError, match="register image source"):
        register_source(name, Elsewhere())


# --- where the store is -----------------------------------------------------------------------------------------------


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SANDBOX_STORE", str(tmp_path / "mine"))
    assert Store.default().root == tmp_path / "mine"
    monkeypatch.delenv("SANDBOX_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert Store.default().root == Path("/var/lib/sandbox")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert Store.default().root == tmp_path / "data/sandbox"
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", unusable)
        assert Store.default().root == tmp_path / "home/.local/share/sandbox"


def test_without_a_home_only_images_without_layers_work(
    monkeypatch: pytest.MonkeyPatch, layout: Path
) -> None:
    for name in ("SANDBOX_STORE", "XDG_DATA_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 2_000_000_000)
    monkeypatch.setattr(os, "getuid", lambda: 2_000_000_000)
    assert resolve("host").kind == "host"
    with pytest.raises(ImageError, match="no home directory") as caught:
        resolve(f"oci:{layout}")
    assert caught.value.hint == "set SANDBOX_STORE to a directory"


def test_images_survive_pickling(layout: Path, store: Store) -> None:
    image = resolve(f"oci:{layout}", store=store)
    again = pickle.loads(pickle.dumps(image))
    assert (again.layers, again.config, again.users) == (image.layers, image.config, image.users)


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ImageError, match="SANDBOX_STORE") as caught:
        Store(tmp_path / "file").layers([make.blob_of(LAYER)])
    assert "Not a directory" in str(caught.value)
