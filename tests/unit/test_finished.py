"""When a container may be finished ahead, as far as that can be said without one."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sandbox.runtime import finished
from sandbox.runtime.rootfs import Overlay, Rootfs


def layers(*paths: Path) -> Rootfs:
    return Rootfs((Overlay("/", tuple(map(str, paths))),), idmap=True, size=None)


def test_a_directory_that_has_just_changed_may_change_again_at_the_same_time(tmp_path: Path) -> None:
    assert finished.layers_state(layers(tmp_path)) is None
    time.sleep(0.05)
    before = finished.layers_state(layers(tmp_path))
    assert before is not None
    (tmp_path / "new").mkdir()
    time.sleep(0.05)
    assert finished.layers_state(layers(tmp_path)) not in (None, before)


@pytest.mark.parametrize(("age", "known"), [(1, False), (3, True)])
def test_times_in_whole_seconds_say_less(monkeypatch: pytest.MonkeyPatch, age: int, known: bool) -> None:
    changed = (int(time.time()) - age) * 1_000_000_000
    monkeypatch.setattr(os, "stat", lambda _path: SimpleNamespace(st_dev=1, st_ino=2, st_ctime_ns=changed))
    assert (finished.layers_state(layers(Path("/x"))) is not None) == known


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert finished.layers_state(layers(tmp_path / "nothing")) is None
