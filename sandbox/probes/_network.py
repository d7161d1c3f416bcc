"""Ready when something listens: :class:`Port`, and when it also answers: :class:`Http`."""

from __future__ import annotations

import ipaddress
import re
import select
import socket
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import attrs

from sandbox import _units as u, _validators as v
from sandbox.errors import UnsupportedFeature
from sandbox.linux.netlink import Endpoint, bound_endpoints, diag_socket_arguments

from ._base import Looking, Probe, Watch
from ._http import Incomplete, parse_response

if TYPE_CHECKING:
    from sandbox._container import RunningContainer

#: Asking the kernel takes about 50 µs; so these pauses cost a few percent of one CPU at most.
_FIRST_LOOK, _LONGEST_LOOK = 0.001, 0.003
_FIRST_REQUEST, _LONGEST_REQUEST = 0.002, 0.05
#: What we read of an answer at most.
_LONGEST_ANSWER = 1 << 20
_ANY = "0.0.0.0"  # noqa: S104 - what others bind to, not we


def _port(value: int) -> int:
    return u.parse_int(value, 1, 65535)


def _address(value: str) -> str:
    return str(ipaddress.ip_address("127.0.0.1" if value == "localhost" else v.text(value)))


def _protocol(value: str) -> str:
    return v.choice(value, "tcp", "udp")


@attrs.frozen(repr=False, field_transformer=v.named_errors)
class Port(Probe):
    """Ready when a program listens on a port of the pod, as the kernel's socket table tells. Nobody connects.

    >>> Port(5432)
    Port(5432)
    """

    #: 1 to 65535.
    port: int = attrs.field(converter=_port)
    #: Only a listener that this local address reaches counts. ``None``: any address.
    host: str | None = attrs.field(default=None, converter=attrs.converters.optional(_address))
    #: ``"tcp"``, or ``"udp"`` (a socket is bound to the port).
    protocol: str = attrs.field(default="tcp", converter=_protocol)

    def watch(self, container: RunningContainer) -> Watch:
        return PortWatch(self, container)


class PortWatch(Looking):
    """Asks the kernel of the pod's network namespace, through a socket that was made there."""

    def __init__(self, probe: Port, container: RunningContainer) -> None:
        super().__init__(_FIRST_LOOK, _LONGEST_LOOK, factor=1.01)
        _check_network(probe, container)
        self._probe = probe
        self._socket = container.pod.socket(*diag_socket_arguments())
        #: Where it listens, once it does.
        self.endpoint: Endpoint | None = None

    def look(self) -> bool:
        probe = self._probe
        bound = bound_endpoints(self._socket, probe.protocol)
        found = [e for e in bound if e.port == probe.port and _reaches(e.address, probe.host)]
        if found:
            self.endpoint = min(found, key=_preference)
            self.last_seen = f"something listens on {_where(self.endpoint)}"
            return True
        self.last_seen = _nothing(probe, bound)
        return False

    def close(self) -> None:
        self._socket.close()


def _check_network(probe: Probe, container: RunningContainer) -> None:
    if container.model.network not in (None, container.pod.model.network):
        raise UnsupportedFeature(
            f"the container has a network of its own ({container.model.network})", operation="wait for",
            object=repr(probe), container=container.name, feature="network probes outside of the pod's network",
            hint="use Exec or Log, or give the pod the network",
        )  # fmt: skip


def _reaches(address: str, host: str | None) -> bool:
    """Whether a socket bound to ``address`` gets what is sent to ``host`` (ip(7), ipv6(7))."""
    if host is None or address.removeprefix("::ffff:") in (host, "::"):
        return True
    return address == _ANY and ":" not in host


def _preference(endpoint: Endpoint) -> tuple[bool, str]:
    """IPv4 first."""
    return ":" in endpoint.address, endpoint.address


def _where(endpoint: Endpoint) -> str:
    return f"[{endpoint.address}]:{endpoint.port}" if ":" in endpoint.address else f"{endpoint.address}:{endpoint.port}"


def _nothing(probe: Port, bound: Collection[Endpoint]) -> str:
    verb = "listens on" if probe.protocol == "tcp" else "is bound to"
    where = f"{probe.host} port {probe.port}" if probe.host else f"port {probe.port}"
    others = ", ".join(_where(endpoint) for endpoint in sorted(bound, key=lambda e: (e.port, e.address)))
    return f"nothing {verb} {where}" + (f", only {others}" if others else "")


def _status(value: int | Collection[int]) -> Collection[int]:
    """One status, or several: a range, a set, a list."""
    if isinstance(value, range):
        return value
    several = [value] if isinstance(value, int) else list(value)
    return frozenset(u.parse_int(status, 100, 599) for status in several)


def _path(value: str) -> str:
    if not v.text(value).startswith("/") or not value.isprintable() or " " in value:
        raise ValueError("the path of a URL begins with / and has no spaces")
    return value


def _header(value: str) -> str:
    if not v.text(value).isprintable() or not value.isascii():
        raise ValueError("the value of a header is one line of ASCII")
    return value


