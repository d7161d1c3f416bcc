"""A build reads a file again unless it is certain to be the same."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.build import known_files
from sandbox.build.known_files import KnownFiles
from sandbox.build.tree import Tree
from sandbox.images import Store

LARGE = b"x" * known_files._WORTH_NOTING
SECOND = 1_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A directory with a file whose last change is long over."""
    (tmp_path / "context").mkdir()
    (tmp_path / "context/file").write_bytes(LARGE)
    time.sleep(known_files._SETTLED / SECOND + 0.05)
    return tmp_path / "context"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read."""
    found: list[str] = []
    read = known_files._read_file

    def noted(tree: Tree, path: str) -> object:
        found.append(path)
        return read(tree, path)

    monkeypatch.setattr(known_files, "_read_file", noted)
    return found


def digest(store: Store, context: Path, name: str = "file", *, forget: bool = False) -> str:
    """As a build does it: begin with what the store has, and note what is new."""
    known = KnownFiles(store, context, forget=forget)
    with Tree(os.fspath(context)) as tree:
        found = known.digest(tree, name, tree.stat(name))
    known.save()
    return found.hex()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_that_is_the_same_is_read_once(store: Store, context: Path, reads: list[str]) -> None:
    assert [digest(store, context) for _ in range(3)] == [sha256(LARGE)] * 3
    assert reads == ["file"]


def rewrite(path: Path) -> None:
    path.write_bytes(b"y" * len(LARGE))


def rewrite_in_secret(path: Path) -> None:
    state = path.stat()
    rewrite(path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def put_another_in_its_place(path: Path) -> None:
    rewrite_in_secret(path)
    state = path.stat()
    other = path.with_name("other")
    rewrite(other)
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.rename(path)


@pytest.mark.parametrize("change", [rewrite, rewrite_in_secret, put_another_in_its_place])
def test_a_file_that_has_changed_is_read_again(
    store: Store, context: Path, reads: list[str], change: Callable[[Path], None]
) -> None:
    """The size is the same each time, and the mtime may be."""
    digest(store, context)
    change(context / "file")
    assert digest(store, context) == sha256(b"y" * len(LARGE))
    assert reads == ["file", "file"]


def test_a_file_that_was_changed_just_now_is_not_noted(store: Store, context: Path, reads: list[str]) -> None:
    """Another change could follow within the same tick of the clock."""
    for number in range(50):
        content = b"%02d" % number * (len(LARGE) // 2)
        (context / "file").write_bytes(content)
        assert digest(store, context) == sha256(content)
        digest(store, context)
    assert len(reads) == 100


@pytest.mark.parametrize(
    ("changed", "now", "settled"),
    [
        (10 * SECOND + 1, 10 * SECOND + 1_000_000, False), (10 * SECOND + 1, 10 * SECOND + 300_000_000, True),
        (10 * SECOND, 10 * SECOND + 300_000_000, False), (10 * SECOND, 12 * SECOND, False), (10 * SECOND, 14 * SECOND, True),
        (20 * SECOND + 1, 10 * SECOND, False),
    ],
)  # fmt: skip
def test_when_a_change_is_over(changed: int, now: int, settled: bool) -> None:
    """Times of whole seconds come from file systems that know no others; those of the future from a wrong clock."""
    assert known_files._settled(changed, now) is settled


def test_a_file_whose_place_another_takes_before_it_is_read(store: Store, context: Path) -> None:
    """What was read does not count for the file that was looked at, which may be there still by another name."""
    state = (context / "file").stat()
    (context / "other").write_bytes(b"z" * len(LARGE))
    known = KnownFiles(store, context)
    with Tree(os.fspath(context)) as tree:
        assert known.digest(tree, "other", state).hex() == sha256(b"z" * len(LARGE))
    known.save()
    assert digest(store, context) == sha256(LARGE)


def test_other_machines_have_other_clocks(
    store: Store, context: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_files, "_OTHERS_CLOCKS", Everything())
    for _ in range(2):
        digest(store, context)
    assert reads == ["file", "file"]


class Everything(frozenset[str]):
    def __contains__(self, _: object) -> bool:
        return True


@pytest.mark.parametrize("damage", [b"", b"x", b"x" * 1000])
def test_a_damaged_table_is_as_good_as_none(store: Store, context: Path, reads: list[str], damage: bytes) -> None:
    digest(store, context)
    (table,) = (store.root / "build-caches").iterdir()
    table.write_bytes(damage)
    assert digest(store, context) == sha256(LARGE)
    assert digest(store, context) == sha256(LARGE)
    assert reads == ["file", "file"]


def test_what_is_to_be_forgotten(store: Store, context: Path, reads: list[str]) -> None:
    for _ in range(2):
        digest(store, context, forget=True)
    assert reads == ["file", "file"]


def test_a_small_context_leaves_nothing_in_the_store(store: Store, tmp_path: Path, context: Path) -> None:
    (context / "file").write_bytes(LARGE[1:])
    time.sleep(known_files._SETTLED / SECOND + 0.05)
    digest(store, context)
    assert not store.root.exists()


def test_a_table_that_becomes_too_large_forgets_what_is_not_met(
    store: Store, context: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (context / "other").write_bytes(LARGE)
    time.sleep(known_files._SETTLED / SECOND + 0.05)
    monkeypatch.setattr(known_files, "_MOST", 1)
    for name in ("file", "other", "file"):
        digest(store, context, name)
    assert reads == ["file", "other", "file"]
