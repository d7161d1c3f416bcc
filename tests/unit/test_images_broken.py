"""Layouts with something wrong in them: every blob, every document, one thing at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import images_helpers as make
import pytest
from gate import requires

from sandbox.errors import ImageError, ImageVerificationError
from sandbox.images import Store, resolve
from sandbox.images.errors import ImageTooLarge
from sandbox.images.limits import Limits

pytestmark = requires("userns")

LAYER = make.tar([make.directory("etc"), make.file("etc/passwd", "app:x:10:20::/srv:/bin/sh\n")])
UPPER = make.tar([make.directory("etc"), make.file("etc/group", "app:x:20:\n"), make.file("etc/.wh.absent")])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return make.make_layout(tmp_path / "layout", LAYER, UPPER, config={"Env": ["A=1"], "Cmd": ["x"]})


def index_of(layout: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((layout / "index.json").read_text())
    return document


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


def test_an_image_without_layers(tmp_path: Path, store: Store) -> None:
    layout = make.make_layout(tmp_path / "empty")
    with pytest.raises(ImageError, match="it has no layers"):
        resolve(f"oci:{layout}", store=store)


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
