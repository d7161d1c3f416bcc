"""HTTP to registries: connections that are kept, TLS, proxies, redirects, errors in words.

A redirect never takes the Authorization header to another origin. Compression of the transfer is not asked for:
blobs are hashed as they are.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import SplitResult, urlsplit

from sandbox._version import __version__
from sandbox.images.distribution.addresses import (
    Origin,
    Trust,
    check_redirect,
    joined,
    origin_of,
    printable,
    usable,
)
from sandbox.images.distribution.proxies import proxy_authorization, proxy_for
from sandbox.images.distribution.tls import make_context
from sandbox.images.errors import AuthenticationError, RateLimited, RegistryError

if TYPE_CHECKING:
    import ssl

__all__ = ["PATIENCE", "Answer", "Patience", "Transport"]

_REDIRECTS = 5
_ERROR_LIMIT = 64 << 10
_IDLE = 8  # connections kept for each origin


class Patience(NamedTuple):
    """How long to wait for what."""

    #: Seconds for a connection to be made.
    connect: float = 15.0
    #: Seconds without a byte.
    silence: float = 60.0
    #: How often a request is made before it counts as failed.
    attempts: int = 6
    #: Seconds before the second attempt; doubled for each one after.
    backoff: float = 0.5
    #: The longest such wait, and the longest Retry-After that is waited for.
    longest: float = 60.0


PATIENCE = Patience()


class Transport:
    """Connections to any number of servers, for any number of threads."""

    def __init__(self, patience: Patience = PATIENCE) -> None:
        self.patience = patience
        self._idle: dict[tuple[Origin, Trust], list[http.client.HTTPConnection]] = {}
        self._busy: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._contexts: dict[tuple[str, bool], ssl.SSLContext] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle = [connection for each in self._idle.values() for connection in each]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def abort(self) -> None:
        """Wake every thread that waits for a server: its connection breaks."""
        with self._lock:
            for connection in self._busy:
                if (sock := connection.sock) is not None:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | IO[bytes] | Iterable[bytes] | None = None,
        *,
        trust: Trust,
    ) -> Answer:
        """One request, and the answer's headers; redirects of GET and HEAD are followed.

        :raises RegistryError: there is no answer; ``temporary`` if there may be one next time
        """
        headers = {"User-Agent": f"pytest-sandbox/{__version__}", "Accept-Encoding": "identity", **headers}
        for _ in range(_REDIRECTS + 1):
            parts = usable(url, trust)
            answer = self._once(method, parts, headers, body, trust)
            target = answer.headers.get("Location")
            if answer.status not in {301, 302, 303, 307, 308} or method not in {"GET", "HEAD"} or not target:
                return answer
            answer.close()
            before, url = url, joined(url, target)
            check_redirect(before, url, trust)
            if origin_of(urlsplit(url)) != origin_of(parts):
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
        raise RegistryError(
            f"more than {_REDIRECTS} redirects", operation="follow", object=url, registry=parts.hostname
        )

    def _once(
        self, method: str, parts: SplitResult, headers: Mapping[str, str], body: Any, trust: Trust
    ) -> Answer:  # fmt: skip
        origin = origin_of(parts)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        proxy = proxy_for(origin)
        if proxy is not None and origin.scheme == "http":
            target = parts.geturl()
            headers = {**headers, **proxy_authorization(proxy)}
        connection, reused = self._connection(origin, trust, proxy)
        try:
            try:
                connection.request(method, target, body, dict(headers))
                response = connection.getresponse()
            except _STALE:
                if not reused:
                    raise
                # The server had closed it while nobody looked; a body that was read is not read again.
                self.drop(connection)
                if body is not None and not isinstance(body, bytes):
                    raise
                connection = self._connect(origin, trust, proxy)
                connection.request(method, target, body, dict(headers))
                response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.drop(connection)
            raise _no_answer(origin, error) from error
        except BaseException:
            self.drop(connection)
            raise
        return Answer(self, origin, trust, connection, response, parts.geturl())

    def _connection(
        self, origin: Origin, trust: Trust, proxy: SplitResult | None
    ) -> tuple[http.client.HTTPConnection, bool]:  # fmt: skip
        with self._lock:
            idle = self._idle.get((origin, trust))
            if idle:
                self._busy.add(connection := idle.pop())
                return connection, True
        return self._connect(origin, trust, proxy), False

    def _connect(self, origin: Origin, trust: Trust, proxy: SplitResult | None) -> http.client.HTTPConnection:
        try:
            return self._connected(origin, trust, proxy)
        except (OSError, http.client.HTTPException) as error:
            raise _no_answer(origin, error) from error

    def _connected(self, origin: Origin, trust: Trust, proxy: SplitResult | None) -> http.client.HTTPConnection:
        host, port = (proxy.hostname or "", proxy.port or 80) if proxy else (origin.host, origin.port)
        connection: http.client.HTTPConnection
        if origin.scheme == "https":
            context = self._context(str(origin), verify=trust.verify)
            connection = http.client.HTTPSConnection(host, port, timeout=self.patience.connect, context=context)
            if proxy is not None:
                connection.set_tunnel(origin.host, origin.port, proxy_authorization(proxy))
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self.patience.connect)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        connection.sock.settimeout(self.patience.silence)
        with self._lock:
            self._busy.add(connection)
        return connection

    def _context(self, host: str, *, verify: bool) -> ssl.SSLContext:
        """TLS settings for a host, with what certs.d has for it."""
        with self._lock:
            if (host, verify) not in self._contexts:
                self._contexts[host, verify] = make_context(host, verify=verify)
            return self._contexts[host, verify]

    def keep(self, origin: Origin, trust: Trust, connection: http.client.HTTPConnection) -> None:
        """Take a connection back that has nothing left to say."""
        with self._lock:
            self._busy.discard(connection)
            idle = self._idle.setdefault((origin, trust), [])
            if len(idle) < _IDLE:
                idle.append(connection)
                return
        connection.close()

    def drop(self, connection: http.client.HTTPConnection) -> None:
        """Close a connection that is of no more use."""
        with self._lock:
            self._busy.discard(connection)
        connection.close()


class Answer:
    """Status, headers and a body that can be read once. A context manager: leaving it ends the reading."""

    def __init__(
        self,
        transport: Transport,
        origin: Origin,
        trust: Trust,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        url: str,
    ) -> None:
        self._give_back: Callable[[], None] = lambda: transport.keep(origin, trust, connection)
        self._drop: Callable[[], None] = lambda: transport.drop(connection)
        self._response = response
        self.origin = origin
        self.url = url
        self.status = response.status
        self.headers = response.headers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Give the connection back if the body has been read to its end; else close it."""
        response = self._response
        if not response.isclosed() and response.length == 0:
            response.read()  # nothing: only now it knows that it has ended
        if response.isclosed() and not response.will_close and not response.length:
            self._give_back()
        else:
            response.close()
            self._drop()

    @property
    def length(self) -> int | None:
        """Bytes of the body, if the server has said."""
        return self._response.length

    def read1(self, size: int) -> bytes:
        """What is there of the next ``size`` bytes; empty at the end.

        :raises RegistryError: the connection broke, temporarily as far as we know
        """
        try:
            return self._response.read1(size)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _no_answer(self.origin, error) from error

    def read(self, limit: int) -> bytes:
        """The body, but no more than ``limit`` + 1 bytes, so that a longer one shows."""
        content = bytearray()
        while len(content) <= limit and (piece := self.read1(min(1 << 18, limit + 1 - len(content)))):
            content += piece
        return bytes(content)

    @cached_property
    def _complaint(self) -> tuple[str | None, str | None]:
        """Code and message of the registry's own error (distribution-spec, "Error Codes")."""
        try:
            body = self.read(_ERROR_LIMIT)
            errors = json.loads(body)["errors"][0]
            code, message = str(errors.get("code") or "") or None, str(errors.get("message") or "") or None
            return code, printable(message) or None
        except (RegistryError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return None, None

    def error(self, operation: str, image: str) -> RegistryError:
        """An answer that is none, as an error."""
        code, message = self._complaint
        facts: dict[str, Any] = {"operation": operation, "object": image, "registry": str(self.origin)}
        if self.status == 429 or code == "TOOMANYREQUESTS":
            return self._rate_limited(message, code, facts)
        words = message or http.client.responses.get(self.status, "no such status is known")
        detail = f"{words} ({code})" if code else words
        if self.status in {401, 403}:
            return AuthenticationError(detail, status=self.status, code=code, **facts)
        temporary = self.status >= 500 or self.status == 408
        return RegistryError(detail, status=self.status, code=code, temporary=temporary, **facts)

    def _rate_limited(self, message: str | None, code: str | None, facts: dict[str, Any]) -> RateLimited:
        """Docker Hub says in headers how many of how many are left: ``100;w=21600``."""
        seconds = self.retry_after
        said = [message or "too many requests"]
        for name, text in (("ratelimit-limit", "the limit is"), ("ratelimit-remaining", "there remain")):
            if value := self.headers.get(name):
                said.append(f"{text} {_rate(value)}")
        if seconds is not None:
            said.append(f"it asks to wait {seconds:.0f} s")
        return RateLimited(
            "; ".join(said), status=self.status, code=code, retry_after=seconds,
            hint="log in (more is granted then), use a mirror (registries.conf), or pin and pull once (`sandbox lock`)",
            **facts,
        )  # fmt: skip

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks to wait (RFC 9110 section 10.2.3)."""
        text = (self.headers.get("Retry-After") or "").strip()
        if text.isdigit():
            return float(text[:9])
        when = email.utils.parsedate_tz(text) if text else None
        return None if when is None else max(0.0, email.utils.mktime_tz(when) - time.time())


_STALE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


def _rate(value: str) -> str:
    count, _, window = printable(value).partition(";w=")
    return f"{count} in {int(window) / 3600:g} hours" if window.isdigit() else count


# -- failures
# -------------------------------------------------------------------------------------------------------


def _no_answer(origin: Origin, error: Exception) -> RegistryError:
    """Why there is no answer, and what may help."""
    facts: dict[str, Any] = {"operation": "connect to", "object": str(origin), "registry": origin.host}
    name = type(error).__name__
    if name == "SSLCertVerificationError":
        return RegistryError(
            "its certificate does not verify", cause=getattr(error, "verify_message", None) or str(error),
            hint=f"put the certificate of its authority into /etc/containers/certs.d/{origin}/ca.crt, or set "
                 f"insecure = true for {origin} in registries.conf", **facts,
        )  # fmt: skip
    if name.startswith("SSL"):
        detail = f"TLS failed: {getattr(error, 'reason', None) or error}"
        return RegistryError(detail, code="TLS", temporary="EOF" in name, **facts)
    if isinstance(error, socket.gaierror):
        return RegistryError(
            "the name cannot be resolved", cause=error.strerror,
            hint="check the name and the network; the pull policy `never` uses only what is here", **facts,
        )  # fmt: skip
    if isinstance(error, TimeoutError):
        return RegistryError("it does not answer in time", temporary=True, **facts)
    if isinstance(error, OSError) and error.errno is not None:
        lasting = error.errno in {errno.ECONNREFUSED, errno.EACCES}
        hint = "nothing listens there: check host and port" if error.errno == errno.ECONNREFUSED else None
        return RegistryError(errno=error.errno, temporary=not lasting, hint=hint, **facts)
    return RegistryError(f"the connection broke: {str(error) or name}", temporary=True, **facts)
