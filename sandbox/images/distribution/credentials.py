"""Who we are to a registry: what ``podman login`` and ``docker login`` have written down.

Files in order: ``$REGISTRY_AUTH_FILE`` alone if it is set; else podman's
(``$XDG_RUNTIME_DIR/containers/auth.json``, ``$XDG_CONFIG_HOME/containers/auth.json``) and docker's
(``$DOCKER_CONFIG/config.json``, by default in ``~/.docker``). The first that knows something rules. See
containers-auth.json(5); helpers are programs ``docker-credential-NAME``, asked over their standard input.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from sandbox.images.errors import AuthenticationError

__all__ = ["Credentials", "find"]

#: What docker files Docker Hub under.
_HUB = "https://index.docker.io/v1/"
_HUB_HOSTS = ("docker.io", "index.docker.io", "registry-1.docker.io")
#: What a helper calls the user when its secret is an identity token.
_TOKEN_USER = "<token>"  # noqa: S105 - no secret
_HELPER_SECONDS = 60.0  # it may ask a person to unlock something


@attrs.frozen
class Credentials:
    """A name and a password, or an identity token to exchange for others. ``repr`` has no secrets."""

    username: str
    password: str = attrs.field(default="", repr=False)
    #: OAuth 2 refresh token.
    identity_token: str = attrs.field(default="", repr=False)
    #: Where they are from, for messages.
    origin: str = ""


def find(host: str, repository: str) -> Credentials | None:
    """Credentials for a repository; ``None`` if no file has any.

    :param host: as in the reference, ``docker.io``
    :raises AuthenticationError: a file is unreadable, or a helper it names does not work
    """
    for path in _files():
        document = _read(path, host)
        if document is not None and (found := _in_file(document, path, host, repository)) is not None:
            return found
    return None


def _files() -> Iterator[Path]:
    if given := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(given)
        return
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers/auth.json"
    elif os.path.exists(path := f"/run/containers/{os.getuid()}/auth.json"):
        yield Path(path)  # where podman of root has made /run/containers for itself, others have nothing there
    yield Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "containers/auth.json"
    yield Path(os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")) / "config.json"


def _read(path: Path, host: str) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise AuthenticationError(
            operation="read credentials", path=path, errno=error.errno, registry=host
        ) from error
    except ValueError as error:
        raise _bad(path, host, str(error)) from error
    if not isinstance(document, dict):
        raise _bad(path, host, "not a JSON object")
    return document


def _bad(path: Path, host: str, cause: str) -> AuthenticationError:
    return AuthenticationError(
        "it is not as containers-auth.json(5) has it", operation="read credentials", path=path, registry=host,
        cause=cause, hint="write it anew with `podman login` or `docker login`",
    )  # fmt: skip


def _in_file(document: dict[str, Any], path: Path, host: str, repository: str) -> Credentials | None:
    helpers = _table(document, "credHelpers")
    for key in _server_names(host):
        if isinstance(helper := helpers.get(key), str) and helper:
            return _ask(helper, key, path, host)
    entry = _entry(_table(document, "auths"), host, repository)
    if entry is not None and (found := _from_entry(entry, path, host)) is not None:
        return found
    store = document.get("credsStore")
    if isinstance(store, str) and store:
        return _ask(store, _HUB if host in _HUB_HOSTS else host, path, host)
    return None


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _server_names(host: str) -> tuple[str, ...]:
    """What a registry may be filed under."""
    return (*_HUB_HOSTS, _HUB) if host in _HUB_HOSTS else (host,)


def _entry(entries: dict[str, Any], host: str, repository: str) -> dict[str, Any] | None:
    """The most specific entry: of the repository, of a part of its path, of the host."""
    known = {_without_scheme(key): value for key, value in entries.items() if isinstance(value, dict)}
    parts = repository.split("/")
    paths = ["/".join(parts[:length]) for length in range(len(parts), -1, -1)]
    names = [f"{server}/{path}".rstrip("/") for path in paths for server in map(_without_scheme, _server_names(host))]
    return next((known[name] for name in names if name in known), None)


def _without_scheme(key: str) -> str:
    """``https://index.docker.io/v1/`` is how docker writes ``index.docker.io``."""
    bare = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    return bare.removesuffix("/v1").removesuffix("/v2") if bare != key.rstrip("/") else bare


def _from_entry(entry: dict[str, Any], path: Path, host: str) -> Credentials | None:
    token = entry.get("identitytoken")
    token = token if isinstance(token, str) else ""
    auth = entry.get("auth")
    if not isinstance(auth, str) or not auth:
        username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
        return Credentials(username, password, token, str(path)) if username or token else None
    try:
        username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise _bad(path, host, f"`auth` of {host} is not base64: {error}") from error
    if not colon:
        raise _bad(path, host, f"`auth` of {host} has no colon between name and password")
    return Credentials(username, password.rstrip("\0"), token, str(path))


def _ask(helper: str, server: str, path: Path, host: str) -> Credentials | None:
    """Ask a helper; ``None`` if it has nothing for this server."""
    program = f"docker-credential-{helper}"
    if "/" in helper:
        raise _bad(path, host, f"`{helper}` is not the name of a helper")
    try:
        done = subprocess.run(
            [program, "get"], input=server, capture_output=True, text=True, check=False, timeout=_HELPER_SECONDS
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else None
    except FileNotFoundError:
        raise _helper_failed(program, path, host, "the program is not installed") from None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise _helper_failed(program, path, host, str(error)) from error
    if done.returncode:
        words = f"{done.stdout}\n{done.stderr}".strip()
        if "not found" in words or not words:
            return None
        raise _helper_failed(program, path, host, words[:500])
    if not isinstance(answer, dict):
        raise _helper_failed(program, path, host, "its answer is not a JSON object")
    username, secret = str(answer.get("Username") or ""), str(answer.get("Secret") or "")
    if username == _TOKEN_USER:
        return Credentials("", "", secret, program)
    return Credentials(username, secret, "", program) if username else None


def _helper_failed(program: str, path: Path, host: str, cause: str) -> AuthenticationError:
    return AuthenticationError(
        f"{path} names a helper that does not work", operation="ask for credentials", object=program, registry=host,
        cause=cause, hint=f"install {program}, or take it out of {path}",
    )  # fmt: skip
