"""From a reference to an image: directories, layouts, archives, and everything that can be wrong with them."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import images_helpers as make
import pytest
from gate import requires

from sandbox.errors import ImageError, ImageNotFound, ImageVerificationError
from sandbox.images import Image, Reference, Store, register_source, resolve, unregister_source
from sandbox.images.errors import ImageTooLarge, MediaTypeError, PlatformNotFound
from sandbox.images.limits import Limits
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
        ("postgres:16", ImageNotFound, "cannot pull docker.io/library/postgres:16 from a registry"),
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


# --- what can be wrong with a layout ----------------------------------------------------------------------------------


def blob_path(layout: Path, digest: str) -> Path:
    return layout / "blobs/sha256" / digest.partition(":")[2]


def manifest_of(layout: Path) -> dict[str, Any]:
    digest = index_of(layout)["manifests"][0]["digest"]
    document: dict[str, Any] = json.loads(blob_path(layout, digest).read_text())
    return document


@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
@pytest.mark.parametrize("harm", ["bit", "longer", "shorter", "missing", "fifo", "directory"])
def test_each_blob_is_verified(layout: Path, store: Store, which: str, harm: str) -> None:
    manifest = manifest_of(layout)
    digest = {
        "manifest": index_of(layout)["manifests"][0]["digest"],
        "config": manifest["config"]["digest"],
        "layer": manifest["layers"][1]["digest"],
    }[which]
    path = blob_path(layout, digest)
    content = bytearray(path.read_bytes())
    path.unlink()
    if harm == "bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif harm in ("longer", "shorter"):
        path.write_bytes(content + b" " if harm == "longer" else content[:-1])
    elif harm == "fifo":
        os.mkfifo(path)
    elif harm == "directory":
        path.mkdir()
    with pytest.raises(ImageError) as caught:
        resolve(f"oci:{layout}", store=store)
    assert digest in str(caught.value)
    assert isinstance(caught.value, ImageVerificationError) == (harm in ("bit", "longer", "shorter"))
    assert list((store.root / "tmp").glob("*")) == []


def broken(layout: Path, **changes: Any) -> None:
    """Replace members of the manifest, with digests that are right again."""
    manifest = {**manifest_of(layout), **changes}
    make.put_index(layout, make.put_json(layout, manifest, make.MANIFEST))


MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": ({"layers": None}, "`layers` is not a list"),
    "layer is no descriptor": ({"layers": ["x"]}, "layers[0] of"),
    "no config": ({"config": None}, "config of"),
    "negative size": ({"layers": [{"digest": "sha256:x", "size": -1, "mediaType": make.TAR}]}, "a digest and a size"),
    "bool size": ({"layers": [{"digest": "sha256:x", "size": True, "mediaType": make.TAR}]}, "a digest and a size"),
    "layer type": ({"layers": [{"digest": "sha256:x", "size": 1, "mediaType": "text/plain"}]}, "`text/plain`"),
    "config type": ({"config": {"digest": "sha256:x", "size": 1, "mediaType": "application/wasm"}}, "application/wasm"),
    "own type": ({"mediaType": make.INDEX}, "its descriptor"),
    "fewer layers": ({"layers": []}, "0 layers in the manifest, 2 in the configuration"),
    "path for digest": (
        {"config": {"digest": "sha256:../../x", "size": 1, "mediaType": make.CONFIG}}, "is not a digest"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "complaint"), MANIFESTS.values(), ids=MANIFESTS.keys())
def test_bad_manifests(layout: Path, store: Store, changes: dict[str, Any], complaint: str) -> None:
    broken(layout, **changes)
    with pytest.raises(ImageError) as caught:
        resolve(f"oci:{layout}", store=store)
    assert complaint in str(caught.value)
    assert str(layout) in str(caught.value)


@pytest.mark.parametrize(
    "rootfs", [None, {}, {"diff_ids": "x"}, {"diff_ids": [1, 2]}, {"type": "layers", "diff_ids": ["x", "y"]}]
)
def test_bad_configurations(layout: Path, store: Store, rootfs: object) -> None:
    config = make.put_json(layout, {"architecture": "amd64", "os": "linux", "rootfs": rootfs}, make.CONFIG)
    broken(layout, config=config)
    with pytest.raises(ImageError, match=r"diff_ids|is not a digest"):
        resolve(f"oci:{layout}", store=store)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("oci-layout", '{"imageLayoutVersion": "2.0.0"}', "version '2.0.0'"),
        ("oci-layout", "[]", "not a JSON object"),
        ("index.json", "{", "not JSON"),
        ("index.json", "[" * 100_000, "not JSON"),
        ("index.json", "{}", "`manifests` is not a list"),
        ("index.json", '{"manifests": [{"digest": "x", "size": 0}]}', "media type ``"),
        ("index.json", '{"manifests": []}', "there is: nothing"),
        ("index.json", " " * (5 << 20), "larger than 4194304"),
    ],
)
def test_bad_layouts(layout: Path, store: Store, name: str, content: str, complaint: str) -> None:
    (layout / name).write_text(content)
    with pytest.raises(ImageError) as caught:
        resolve(f"oci:{layout}", store=store)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        (Limits(manifest=100), "`index.json` is larger than 100 bytes"),
        (Limits(config=100), "the configuration has 276 bytes, more than 100"),
        (Limits(layers=1), "2 layers, more than 1"),
    ],
)
def test_documents_may_be_large_but_not_huge(
    tmp_path: Path, layout: Path, limits: Limits, complaint: str
) -> None:
    with pytest.raises(ImageTooLarge) as caught:
        resolve(f"oci:{layout}", store=Store(tmp_path / "store", limits))
    assert complaint in str(caught.value)


def test_a_manifest_may_not_be_larger_than_its_descriptor_says(tmp_path: Path, layout: Path) -> None:
    descriptor = index_of(layout)["manifests"][0]
    blob_path(layout, descriptor["digest"]).write_bytes(bytes(5 << 20))
    with pytest.raises(ImageTooLarge, match="the manifest is larger than 4194304 bytes"):
        resolve(f"oci:{layout}", store=tmp_path / "store")
    make.put_index(layout, {**descriptor, "size": 100 << 20})
    with pytest.raises(ImageTooLarge, match=f"the manifest has {100 << 20} bytes"):
        resolve(f"oci:{layout}", store=tmp_path / "store")


# --- archives ---------------------------------------------------------------------------------------------------------


def docker_archive(
    path: Path, tags: list[str] | None, *layers: bytes, packed: bool = False, links: bool = False
) -> Path:
    """An archive as ``docker save`` writes it; with ``links`` as old versions did for identical layers."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [*map(make.sha256, layers)]},
        }
    ).encode()
    name = make.sha256(config).partition(":")[2]
    members, names = [make.file(f"{name}.json", config)], []
    for number, layer in enumerate(layers):
        names.append(f"{number}/layer.tar")
        if links and number:
            members.append(make.symlink(names[-1], "../0/layer.tar"))
        else:
            members.append(make.file(names[-1], gzip.compress(layer) if packed else layer))
    manifest = [{"Config": f"{name}.json", "RepoTags": tags, "Layers": names}]
    members.append(make.file("manifest.json", json.dumps(manifest)))
    path.write_bytes(make.tar(members))
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["", ":app", ":app:latest", ":docker.io/library/app:latest"])
def test_docker_archives(tmp_path: Path, store: Store, packed: bool, name: str) -> None:
    path = docker_archive(tmp_path / "image.tar", ["app:latest"], LAYER, UPPER, packed=packed)
    image = resolve(f"docker-archive:{path}{name}", store=store)
    assert len(image.layers) == 2
    assert image.users.group == "app:x:20:\n"


