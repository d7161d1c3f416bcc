"""Registries for tests: Debian's docker-registry on loopback, a token server, and one in between that breaks things."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD = "tester", "open:sesame"
#: For htpasswd files; made with crypt(3).
PASSWORD_BCRYPT = "$2b$05$abcdefghijklmnopqrstuubMHTpw5uKdtLGvKw5uzYhbpqtktcY3."
_LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")


# --- keys -----------------------------------------------------------------------------------------


def openssl(*arguments: str | Path, data: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *arguments], input=data, capture_output=True, check=True).stdout


@dataclass
class Keys:
    """A certificate authority, a certificate for 127.0.0.1, and a key that signs tokens."""

    directory: Path

    @property
    def authority(self) -> Path:
        return self.directory / "ca.crt"

    @classmethod
    def make(cls, directory: Path) -> Keys:
        directory.mkdir(parents=True)
        at = directory.joinpath
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl("req", "-x509", *curve, "-keyout", at("ca.key"), "-out", at("ca.crt"), "-days", "2", "-subj", "/CN=tests",
                "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
        openssl("req", *curve, "-keyout", at("tls.key"), "-out", at("tls.csr"), "-subj", "/CN=127.0.0.1")
        at("tls.ext").write_text(
            "subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\nbasicConstraints=critical,CA:FALSE\n"
        )
        openssl("x509", "-req", "-in", at("tls.csr"), "-CA", at("ca.crt"), "-CAkey", at("ca.key"), "-CAcreateserial",
                "-out", at("tls.crt"), "-days", "2", "-extfile", at("tls.ext"))  # fmt: skip
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", at("token.key"), "-out", at("token.crt"),
                "-days", "2", "-subj", "/CN=tokens")  # fmt: skip
        return cls(directory)


# --- the real one ---------------------------------------------------------------------------------


class Registry:
    """A docker-registry process."""

    def __init__(self, work: Path, **sections: Any) -> None:
        work.mkdir(parents=True, exist_ok=True)
        http_section = {"addr": "127.0.0.1:0", **sections.pop("http", {})}
        document = {
            "version": 0.1,
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(work / "data")}, "delete": {"enabled": True}},
            "http": http_section,
            **sections,
        }
        (work / "config.yml").write_text(json.dumps(document))  # YAML has JSON in it
        self._log = work / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", str(work / "config.yml")], stdout=log, stderr=log, env={"PATH": os.environ["PATH"]}
            )
        self.tls = "tls" in http_section
        self.host = f"127.0.0.1:{self._port()}"
        #: What skopeo and we log in with; empty for anybody.
        self.login = ""

    def _port(self) -> str:
        give_up = time.monotonic() + 30
        while time.monotonic() < give_up and self.process.poll() is None:
            if found := _LISTENING.search(self._log.read_text("utf-8", "replace")):
                return found[1]
            time.sleep(0.02)
        self.close()
        raise RuntimeError(f"docker-registry does not listen: {self._log.read_text('utf-8', 'replace')}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def name(self, rest: str) -> str:
        return f"{self.host}/{rest}"

    def skopeo(self, verb: str, *arguments: str) -> str:
        """Run skopeo; arguments that start with ``@`` are names in this registry."""
        words = [f"docker://{self.name(word[1:])}" if word.startswith("@") else word for word in arguments]
        sides = {"copy": ("src-", "dest-")}.get(verb, ("",))
        options = [f"--{side}tls-verify=false" for side in sides]
        if self.login:
            options += [f"--{side}creds={self.login}" for side in sides]
        settings = {"HOME": str(self._log.parent), "XDG_RUNTIME_DIR": str(self._log.parent)}  # nobody's passwords
        done = subprocess.run(
            ["skopeo", verb, *options, *words], capture_output=True, text=True, check=False, env=os.environ | settings
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def put(self, layout: Path, name: str, *options: str) -> str:
        """Copy the image ``latest`` of a layout in; its digest there."""
        self.skopeo("copy", *options, f"oci:{layout}:latest", f"@{name}")
        return self.digest(name)

    def digest(self, name: str) -> str:
        return str(json.loads(self.skopeo("inspect", "--no-tags", f"@{name}"))["Digest"])


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler], **attributes: Any) -> Iterator[ThreadingHTTPServer]:
    """An HTTP server in a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    for name, value in attributes.items():
        setattr(server, name, value)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """The same for every method; quiet."""

    protocol_version = "HTTP/1.1"
    server: Any

    def handle_any(self) -> None:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.handle_any
        raise AttributeError(name)

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


# --- tokens ---------------------------------------------------------------------------------------


