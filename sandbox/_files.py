"""The files that models name: environment files as ``docker run`` takes them, and seccomp profiles."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from sandbox.models import Container

#: These files are small; more than this is the wrong file (a device, a log).
MAX_FILE = 1 << 20


def read_files(container: Container) -> Container:
    """The container with the contents of its ``env_files`` and of its seccomp profile in place of their paths.

    Raises :class:`~sandbox.errors.SandboxError` with the errno, or with what is wrong in the file.
    """
    changes: dict[str, Any] = {}
    if container.env_files:
        variables = [read_env_file(path) for path in container.env_files]
        changes["env"] = {
            **{key: value for file in variables for key, value in file.items()},
            **container.env,
        }
        changes["env_files"] = ()
    profile = container.security.seccomp
    if isinstance(profile, str) and profile != "unconfined":
        changes["security"] = attrs.evolve(container.security, seccomp=_read_profile(profile))
    return attrs.evolve(container, **changes) if changes else container


def read_env_file(path: str | os.PathLike[str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables in the file ``path``, see :func:`parse_env_file`.

    Raises :class:`~sandbox.errors.SandboxError` with the errno, or with the line that is wrong.
    """
    operation = "read the environment file"
    try:
        return parse_env_file(_read(path, operation).decode("utf-8-sig"), environ)
    except ValueError as error:
        raise SandboxError(str(error), operation=operation, path=path) from None


def _read_profile(path: str) -> dict[str, Any]:
    import json

    operation = "read the seccomp profile"
    try:
        profile = json.loads(_read(path, operation))
    except (ValueError, RecursionError) as error:
        raise SandboxError(f"not JSON: {error}", operation=operation, path=path) from None
    if not isinstance(profile, dict) or "defaultAction" not in profile:
        raise SandboxError("it has no defaultAction", operation=operation, path=path)
    return profile


def _read(path: str | os.PathLike[str], operation: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang us
        with open(fd, "rb") as file:
            data = file.read(MAX_FILE + 1) or b""
    except OSError as error:
        raise SandboxError(operation=operation, path=path, errno=error.errno) from None
    if len(data) > MAX_FILE:
        raise SandboxError(f"larger than {MAX_FILE} bytes", operation=operation, path=path)
    return data


def parse_env_file(text: str, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """``KEY=value`` lines; ``#`` starts a comment line; quotes and ``$`` have no meaning.

    A ``KEY`` alone takes its value from ``environ`` (this process's own if not given) if it is set
    there. Raises :class:`ValueError` that names the line.
    """
    environ = os.environ if environ is None else environ
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.lstrip()
        if not entry or entry.startswith("#"):
            continue
        key, equals, value = entry.partition("=")
        _check_key(key, number)
        if equals or key in environ:
            found[key] = value if equals else environ[key]
    return found


def _check_key(key: str, number: int) -> None:
    if not key or any(char.isspace() for char in key) or "\0" in key:
        raise ValueError(f"line {number}: {key!r} cannot be the name of a variable")
