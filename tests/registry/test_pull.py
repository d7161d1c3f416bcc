"""Pulling from real registries, of every kind, what skopeo has put there; and pushing it back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import images_helpers as make
import pytest
import registries
from gate import requires
from registries import Keys, Registry

from sandbox.errors import ImageNotFound
from sandbox.images import Store, resolve
from sandbox.images.distribution.pull import pull
from sandbox.images.distribution.push import push
from sandbox.images.distribution.transport import Patience
from sandbox.images.errors import AuthenticationError, PlatformNotFound, RegistryError
from sandbox.images.platforms import host_platform
from sandbox.images.references import parse
from sandbox.images.stored import Images

pytestmark = requires("docker-registry", "skopeo", "openssl", "userns")

HERE = host_platform()
LAYER = make.tar([make.directory("etc"), make.file("etc/passwd", "root:x:0:0::/:/bin/sh\n")])
UPPER = make.tar([make.directory("srv"), make.file("srv/hello", "hi\n")])
KINDS = ["plain", "tls", "basic", "token"]
Start = Callable[[str], Registry]


def log_in(home: Path, registry: Registry, password: str = registries.PASSWORD) -> None:
    auth = make.base64_of(f"{registries.USER}:{password}")
    (home / ".docker").mkdir(exist_ok=True)
    (home / ".docker/config.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))


def trust(home: Path, registry: Registry, keys: Keys) -> None:
    place = home / ".config/containers/certs.d" / registry.host
    place.mkdir(parents=True)
    (place / "ca.crt").write_bytes(keys.authority.read_bytes())


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest, started: Start, settings: Path, keys: Keys) -> Registry:
    found = started(request.param)
    if found.login:
        log_in(settings, found)
    if found.tls:
        trust(settings, found, keys)
    return found


def unique(request: pytest.FixtureRequest) -> str:
    """A repository of the test's own: registries live as long as the test process."""
    return make.sha256(request.node.nodeid.encode())[7:27]


def test_what_skopeo_pushed_is_pulled_and_pushed_back_the_same(
    registry: Registry, tmp_path: Path, store: Store, request: pytest.FixtureRequest
) -> None:
    layout = make.make_layout(tmp_path / "layout", LAYER, UPPER)
    name = f"{unique(request)}/app"
    digest = registry.put(layout, f"{name}:1")
    image = resolve(registry.name(f"{name}:1"), store=store)
    assert image.digest == digest
    assert (image.layers[1] / "srv/hello").read_text() == "hi\n"

    images = Images(store)
    stored = images.find(registry.name(f"{name}:1"))
    done = push(stored, parse(registry.name(f"{name}-back:2")), store)
    assert (done.digest, done.without_index) == (digest, None)
    assert registry.digest(f"{name}-back:2") == digest
    registry.skopeo("copy", f"@{name}-back:2", f"oci:{tmp_path}/again:latest")
    blobs = {path.name for path in (tmp_path / "again/blobs/sha256").iterdir()}
    assert {blob.digest[7:] for blob in stored.parts.blobs} == blobs


@requires("zstd")
@pytest.mark.parametrize("kind", ["zstd", "gzip", "plain", "docker"])
def test_compressions_and_formats(
    started: Start, tmp_path: Path, store: Store, request: pytest.FixtureRequest, kind: str
) -> None:
    import zstandard

    pack, media_type = {
        "zstd": (zstandard.compress, make.TAR_ZSTD),
        "plain": (bytes, make.TAR),
    }.get(kind, (None, make.TAR_GZIP))
    options: dict[str, Any] = {"media_type": media_type, **({"pack": pack} if pack else {})}
    layout = make.make_layout(tmp_path / "layout", LAYER, UPPER, **options)
    registry = started("plain")
    name = f"{unique(request)}:1"
    registry.put(layout, name, *(["--format", "v2s2"] if kind == "docker" else ["--preserve-digests"]))
    image = resolve(registry.name(name), store=store)
    assert (image.layers[1] / "srv/hello").read_text() == "hi\n"
    found = Images(store).find(registry.name(name))
    assert ("docker" in found.start.media_type) == (kind == "docker")
    if kind != "docker":
        assert {layer.media_type for layer in found.parts.layers} == {media_type}


def multi(tmp_path: Path) -> Path:
    layout = tmp_path / "multi"
    ours = make.put_image(layout, [LAYER], platform={"os": "linux", "architecture": HERE.architecture})
    other = make.put_image(layout, [UPPER], platform={"os": "linux", "architecture": "vax"})
    index = make.put_json(
        layout, {"schemaVersion": 2, "mediaType": make.INDEX, "manifests": [other, ours]}, make.INDEX
    )
    make.put_index(layout, make.tagged(index, "latest"))
    return layout


