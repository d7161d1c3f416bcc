"""The answers that the Http probe has to make sense of (RFC 9112)."""

from __future__ import annotations

import pytest

from sandbox.probes._http import Incomplete, parse_response

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "ended", "status", "body"),
    [
        (HELLO, False, 200, b"hello"),
        (HELLO + b"more", False, 200, b"hello"),
        (HELLO[:-2], True, 200, b"hel"),
        (CHUNKED, False, 200, b"hello!"),
        (CHUNKED[:-9], True, 200, b"hello"),
        (b"HTTP/1.0 503 \r\n\r\nbusy", True, 503, b"busy"),
        (b"HTTP/1.0 404\nServer: old\n\nno", True, 404, b"no"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 304 Not Modified\r\n\r\n", False, 304, b""),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 16 + HELLO, False, 200, b"hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: lots\r\n\r\nhello", True, 200, b"hello"),
    ],
)
def test_responses(data: bytes, ended: bool, status: int, body: bytes) -> None:
    assert parse_response(data, ended=ended) == (status, body)


@pytest.mark.parametrize("message", [HELLO, CHUNKED])
def test_every_beginning_is_incomplete(message: bytes) -> None:
    for length in range(len(message) - 4):
        with pytest.raises(Incomplete):
            parse_response(message[:length], ended=False)


@pytest.mark.parametrize(
    ("data", "ended", "words"),
    [
        (b"", True, "nothing"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False, "something that is not HTTP: b'SSH-2.0"),
        (b"+PONG", False, "something that is not HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", False, "something that is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: y\r\n", True, "headers that are cut off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", False, "a broken chunk: b'zz'"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 2000, False, "more than 16 interim responses, the last with status 100"),
        (b"HTTP/1.1 102 Processing\r\n\r\n" * 17 + HELLO, True, "more than 16 interim responses"),
    ],
)
def test_what_is_no_response(data: bytes, ended: bool, words: str) -> None:
    with pytest.raises(ValueError, match="^" + words):
        parse_response(data, ended=ended)