class TokenHandler(Handler):
    """Signs what is asked for, for anybody who knows the password; ``pull`` for everybody if ``anonymous``."""

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        given = parse_qs(parts.query) | parse_qs(self.body().decode())
        self.server.asked.append((self.command, given, self.headers.get("Authorization")))
        known = self._knows_us(given)
        if not known and not self.server.anonymous:
            self.reply(401, {"Content-Type": "application/json"}, b"{}")
            return
        access = [
            {"type": kind, "name": name, "actions": actions.split(",") if known else ["pull"]}
            for scope in given.get("scope", [])
            for kind, name, actions in [scope.split(":", 2)]
        ]
        token = self._sign(access)
        answer = json.dumps({"token": token, "access_token": token, "expires_in": 300})
        self.reply(200, {"Content-Type": "application/json"}, answer.encode())

    def _knows_us(self, given: dict[str, list[str]]) -> bool:
        if given.get("grant_type") == ["refresh_token"]:
            return given.get("refresh_token") == [PASSWORD]
        expected = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        return self.headers.get("Authorization") == f"Basic {expected}"

    def _sign(self, access: list[dict[str, Any]]) -> str:
        keys: Keys = self.server.keys
        certificate = openssl("x509", "-in", keys.directory / "token.crt", "-outform", "DER")
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(certificate).decode()]}
        claims = {
            "iss": "tests", "sub": USER, "aud": "registry", "exp": now + 300, "nbf": now - 10, "iat": now,
            "jti": os.urandom(8).hex(), "access": access,
        }  # fmt: skip
        text = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = openssl("dgst", "-sha256", "-sign", keys.directory / "token.key", data=text.encode())
        return f"{text}.{_base64url(signature)}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# --- one in between -------------------------------------------------------------------------------


@dataclass
class Request:
    """What came in."""

    method: str
    path: str
    headers: dict[str, str]
    #: How often this method and path came before.
    before: int


@dataclass
class Fault:
    """What happens to an answer instead of passing it on."""

    #: Answer this, without asking anybody.
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    #: Close the connection after so many bytes of the body.
    cut: int | None = None
    #: Turn this byte of the body over.
    corrupt: int | None = None
    #: Forget the Range header.
    no_range: bool = False
    #: Seconds to wait before each 64 KiB.
    slow: float = 0.0
    #: Send the first MiB of the body, then wait for this.
    hold: threading.Event | None = None
    #: Do not say how long the body is.
    endless: bool = False
    #: Change headers of the answer.
    change: dict[str, str] = field(default_factory=dict)


Rule = Callable[[Request], Fault | None]


class MiddleHandler(Handler):
    """Passes requests on to a registry, and answers back, but for what a rule says."""

    def handle_any(self) -> None:
        seen = (self.command, self.path)
        with self.server.guard:
            before = self.server.seen.count(seen)
            self.server.seen.append(seen)
        request = Request(self.command, self.path, dict(self.headers), before)
        self.server.requests.append(request)
        body = self.body()
        fault = self.server.rule(request) or Fault()
        if fault.status:
            if fault.endless:
                self.close_connection = True
                self.send_response(fault.status)
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(fault.body)
                return
            self.reply(fault.status, fault.headers, fault.body)
            return
        self._pass_on(body, fault)

    def _pass_on(self, body: bytes, fault: Fault) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        if fault.no_range:
            headers.pop("Range", None)
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=30)
        try:
            upstream.request(self.command, self.path, body, {**headers, "Host": self.headers["Host"]})
            answer = upstream.getresponse()
            self.send_response(answer.status)
            for name, value in {**dict(answer.getheaders()), **fault.change}.items():
                if name.lower() not in {"connection", "date", "server"}:
                    self.send_header(name, value)
            self.end_headers()
            self._body(answer, fault)
        finally:
            upstream.close()

    def _body(self, answer: http.client.HTTPResponse, fault: Fault) -> None:
        position = 0
        while piece := answer.read(1 << 16):
            time.sleep(fault.slow)
            if fault.corrupt is not None and position <= fault.corrupt < position + len(piece):
                at = fault.corrupt - position
                piece = piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
            if fault.cut is not None and position + len(piece) > fault.cut:
                self.wfile.write(piece[: fault.cut - position])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.wfile.write(piece)
            position += len(piece)
            if fault.hold is not None and position >= 1 << 20:
                fault.hold.wait(60)


class Middle:
    """The server that :class:`MiddleHandler` is in; ``rule`` may be changed at any time."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.host = f"127.0.0.1:{server.server_address[1]}"

    def name(self, rest: str) -> str:
        return f"{self.host}/{rest}"

    @property
    def requests(self) -> list[Request]:
        return list(self._server.requests)

    def rule(self, rule: Rule) -> None:
        self._server.rule = rule

    def count(self, method: str, part: str) -> int:
        return sum(each.method == method and part in each.path for each in self.requests)


@contextlib.contextmanager
def middle(upstream: str = "") -> Iterator[Middle]:
    """Between us and a registry; without one everything is up to the rule."""
    facts: dict[str, Any] = {
        "upstream": upstream, "rule": lambda _: None, "seen": [], "requests": [], "guard": threading.Lock(),
    }  # fmt: skip
    with serving(MiddleHandler, **facts) as server:
        yield Middle(server)
