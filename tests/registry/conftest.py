"""Registries of every kind, once for each test process; and nothing of this user's settings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import registries
from registries import Keys, Registry

from sandbox.images import Store

KINDS = ("plain", "tls", "basic", "token")


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory without settings; registries.conf in it is the only one that is read."""
    home = tmp_path / "home"
    (home / ".config/containers").mkdir(parents=True)
    (home / "registries.conf").touch()
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME", "SANDBOX_PULL", "SANDBOX_LOCK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(home / "registries.conf"))
    return home


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SANDBOX_STORE", str(tmp_path / "store"))
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("keys") / "keys")


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Callable[[str], Registry]]:
    """A registry of a kind, started when it is first wanted."""
    running: dict[str, Registry] = {}
    with contextlib.ExitStack() as stack:

        def start(kind: str) -> Registry:
            if kind not in running:
                work = tmp_path_factory.mktemp(kind)
                running[kind] = make_registry(kind, work, keys, stack)
                stack.callback(running[kind].close)
            return running[kind]

        yield start


def make_registry(kind: str, work: Path, keys: Keys, stack: contextlib.ExitStack) -> Registry:
    if kind == "plain":
        return Registry(work)
    tls = {"certificate": str(keys.directory / "tls.crt"), "key": str(keys.directory / "tls.key")}
    if kind == "tls":
        return Registry(work, http={"tls": tls})
    if kind == "basic":
        (work / "htpasswd").write_text(f"{registries.USER}:{registries.PASSWORD_BCRYPT}\n")
        found = Registry(work, auth={"htpasswd": {"realm": "tests", "path": str(work / "htpasswd")}})
    else:
        server = stack.enter_context(
            registries.serving(registries.TokenHandler, keys=keys, asked=[], anonymous=False)
        )
        realm = f"http://127.0.0.1:{server.server_address[1]}/token"
        bundle = str(keys.directory / "token.crt")
        found = Registry(
            work, auth={"token": {"realm": realm, "service": "registry", "issuer": "tests", "rootcertbundle": bundle}}
        )
        found.tokens = server  # type: ignore[attr-defined]
    found.login = f"{registries.USER}:{registries.PASSWORD}"
    return found
