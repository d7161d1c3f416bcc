"""Answers to 401: Basic (RFC 7617) and Bearer tokens (distribution, "Token Authentication Specification").

Credentials are looked up only once a registry asks for them, and go to that registry, or to the token server
that it names over a connection no weaker than its own.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from sandbox.images.distribution import credentials
from sandbox.images.errors import AuthenticationError

if TYPE_CHECKING:
    from sandbox.images.distribution.addresses import Trust
    from sandbox.images.distribution.credentials import Credentials
    from sandbox.images.distribution.registries_conf import Endpoint
    from sandbox.images.distribution.transport import Transport

__all__ = ["Authorizer", "Challenge", "parse_challenges"]

_TOKEN_LIMIT = 1 << 20
_TOKEN_SECONDS = 60.0  # what the specification has for a token that does not say
_EARLY = 5.0  # a token this close to its end is not used any more
_CLIENT = "sandbox"
_PIECES = re.compile(
    r"""(?P<key>[\w!#$%&'*+.^`|~-]+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s,"]+))"""
    r"""|(?P<scheme>[\w!#$%&'*+.^`|~-]+)"""
)


class Challenge(NamedTuple):
    """One of the ways a server offers to prove who we are (RFC 9110 section 11.3)."""

    #: In lower case.
    scheme: str
    parameters: dict[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges in the values of WWW-Authenticate. Never fails: what makes no sense is left out."""
    found: list[Challenge] = []
    for text in headers:
        for piece in _PIECES.finditer(text[:8192]):
            if piece["scheme"]:
                found.append(Challenge(piece["scheme"].lower(), {}))
            elif found:
                quoted = piece["quoted"]
                value = piece["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                found[-1].parameters[piece["key"].lower()] = value
    return found


class Authorizer:
    """The Authorization headers of one repository at one registry; any number of threads may ask."""

    def __init__(
        self,
        transport: Transport,
        endpoint: Endpoint,
        find: Callable[[str, str], Credentials | None] = credentials.find,
    ) -> None:
        self._transport = transport
        self._endpoint = endpoint
        self._find = find
        self._lock = threading.Lock()
        self._known: dict[tuple[str, ...], tuple[str, float]] = {}
        self._basic = ""
        #: As whom we asked, for messages.
        self.who = "anonymously"

    def header(self, scopes: tuple[str, ...]) -> str | None:
        """What worked before and has not run out; ``None`` if nothing has."""
        value, until = self._known.get(scopes, ("", 0.0))
        return value if value and time.monotonic() < until else self._basic or None

    def answer(
        self, challenges: Iterable[Challenge], scopes: tuple[str, ...], refused: str | None, trust: Trust
    ) -> str:
        """A header that meets one of the challenges.

        :param refused: the header that was just refused; another thread may have a better one by now
        :param trust: what the connection that brought the challenge was like
        :raises AuthenticationError: there are no credentials for it, or the token server refuses them
        """
        with self._lock:
            if (known := self.header(scopes)) is not None and known != refused:
                return known
            offered = {challenge.scheme: challenge.parameters for challenge in challenges}
            if "bearer" in offered:
                value, seconds = self._token(offered["bearer"], scopes, trust)
                self._known[scopes] = (value, time.monotonic() + seconds)
            elif "basic" in offered:
                value = self._basic = self._basic_header(refused)
            else:
                schemes = ", ".join(sorted(offered)) or "none"
                raise self.failure(f"it offers ways to log in that are not known here: {schemes}")
            return value

    def failure(self, detail: str, hint: str | None = None, **facts: Any) -> AuthenticationError:
        """The error of a login that did not work."""
        host = self._endpoint.host
        return AuthenticationError(
            detail, operation="log in to", object=str(self._endpoint), registry=host,
            hint=hint or f"log in with `podman login {host}` or `docker login {host}`", **facts,
        )  # fmt: skip

    def _credentials(self) -> Credentials | None:
        found = self._find(self._endpoint.host, self._endpoint.repository)
        if found is not None:
            self.who = f"as `{found.username or 'token'}` from {found.origin}"
        return found

    def _basic_header(self, refused: str | None) -> str:
        found = self._credentials()
        if found is None or not found.username:
            raise self.failure("it wants a name and a password", status=401)
        value = _basic(found)
        if value == refused:
            raise self.failure(f"it does not accept the password of `{found.username}` from {found.origin}", status=401)
        return value

    def _token(self, parameters: dict[str, str], scopes: tuple[str, ...], trust: Trust) -> tuple[str, float]:
        realm = parameters.get("realm", "")
        try:
            parts = urlsplit(realm)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in {"https", "http"} or not parts.hostname or parts.username is not None:
            raise self.failure(f"its token server `{realm[:200]}` has no address that could be used", hint=_REPORT)
        if parts.scheme == "http" and not trust.plain:
            raise self.failure(
                f"it sends us to a token server without TLS, `{realm[:200]}`",
                hint=f"if you trust the network, set insecure = true for {self._endpoint.host} in registries.conf",
            )
        scopes = _scopes(parameters.get("scope"), scopes)
        found = self._credentials()
        fields = [("service", parameters["service"])] if "service" in parameters else []
        if found is not None and found.identity_token:
            answer = self._exchange(realm, fields, scopes, found, trust)
        else:
            query = urlencode([*fields, *(("scope", scope) for scope in scopes)])
            joint = "&" if parts.query else "?"
            headers = {"Authorization": _basic(found)} if found is not None else {}
            answer = self._fetch("GET", f"{realm}{joint}{query}", headers, None, trust)
        return self._read_token(answer)

    def _exchange(
        self, realm: str, fields: list[tuple[str, str]], scopes: tuple[str, ...], found: Credentials, trust: Trust
    ) -> dict[str, Any]:  # fmt: skip
        """OAuth 2: a new access token for a refresh token."""
        form = [*fields, ("grant_type", "refresh_token"), ("client_id", _CLIENT), ("scope", " ".join(scopes)),
                ("refresh_token", found.identity_token)]  # fmt: skip
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self._fetch("POST", realm, headers, urlencode(form).encode(), trust)

    def _fetch(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None, trust: Trust
    ) -> dict[str, Any]:  # fmt: skip
        with self._transport.send(method, url, headers, body, trust=trust) as answer:
            if answer.status in {400, 401, 403}:
                detail = f"the token server {urlsplit(url).hostname} refuses us, asked {self.who}"
                raise self.failure(detail, status=answer.status)
            if answer.status != 200:
                raise answer.error("fetch a token for", str(self._endpoint))
            content = answer.read(_TOKEN_LIMIT)
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise self.failure("the token server's answer is not a JSON object", hint=_REPORT)
        return document

    def _read_token(self, answer: dict[str, Any]) -> tuple[str, float]:
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise self.failure("the token server's answer has no token", hint=_REPORT)
        seconds = answer.get("expires_in")
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds <= 0:
            seconds = _TOKEN_SECONDS
        return f"Bearer {token}", max(seconds - _EARLY, 1.0)


_REPORT = "tell whoever runs the registry"


def _scopes(demanded: str | None, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """What the registry names, for some name it in their own way, and what else we need."""
    if not demanded:
        return wanted
    return tuple(dict.fromkeys((*demanded.split(), *wanted[1:])))


def _basic(found: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{found.username}:{found.password}".encode()).decode()
