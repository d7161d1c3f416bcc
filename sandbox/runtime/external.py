"""Placeholder replaced below."""

from __future__ import annotations

from typing import Any

from .failure import Failure


def engine(name: str) -> Any:
    """The engine of that name."""
    raise Failure("UnsupportedFeature", feature=name, detail="no such engine")
