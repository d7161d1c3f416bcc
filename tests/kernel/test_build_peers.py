"""The same Dockerfiles here and in podman (buildah): the same files, modes, owners and configuration."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from build_contexts import CONTEXTS, make
from build_helpers import Podman, base_archive, store_base, tree_of
from gate import requires

from sandbox.build.draft import Draft
from sandbox.build.executor import Settings
from sandbox.build.source import build
from sandbox.images import Store
from sandbox.images.save import save

pytestmark = requires("root", "userns", "overlay", "busybox", "podman")

#: Mount points that buildah leaves behind; docker does not, and neither do we.
STUBS = {"etc/hosts", "etc/hostname", "etc/resolv.conf", "run/secrets"}


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Podman, Path]]:
    """A store of ours and one of podman's with the same base image."""
    home = tmp_path_factory.mktemp("peers")
    store, archive = Store(home / "ours"), base_archive()
    (home / "base.tar").write_bytes(archive)
    store_base(store, archive=archive)
    # podman takes no run directory of more than 50 characters.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="sp", ignore_cleanup_errors=True) as short:
        patch.setenv("SANDBOX_STORE", str(store.root))
        podman = Podman(Path(short))
        podman("import", "-c", 'CMD ["sh"]', "-c", "ENV PATH=/bin:/usr/bin", home / "base.tar", "localhost/base:1")
        yield store, podman, home


def config_of(document: dict[str, Any]) -> dict[str, Any]:
    """What is compared: order of variables and labels of the tool itself mean nothing."""
    labels = {key: value for key, value in (document.get("Labels") or {}).items() if not key.startswith("io.buildah.")}
    return {
        **{name: document.get(name) or None for name in ("Cmd", "Entrypoint", "ExposedPorts", "StopSignal", "User", "Volumes",
                                                         "WorkingDir")},
        "Env": sorted(document.get("Env") or ()), "Labels": labels,
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CONTEXTS if name != "parent"])
def test_same_image(name: str, peers: tuple[Store, Podman, Path], tmp_path: Path) -> None:
    store, podman, home = peers
    for each in ("parent", "child") if name == "child" else (name,):
        context = make(tmp_path / each, CONTEXTS[each])
        secret = ["--secret", f"id=token,src={context}/token"] if each == "mounts" else []
        tag = f"localhost/{each}:1"
        podman("build", "--isolation=chroot", "--format=docker", "--layers=false", *secret, "-t", tag, context)
        settings = Settings(secrets={"token": context / "token"})
        ours = build(context, store=store, tags=(tag,), settings=settings)
        assert build(context, store=store, settings=settings).digest == ours.digest, "the second build does nothing"
    saved = home / f"{name}.tar"
    podman("save", "-q", "--format", "docker-archive", "-o", saved, f"localhost/{name}:1")
    theirs = tree_of(store, f"docker-archive:{saved}")
    assert tree_of(store, ours.digest) == {path: entry for path, entry in theirs.items() if path not in STUBS}
    inspected = json.loads(podman("image", "inspect", f"localhost/{name}:1"))[0]["Config"]
    assert config_of(dict(Draft.known(store, ours.digest).config)) == config_of(inspected)


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_podman_takes_what_was_built_here(form: str, peers: tuple[Store, Podman, Path], tmp_path: Path) -> None:
    """It loads the image, exports the same files, and builds on it."""
    store, podman, home = peers
    context = make(tmp_path / "c", CONTEXTS["changes"])
    tag = f"localhost/ours-{form}:1"
    ours = build(context, store=store, tags=(tag,))
    file = home / f"ours-{form}.tar"
    with file.open("wb") as out:
        save([ours], store, out, form)
    podman("load", "-q", "-i", file)
    podman("save", "-q", "--format", "docker-archive", "-o", home / f"again-{form}.tar", tag)
    assert tree_of(store, f"docker-archive:{home}/again-{form}.tar") == tree_of(store, ours.digest)
    make(tmp_path / "d", {"Dockerfile": f"FROM {tag}\nRUN test -e /d/a/new -a ! -e /d/a/b\n"})
    podman("build", "--isolation=chroot", tmp_path / "d")
