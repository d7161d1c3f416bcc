"""Images in one file, as docker and others save them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import images_helpers as make
import pytest
from gate import requires

from sandbox.errors import ImageError, ImageNotFound, ImageVerificationError
from sandbox.images import Store, resolve
from sandbox.images.errors import ImageTooLarge
from sandbox.images.limits import Limits
from sandbox.images.load import load

pytestmark = requires("userns")

LAYER = make.tar([make.directory("etc"), make.file("etc/passwd", "app:x:10:20::/srv:/bin/sh\n")])
UPPER = make.tar([make.directory("etc"), make.file("etc/group", "app:x:20:\n"), make.file("etc/.wh.absent")])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


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


def test_an_archive_that_is_a_bomb_is_stopped_while_it_goes_off(tmp_path: Path) -> None:
    store = Store(tmp_path / "small", limits=Limits(ratio=20, ratio_from=1 << 20))
    bomb = tmp_path / "image.tgz"
    bomb.write_bytes(gzip.compress(bytes(50_000_000), 1))
    with pytest.raises(ImageTooLarge, match=r"^decompress `docker-archive:.*: more than \d+ bytes") as caught:
        resolve(f"docker-archive:{bomb}", store=store)
    assert caught.value.feature == "ratio"
    with pytest.raises(ImageTooLarge), bomb.open("rb") as stream:
        load(stream, store)
    assert list((tmp_path / "small/tmp").iterdir()) == []


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
