"""What is run: a root file system with one program in it, as a directory and as an image for docker and podman."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import tarfile
from pathlib import Path
from typing import Any

#: The image's name for docker and podman.
TAG = "localhost/sandbox-bench:latest"
_APPLETS = ("sh", "true", "sleep", "cat")
_DIRECTORIES = ("bin", "dev", "etc", "proc", "run", "sys", "tmp")
#: The kernel's names of architectures → those of images.
IMAGE_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


def busybox() -> str | None:
    """A busybox; a static one runs without anything else in its root."""
    return shutil.which("busybox", path=f"{os.environ.get('PATH', os.defpath)}:/usr/bin:/bin")


def make_root(path: Path, owner: int = 0) -> Path:
    """A root file system at ``path``, readable for all; ``owner`` is its uid and gid if that can be had."""
    program = busybox()
    assert program is not None
    for name in _DIRECTORIES:
        (path / name).mkdir(parents=True)
    shutil.copy(program, path / "bin" / "busybox")
    (path / "bin" / "busybox").chmod(0o755)
    for name in _APPLETS:
        (path / "bin" / name).symlink_to("busybox")
    if owner and os.geteuid() == 0:
        for found in (path, *path.rglob("*")):
            os.chown(found, owner, owner, follow_symlinks=False)
    return path


def make_archive(root: Path, path: Path) -> Path:
    """The same as an image in docker-archive form, made by hand: no registry is asked."""
    layer = _tar_of(root)
    config = json.dumps({
        "architecture": IMAGE_NAMES.get(platform.machine(), platform.machine()), "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer)}"]}, "history": [],
    }).encode()  # fmt: skip
    names = f"{_sha256(config)}.json", f"{_sha256(layer)}/layer.tar"
    manifest = json.dumps([{"Config": names[0], "RepoTags": [TAG], "Layers": [names[1]]}]).encode()
    with tarfile.open(path, "w") as archive:
        for name, data in ((names[0], config), (names[1], layer), ("manifest.json", manifest)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def _tar_of(root: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(root, arcname=".")
    return buffer.getvalue()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_bundle(path: Path, root: Path, document: dict[str, Any], command: list[str]) -> Path:
    """A bundle for crun and runc: ``document`` with this command and this root."""
    path.mkdir()
    process = {**document["process"], "args": command, "terminal": False}
    text = json.dumps({**document, "process": process, "root": {**document.get("root", {}), "path": str(root)}})
    (path / "config.json").write_text(text, "utf-8")
    return path
