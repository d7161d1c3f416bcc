"""Ports and addresses, as people give them to a running pod."""

from __future__ import annotations

import socket

from sandbox.errors import ModelError, SetupError


def checked_port(value: object, operation: str, *, field: str = "port", low: int = 1) -> int:
    """A TCP port. Raises :class:`ModelError`: to the kernel another number is a mistake, or any port."""
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= 65535:
        return value
    raise ModelError(f"must be a number from {low} to 65535", class_name=operation, field=field, value=value)


def listening_address(host: str) -> str:
    """``host`` as a numeric address. A name is looked up here: a shim that waits for a name server serves nobody."""
    if not isinstance(host, str):
        raise ModelError("must be an address or a name of this host", class_name="publish", field="host", value=host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        found = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError, ValueError) as error:
        raise SetupError(
            error.strerror if isinstance(error, socket.gaierror) else str(error), step="listen on", object=host or "''",
            hint="give an address of this host, as 127.0.0.1, or 0.0.0.0 for all of them",
        ) from None  # fmt: skip
    return str(found[0][4][0])
