"""Which addresses are followed, which proxies are asked, what is whose certificate."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.images.distribution.addresses import Origin, Trust, check_redirect, is_loopback, joined, usable
from sandbox.images.distribution.client import media_type_of
from sandbox.images.distribution.proxies import proxy_authorization, proxy_for
from sandbox.images.distribution.tls import make_context
from sandbox.images.documents import INDEXES, MANIFESTS
from sandbox.images.errors import RegistryError

STRICT, LAX, NEAR = Trust(), Trust(plain=True, verify=False), Trust(plain=True)


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.8.9.1", True),
        ("[::1]:5000", True),
        ("app.localhost", True),
        ("localhost.example", False),
        ("127.example", False),
        ("127.0.0.1.example:5000", False),
        ("127.0.0.1@far.example", False),
        ("10.0.0.1", False),
        ("[::2]", False),
    ],
)
def test_what_is_this_machine(host: str, near: bool) -> None:
    assert is_loopback(host) is near


@pytest.mark.parametrize("target", ["file:///etc/passwd", "//", "http://", "http://[", "http://x:99999/", "ftp://x/"])
def test_what_is_no_address(target: str) -> None:
    if target != "//":  # the same place, as browsers see it
        with pytest.raises(RegistryError, match="no address of HTTP"):
            joined("https://r.example/v2/", target)


def test_relative_addresses() -> None:
    assert joined("https://r.example/v2/a/", "/v2/b") == "https://r.example/v2/b"
    assert joined("https://r.example/v2/a/", "//cdn.example/x") == "https://cdn.example/x"


def test_no_request_without_tls_unless_it_is_wanted() -> None:
    with pytest.raises(RegistryError, match="without TLS"):
        usable("http://r.example/v2/", STRICT)
    assert usable("http://r.example/v2/", LAX).hostname == "r.example"
    with pytest.raises(RegistryError, match="from TLS to plain HTTP"):
        check_redirect("https://r.example/a", "http://cdn.example/b", NEAR)
    check_redirect("https://r.example/a", "http://cdn.example/b", LAX)
    check_redirect("https://r.example/a", "https://cdn.example/b", STRICT)


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "no", "all"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


def test_proxies(no_proxies: None, monkeypatch: pytest.MonkeyPatch) -> None:
    far, near = Origin("https", "r.example", 443), Origin("http", "127.0.0.1", 5000)
    assert proxy_for(far) is None
    monkeypatch.setenv("HTTPS_PROXY", "http://us%65r:p%40ss@proxy.example:3128")
    found = proxy_for(far)
    assert found is not None
    assert (found.hostname, found.port) == ("proxy.example", 3128)
    assert proxy_authorization(found) == {"Proxy-Authorization": "Basic dXNlcjpwQHNz"}
    assert proxy_for(near) is None
    monkeypatch.setenv("NO_PROXY", ".example")
    assert proxy_for(far) is None
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.example:1080")
    with pytest.raises(RegistryError, match="not one of plain HTTP"):
        proxy_for(far)


def test_a_certificate_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    place = tmp_path / "containers/certs.d/r.example:5000"
    place.mkdir(parents=True)
    assert make_context("r.example:5000", verify=True).check_hostname
    assert not make_context("r.example:5000", verify=False).check_hostname
    (place / "ca.crt").write_text("not a certificate")
    with pytest.raises(RegistryError) as caught:
        make_context("r.example:5000", verify=True)
    assert caught.value.path == str(place / "ca.crt")


@pytest.mark.parametrize(
    ("content", "said", "expected"),
    [
        (b"{}", MANIFESTS[1], MANIFESTS[1]),
        (b'{"mediaType": "%s"}' % INDEXES[1].encode(), "application/json", INDEXES[1]),
        (b'{"mediaType": "x"}', "text/html", "text/html"),
        (b'{"manifests": []}', "", INDEXES[0]),
        (b'{"layers": []}', "text/plain", MANIFESTS[0]),
        (b"{}", "", "none"),
    ],
)
def test_what_a_manifest_is(content: bytes, said: str, expected: str) -> None:
    assert media_type_of(content, said, "image") == expected
