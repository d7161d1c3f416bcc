"""One repository at one endpoint: what a registry can be asked, with its failures sorted out.

Requests that fail for a while are made again, later and later; the waits end at once when the work is given up.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from sandbox.errors import ImageNotFound, ImageVerificationError
from sandbox.images.blobs import new_hash
from sandbox.images.distribution.addresses import Trust, is_loopback, origin_of
from sandbox.images.distribution.auth import Authorizer, parse_challenges
from sandbox.images.distribution.transport import Answer
from sandbox.images.documents import INDEXES, MANIFESTS, parse_json
from sandbox.images.errors import AuthenticationError, ImageTooLarge, RateLimited, RegistryError

if TYPE_CHECKING:
    from sandbox.images.distribution.registries_conf import Endpoint
    from sandbox.images.distribution.transport import Transport

__all__ = ["Cancelled", "Document", "Repository", "media_type_of"]

#: Where Docker Hub answers.
_API_HOSTS = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
_ACCEPT = ", ".join((*INDEXES, *MANIFESTS))
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class Cancelled(Exception):
    """The work was given up while a request waited for its next attempt."""


class Document(NamedTuple):
    """A manifest or index as a registry gave it, verified as far as it was promised anything."""

    content: bytes
    media_type: str
    digest: str


class Repository:
    """A repository at an endpoint. Any number of threads may use it."""

    def __init__(
        self,
        transport: Transport,
        endpoint: Endpoint,
        image: str,
        *,
        push: bool = False,
        stop: threading.Event | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing is asked yet.

        :param image: what the user calls it, for errors
        :param push: ask for the right to write as well
        :param stop: set when the work is given up
        :param tell: what to do with a line about a wait
        """
        self.endpoint = endpoint
        self.image = image
        self._transport = transport
        self._stop = stop or threading.Event()
        self._tell = tell
        self._verb = "push" if push else "pull"
        host = _API_HOSTS.get(endpoint.host, endpoint.host)
        near = is_loopback(host)
        self._trust = Trust(plain=endpoint.insecure or near, verify=not endpoint.insecure)
        #: Ways to speak to it, best first. What this machine tells itself nobody overhears.
        self._schemes = ["http", "https"] if near else ["https", "http"] if endpoint.insecure else ["https"]
        self._host = host
        self._settling = threading.Lock()
        self._authorizer = Authorizer(transport, endpoint)
        self._actions = "pull,push" if push else "pull"

    def __str__(self) -> str:
        return str(self.endpoint)

    # -- manifests
    # -----------------------------------------------------------------------------------------------

    def manifest(self, name: str, limit: int) -> Document:
        """A manifest or index by tag or digest.

        :param limit: bytes above which it is refused
        :raises ImageNotFound: there is none of this name
        :raises ImageVerificationError: it is not what the digest says
        """
        with self.request("GET", f"manifests/{name}", {"Accept": _ACCEPT}, expect={200}) as answer:
            if (answer.length or 0) > limit or len(content := answer.read(limit)) > limit:
                raise ImageTooLarge(
                    f"the manifest that {self.endpoint} has is larger than {limit} bytes", operation="pull",
                    object=self.image, feature="manifest",
                )  # fmt: skip
            promised = name if ":" in name else answer.headers.get("Docker-Content-Digest")
            digest = promised if promised and not promised.startswith("sha256:") else ""
            hashed = new_hash(digest or "sha256:" + "0" * 64, self.image)
            hashed.update(content)
            actual = f"{hashed.name}:{hashed.hexdigest()}"
            if promised and promised != actual:
                raise ImageVerificationError(
                    f"the manifest that {self.endpoint} has", operation="verify", object=self.image,
                    digest=promised, expected=promised, actual=actual, hint="the registry is damaged, or lies",
                )  # fmt: skip
            said = (answer.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
            return Document(content, media_type_of(content, said, self.image), actual)

    def manifest_digest(self, name: str) -> str | None:
        """The digest the registry has for a tag, by its own word; ``None`` if it does not say or has no such tag."""
        with self.request("HEAD", f"manifests/{name}", {"Accept": _ACCEPT}, expect={200, 404}) as answer:
            return answer.headers.get("Docker-Content-Digest") if answer.status == 200 else None

    # -- blobs
    # ---------------------------------------------------------------------------------------------------

    def blob(self, digest: str, start: int = 0) -> tuple[Answer, int]:
        """A blob's bytes from ``start`` on, and where they really begin (0 if the server knows no ranges).

        One attempt: who reads knows best how to go on after a broken connection.

        :raises ImageNotFound: the registry does not have it
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        answer = self.once("GET", f"blobs/{digest}", headers, expect={200, 206, 416})
        if answer.status == 416:
            answer.close()
            answer = self.once("GET", f"blobs/{digest}", expect={200})
        if answer.status == 200:
            return answer, 0
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if found is None or int(found[1]) > start:
            answer.close()
            raise RegistryError("it answers with another range than it was asked for", **self._facts())
        return answer, int(found[1])

    def has_blob(self, digest: str) -> bool:
        """Whether the repository has a blob."""
        with self.request("HEAD", f"blobs/{digest}", expect={200, 404}) as answer:
            return answer.status == 200

    # -- requests
    # ------------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        expect: Collection[int],
        also: tuple[str, ...] = (),
    ) -> Answer:
        """A request, repeated while its failures may pass.

        :param path: below ``/v2/NAME/``, or a whole URL that the registry gave
        :param expect: the statuses that are answers; others become errors
        :param also: scopes that a token has to cover beside this repository
        :raises ImageNotFound: 404, where that is not expected
        :raises AuthenticationError: 401 or 403
        :raises RateLimited: 429 for longer than we wait
        :raises RegistryError: no answer, or any other status
        """
        for attempt in range(1, self._transport.patience.attempts + 1):
            try:
                return self.once(method, path, headers, body, expect=expect, also=also)
            except RegistryError as error:
                self.wait(error, attempt)
        raise AssertionError("the last attempt returns or raises")

    def wait(self, error: RegistryError, attempt: int) -> None:
        """Wait before the next attempt; raise ``error`` if there should be none.

        :raises Cancelled: the work was given up meanwhile
        """
        patience = self._transport.patience
        if not error.temporary or attempt >= patience.attempts:
            raise error
        delay = min(patience.backoff * 2 ** (attempt - 1), patience.longest) * random.uniform(0.75, 1.25)  # noqa: S311
        if isinstance(error, RateLimited) and error.retry_after is not None:
            if error.retry_after > patience.longest:
                raise error
            delay = max(delay, error.retry_after)
        if delay > 2:
            self._tell(f"{error.registry}: {error.detail or 'no answer'}; next attempt in {delay:.0f} s")
        if self._stop.wait(delay):
            raise Cancelled

    def once(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        expect: Collection[int],
        also: tuple[str, ...] = (),
    ) -> Answer:
        """As :meth:`request`, but one attempt."""
        answer = self._authorized(method, path, headers or {}, body, also)
        if answer.status in expect:
            return answer
        with answer:
            error = answer.error(self._verb, self.image)
            if answer.status == 404 and method in {"GET", "HEAD"} and path.startswith(("manifests/", "blobs/")):
                kind, _, name = path.partition("/")
                what = f"{kind.removesuffix('s')} {name}" if ":" in name else f"tag `{name}`"
                raise ImageNotFound(
                    f"{self.endpoint} has no {what}" + (f" ({error.code})" if error.code else ""),
                    operation="find image", object=self.image, hint="check the name and the tag",
                )  # fmt: skip
            if isinstance(error, AuthenticationError):
                raise self._authorizer.failure(
                    f"{error.detail}; asked {self._authorizer.who}; it may not exist, or be for others only",
                    status=error.status, code=error.code,
                )  # fmt: skip
            raise error

    def _authorized(
        self, method: str, path: str, headers: Mapping[str, str], body: Any, also: tuple[str, ...]
    ) -> Answer:  # fmt: skip
        """Send with what authorization there is; answer one challenge."""
        scopes = (f"repository:{self.endpoint.repository}:{self._actions}", *also)
        value = self._authorizer.header(scopes)
        for last in (False, True):
            answer = self._settled(method, path, headers, body, value)
            if answer.status != 401 or last:
                return answer
            challenges = parse_challenges(answer.headers.get_all("WWW-Authenticate") or ())
            trust = self._trust if answer.origin.scheme == "http" else self._trust._replace(plain=not self._trust.verify)
            answer.read(1 << 16)
            answer.close()
            value = self._authorizer.answer(challenges, scopes, value, trust)
        raise AssertionError("the last round returns")

    def _settled(
        self, method: str, path: str, headers: Mapping[str, str], body: Any, authorization: str | None
    ) -> Answer:  # fmt: skip
        """Send by the scheme that the server speaks; the first request finds out which."""
        if len(self._schemes) == 1:
            return self._send(self._schemes[0], method, path, headers, body, authorization)
        with self._settling:
            if len(self._schemes) == 1:
                return self._send(self._schemes[0], method, path, headers, body, authorization)
            return self._settle(method, path, headers, body, authorization)

    def _settle(
        self, method: str, path: str, headers: Mapping[str, str], body: Any, authorization: str | None
    ) -> Answer:  # fmt: skip
        first, second = self._schemes
        trouble: RegistryError | None = None
        answer: Answer | None = None
        try:
            answer = self._send(first, method, path, headers, body, authorization)
        except RegistryError as error:
            if error.errno is not None and not error.temporary:
                raise  # nobody is there, in whatever language
            trouble = error
        if answer is not None and not (first == "http" and answer.status == 400):
            self._schemes = [first]
            return answer
        try:
            other = self._send(second, method, path, headers, body, authorization)
        except RegistryError as error:
            if answer is not None and error.code == "TLS":
                self._schemes = [first]
                return answer
            if answer is not None:
                answer.close()
            raise trouble if trouble is not None and error.code == "TLS" else error from None
        if answer is not None:
            answer.close()
        self._schemes = [second]
        return other

    def _send(
        self, scheme: str, method: str, path: str, headers: Mapping[str, str], body: Any, authorization: str | None
    ) -> Answer:  # fmt: skip
        base = f"{scheme}://{self._host}/v2/{self.endpoint.repository}/"
        url = path if "://" in path else urljoin(base, path) if path.startswith("/") else base + path
        sent = dict(headers)
        if authorization is not None and origin_of(urlsplit(url)) == origin_of(urlsplit(base)):
            sent["Authorization"] = authorization
        return self._transport.send(method, url, sent, body, trust=self._trust)

    def _facts(self) -> dict[str, Any]:
        return {"operation": self._verb, "object": self.image, "registry": self.endpoint.host}



def media_type_of(content: bytes, said: str, image: str) -> str:
    """The media type of a manifest: what the server says it is, or else what it looks like.

    Servers that know no better say ``application/json``. What is no manifest at all keeps the name it was given,
    for the error about it.
    """
    if said in INDEXES + MANIFESTS:
        return said
    document = parse_json(content, image, "manifest")
    if isinstance(kind := document.get("mediaType"), str) and kind in INDEXES + MANIFESTS:
        return kind
    if said not in {"", "application/json", "text/plain", "application/octet-stream"}:
        return said
    if "manifests" in document:
        return INDEXES[0]
    return MANIFESTS[0] if "layers" in document else said or "none"