def test_a_whole_archive_may_be_compressed(tmp_path: Path, store: Store) -> None:
    path = docker_archive(tmp_path / "image.tar", None, LAYER)
    (tmp_path / "image.tgz").write_bytes(gzip.compress(path.read_bytes()))
    assert resolve(f"docker-archive:{tmp_path}/image.tgz", store=store).users.passwd
    (tmp_path / "cut.tgz").write_bytes(gzip.compress(path.read_bytes())[:-50])
    with pytest.raises(ImageError, match="broken gzip"):
        resolve(f"docker-archive:{tmp_path}/cut.tgz", store=store)


def test_links_between_layers_of_an_archive(tmp_path: Path, store: Store) -> None:
    path = docker_archive(tmp_path / "image.tar", None, LAYER, LAYER, links=True)
    first, second = resolve(f"docker-archive:{path}", store=store).layers
    assert first == second


def test_names_that_an_archive_does_not_have(tmp_path: Path, store: Store) -> None:
    path = docker_archive(tmp_path / "image.tar", ["app:1", "app:2"], LAYER)
    with pytest.raises(ImageNotFound, match="it has no `other`") as caught:
        resolve(f"docker-archive:{path}:other", store=store)
    assert caught.value.hint == "there is: app:1, app:2"


def test_an_archive_is_verified_against_its_configuration(tmp_path: Path, store: Store) -> None:
    path = docker_archive(tmp_path / "image.tar", None, LAYER)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"app:x:10", b"app:x:00"))
    with pytest.raises(ImageVerificationError, match=make.sha256(LAYER)):
        resolve(f"docker-archive:{path}", store=store)
    path.write_bytes(content.replace(b'"linux"', b'"Linux"'))
    with pytest.raises(ImageVerificationError):
        resolve(f"docker-archive:{path}", store=store)


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [
        ("{}", "not a list of JSON objects"),
        ("[1]", "not a list of JSON objects"),
        ("[]", "it has 0 images"),
        ('[{"Config": 1, "Layers": []}]', "`Config` is not a name"),
        ('[{"Config": "x", "Layers": "y"}]', "`Layers` not a list"),
        ('[{"Config": "absent.json", "Layers": []}]', "`absent.json` is missing"),
        ('[{"Config": "loop", "Layers": []}]', "`loop` is missing"),
    ],
)
def test_bad_docker_archives(tmp_path: Path, store: Store, manifest: str, complaint: str) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(make.tar([make.file("manifest.json", manifest), make.symlink("loop", "loop")]))
    with pytest.raises(ImageError) as caught:
        resolve(f"docker-archive:{path}", store=store)
    assert complaint in str(caught.value)


