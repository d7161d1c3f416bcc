"""Images of mmdebstrap: its command line, and what becomes of what it writes; a stand-in takes its place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from build_helpers import base_archive
from gate import requires

import sandbox
from sandbox.build.mmdebstrap import command
from sandbox.errors import ImageError
from sandbox.images import Store, parse, resolve

ALWAYS = ["mmdebstrap", "--variant=minbase", "--format=tar", "--skip=output/dev"]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("mmdebstrap:bookworm", [*ALWAYS, "bookworm", "-"]),
        ("mmdebstrap:bookworm?include=redis-server,curl", [*ALWAYS, "--include=redis-server,curl", "bookworm", "-"]),
        ("mmdebstrap:sid?variant=apt&mirror=http://a/debian&mirror=deb%20http://b%20sid%20main&mode=unshare",
         ["mmdebstrap", "--variant=apt", *ALWAYS[2:], "--mode=unshare", "sid", "-", "http://a/debian",
          "deb http://b sid main"]),
    ],
)  # fmt: skip
def test_command_line(reference: str, words: list[str]) -> None:
    assert command(parse(reference)) == words


@pytest.mark.parametrize(
    ("reference", "what"),
    [
        ("mmdebstrap:", "the suite is missing"), ("mmdebstrap:--help", "the suite is missing"),
        ("mmdebstrap:sid?includ=x", "no parameter `includ`"), ("mmdebstrap:sid?variant=a&variant=b", "given twice"),
        ("mmdebstrap:sid?customize-hook=reboot", "no parameter"),
    ],
)  # fmt: skip
def test_refused(reference: str, what: str) -> None:
    with pytest.raises(ImageError, match=what):
        command(parse(reference))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name that writes an archive, and notes that it was called."""
    program = tmp_path / "bin" / "mmdebstrap"
    program.parent.mkdir()
    (tmp_path / "archive").write_bytes(base_archive())
    program.write_text(
        f"#!{sys.executable}\nimport sys\nopen('{tmp_path}/calls', 'a').write('x')\n"
        "if 'broken' in sys.argv:\n    sys.exit('E: no such suite')\n"
        f"sys.stdout.buffer.write(open('{tmp_path}/archive', 'rb').read())\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return tmp_path / "calls"


@requires("busybox", "subuid", "userns")
def test_made_once(stand_in: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    try:
        image = resolve("mmdebstrap:bookworm", store=store)
        again = resolve("mmdebstrap:bookworm", store=store)
        assert image.digest == again.digest
        assert stand_in.read_text() == "x"
        assert image.config.config is not None
        assert image.config.config.cmd == ("/bin/bash",)
        assert "app:x:1000" in image.users.passwd
        with pytest.raises(sandbox.BuildError, match="ended with status 1") as caught:
            resolve("mmdebstrap:broken", store=store)
        assert "E: no such suite" in caught.value.logs
    finally:
        for path in store.root.glob("layers/*/*"):
            store.remove_tree(path)


def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(sandbox.BuildError, match="not installed") as caught:
        resolve("mmdebstrap:bookworm", store=Store(tmp_path / "store"))
    assert caught.value.hint == "apt install mmdebstrap"
