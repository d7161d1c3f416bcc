"""D-Bus messages as bytes: where each ends, and a quick look at it (D-Bus specification, "Message Format").

A manager's private socket brings every signal of every unit, and reading one takes longer than the rest of a call. So a
message is read only if somebody wants it.
"""

from __future__ import annotations

import struct

__all__ = ["SIGNAL", "Frame", "Frames", "needle"]

SIGNAL = 4
_LITTLE = ord("l")
_FIXED = 16


class Frame:
    """One message, not read yet."""

    __slots__ = ("_body", "_order", "data", "kind")

    def __init__(self, data: bytes, order: str, body: int) -> None:
        self.data = data
        #: 1 call, 2 return, 3 error, 4 signal.
        self.kind = data[1]
        self._order = order
        self._body = body

    def has(self, needles: tuple[bytes, ...]) -> bool:
        """True if all of these (from :func:`needle`) are strings of the header."""
        return all(self.data.find(text, _FIXED, self._body) >= 0 for text in needles)

    def mentions(self, text: bytes) -> bool:
        """True if these bytes are anywhere in the body."""
        return self.data.find(text, self._body) >= 0

    @property
    def first(self) -> str:
        """The first value, of a body that begins with a string."""
        (length,) = struct.unpack_from(f"{self._order}I", self.data, self._body)
        return self.data[self._body + 4 : self._body + 4 + length].decode("utf-8")


def needle(text: str) -> bytes:
    """A whole string as it stands in the header of a message of this machine."""
    data = text.encode()
    return struct.pack("=I", len(data)) + data + b"\0"


class Frames:
    """Puts together what comes in."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """More of the stream."""
        self._data += data

    def next(self) -> Frame | None:
        """The next whole message."""
        if len(self._data) < _FIXED:
            return None
        order = "<" if self._data[0] == _LITTLE else ">"
        (length,) = struct.unpack_from(f"{order}I", self._data, 4)
        (fields,) = struct.unpack_from(f"{order}I", self._data, 12)
        body = _FIXED + (fields + 7) // 8 * 8
        if len(self._data) < body + length:
            return None
        frame = Frame(bytes(self._data[: body + length]), order, body)
        del self._data[: body + length]
        return frame