# --- users ------------------------------------------------------------------------------------------------------------


def image_of(store: Store, *layers: list[make.Member]) -> Image:
    found = store.layers([make.blob_of(make.tar(members)) for members in layers])
    config = resolve("host").config
    return Image("test", "layers", layers=tuple(layer.path for layer in found), config=config)


PASSWD = "real:x:1:1::/:/bin/sh\n"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([[make.file("etc/passwd", "old")], [make.file("etc/passwd", PASSWD)]], PASSWD),
        ([[make.file("etc/passwd", PASSWD)], [make.file("etc/other")]], PASSWD),
        ([[make.file("etc/passwd", "old")], [make.file("etc/.wh.passwd")]], ""),
        ([[make.file("etc/passwd", "old")], [make.file(".wh.etc")]], ""),
        ([[make.file("etc/passwd", "old")], [make.directory("etc"), make.file("etc/.wh..wh..opq")]], ""),
        ([[make.file("etc/passwd", "old")], [make.symlink("etc", "usr/etc")], [make.file("usr/etc/passwd", PASSWD)]],
         PASSWD),
        ([[make.symlink("etc/passwd", "/usr/share/pw")], [make.file("usr/share/pw", PASSWD)]], PASSWD),
        ([[make.symlink("etc/passwd", "../../../../pw"), make.file("pw", PASSWD)]], PASSWD),
        ([[make.symlink("etc/passwd", "/absent")]], ""),
        ([[make.file("etc", "a file")]], ""),
        ([[make.file("etc/passwd/x", "a directory below")], [make.file("etc/passwd", PASSWD)]], PASSWD),
        ([[make.file("etc/passwd", b"caf\xe9:x:1:1\n")]], "caf\udce9:x:1:1\n"),
    ],
)  # fmt: skip
def test_user_files_of_the_merged_root(store: Store, layers: list[list[make.Member]], expected: str) -> None:
    assert image_of(store, *layers).users.passwd == expected


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ([make.fifo("etc/passwd")], "not a regular file"),
        ([make.directory("etc/passwd")], "Is a directory"),
        ([make.symlink("etc/passwd", "passwd")], "Too many levels of symbolic links"),
        ([make.file("etc/passwd", bytes((4 << 20) + 1))], "larger than"),
    ],
)
def test_user_files_that_are_traps(store: Store, members: list[make.Member], complaint: str) -> None:
    image = image_of(store, members)
    with pytest.raises(ImageError) as caught:
        image.users.passwd  # noqa: B018 - read for its error
    assert complaint in str(caught.value)
    assert "/etc/passwd" in str(caught.value)


def test_user_files_are_not_read_from_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root:secret\n")
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    (tmp_path / "rootfs/etc/passwd").symlink_to(tmp_path / "secret")
    (tmp_path / "rootfs/etc/group").symlink_to("../../secret")
    assert resolve(f"dir:{tmp_path}/rootfs").users.passwd == ""
    assert resolve(f"dir:{tmp_path}/rootfs").users.group == ""


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


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ImageError, match="SANDBOX_STORE") as caught:
        Store(tmp_path / "file").layers([make.blob_of(LAYER)])
    assert "Not a directory" in str(caught.value)
