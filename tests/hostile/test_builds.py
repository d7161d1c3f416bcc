"""Dockerfiles and base images that name more than what is theirs to name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from build_contexts import make
from build_helpers import own_store, store_base, tree_of
from gate import requires

import sandbox
from sandbox.build.bases import check_reach
from sandbox.build.dockerfile import parse_instruction
from sandbox.build.draft import Draft
from sandbox.build.errors import BuildError
from sandbox.build.executor import Settings
from sandbox.build.source import build
from sandbox.images import Store
from sandbox.images.stored import Images

pytestmark = requires("userns", "overlay", "busybox", "subuid")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with own_store(tmp_path / "store") as store:
        yield store


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A directory of the host that looks like a root file system, with something that is nobody's business."""
    root = tmp_path / "home"
    for name in ("bin", "etc", "lib", "usr/bin"):
        (root / name).mkdir(parents=True)
    (root / "bin/sh").touch()
    (root / "etc/key").write_text("secret\n")
    return root


DIRECT = ["FROM dir:{0}", "FROM {0}", "FROM build:{0}", "FROM oci:{0}", "FROM host", "FROM docker-archive:{0}"]
INDIRECT = ["COPY --from=dir:{0} /etc/key /key", "COPY --from={0} /etc/key /key", "COPY --from=host /etc/passwd /key",
            "RUN --mount=type=bind,from=dir:{0},target=/t cat /t/etc/key > /key"]  # fmt: skip


@pytest.mark.parametrize("text", [*DIRECT, *(f"FROM localhost/base:1\n{step}" for step in INDIRECT)])
def test_a_dockerfile_names_nothing_of_this_machine(tmp_path: Path, store: Store, secret: Path, text: str) -> None:
    make(tmp_path / "context", {"Dockerfile": text.format(secret) + "\n"})
    with pytest.raises(BuildError, match="a Dockerfile may name stages") as caught:
        build(tmp_path / "context", store=store)
    assert "--local-images" in str(caught.value)
    with pytest.raises(BuildError):
        sandbox.run(["true"], image=f"build:{tmp_path}/context")


@pytest.mark.parametrize("step", INDIRECT)
@pytest.mark.parametrize("trusted", [False, True])
def test_nor_does_a_base_image(tmp_path: Path, store: Store, secret: Path, step: str, trusted: bool) -> None:
    draft = Draft.known(store, store_base(store)).configured(OnBuild=[step.format(secret)])
    Images(store).add(draft.save(store), name="localhost/trap:1")
    make(tmp_path / "context", {"Dockerfile": "FROM localhost/trap:1\n"})
    with pytest.raises(BuildError, match="ONBUILD of a base image"):
        build(tmp_path / "context", store=store, settings=Settings(local_images=trusted))
    with pytest.raises(BuildError, match="ONBUILD of a base image"):
        sandbox.run(["true"], image=sandbox.Image("localhost/trap:1"))


def test_who_builds_may_say_that_it_may(tmp_path: Path, store: Store, secret: Path) -> None:
    text = f"FROM localhost/base:1\nCOPY --from=dir:{secret} /etc/key /key\n"
    make(tmp_path / "context", {"Dockerfile": text})
    made = build(tmp_path / "context", store=store, settings=Settings(local_images=True))
    assert "key" in tree_of(store, made.digest)
    copied = sandbox.Image("localhost/base:1").copy("/etc/key", "/key", source=f"dir:{secret}")
    assert sandbox.run(["cat", "/key"], image=copied).stdout == "secret\n"


@pytest.mark.parametrize(
    "query", ["aptopt=APT::Update::Pre-Invoke {\"id\";}", "dpkgopt=pre-invoke=id", "mode=root", "keyring=/k", "include=./a.deb",
              "include=/a.deb", "mirror=http://x/", "include=a&mode=chrootless", "customize-hook=id"],
)  # fmt: skip
def test_of_mmdebstrap_only_what_names_packages(query: str) -> None:
    by = parse_instruction("FROM x")
    check_reach("mmdebstrap:bookworm?include=redis-server,python3.11&variant=apt", by)
    with pytest.raises(BuildError, match="a Dockerfile may name"):
        check_reach(f"mmdebstrap:bookworm?{query}", by)


def test_running_commands_is_not_reached_by_a_dockerfile(tmp_path: Path, store: Store) -> None:
    done = tmp_path / "done"
    hook = f"APT::Update::Pre-Invoke%20%7B%22touch%20{done}%22;%7D"
    make(tmp_path / "context", {"Dockerfile": f"FROM mmdebstrap:bookworm?aptopt={hook}\n"})
    with pytest.raises(BuildError):
        build(tmp_path / "context", store=store)
    assert not os.path.exists(done)
