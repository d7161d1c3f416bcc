"""What containers wrote: bounded, in order, followable; and lines put together again."""

from __future__ import annotations

import os
import time

import pytest

from sandbox._output import LineSplitter
from sandbox.shim.logs import LogStore
from sandbox.shim.loop import Loop


def test_chunks_keep_stream_time_and_order() -> None:
    store = LogStore()
    for stream, data in (("stdout", b"a"), ("stderr", b"b"), ("stdout", b"c")):
        store.add(stream, data)
    assert [(c.number, c.stream, c.data) for c in store.since(0)] == [
        (0, "stdout", b"a"), (1, "stderr", b"b"), (2, "stdout", b"c"),
    ]  # fmt: skip
    assert [c.data for c in store.since(2)] == [b"c"]
    assert store.since(3) == []
    assert store.next_number == 3
    assert all(abs(chunk.time - time.time()) < 60 for chunk in store.since(0))


def test_the_oldest_of_the_same_stream_is_dropped() -> None:
    store = LogStore(1000)
    store.add("stderr", b"kept")
    for number in range(100):
        store.add("stdout", b"%03d" % number * 30)
    kept = [chunk.data for chunk in store.since(0) if chunk.stream == "stdout"]
    assert kept[-1] == b"099" * 30
    assert sum(map(len, kept)) <= 1000
    assert store.dropped["stdout"] == 100 * 90 - sum(map(len, kept))
    assert store.dropped["stderr"] == 0
    assert store.since(0)[0].data == b"kept"


def test_one_chunk_is_always_kept() -> None:
    store = LogStore(10)
    store.add("stdout", b"x" * 1000)
    assert len(store.since(0)) == 1


def test_a_million_tiny_writes_are_bounded_too() -> None:
    store = LogStore(10_000)
    for _ in range(5000):
        store.add("stdout", b"x")
    assert len(store.since(0)) < 100


def test_followers_are_told_and_the_end_comes_last() -> None:
    store = LogStore()
    heard: list[tuple[int, bool]] = []

    def listen() -> None:
        heard.append((store.next_number, store.finished))

    store.listen(listen)
    store.add("stdout", b"a")
    store.seal()
    store.unlisten(listen)
    store.add("stdout", b"b")
    assert heard == [(1, False), (1, True)]


@pytest.mark.parametrize("drain", [False, True])
def test_a_pipe_is_read_to_its_end(drain: bool) -> None:
    loop, store = Loop(), LogStore()
    read_end, write_end = os.pipe()
    read_now = store.attach(loop, read_end, "stdout")
    os.write(write_end, b"words")
    store.seal()
    assert store.since(0) == []
    os.close(write_end)
    store.listen(lambda: setattr(loop, "running", not store.finished))
    if drain:
        read_now()
        read_now()
    else:
        loop.run()
    assert store.finished
    assert b"".join(chunk.data for chunk in store.since(0)) == b"words"
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(read_end)


def test_lines_are_put_together_by_stream() -> None:
    splitter = LineSplitter()
    chunks = [
        (0, 1.0, "stdout", "one\ntw"), (1, 2.0, "stderr", "err"), (2, 3.0, "stdout", "o\r\nthree\n"),
        (3, 4.0, "stderr", "or\n"), (4, 5.0, "stdout", "rest"),
    ]  # fmt: skip
    lines = [(r.time, r.stream, r.line) for r in splitter.feed(chunks)]
    assert lines == [
        (1.0, "stdout", "one"), (1.0, "stdout", "two"), (3.0, "stdout", "three"), (2.0, "stderr", "error"),
    ]  # fmt: skip
    assert [(r.time, r.line) for r in splitter.rest()] == [(5.0, "rest")]


def test_bytes_that_are_no_text_show() -> None:
    (record,) = LineSplitter().feed([(0, 0.0, "stdout", b"\xff\xc3\xa4\n".decode("latin-1"))])
    assert record.line == "\\xffä"
