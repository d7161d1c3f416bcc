"""The house that hostile tests leave as they found it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_house import PATIENCE, House, spec


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    for directory in (tmp_path, *tmp_path.parents[:3]):
        with contextlib.suppress(OSError):
            directory.chmod(directory.stat().st_mode | 0o055)  # the last may be /tmp itself
    house = House(tmp_path)
    mounts = Path("/proc/self/mountinfo").read_text()
    yield house
    deadline = time.monotonic() + PATIENCE
    while (left := house.left()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []
    assert house.shim.call("ping")["event"] == "pong"
    assert house.shim.usable
    assert house.run(spec("echo", "well", mounts=[]))[1] == "well\n"
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert [path.name for path in house.outside.iterdir()] == ["secret"]
    assert (house.outside / "secret").read_text() == "of the host\n"
