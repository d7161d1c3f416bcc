"""Addresses that registries give: which of them are followed, and who answers there.

A redirect never leads from https to http, and never to anything that is not HTTP.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from sandbox.images.errors import RegistryError

__all__ = ["Origin", "Trust", "check_redirect", "is_loopback", "joined", "origin_of", "printable", "usable"]

_PORTS = {"http": 80, "https": 443}
_LOOPBACK = re.compile(r"127(?:\.[0-9]{1,3}){3}")  # nothing else: 127.example is a name like any other


class Trust(NamedTuple):
    """What is accepted of a connection."""

    #: HTTP without TLS.
    plain: bool = False
    #: Certificates are verified.
    verify: bool = True


class Origin(NamedTuple):
    """Who answers at a URL (RFC 6454)."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def printable(text: str | None) -> str:
    """Text of others, so that a terminal only shows it, and not too much of it."""
    return "".join(char if char.isprintable() else "?" for char in (text or "")[:500])


def origin_of(parts: SplitResult) -> Origin:
    """The origin of a URL that :func:`usable` or :func:`joined` has passed."""
    return Origin(parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS[parts.scheme])


def joined(base: str, target: str) -> str:
    """An address of HTTP that may be relative to another one. Raises RegistryError if it is none."""
    try:
        url = urljoin(base, target)
        fine = _is_http(urlsplit(url))
    except ValueError:
        fine = False
    if not fine:
        raise RegistryError(
            f"it leads to `{printable(target)}`, which is no address of HTTP", operation="fetch", object=base,
            registry=urlsplit(base).hostname, hint="ask whoever runs this registry",
        )  # fmt: skip
    return url


def _is_http(parts: SplitResult) -> bool:
    """Whether there is a host to connect to. Raises ValueError as urlsplit does."""
    return bool(parts.hostname) and parts.scheme in _PORTS and (parts.port or 1) > 0


def is_loopback(host: str) -> bool:
    """Whether a host (``localhost``, ``127.0.0.1:5000``, ``[::1]:5000``) is this machine."""
    name = urlsplit(f"//{host}").hostname or ""
    return name in {"localhost", "::1"} or name.endswith(".localhost") or bool(_LOOPBACK.fullmatch(name))


def usable(url: str, trust: Trust) -> SplitResult:
    """An address that a request may go to, taken apart. Raises RegistryError if it may not."""
    try:
        parts = urlsplit(url)
        fine = _is_http(parts)
    except ValueError:
        fine = False
    if not fine or not url.isascii() or not url.isprintable() or " " in url:
        raise RegistryError("it is no address of HTTP", operation="fetch", object=printable(url))
    if parts.scheme == "http" and not trust.plain:
        raise RegistryError("it would go without TLS", operation="fetch", object=url, registry=parts.hostname)
    return parts


def check_redirect(before: str, after: str, trust: Trust) -> None:
    """Raise RegistryError where a redirect must not be followed."""
    old, new = urlsplit(before), urlsplit(after)
    if old.scheme == "https" and new.scheme == "http" and trust.verify:
        raise RegistryError(
            f"it redirects from TLS to plain HTTP, `{printable(after)}`", operation="fetch", object=before,
            registry=old.hostname,
            hint=f"if you trust the network, set insecure = true for {old.netloc} in registries.conf",
        )  # fmt: skip
