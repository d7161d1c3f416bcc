"""What of the host the image `host` is made of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.runtime import hostimage

OWNER = (os.geteuid(), os.getegid())


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of the host with a home in it."""
    tree = tmp_path / "lib"
    (tree / "agent/.ssh").mkdir(parents=True)
    (tmp_path / "skeleton").mkdir()
    monkeypatch.setattr(hostimage, "_TREES", {str(tree): 2})
    monkeypatch.setattr(hostimage, "_PROGRAM_TREES", ())
    return tree


def overlays(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    found = hostimage.build(str(tmp_path / "skeleton"), OWNER).overlays
    assert len({overlay.target for overlay in found}) == len(found)
    return {overlay.target: overlay.layers for overlay in found}


@pytest.mark.parametrize("link", [False, True])
def test_the_callers_own_home_is_empty_wherever_it_is(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    (tmp_path / "link").symlink_to(tree / "agent")
    monkeypatch.setenv("HOME", str(tmp_path / "link" if link else tree / "agent"))
    found = overlays(tmp_path)
    assert list(found) == [str(tree), str(tree / "agent")]
    (empty,) = found[str(tree / "agent")]
    assert os.listdir(empty) == []
    assert os.stat(empty).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("home", ["/", "/nonexistent", "..", "{}", "{}/missing"])
def test_other_homes_change_nothing(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("HOME", home.format(tree))
    assert list(overlays(tmp_path)) == [str(tree)]
