"""sandbox.lock: written, read, and held to."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest

from sandbox.errors import ImageError, ImageNotFound
from sandbox.images import Store, resolve
from sandbox.images.distribution.pins import Pin, Pins
from sandbox.images.references import parse

ONE, TWO = ("sha256:" + text * 32 for text in ("ab", "cd"))
PINS = {
    "docker.io/library/redis:7": Pin(ONE, {"linux/amd64": TWO, "linux/arm64/v8": ONE}),
    'odd "name"\\': Pin(TWO),
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sandbox.lock"
    Pins(path, PINS).save()
    assert Pins.load(path) == Pins(path, PINS)
    assert path.read_text().startswith("# Which image each name means.")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_mask()
    path.chmod(0o640)
    attrs.evolve(Pins.load(path), images={}).save()
    assert Pins.load(path).images == {}
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["sandbox.lock"]


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_names_get_their_digests(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "sandbox.lock", PINS)
    found = pins.pinned(parse("redis:7"))
    assert (found.text, found.canonical) == ("redis:7", f"docker.io/library/redis:7@{ONE}")
    other = parse(f"redis@{TWO}")
    assert pins.pinned(other) is other
    with pytest.raises(ImageNotFound, match=r"sandbox\.lock does not say") as caught:
        pins.pinned(parse("redis:8"))
    assert "`sandbox lock redis:8`" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        "",
        "version = 2",
        "version = 1\nimages = 7",
        'version = 1\n[images.x]\ndigest = "sha256:ab"',
        f'version = 1\n[images.x]\ndigest = "{ONE}"\nplatforms = 7',
        f'version = 1\n[images.x]\ndigest = "{ONE}"\n[images.x.platforms]\nlinux = 7',
        "version = 1\n[images]\nx = 7",
    ],
)
def test_what_is_no_such_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sandbox.lock"
    path.write_text(text)
    with pytest.raises(ImageError, match="not a list of pinned images") as caught:
        Pins.load(path)
    assert caught.value.path == str(path)


def test_no_file_and_no_place_for_one(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        Pins.load(tmp_path / "none")
    with pytest.raises(ImageError, match="write pinned images"):
        Pins(tmp_path / "nowhere/sandbox.lock").save()


def test_images_that_are_in_no_registry_need_no_pin(tmp_path: Path) -> None:
    path = tmp_path / "sandbox.lock"
    Pins(path).save()
    assert resolve("host", lock=path).kind == "host"
    with pytest.raises(ImageNotFound, match="does not say which image"):
        resolve("redis:7", store=Store(tmp_path / "store"), lock=path)


def test_there_is_no_such_policy(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="choose from always, missing, never"):
        resolve("redis:7", store=Store(tmp_path / "store"), pull="sometimes")
