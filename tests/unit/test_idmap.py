"""Which ids a user namespace gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.linux import idmap
from sandbox.linux.idmap import IdMap, IdRange

ROOT = IdMap((IdRange(0, 100_000, 65_536),), (IdRange(0, 200_000, 65_536),))
USER = IdMap((IdRange(0, 1000, 1), IdRange(1, 100_000, 65_536)), (IdRange(0, 1000, 1), IdRange(1, 100_000, 65_536)))


def test_what_root_is_outside() -> None:
    assert ROOT.root == (100_000, 200_000)
    assert USER.root == (1000, 1000)
    with pytest.raises(ValueError, match="not mapped"):
        _ = IdMap((IdRange(1, 5, 1),), ()).root


def test_round_trip() -> None:
    for item in (ROOT, USER):
        assert IdMap.from_json(item.to_json()) == item


def test_single() -> None:
    assert IdMap((IdRange(0, 7, 1),), (IdRange(0, 7, 1),)).single
    assert not USER.single


def test_nested_is_the_identity_over_what_exists() -> None:
    assert idmap.nested(USER).uids == (IdRange(0, 0, 1), IdRange(1, 1, 65_536))


def test_rows_of_the_kernels_files() -> None:
    assert idmap._rows(USER.uids) == "0 1000 1\n1 100000 65536\n"


def test_subordinate_ranges(tmp_path: Path) -> None:
    table = tmp_path / "subuid"
    table.write_text("root:1:2\n\nnonsense\n4242:100:200\n4242:x:200\n 4242:7:8 \nother:5:6\n")
    assert idmap.subordinate_ranges(str(table), 4242) == [(100, 200), (7, 8)]
    assert idmap.subordinate_ranges(str(tmp_path / "none"), 4242) == []
    assert idmap.subordinate_ranges(str(table), 0) == [(1, 2)]


@pytest.fixture
def somebody(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 1000)
    monkeypatch.setattr(idmap, "in_initial_user_namespace", lambda: True)
    monkeypatch.setattr(idmap, "subordinate_ranges", lambda _path, _uid: [(100_000, 65_536)])
    monkeypatch.setattr(idmap, "have_helpers", lambda: True)
    return monkeypatch


def test_an_ordinary_user(somebody: pytest.MonkeyPatch) -> None:
    assert idmap.host_map() == USER


def test_an_ordinary_user_without_helpers_or_ranges(somebody: pytest.MonkeyPatch) -> None:
    somebody.setattr(idmap, "have_helpers", lambda: False)
    assert idmap.host_map().single
    somebody.setattr(idmap, "have_helpers", lambda: True)
    somebody.setattr(idmap, "subordinate_ranges", lambda path, _uid: [] if "gid" in path else [(1, 2)])
    assert idmap.host_map().single


def test_root(somebody: pytest.MonkeyPatch) -> None:
    somebody.setattr(os, "geteuid", lambda: 0)
    assert idmap.host_map().uids == (IdRange(0, 100_000, 65_536),)
    somebody.setattr(idmap, "subordinate_ranges", lambda _path, _uid: [(5, 10)])
    (found,) = idmap.host_map().uids
    assert found.count == 65_536
    assert found.outside >= 1 << 28


def test_root_of_a_user_namespace_keeps_its_ids(somebody: pytest.MonkeyPatch) -> None:
    somebody.setattr(os, "geteuid", lambda: 0)
    somebody.setattr(idmap, "in_initial_user_namespace", lambda: False)
    somebody.setattr(idmap, "_read_map", lambda _name: (IdRange(0, 1000, 1), IdRange(1, 5000, 10)))
    assert idmap.host_map().uids == (IdRange(0, 0, 1), IdRange(1, 1, 10))
