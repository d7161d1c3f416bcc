"""Credentials in the files of podman and docker, and from helpers; challenges and what they are answered with."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import images_helpers as make
import pytest

from sandbox.images.distribution.auth import parse_challenges
from sandbox.images.distribution.credentials import Credentials, find
from sandbox.images.errors import AuthenticationError, RateLimited

HUB = "https://index.docker.io/v1/"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def entry(name: str) -> dict[str, str]:
    return {"auth": make.base64_of(f"{name}:pass:word")}


def found(host: str = "r.example", repository: str = "a/b") -> str | None:
    credentials = find(host, repository)
    assert credentials is None or credentials.password == "pass:word"
    return credentials.username if credentials is not None else None


def test_nothing_is_there(home: Path) -> None:
    assert find("r.example", "x") is None


def test_the_first_file_that_knows_rules(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".docker/config.json", {"auths": {"r.example": entry("docker"), "d.example": entry("only docker")}})
    assert found() == "docker"
    write(home / "config/containers/auth.json", {"auths": {"r.example": entry("podman")}})
    assert found() == "podman"
    write(home / "run/containers/auth.json", {"auths": {"r.example": entry("session")}})
    assert found() == "session"
    assert found("d.example") == "only docker"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(write(home / "mine.json", {"auths": {"r.example": entry("mine")}})))
    assert found() == "mine"
    assert found("d.example") is None


def test_a_directory_of_somebody_else_is_no_obstacle(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """podman of root makes /run/containers for itself alone."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("os.getuid", lambda: 2_000_000_000)
    write(home / ".docker/config.json", {"auths": {"r.example": entry("docker")}})
    assert found() == "docker"


def test_the_most_specific_entry_rules(home: Path) -> None:
    auths = {"r.example": entry("host"), "r.example/a": entry("team"), "r.example/a/b": entry("app")}
    write(home / ".docker/config.json", {"auths": auths})
    assert [found("r.example", name) for name in ("a/b", "a/c", "other", "ab")] == ["app", "team", "host", "host"]
    assert found("r.example:5000") is None


@pytest.mark.parametrize("key", [HUB, "index.docker.io", "docker.io", "https://index.docker.io/v1", "registry-1.docker.io"])
def test_docker_hub_has_many_names(home: Path, key: str) -> None:
    write(home / ".docker/config.json", {"auths": {key: entry("hub")}})
    assert found("docker.io", "library/redis") == "hub"


def test_other_forms_of_an_entry(home: Path) -> None:
    auths = {
        "https://old.example/v2/": {"username": "u", "password": "pass:word"},
        "token.example": {"auth": make.base64_of("0:"), "identitytoken": "long"},
        "nul.example": {"auth": make.base64_of("u:pass:word\0")},
        "empty.example": {},
    }
    write(home / ".docker/config.json", {"auths": auths})
    assert found("old.example") == "u"
    assert find("token.example", "x") == Credentials("0", "", "long", str(home / ".docker/config.json"))
    assert found("nul.example") == "u"
    assert found("empty.example") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": {"r.example": {"auth": "*"}}}',
                                  '{"auths": {"r.example": {"auth": "bm9jb2xvbg=="}}}'])  # fmt: skip
def test_a_bad_file_is_named(home: Path, text: str) -> None:
    path = write(home / ".docker/config.json", text)
    with pytest.raises(AuthenticationError) as caught:
        find("r.example", "x")
    assert caught.value.path == str(path)


def helper(home: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = write(home / "bin/docker-credential-tests", f"#!/bin/sh\nread server\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}/bin:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("config", "host", "asked"),
    [
        ({"credHelpers": {"r.example": "tests"}}, "r.example", "r.example"),
        ({"credsStore": "tests"}, "r.example", "r.example"),
        ({"credsStore": "tests"}, "docker.io", HUB),
        ({"credHelpers": {"docker.io": "tests"}, "credsStore": "never"}, "docker.io", "docker.io"),
        ({"credsStore": "tests", "auths": {"r.example": {}}}, "r.example", "r.example"),
    ],
)
def test_helpers_are_asked(
    home: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], host: str, asked: str
) -> None:
    write(home / ".docker/config.json", config)
    helper(home, monkeypatch, 'echo "{\\"Username\\": \\"$server\\", \\"Secret\\": \\"pass:word\\"}"')
    assert found(host) == asked


def test_helpers_that_know_nothing_or_have_a_token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".docker/config.json", {"credsStore": "tests"})
    helper(home, monkeypatch, "echo credentials not found in native keychain; exit 1")
    assert find("r.example", "x") is None
    helper(home, monkeypatch, """echo '{"Username": "<token>", "Secret": "long"}'""")
    assert find("r.example", "x") == Credentials("", "", "long", "docker-credential-tests")


@pytest.mark.parametrize("script", ["echo locked >&2; exit 1", "echo no json", "echo []", "kill -9 $$"])
def test_helpers_that_fail_are_told(home: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = write(home / ".docker/config.json", {"credsStore": "tests"})
    if script.startswith("kill"):
        script = f"echo broken; {script}"
    helper(home, monkeypatch, script)
    with pytest.raises(AuthenticationError, match="docker-credential-tests") as caught:
        find("r.example", "x")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["nosuchhelper", "../evil"])
def test_helpers_that_are_none(home: Path, name: str) -> None:
    write(home / ".docker/config.json", {"credHelpers": {"r.example": name}})
    with pytest.raises(AuthenticationError):
        find("r.example", "x")
    assert find("other.example", "x") is None


def test_secrets_are_not_shown() -> None:
    text = repr(Credentials("u", "hidden", "hidden too", "file"))
    assert "hidden" not in text


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (["Basic realm=x"], [("basic", {"realm": "x"})]),
        (
            ['Bearer realm="https://a/t?x=1,2",service="s",scope="repository:a/b:pull,push"'],
            [("bearer", {"realm": "https://a/t?x=1,2", "service": "s", "scope": "repository:a/b:pull,push"})],
        ),
        (['Basic realm="a \\"b\\""'], [("basic", {"realm": 'a "b"'})]),
        (['Basic realm="x", Bearer realm="y"'], [("basic", {"realm": "x"}), ("bearer", {"realm": "y"})]),
        (["Negotiate", "BEARER Realm = y"], [("negotiate", {}), ("bearer", {"realm": "y"})]),
        (['realm="x"'], []),
        (["", ",,", "é"], []),
    ],
)
def test_challenges(headers: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [tuple(each) for each in parse_challenges(headers) if each.scheme.isascii()] == expected


def test_the_errors_survive_pickling() -> None:
    error = RateLimited("x", retry_after=3.0, registry="r", status=429, hint="wait")
    again = pickle.loads(pickle.dumps(error))
    assert (again.retry_after, again.status, str(again)) == (3.0, 429, str(error))
