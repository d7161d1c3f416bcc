"""Proxies on the way to registries: HTTP_PROXY, HTTPS_PROXY and NO_PROXY, as curl and others read them."""

from __future__ import annotations

import base64
import os
from urllib.parse import SplitResult, unquote, urlsplit

from sandbox.images.distribution.addresses import Origin, is_loopback, printable
from sandbox.images.errors import RegistryError

__all__ = ["proxy_authorization", "proxy_for"]


def proxy_for(origin: Origin) -> SplitResult | None:
    """What HTTP_PROXY, HTTPS_PROXY and NO_PROXY say; this machine itself is never asked through a proxy."""
    if is_loopback(str(origin)) or not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    import urllib.request

    if urllib.request.proxy_bypass(str(origin)):
        return None
    if not (url := urllib.request.getproxies().get(origin.scheme)):
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise RegistryError(
            f"the proxy `{printable(parts.hostname or url)}` is not one of plain HTTP", operation="connect to",
            object=str(origin), hint=f"set {origin.scheme.upper()}_PROXY to http://HOST:PORT",
        )  # fmt: skip
    return parts


def proxy_authorization(proxy: SplitResult) -> dict[str, str]:
    """The header for a proxy whose address has a name and a password."""
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
