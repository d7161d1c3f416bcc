"""``sandbox build`` as people use it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from build_contexts import make
from build_helpers import store_base
from gate import requires

from sandbox.images import Store

pytestmark = requires("userns", "overlay", "busybox", "subuid")

TEXT = "FROM localhost/base:1 AS first\nARG WORD=plain\nRUN echo said $WORD > /word\nFROM first\nCMD [\"cat\", \"/word\"]\n"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    store_base(store)
    yield store
    for path in [*store.root.glob("layers/*/*"), *store.root.glob("tmp/*")]:
        store.remove_tree(path)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    return make(tmp_path / "context", {"Dockerfile": TEXT})


def test_build_and_run(cli: Any, store: Store, context: Path) -> None:
    environ = {**os.environ, "SANDBOX_STORE": str(store.root)}
    done = cli("build", "-t", "shop/api:2", "--build-arg", "WORD", ".", cwd=context, env={**environ, "WORD": "loud"})
    assert done.returncode == 0, done.stderr
    digest, name = done.stdout.splitlines()
    assert name == "docker.io/shop/api:2"
    assert "[first 3/3] RUN echo said $WORD > /word" in done.stderr
    assert cli("run", "shop/api:2", env=environ).stdout == "said loud\n"
    quiet = cli("build", "-q", "--build-arg", "WORD=loud", str(context), env=environ)
    assert (quiet.stdout, quiet.stderr) == (f"{digest}\n", "")
    facts = json.loads(cli("build", "--json", "--build-arg", "WORD=loud", str(context), env=environ).stdout)
    assert (facts["digest"], facts["cached"]) == (digest, 1)


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ((), 2, "expected a directory"), (("--network=mine", "."), 2, "there is `host` and `none`"),
        (("--label=x", "."), 2, "expected NAME=VALUE"), (("--build-arg=NO_SUCH_VARIABLE", "."), 2, "no such environment"),
        (("--secret=id=x", "."), 2, "expected id=ID,src=FILE"), (("--target=none", "."), 1, "the stages are first, 1"),
        (("/none",), 1, "there is no such directory"), (("-f", "/none", "."), 1, "No such file"),
    ],
)  # fmt: skip
def test_wrong_usage(cli: Any, store: Store, context: Path, arguments: tuple[str, ...], status: int, text: str) -> None:
    done = cli("build", *arguments, cwd=context, env={**os.environ, "SANDBOX_STORE": str(store.root)})
    assert done.returncode == status, done.stderr
    assert text in done.stderr


def test_the_help_has_examples(cli: Any) -> None:
    assert "sandbox build -t shop/api:2" in cli("build", "--help").stdout