def _regex(value: str | re.Pattern[str]) -> re.Pattern[str]:
    try:
        return re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None


@attrs.frozen(repr=False, field_transformer=v.named_errors)
class Http(Probe):
    """Ready when a GET request is answered as expected. It is made inside the pod's network, without TLS.

    >>> Http(8000, "/health", body="ok")
    Http(8000, path='/health', body='ok')
    """

    #: 1 to 65535.
    port: int = attrs.field(converter=_port)
    #: Path and query.
    path: str = attrs.field(default="/", converter=_path)
    #: The status expected, or several; redirects are not followed.
    status: Collection[int] = attrs.field(default=range(200, 400), converter=_status)
    #: The Host header.
    host: str = attrs.field(default="localhost", converter=_header)
    #: A regular expression that must be found in the body.
    body: re.Pattern[str] | None = attrs.field(default=None, converter=attrs.converters.optional(_regex))
    #: Seconds that one request may take before it is given up and made anew.
    timeout: float = attrs.field(default=5.0, converter=u.parse_seconds)

    def watch(self, container: RunningContainer) -> Watch:
        return HttpWatch(self, container)


class HttpWatch(Looking):
    """First the port, then one request after the other; none of it blocks."""

    def __init__(self, probe: Http, container: RunningContainer) -> None:
        super().__init__(_FIRST_REQUEST, _LONGEST_REQUEST)
        self._probe = probe
        self._container = container
        self._port: PortWatch | None = PortWatch(Port(probe.port), container)
        self._endpoint: Endpoint | None = None
        self._socket: socket.socket | None = None
        self._unsent = b""
        self._got = bytearray()
        self._give_up = 0.0

    def fds(self) -> Mapping[int, int]:
        if self._socket is None:
            return {}
        return {self._socket.fileno(): select.POLLOUT if self._unsent else select.POLLIN}

    def delay(self) -> float | None:
        if self._port is not None:
            return self._port.delay()
        return max(self._give_up - time.monotonic(), 0.0) if self._socket is not None else super().delay()

    def step(self) -> bool:
        if self._port is not None:
            if not self._port.step():
                self.last_seen = self._port.last_seen
                return False
            self._endpoint = self._port.endpoint
            self._port.close()
            self._port = None
        return self._go_on() if self._socket is not None else super().step()

    def look(self) -> bool:
        """Begin a request."""
        assert self._endpoint is not None
        v6 = ":" in self._endpoint.address
        address = {_ANY: "127.0.0.1", "::": "::1"}.get(self._endpoint.address, self._endpoint.address)
        self._socket = self._container.pod.socket(socket.AF_INET6 if v6 else socket.AF_INET)
        self._socket.setblocking(False)
        probe = self._probe
        head = (f"GET {probe.path} HTTP/1.1", f"Host: {probe.host}", "User-Agent: pytest-sandbox", "Accept: */*",
                "Connection: close", "", "")  # fmt: skip
        self._unsent = "\r\n".join(head).encode()
        self._got.clear()
        self._give_up = time.monotonic() + probe.timeout
        try:
            self._socket.connect((address, probe.port))
        except BlockingIOError:
            return False
        except OSError as error:
            self._failed(f"connecting failed: {error.strerror}")
            return False
        return self._go_on()

    def _go_on(self) -> bool:
        """Send what fits, read what is there, until it would block."""
        try:
            return self._exchange()
        except BlockingIOError:
            if time.monotonic() >= self._give_up:
                self._failed(f"GET {self._probe.path} was not answered within {self._probe.timeout:g} s")
        except OSError as error:
            self._failed(f"GET {self._probe.path} failed: {error.strerror}")
        return False

    def _exchange(self) -> bool:
        assert self._socket is not None
        while self._unsent:
            self._unsent = self._unsent[self._socket.send(self._unsent, socket.MSG_NOSIGNAL) :]
        while len(self._got) < _LONGEST_ANSWER:
            data = self._socket.recv(65536)
            self._got += data
            try:
                status, body = parse_response(bytes(self._got), ended=not data)
            except Incomplete:
                continue
            except ValueError as error:
                self._failed(f"GET {self._probe.path} was answered with {error}")
                return False
            return self._judge(status, body)
        self._failed(f"the answer to GET {self._probe.path} is longer than {_LONGEST_ANSWER} bytes")
        return False

    def _judge(self, status: int, body: bytes) -> bool:
        probe = self._probe
        self._failed(f"GET {probe.path} was answered with status {status}")
        if status not in probe.status:
            return False
        if probe.body is None or probe.body.search(body.decode("utf-8", "replace")):
            return True
        self.last_seen += f" and a body without {probe.body.pattern!r}: {body[:80]!r}"
        return False

    def _failed(self, seen: str) -> None:
        """Give up this request; the next one comes after a pause."""
        self.last_seen = seen
        self._close_socket()
        self._due = time.monotonic() + self._pause

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        self._close_socket()
        if self._port is not None:
            self._port.close()
            self._port = None


