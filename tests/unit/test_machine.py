"""The disk of the User-mode Linux machine: when it is made, kept and removed. That it works, the stage of CI shows."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import machine_image
import pytest
from machine_image import Unavailable

MACHINE = machine_image.CHECKOUT / "tools/machine.py"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """A cache of its own, and the images that were made in it: empty ones."""
    kernel = tmp_path / "linux.uml"
    kernel.write_text("")
    images: list[Path] = []

    def make(directory: Path, _python: Path | str) -> None:
        images.append(directory)
        (directory / "disk").touch()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine_image, "KERNEL", kernel)
    monkeypatch.setattr(machine_image, "check", lambda: None)
    monkeypatch.setattr(machine_image, "make", make)
    return images


def other_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_image, "requirements", lambda: ["something"])


def test_is_made_once(made: list[Path]) -> None:
    for _ in range(2):
        with machine_image.image() as directory:
            assert made == [directory]


def test_is_made_afresh_for_other_requirements(made: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with machine_image.image():
        pass
    other_requirements(monkeypatch)
    with machine_image.image():
        pass
    assert len(set(made)) == 2
    assert all(path.exists() for path in made), "who changes between branches needs both"


@pytest.mark.parametrize("in_use", [False, True])
def test_goes_after_some_days_unless_a_machine_runs_on_it(
    made: list[Path], monkeypatch: pytest.MonkeyPatch, in_use: bool
) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(machine_image.image())
        os.utime(first, (0, 0))
        if not in_use:
            stack.close()
        other_requirements(monkeypatch)
        with machine_image.image():
            assert first.exists() == in_use


def test_a_failure_leaves_nothing_half(made: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(directory: Path, _python: Path | str) -> None:
        raise Unavailable("mmdebstrap ended with 1")

    with monkeypatch.context() as context:
        context.setattr(machine_image, "make", fail)
        with pytest.raises(Unavailable), machine_image.image():
            pass
    with machine_image.image() as directory:
        assert made == [directory], "the next one tries again"


def test_requirements_are_those_of_the_suite() -> None:
    names = [name.partition(">")[0] for name in machine_image.requirements()]
    assert {"pytest", "attrs", "pytest-xdist", "zstandard"} <= set(names)
    assert not {"mypy", "ruff"} & set(names)
    assert not [name for name in names if name.startswith("pytest-sandbox")]


@pytest.fixture
def nowhere(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment in which there are no programs."""
    yield {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_told(nowhere: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_image, "PROGRAMS", {"no-such-program": "no-such-package"})
    with pytest.raises(Unavailable, match="not installed: no-such-package"):
        machine_image.check()


def test_a_shell_wants_a_terminal(nowhere: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, MACHINE, "shell"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env={**os.environ, **nowhere},
    )  # fmt: skip
    assert done.returncode == 125
    assert done.stderr == "machine.py: a shell needs a terminal as its standard input (`machine.py run` runs a command)\n"
