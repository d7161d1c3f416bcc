"""Registries that lie: too much, the wrong thing, to the wrong place. Refused in words, and nothing stays."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import images_helpers as make
import pytest
import registries
from registries import Fault, Middle, Request

from sandbox.errors import ImageError, ImageNotFound, ImageVerificationError
from sandbox.images import Store
from sandbox.images.distribution.pull import pull
from sandbox.images.distribution.transport import Patience
from sandbox.images.errors import (
    AuthenticationError,
    ImageTooLarge,
    MediaTypeError,
    RegistryError,
)
from sandbox.images.references import parse
from sandbox.images.stored import Images

QUICK = Patience(connect=5, silence=5, attempts=2, backoff=0.01, longest=1)
LAYER = make.tar([make.file("hello", "hi\n")])
PACKED = gzip.compress(LAYER, mtime=0)
DOCKER_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
NAME = "app:1"


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (home / "registries.conf").touch()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(home / "registries.conf"))
    return home


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(tmp_path / "store")
    yield found
    assert list(Images(found).items()) == []
    assert list(Images(found).names.items()) == []
    assert [*found.root.glob("tmp/*"), *found.root.glob("partial/*"), *found.root.glob("layers/*/*")] == []


class Liar:
    """A registry in memory: what is at which path below ``/v2/app/``."""

    def __init__(self, middle: Middle) -> None:
        self.middle = middle
        self.answers: dict[str, Fault] = {}
        middle.rule(self._answer)

    def _answer(self, request: Request) -> Fault:
        key = request.path.removeprefix("/v2/app/")
        return self.answers.get(key, Fault(status=404, body=b'{"errors": [{"code": "NAME_UNKNOWN"}]}'))

    def blob(self, content: bytes, media_type: str, **changes: Any) -> dict[str, Any]:
        digest = make.sha256(content)
        self.answers[f"blobs/{digest}"] = Fault(status=200, body=content)
        return {"mediaType": media_type, "digest": digest, "size": len(content), **changes}

    def document(self, value: Any, media_type: str, name: str = "", **changes: Any) -> dict[str, Any]:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        digest = make.sha256(content)
        answer = Fault(status=200, headers={"Content-Type": media_type}, body=content)
        self.answers[f"manifests/{name or digest}"] = answer
        return {"mediaType": media_type, "digest": digest, "size": len(content), **changes}

    def config(self, *layers: bytes) -> dict[str, Any]:
        rootfs = {"type": "layers", "diff_ids": [make.sha256(layer) for layer in layers]}
        document = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
        return self.blob(json.dumps(document).encode(), make.CONFIG)

    def image(self, layer: dict[str, Any] | None = None, name: str = "1", **changes: Any) -> dict[str, Any]:
        found = layer or self.blob(PACKED, make.TAR_GZIP)
        manifest = {"schemaVersion": 2, "mediaType": make.MANIFEST, "config": self.config(LAYER), "layers": [found]}
        return self.document({**manifest, **changes}, make.MANIFEST, name)


@pytest.fixture
def liar() -> Iterator[Liar]:
    with registries.middle() as between:
        yield Liar(between)


def get(liar: Liar, store: Store, name: str = NAME) -> Any:
    return pull(parse(liar.middle.name(name)), store, patience=QUICK)


def test_the_liar_can_tell_the_truth(liar: Liar, tmp_path: Path) -> None:
    liar.image()
    image = get(liar, Store(tmp_path / "fine")).image
    assert (image.layers[0] / "hello").read_text() == "hi\n"


# --- too much -------------------------------------------------------------------------------------


def test_a_manifest_of_100_megabytes(liar: Liar, store: Store) -> None:
    """Told by its length, or found out while reading: no more than the limit is taken."""
    huge = b'{"mediaType": "' + b"x" * (6 << 20)
    for headers in ({}, {"Content-Length": str(100 << 20)}):
        liar.answers["manifests/1"] = Fault(status=200, headers={"Content-Type": make.MANIFEST, **headers}, body=huge)
        with pytest.raises(ImageTooLarge, match="larger than 4194304 bytes"):
            get(liar, store)


def test_a_layer_that_would_fill_the_disk(liar: Liar, store: Store) -> None:
    liar.image(liar.blob(PACKED, make.TAR_GZIP, size=1 << 50))
    with pytest.raises(ImageTooLarge, match=f"{1 << 50} bytes"):
        get(liar, store)
    assert liar.middle.count("GET", make.sha256(PACKED)) == 0


@pytest.mark.parametrize("depth", [5, 40])
def test_indexes_without_end(liar: Liar, store: Store, depth: int) -> None:
    found = liar.image(name="")
    for level in range(depth):
        index = {"schemaVersion": 2, "mediaType": make.INDEX, "manifests": [found]}
        found = liar.document(index, make.INDEX, "1" if level == depth - 1 else "")
    with pytest.raises(ImageTooLarge, match="too deep"):
        get(liar, store)


def test_an_answer_of_headers_only(liar: Liar, store: Store) -> None:
    liar.answers["manifests/1"] = Fault(status=200, headers={f"X-{number}": "x" for number in range(300)})
    with pytest.raises(RegistryError, match="100 headers"):
        get(liar, store)


# --- the wrong thing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("text/html", b"<html>captive portal</html>"),
        (make.MANIFEST, b"[" * 100_000),
        (make.MANIFEST, b'{"layers": "none"}'),
        (make.MANIFEST, b"\xff\xfe"),
        (make.INDEX, b'{"manifests": {}}'),
        (make.INDEX, b'{"manifests": [7]}'),
        (make.MANIFEST, b"null"),
        (make.MANIFEST, b""),
        (DOCKER_1, b'{"schemaVersion": 1, "fsLayers": []}'),
        ("application/json", b'{"schemaVersion": 2}'),
        (make.MANIFEST, json.dumps({"mediaType": make.INDEX, "manifests": []}).encode()),
    ],
)
def test_what_is_no_manifest(liar: Liar, store: Store, media_type: str, body: bytes) -> None:
    liar.document(body, media_type, "1")
    with pytest.raises(ImageError) as caught:
        get(liar, store)
    assert liar.middle.name(NAME) in str(caught.value)


@pytest.mark.parametrize("part", ["config", "layer"])
def test_media_types_that_are_no_image(liar: Liar, store: Store, part: str) -> None:
    if part == "config":
        liar.image(config=liar.blob(b"{}", "application/vnd.cncf.helm.config.v1+json"))
    else:
        liar.image(liar.blob(PACKED, "application/vnd.wasm.content.layer.v1+wasm"))
    with pytest.raises(MediaTypeError, match="known are"):
        get(liar, store)


def test_another_manifest_than_the_digest_says(liar: Liar, store: Store) -> None:
    liar.image(name="sha256:" + "ab" * 32)
    with pytest.raises(ImageVerificationError) as caught:
        get(liar, store, "app@sha256:" + "ab" * 32)
    assert caught.value.expected == "sha256:" + "ab" * 32


def test_a_header_that_contradicts_the_manifest(liar: Liar, store: Store) -> None:
    liar.image()
    liar.answers["manifests/1"].headers["Docker-Content-Digest"] = "sha256:" + "ab" * 32
    with pytest.raises(ImageVerificationError):
        get(liar, store)


@pytest.mark.parametrize(
    "served",
    [PACKED + b"x", PACKED[:-1], b"x" * len(PACKED), b""],
    ids=["longer", "shorter", "another", "nothing"],
)
@pytest.mark.parametrize("what", ["layer", "config"])
def test_another_blob_than_the_digest_says(liar: Liar, store: Store, served: bytes, what: str) -> None:
    liar.image()
    for key, answer in liar.answers.items():
        if key.startswith("blobs/") and (answer.body == PACKED) == (what == "layer"):
            answer.body = served
    with pytest.raises(ImageVerificationError):
        get(liar, store)


def test_a_layer_without_end(liar: Liar, store: Store) -> None:
    """The server does not say how long it is: reading ends at the size that was promised."""
    liar.image()
    answer = liar.answers[f"blobs/{make.sha256(PACKED)}"]
    answer.body, answer.endless = PACKED + bytes(20 << 20), True
    with pytest.raises(ImageVerificationError) as caught:
        get(liar, store)
    assert caught.value.actual == f"more than {len(PACKED)}"


def test_a_layer_that_is_not_what_the_configuration_says(liar: Liar, store: Store) -> None:
    liar.image(liar.blob(gzip.compress(make.tar([make.file("evil")])), make.TAR_GZIP))
    with pytest.raises(ImageVerificationError):
        get(liar, store)


@pytest.mark.parametrize("digest", ["sha256:../../../etc/passwd", "sha256:", "md5:" + "ab" * 16, "sha256:" + "AB" * 32, "x"])
@pytest.mark.parametrize("part", ["layer", "config", "index"])
def test_digests_that_are_paths(liar: Liar, store: Store, digest: str, part: str) -> None:
    if part == "layer":
        liar.image(liar.blob(PACKED, make.TAR_GZIP, digest=digest))
    elif part == "config":
        liar.image(config={**liar.config(LAYER), "digest": digest})
    else:
        entry = {"mediaType": make.MANIFEST, "digest": digest, "size": 10}
        liar.document({"schemaVersion": 2, "mediaType": make.INDEX, "manifests": [entry]}, make.INDEX, "1")
    with pytest.raises(ImageError, match="is not a digest"):
        get(liar, store)


def test_what_is_no_http(store: Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            for _ in range(8):
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)
                    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" * 3)

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        with pytest.raises(RegistryError):
            pull(parse(f"127.0.0.1:{server.getsockname()[1]}/app"), store, patience=QUICK)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


# --- to the wrong place ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/", "//", "http://", "http://[", "http://a b/", "http://x:99999/"]
)
@pytest.mark.parametrize("kind", ["manifests", "blobs"])
def test_redirects_to_what_is_not_http(liar: Liar, store: Store, target: str, kind: str) -> None:
    liar.image()
    for key in liar.answers:
        if key.startswith(kind):
            liar.answers[key] = Fault(status=307, headers={"Location": target})
    with pytest.raises(RegistryError):
        get(liar, store)


def test_redirects_in_a_circle(liar: Liar, store: Store) -> None:
    liar.answers["manifests/1"] = Fault(status=302, headers={"Location": "/v2/app/manifests/1"})
    with pytest.raises(RegistryError, match="more than 5 redirects"):
        get(liar, store)


def log_in(home: Path, host: str) -> None:
    entry = {"auth": make.base64_of("someone:secret")}
    (home / "auth.json").write_text(json.dumps({"auths": {host: entry}}))


@pytest.fixture
def logged_in(liar: Liar, settings: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """The liar wants a password, and gets it."""
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(settings / "auth.json"))
    log_in(settings, liar.middle.host)

    def challenge(more: Callable[[], None]) -> None:
        more()
        plain = dict(liar.answers)

        def rule(request: Request) -> Fault:
            if "Authorization" not in request.headers:
                return Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            return plain.get(request.path.removeprefix("/v2/app/"), Fault(status=404))

        liar.middle.rule(rule)

    return challenge


def test_a_redirect_does_not_take_the_password_along(
    liar: Liar, tmp_path: Path, logged_in: Callable[[Callable[[], None]], None]
) -> None:
    with registries.middle() as elsewhere:
        elsewhere.rule(lambda _: Fault(status=200, body=PACKED))

        def more() -> None:
            liar.image()
            there = f"http://{elsewhere.host}/cdn/layer"
            liar.answers[f"blobs/{make.sha256(PACKED)}"] = Fault(status=307, headers={"Location": there})

        logged_in(more)
        assert get(liar, Store(tmp_path / "fine")).image is not None
        assert any("Authorization" in each.headers for each in liar.middle.requests)
        (request,) = elsewhere.requests
        assert "Authorization" not in request.headers


@pytest.mark.parametrize("place", ["ftp://x/upload", "http://[", "http://x:99999/", "file:///tmp/x"])
def test_an_upload_place_that_is_none(liar: Liar, tmp_path: Path, place: str) -> None:
    from sandbox.images.distribution.push import push

    fine = Store(tmp_path / "fine")
    liar.image()
    stored = get(liar, fine).stored
    liar.middle.rule(
        lambda request: (
            Fault(status=202, headers={"Location": place}) if request.method == "POST" else Fault(status=404)
        )
    )
    with pytest.raises(RegistryError, match="no address of HTTP"):
        push(stored, parse(liar.middle.name("app:2")), fine, patience=QUICK)


def test_an_upload_place_elsewhere_does_not_get_the_password(
    liar: Liar, tmp_path: Path, logged_in: Callable[[Callable[[], None]], None]
) -> None:
    from sandbox.images.distribution.push import push

    fine = Store(tmp_path / "fine")
    liar.image()
    stored = get(liar, fine).stored
    with registries.middle() as elsewhere:
        elsewhere.rule(lambda _: Fault(status=201))

        def rule(request: Request) -> Fault:
            if "Authorization" not in request.headers:
                return Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            if request.method == "POST":
                return Fault(status=202, headers={"Location": f"http://{elsewhere.host}/upload"})
            return Fault(status=404 if request.method == "HEAD" else 201)

        liar.middle.rule(rule)
        push(stored, parse(liar.middle.name("app:2")), fine, patience=QUICK)
        assert elsewhere.requests
        assert not any("Authorization" in each.headers for each in elsewhere.requests)


@pytest.mark.parametrize("realm", ["file:///etc/passwd", "ftp://x/", "", "http://user:pw@127.0.0.1/", "https://", "http://["])
def test_token_servers_that_are_none(
    liar: Liar, store: Store, logged_in: Callable[[Callable[[], None]], None], realm: str
) -> None:
    liar.middle.rule(lambda _: Fault(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'}))
    with pytest.raises(AuthenticationError, match="token server"):
        get(liar, store)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"token": 7}', b'{"token": "a\\r\\nX: y"}', b'{"token": "\xc3\xa9"}', b"{" * 9999]
)
def test_tokens_that_are_none(liar: Liar, store: Store, body: bytes) -> None:
    def rule(request: Request) -> Fault:
        if request.path.startswith("/token"):
            return Fault(status=200, body=body)
        return Fault(status=401, headers={"WWW-Authenticate": f'Bearer realm="http://{liar.middle.host}/token"'})

    liar.middle.rule(rule)
    with pytest.raises(AuthenticationError, match="token"):
        get(liar, store)


@pytest.mark.parametrize("challenge", ["", "Negotiate", "Bearer", ",,,=", 'Basic realm="' + "x" * 9000])
def test_challenges_that_nobody_can_meet(liar: Liar, store: Store, challenge: str) -> None:
    liar.middle.rule(lambda _: Fault(status=401, headers={"WWW-Authenticate": challenge}))
    with pytest.raises(AuthenticationError):
        get(liar, store)


def test_what_it_says_is_not_obeyed_by_the_terminal(liar: Liar, store: Store) -> None:
    body = json.dumps({"errors": [{"code": "DENIED", "message": "\x1b]0;owned\x07no"}]}).encode()
    liar.middle.rule(lambda _: Fault(status=403, body=body))
    with pytest.raises(AuthenticationError) as caught:
        get(liar, store)
    assert "\x1b" not in str(caught.value)
    assert "owned?no (DENIED)" in str(caught.value)


def test_a_name_it_does_not_have(liar: Liar, store: Store) -> None:
    with pytest.raises(ImageNotFound, match="NAME_UNKNOWN"):
        get(liar, store)
