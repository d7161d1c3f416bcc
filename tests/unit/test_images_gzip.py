"""Layers compressed with gzip, by the standard library and by ISA-L: the same bytes, the same refusals."""

from __future__ import annotations

import gzip
import importlib.util
import random
import zlib
from typing import Any

import images_helpers as make
import pytest

from sandbox.errors import ImageVerificationError
from sandbox.images import blobs
from sandbox.images.blobs import PlainLayer
from sandbox.images.errors import ImageTooLarge, LayerError
from sandbox.images.limits import DEFAULT_LIMITS

#: The extra `fast` has no wheels for some machines.
KINDS = ["zlib", *(["isal"] if importlib.util.find_spec("isal") else [])]
NOISE = random.Random(5).randbytes(3_000_000)


@pytest.fixture(params=KINDS, autouse=True)
def inflate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = zlib
    if request.param == "isal":
        from isal import isal_zlib

        module = isal_zlib
    monkeypatch.setattr(blobs, "inflater", lambda: module)
    return module


def plain(content: bytes, packed: bytes, **limits: int) -> bytes:
    with PlainLayer(make.blob_of(content, packed), DEFAULT_LIMITS._replace(**limits)) as layer:
        found = b"".join(layer)
        layer.verify()
        return found


@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_what_was_packed_comes_out(level: int) -> None:
    content = NOISE + bytes(20_000_000) + NOISE[:1000]
    assert plain(content, gzip.compress(content, level)) == content


def test_members_one_after_another_and_padding() -> None:
    """As pigz, and estargz with its thousands of members, write them."""
    pieces = [NOISE[start : start + 7000] for start in range(0, 700_000, 7000)]
    packed = b"".join(gzip.compress(piece, 1) for piece in pieces)
    assert plain(b"".join(pieces), packed) == b"".join(pieces)
    assert plain(b"".join(pieces), packed + bytes(5_000)) == b"".join(pieces)


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 1000, 1_500_000])
def test_a_stream_that_ends_too_early(cut: int) -> None:
    packed = gzip.compress(NOISE, 1)[:-cut]
    with pytest.raises(LayerError, match="gzip compression") as caught:
        plain(NOISE, packed)
    assert caught.value.layer == make.sha256(packed)
    assert caught.value.cause == "the stream is cut off"


@pytest.mark.parametrize("place", [0.01, 0.3, 0.7, 0.999])
def test_damage_is_noticed(place: float) -> None:
    packed = bytearray(gzip.compress(NOISE + bytes(1_000_000), 6))
    packed[int(len(packed) * place)] ^= 0xFF
    with pytest.raises((LayerError, ImageVerificationError)):
        plain(NOISE + bytes(1_000_000), bytes(packed))


def test_what_follows_that_is_no_gzip() -> None:
    with pytest.raises(LayerError, match="broken gzip compression"):
        plain(NOISE, gzip.compress(NOISE, 1) + b"and more")


def test_a_bomb_is_stopped_while_it_goes_off() -> None:
    content = bytes(100_000_000)
    with pytest.raises(ImageTooLarge) as caught:
        plain(content, gzip.compress(content, 1), ratio=20, ratio_from=1 << 20)
    assert caught.value.feature == "ratio"