def test_of_an_index_only_our_part_is_fetched(
    started: Start, tmp_path: Path, store: Store, request: pytest.FixtureRequest
) -> None:
    registry = started("plain")
    name = f"{unique(request)}:1"
    registry.skopeo("copy", "--all", f"oci:{multi(tmp_path)}:latest", f"@{name}")
    image = resolve(registry.name(name), store=store)
    found = Images(store).find(registry.name(name))
    assert image.digest == found.parts.manifest.digest != found.digest
    assert (image.layers[0] / "etc/passwd").exists()
    assert not any(make.sha256(UPPER) in blob for blob, _ in store.blobs.items())

    done = push(found, parse(registry.name(name.replace(":", "-part:"))), store)
    assert (done.digest, done.without_index) == (image.digest, found.digest)


def test_all_of_an_index_goes_there_and_back(
    started: Start, tmp_path: Path, store: Store, request: pytest.FixtureRequest
) -> None:
    registry = started("plain")
    name = f"{unique(request)}:1"
    registry.skopeo("copy", "--all", f"oci:{multi(tmp_path)}:latest", f"@{name}")
    found = pull(parse(registry.name(name)), store, unpack=False, every_platform=True).stored
    back = name.replace(":", "-back:")
    done = push(found, parse(registry.name(back)), store)
    assert (done.digest, done.without_index) == (found.digest, None)
    raw = registry.skopeo("inspect", "--raw", f"@{back}")
    assert make.sha256(raw.encode()) == found.digest
    registry.skopeo("copy", "--all", f"@{back}", f"oci:{tmp_path}/again:latest")


def test_nothing_for_this_machine(
    started: Start, tmp_path: Path, store: Store, request: pytest.FixtureRequest
) -> None:
    layout = tmp_path / "layout"
    other = make.put_image(layout, [UPPER], platform={"os": "linux", "architecture": "vax"})
    index = make.put_json(
        layout, {"schemaVersion": 2, "mediaType": make.INDEX, "manifests": [other]}, make.INDEX
    )
    make.put_index(layout, make.tagged(index, "latest"))
    registry = started("plain")
    name = f"{unique(request)}:1"
    registry.skopeo("copy", "--all", f"oci:{layout}:latest", f"@{name}")
    with pytest.raises(PlatformNotFound, match="available: linux/vax"):
        resolve(registry.name(name), store=store)
    assert list(Images(store).items()) == []


def test_a_push_mounts_what_another_repository_has(
    started: Start, tmp_path: Path, store: Store, settings: Path, request: pytest.FixtureRequest
) -> None:
    registry = started("token")
    log_in(settings, registry)
    name = unique(request)
    registry.put(make.make_layout(tmp_path / "layout", LAYER, UPPER), f"{name}:1")
    found = pull(parse(registry.name(f"{name}:1")), store, unpack=False).stored
    first = push(found, parse(registry.name(f"{name}-other:1")), store)
    assert (first.sent, first.mounted, first.present) == (0, 3, 0)
    second = push(found, parse(registry.name(f"{name}-other:2")), store)
    assert (second.sent, second.mounted, second.present) == (0, 0, 3)


