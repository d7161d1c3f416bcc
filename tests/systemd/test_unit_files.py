"""The unit files that come with us: what is written where, that systemd takes it, and that it works."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from gate import requires

import sandbox
from sandbox.services import unitfiles
from sandbox.services.unitfiles import unit_files, write


@pytest.fixture(params=[False, True], ids=["system", "user"])
def user(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_names_and_places(user: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/conf")
    top = Path("/conf/systemd/user" if user else "/etc/systemd/system")
    names = ["sandbox.slice", "sandbox@.service"]
    names += [] if user else ["user@.service.d/50-sandbox-delegate.conf"]
    assert [str(file.path.relative_to(top)) for file in unit_files(user=user)] == names


@requires("systemd-analyze")
def test_systemd_takes_them(user: bool, tmp_path: Path) -> None:
    for file in unit_files(user=user, directory=tmp_path):
        write(file)
        assert file.state == "unchanged"
        assert "@" not in file.content.replace("sandbox@", "").replace("user@", ""), "every mark is filled in"
    units = ["sandbox.slice", "sandbox@shop.service"]
    with tempfile.TemporaryDirectory(prefix="u") as runtime:  # short, for the sockets that other units have in there
        done = subprocess.run(
            ["systemd-analyze", "verify", *(["--user"] if user else []), "--man=no", *units],
            env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:", "XDG_RUNTIME_DIR": runtime, "HOME": runtime},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "sandbox" in line]
    assert said == []
    assert done.returncode == 0, done.stderr


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    file = unit_files(directory=tmp_path)[0]
    file.path.write_text("[Slice]\nMemoryMax=1G\n")
    assert file.state == "different"
    with pytest.raises(sandbox.SandboxError, match=r"it is there(.|\n)*--replace"):
        write(file)
    assert "MemoryMax" in file.path.read_text()
    write(file, replace=True)
    assert file.state == "unchanged"
    assert os.listdir(tmp_path) == ["sandbox.slice"]


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = unit_files(directory=tmp_path / "file")[0]
    with pytest.raises(sandbox.SandboxError, match=r"Not a directory(.|\n)*as root, or with --user"):
        write(unitfiles.UnitFile(file.path, file.content))
