"""Values of properties that Python has no type for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """A command of a service, with its flags: ``ignore-failure``, ``privileged``, ``no-env-expand`` and others."""

    path: str
    arguments: Sequence[str]
    flags: Sequence[str] = ()


class AllowList(NamedTuple):
    """Names that are allowed (``allow``), or that are not."""

    allow: bool
    names: Sequence[str]
