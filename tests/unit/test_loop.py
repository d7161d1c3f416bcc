"""The shim's event loop."""

from __future__ import annotations

import os
import select
import time

from sandbox.shim.loop import Loop


def test_callbacks_and_the_end() -> None:
    loop = Loop()
    read_end, write_end = os.pipe()
    seen: list[bytes] = []

    def ready(_events: int) -> None:
        seen.append(os.read(read_end, 1))
        loop.running = len(seen) < 3

    loop.watch(read_end, ready)
    os.write(write_end, b"abc")
    loop.run()
    assert seen == [b"a", b"b", b"c"]
    os.close(read_end)
    os.close(write_end)


def test_watching_again_replaces_and_forgetting_is_safe() -> None:
    loop = Loop()
    read_end, write_end = os.pipe()
    called: list[str] = []
    loop.watch(write_end, lambda _events: called.append("first"), select.EPOLLOUT)

    def second(_events: int) -> None:
        called.append("second")
        loop.running = False

    loop.watch(write_end, second, select.EPOLLOUT)
    loop.run()
    assert called == ["second"]
    loop.forget(write_end)
    loop.forget(write_end)
    loop.forget(12345)
    os.close(read_end)
    os.close(write_end)


def test_a_callback_may_forget_another_that_is_ready_too() -> None:
    loop = Loop()
    pipes = [os.pipe() for _ in range(2)]
    called: list[int] = []

    def ready(number: int) -> None:
        called.append(number)
        loop.forget(pipes[1 - number][0])
        loop.running = False

    for number, (read_end, write_end) in enumerate(pipes):
        os.write(write_end, b"x")
        loop.watch(read_end, lambda _events, number=number: ready(number))  # type: ignore[misc]
    loop.run()
    assert len(called) == 1
    for pair in pipes:
        for fd in pair:
            os.close(fd)


def test_times_come_in_their_order() -> None:
    loop = Loop()
    order: list[str] = []
    began = time.monotonic()

    def late() -> None:
        order.append("late")
        loop.running = False

    loop.later(0.04, late)
    loop.later(0.01, lambda: order.append("early"))
    loop.later(0.01, lambda: order.append("then"))
    loop.run()
    assert order == ["early", "then", "late"]
    assert time.monotonic() - began >= 0.04


def test_an_event_of_a_closed_descriptor_does_not_meet_its_number_s_next_owner() -> None:
    """Both ends are ready in one round: the first callback closes the second, and a new descriptor gets its number."""
    loop = Loop()
    pipes = [os.pipe() for _ in range(2)]
    called: list[str] = []
    new: list[int] = []

    def first(own: int, other: int) -> None:
        loop.forget(own)
        loop.forget(other)
        os.close(other)
        new.extend(os.pipe())
        assert other in new
        events = select.EPOLLIN if other == new[0] else select.EPOLLERR
        loop.watch(other, lambda _events: called.append("the next owner"), events)
        loop.later(0.02, lambda: setattr(loop, "running", False))

    ends = [read_end for read_end, _ in pipes]
    loop.watch(ends[0], lambda _events: first(ends[0], ends[1]))
    loop.watch(ends[1], lambda _events: first(ends[1], ends[0]))
    for _, write_end in pipes:
        os.write(write_end, b"x")
    loop.run()
    assert not called
    for fd in {*new, *(write_end for _, write_end in pipes), *ends}:
        os.close(fd)