# --- who may --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["basic", "token"])
def test_without_or_with_wrong_credentials(
    started: Start, tmp_path: Path, store: Store, settings: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    registry = started(kind)
    name = f"{unique(request)}:1"
    registry.put(make.make_layout(tmp_path / "layout", LAYER), name)
    with pytest.raises(AuthenticationError) as caught:
        resolve(registry.name(name), store=store)
    assert f"podman login {registry.host}" in str(caught.value)
    log_in(settings, registry, "guess")
    with pytest.raises(AuthenticationError, match=registries.USER) as caught:
        resolve(registry.name(name), store=store)
    assert "guess" not in repr(caught.value) + str(caught.value)


def test_anybody_may_have_a_token_to_pull(
    started: Start, tmp_path: Path, store: Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with Docker Hub: a challenge all the same, and a token for nobody in particular. It is not for pushing."""
    registry = started("token")
    name = f"{unique(request)}:1"
    digest = registry.put(make.make_layout(tmp_path / "layout", LAYER, UPPER), name)
    tokens = registry.tokens  # type: ignore[attr-defined]
    monkeypatch.setattr(tokens, "anonymous", True)
    asked = len(tokens.asked)
    assert resolve(registry.name(name), store=store).digest == digest
    (seen,) = tokens.asked[asked:]
    assert seen[0] == "GET"
    assert seen[1]["scope"] == [f"repository:{unique(request)}:pull"]
    assert seen[2] is None
    with pytest.raises(AuthenticationError, match="asked anonymously"):
        push(Images(store).find(registry.name(name)), parse(registry.name(f"{name}-2")), store)


def test_an_identity_token_is_exchanged(
    started: Start, tmp_path: Path, store: Store, settings: Path, request: pytest.FixtureRequest
) -> None:
    registry = started("token")
    name = f"{unique(request)}:1"
    digest = registry.put(make.make_layout(tmp_path / "layout", LAYER), name)
    (settings / ".docker").mkdir()
    entry = {"auth": make.base64_of("00000000-0000-0000-0000-000000000000:"), "identitytoken": registries.PASSWORD}
    (settings / ".docker/config.json").write_text(json.dumps({"auths": {registry.host: entry}}))
    assert resolve(registry.name(name), store=store).digest == digest


def test_a_credential_helper_is_asked(
    started: Start,
    tmp_path: Path,
    store: Store,
    settings: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    registry = started("basic")
    name = f"{unique(request)}:1"
    digest = registry.put(make.make_layout(tmp_path / "layout", LAYER), name)
    tools = tmp_path / "tools"
    tools.mkdir()
    answer = json.dumps({"ServerURL": registry.host, "Username": registries.USER, "Secret": registries.PASSWORD})
    helper = tools / "docker-credential-tests"
    helper.write_text(f"#!/bin/sh\nread server\n[ \"$server $1\" = '{registry.host} get' ] && echo '{answer}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    run = settings / "run/containers"
    run.mkdir(parents=True)
    (run / "auth.json").write_text(json.dumps({"credHelpers": {registry.host: "tests"}}))
    assert resolve(registry.name(name), store=store).digest == digest


def test_a_certificate_that_nobody_vouches_for(
    started: Start, tmp_path: Path, store: Store, settings: Path, request: pytest.FixtureRequest
) -> None:
    registry = started("tls")
    name = f"{unique(request)}:1"
    digest = registry.put(make.make_layout(tmp_path / "layout", LAYER), name)
    with pytest.raises(RegistryError, match="its certificate does not verify") as caught:
        resolve(registry.name(name), store=store)
    assert f"/etc/containers/certs.d/{registry.host}/ca.crt" in str(caught.value)
    (settings / "registries.conf").write_text(f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n')
    assert resolve(registry.name(name), store=store).digest == digest


# --- registries.conf ------------------------------------------------------------------------------


def test_mirrors_aliases_and_blocked_names(
    started: Start, tmp_path: Path, store: Store, settings: Path, request: pytest.FixtureRequest
) -> None:
    registry = started("plain")
    place = unique(request)
    digest = registry.put(make.make_layout(tmp_path / "layout", LAYER), f"{place}/hub/library/thing:3")
    (settings / "registries.conf").write_text(f"""
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "127.0.0.1:1/dead"
[[registry.mirror]]
location = "{registry.host}/{place}/hub"
[[registry]]
prefix = "evil.example/app"
blocked = true
[aliases]
short = "docker.io/library/thing"
""")
    assert resolve("short:3", store=store).digest == digest
    assert [each.name for each in Images(store).names.items()] == ["docker.io/library/thing:3"]
    assert resolve("thing:3", store=store, pull="never").digest == digest
    with pytest.raises(RegistryError, match=r"registries\.conf blocks `evil\.example/app`"):
        resolve("evil.example/app:1", store=store)


# --- policies -------------------------------------------------------------------------------------


def test_policies(
    started: Start, tmp_path: Path, store: Store, request: pytest.FixtureRequest
) -> None:
    registry = started("plain")
    name = f"{unique(request)}:1"
    full = registry.name(name)
    with pytest.raises(ImageNotFound, match="nothing is fetched"):
        resolve(full, store=store, pull="never")
    with pytest.raises(ImageNotFound, match="has no tag `1`"):
        resolve(full, store=store)
    old = registry.put(make.make_layout(tmp_path / "old", LAYER), name)
    assert resolve(full, store=store).digest == old
    new = registry.put(make.make_layout(tmp_path / "new", UPPER), name)
    assert resolve(full, store=store).digest == old
    assert resolve(full, store=store, pull="never").digest == old
    assert resolve(full, store=store, pull="always").digest == new
    assert resolve(full, store=store).digest == new
    assert resolve(f"{registry.name(name.partition(':')[0])}@{old}", store=store, pull="never").digest == old


def test_what_was_lost_from_the_store_is_fetched_again(
    started: Start, tmp_path: Path, store: Store, request: pytest.FixtureRequest
) -> None:
    registry = started("plain")
    name = f"{unique(request)}:1"
    registry.put(make.make_layout(tmp_path / "layout", LAYER, UPPER), name)
    found = pull(parse(registry.name(name)), store, unpack=False).stored
    lost = store.root / "blobs" / found.parts.layers[1].digest.replace(":", "/")
    lost.unlink()
    assert (resolve(registry.name(name), store=store).layers[1] / "srv/hello").exists()
    assert lost.exists()


def test_nobody_is_there(store: Store) -> None:
    with pytest.raises(RegistryError, match="Connection refused"):
        pull(parse("127.0.0.1:1/x"), store, patience=Patience(connect=2))
    with pytest.raises(RegistryError, match="the name cannot be resolved"):
        pull(parse("registry.invalid/x"), store, patience=Patience(connect=2))
