"""As much of HTTP/1.1 as a probe needs (RFC 9112). The standard library's client would cost 20 ms to import."""

from __future__ import annotations

import re

_STATUS_LINE = re.compile(rb"HTTP/\d\.\d (\d{3})(?: [^\r\n]*)?\r?\n")
_END_OF_HEADERS = re.compile(rb"\r?\n\r?\n")
#: Responses with a status below 200 before the real one. RFC 9110 sets no limit; who says "100 Continue" for ever is not ready.
_MOST_INTERIM = 16


class Incomplete(Exception):
    """More has to be read."""


def parse_response(data: bytes, *, ended: bool) -> tuple[int, bytes]:
    """Status and body of a response of which ``data`` was read so far.

    :param ended: the server has closed the connection
    :raises Incomplete: it goes on
    :raises ValueError: this is no HTTP; the text is an English noun phrase
    """
    for _ in range(_MOST_INTERIM + 1):
        status, headers, rest = _head(data, ended=ended)
        if not 100 <= status < 200 or status == 101:
            return status, _body(headers, status, rest, ended=ended)
        data = rest
    raise ValueError(f"more than {_MOST_INTERIM} interim responses, the last with status {status}")


def _head(data: bytes, *, ended: bool) -> tuple[int, dict[str, str], bytes]:
    """Status and headers of the first response in ``data``, and what follows them."""
    line = _STATUS_LINE.match(data)
    end = _END_OF_HEADERS.search(data)
    if line is None and (ended or b"\n" in data or not b"HTTP/".startswith(data[:5])):
        raise ValueError(f"something that is not HTTP: {data[:40]!r}" if data else "nothing")
    if line is None or end is None:
        if ended:
            raise ValueError("headers that are cut off")
        raise Incomplete
    return int(line[1]), _headers(data[line.end() : end.start()]), data[end.end() :]


def _headers(block: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.decode("latin-1").splitlines())
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _body(headers: dict[str, str], status: int, data: bytes, *, ended: bool) -> bytes:
    """Section 6.3: by its chunks, its length, or the end of the connection."""
    if status in {204, 304}:
        return b""
    if headers.get("transfer-encoding", "").lower().endswith("chunked"):
        return _chunks(data, ended=ended)
    length = headers.get("content-length", "")
    if length.isdecimal() and len(data) >= int(length):
        return data[: int(length)]
    if not ended:
        raise Incomplete
    return data


def _chunks(data: bytes, *, ended: bool) -> bytes:
    """Section 7.1; a body that is cut off counts as far as it came."""
    body = b""
    while True:
        line, found, rest = data.partition(b"\r\n")
        try:
            size = int(line.partition(b";")[0], 16) if found else -1
        except ValueError:
            raise ValueError(f"a broken chunk: {line[:40]!r}") from None
        if size == 0:
            return body
        if size < 0 or len(rest) < size + 2:
            if ended:
                return body + (rest[:size] if size > 0 else b"")
            raise Incomplete
        body += rest[:size]
        data = rest[size + 2 :]
