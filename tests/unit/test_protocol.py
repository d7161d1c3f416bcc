"""Messages between client and shim."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator

import pytest

from sandbox.shim import protocol


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield left, right


@pytest.mark.parametrize(
    "message",
    [
        {}, {"op": "ping"}, {"text": "ä€\n\0"}, {"path": os.fsdecode(b"/\xff\xfe")}, {"n": [1, 2.5, None, True]},
        {"x": "y" * 200_000},
    ],
    ids=["empty", "short", "text", "bytes", "values", "large"],
)
def test_a_round_trip(pair: tuple[socket.socket, socket.socket], message: dict[str, object]) -> None:
    protocol.send(pair[0], message)
    assert protocol.receive(pair[1]) == (message, [])


@pytest.mark.parametrize("size", [10, 200_000])
def test_descriptors_travel_along(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    read_end, write_end = os.pipe()
    protocol.send(pair[0], {"x": "y" * size}, [read_end, write_end])
    message, fds = protocol.receive(pair[1])
    assert message == {"x": "y" * size}
    assert len(fds) == 2
    assert not any(os.get_inheritable(fd) for fd in fds)
    os.write(fds[1], b"through")
    assert os.read(fds[0], 10) == b"through"
    for fd in (read_end, write_end, *fds):
        os.close(fd)


def test_messages_do_not_run_together(pair: tuple[socket.socket, socket.socket]) -> None:
    for number in range(3):
        protocol.send(pair[0], {"n": number})
    assert [protocol.receive(pair[1])[0] for _ in range(3)] == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_the_end_of_the_connection(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].close()
    assert protocol.receive(pair[1]) == (None, [])
    with pytest.raises(BrokenPipeError):
        protocol.send(pair[1], {})


def test_lost_descriptors_are_an_error_and_the_others_are_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    protocol.send(pair[0], {"op": "x"}, [0, 0, 0])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, limits[1]))  # there is room for one of them
    try:
        with pytest.raises(OSError, match="cut off"):
            protocol.receive(pair[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    protocol.send(pair[0], {"still": "works"})
    assert protocol.receive(pair[1]) == ({"still": "works"}, [])
