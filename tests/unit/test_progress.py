"""What a person sees of a transfer."""

from __future__ import annotations

import pytest

from sandbox.images.distribution import progress
from sandbox.images.distribution.progress import Bars, Lines, size_text, when_slow

BLOB = "sha256:0123456789abcdef"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("sandbox.images.distribution.progress.time.monotonic", lambda: now[0])
    return now


def test_sizes() -> None:
    assert [size_text(count) for count in (0, 999, 1500, 2_500_000, 3.2e9, 7e12)] == [
        "0 B", "999 B", "1.5 kB", "2.5 MB", "3.2 GB", "7000.0 GB",
    ]  # fmt: skip


def test_lines_are_few(clock: list[float]) -> None:
    said: list[str] = []
    lines = Lines("pull x", said.append, after=2)
    lines.begin(BLOB, 100_000, 0)
    lines.say("quick ones are silent")
    for _ in range(10):
        clock[0] += 2.5
        lines.advance(BLOB, 10_000)
    lines.say("another endpoint")
    assert said == [
        "pull x: 10.0 kB of 100.0 kB\n", "pull x: 50.0 kB of 100.0 kB\n", "pull x: 90.0 kB of 100.0 kB\n",
        "pull x: another endpoint\n",
    ]  # fmt: skip


def test_bars_are_redrawn_in_place(clock: list[float]) -> None:
    said: list[str] = []
    bars = Bars("pull x", said.append)
    bars.begin(BLOB, 1000, 0)
    clock[0] += 1
    bars.advance(BLOB, 500)
    bars.advance(BLOB, 1)
    clock[0] += 1
    bars.end(BLOB)
    bars.close()
    assert len(said) == 4  # the one too soon is left out
    assert all(text.startswith("\033[2A\r\033[J") for text in said[1:])
    assert "0123456789ab [============            ]     500 B / 1.0 kB" in said[1]
    assert said[-1].endswith("pull x: 1.0 kB of 1.0 kB\n")


def test_an_empty_or_overlong_transfer(clock: list[float]) -> None:
    said: list[str] = []
    bars = Bars("x", said.append)
    bars.begin(BLOB, 0, 0)
    bars.begin("other", 5, 0)
    bars.advance("other", 50)
    assert "[========================]" in said[0]


def test_slow_pulls_can_be_told_elsewhere(clock: list[float]) -> None:
    said: list[str] = []
    progress.set_slow_writer(said.append)
    try:
        shown = when_slow("pulling x")
        shown.begin(BLOB, 10, 0)
        assert said == []
        clock[0] += progress.PATIENCE
        shown.advance(BLOB, 5)
    finally:
        progress.set_slow_writer(None)
    assert said == ["pulling x: 5 B of 10 B\n"]
