"""Checks of what methods are called with, before anything is done: the error names the method, the argument and its value."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sandbox import _validators as v
from sandbox._units import parse_seconds
from sandbox.errors import ModelError, SandboxError

Value = TypeVar("Value")


def checked(method: str, argument: str, convert: Callable[[Any], Value], value: Any, hint: str | None = None) -> Value:
    """What ``convert`` makes of ``value``; what it raises becomes a :class:`ModelError`.

    >>> checked("exec", "user", v.user, 0)
    '0'
    """
    try:
        return convert(value)
    except (ValueError, TypeError) as error:
        raise ModelError(str(error), class_name=method, field=argument, value=value, hint=hint) from None


def inside(path: str | os.PathLike[str], method: str, argument: str = "path") -> str:
    """A path in a container: absolute, and without NUL, at which the kernel would end it."""
    text = checked(method, argument, v.any_path, path)
    if not text.startswith("/"):
        raise SandboxError("paths in a container are absolute", operation="use the path", object=text, hint=f"/{text}")
    return text


def on_host(path: str | os.PathLike[str], method: str, argument: str) -> Path:
    """A path on the host."""
    return Path(checked(method, argument, v.any_path, path))


def user(method: str, value: Any) -> str | None:
    """A user by name or number, optionally with a group, as text."""
    return None if value is None else checked(method, "user", v.user, value)


def mode(method: str, value: Any) -> int | None:
    """Permission bits."""
    octal = isinstance(value, str) and value.removeprefix("0o").isdecimal()
    hint = f"mode=0o{value.removeprefix('0o')}" if octal else None
    return None if value is None else checked(method, "mode", _bits, value, hint)


def _bits(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0o7777:
        raise ValueError("expected permission bits, a number from 0 to 0o7777")
    return value


def seconds(method: str, value: Any) -> float | None:
    """A time limit; one that is over already is allowed, as it may be the rest of another."""
    return None if value is None else checked(method, "timeout", _number, value)


def _number(value: Any) -> float:
    parse_seconds(max(value, 0) if isinstance(value, (int, float)) and not isinstance(value, bool) else value)
    number: float = value
    return number


def data(method: str, value: Any) -> str | bytes | None:
    """Text or bytes for a program."""
    return checked(method, "input", _data, value)


def _data(value: Any) -> str | bytes | None:
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if value is not None and not isinstance(value, (str, bytes)):
        raise TypeError("expected text or bytes")
    return value
