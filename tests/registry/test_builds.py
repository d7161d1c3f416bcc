"""What a Dockerfile is built on comes from a registry: when it is asked, and what its names mean, is the caller's to say."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import images_helpers as make
import pytest
from gate import requires

import sandbox
from sandbox import Options
from sandbox.errors import ImageError, ImageNotFound
from sandbox.images import Store
from sandbox.images.distribution.pins import Pin, Pins

if TYPE_CHECKING:
    from registries import Registry

pytestmark = requires("docker-registry", "skopeo", "openssl", "userns", "overlay", "busybox")


@pytest.fixture
def registry(started: Callable[[str], Registry]) -> Registry:
    return started("plain")


@pytest.fixture
def name(registry: Registry, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The base image, in its first version."""
    found = f"builds-{os.getpid()}/{make.sha256(request.node.nodeid.encode())[7:20]}:1"
    publish(registry, tmp_path / "first", found, "one")
    return found


def publish(registry: Registry, place: Path, name: str, version: str) -> str:
    """An image with a cat, and a file with its version; the digest."""
    program = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    layer = make.tar([
        make.directory("bin"), make.file("bin/cat", program, mode=0o755), make.file("version", f"{version}\n"),
    ])  # fmt: skip
    return registry.put(make.make_layout(place, layer, config={"Env": ["PATH=/bin"]}), name)


@pytest.fixture(params=["build:{}", "build:{}/Dockerfile", "{}"])
def reference(request: pytest.FixtureRequest, registry: Registry, name: str, store: Store, tmp_path: Path) -> str:
    """Something that is built on it."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app/Dockerfile").write_text(f"FROM {registry.name(name)}\nCOPY Dockerfile /\n")
    return str(request.param).format(tmp_path / "app")


def version(reference: str, **options: str) -> str:
    said: str = sandbox.run(["cat", "/version"], image=reference, options=Options(**options), check=True).stdout
    return said.strip()


def test_when_the_registry_is_asked(reference: str, registry: Registry, name: str, tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound, match="never"):
        version(reference, pull="never")
    assert version(reference, pull="missing") == "one"
    publish(registry, tmp_path / "second", name, "two")
    assert [version(reference, pull=policy) for policy in ("never", "missing", "always")] == ["one", "one", "two"]


def test_a_container_may_say_it_too(reference: str) -> None:
    container = sandbox.Container(image=reference, pull="never", command=["cat", "/version"])
    with pytest.raises(ImageNotFound, match="never"):
        sandbox.start(container, options=Options(pull="always"))


def test_what_names_mean(
    reference: str, registry: Registry, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that is given goes before the environment's."""
    pin(tmp_path / "first.lock", registry.name(name), registry.digest(name))
    pin(tmp_path / "second.lock", registry.name(name), publish(registry, tmp_path / "second", name, "two"))
    assert version(reference, lock=str(tmp_path / "first.lock")) == "one"
    assert version(reference, lock=str(tmp_path / "second.lock")) == "two"
    monkeypatch.setenv("SANDBOX_LOCK", str(tmp_path / "second.lock"))
    assert version(reference, lock=str(tmp_path / "first.lock")) == "one"
    pin(tmp_path / "third.lock", "docker.io/library/other:1", registry.digest(name))
    with pytest.raises(ImageError, match=r"third\.lock"):
        version(reference, lock=str(tmp_path / "third.lock"))


def pin(path: Path, name: str, digest: str) -> None:
    Pins(path, {name: Pin(digest, {})}).save()
