"""Files of environment variables, in the syntax of ``docker run --env-file``."""

from __future__ import annotations

import os
from collections.abc import Mapping

from sandbox.errors import SandboxError

#: A file of variables is small; more than this is the wrong file (a device, a log).
MAX_ENV_FILE = 1 << 20


def read_env_file(path: str | os.PathLike[str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables in the file ``path``, see :func:`parse_env_file`.

    Raises :class:`~sandbox.errors.SandboxError` with the errno, or with the line that is wrong.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang us
        with open(fd, "rb") as file:
            data = file.read(MAX_ENV_FILE + 1) or b""
    except OSError as error:
        raise SandboxError(operation="read the environment file", path=path, errno=error.errno) from None
    if len(data) > MAX_ENV_FILE:
        raise SandboxError("larger than 1 MiB", operation="read the environment file", path=path)
    try:
        return parse_env_file(data.decode("utf-8-sig"), environ)
    except ValueError as error:
        raise SandboxError(str(error), operation="read the environment file", path=path) from None


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
