"""A pull from a registry on this machine, against ``skopeo copy``."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sandbox.images.distribution.pull import pull
from sandbox.images.references import parse
from sandbox.images.store import Store

from .material import IMAGE_NAMES
from .measure import Effort, Row, compared, pairs, timed

LAYERS = 6
_LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")
_OCI = "application/vnd.oci.image."


def against_skopeo(work: Path, effort: Effort, megabytes: int) -> list[Row]:
    """All layers fetched, verified and on disk; nothing is unpacked, as skopeo does not."""
    for program in ("docker-registry", "skopeo"):
        if shutil.which(program) is None:
            raise OSError(f"{program} is not installed")
    folder = work / "registry"
    layout = make_layout(folder / "layout", megabytes)
    with registry(folder / "data") as host:
        name = f"{host}/bench:1"
        _skopeo(folder, "copy", "--dest-tls-verify=false", f"oci:{layout}:1", f"docker://{name}")
        shutil.rmtree(layout)

        def ours() -> float:
            store = Store(folder / "store")
            seconds = timed(lambda: pull(parse(name), store, unpack=False))
            shutil.rmtree(folder / "store")
            return seconds

        def theirs() -> float:
            copy = folder / "copy"
            seconds = timed(lambda: _skopeo(folder, "copy", "--src-tls-verify=false", f"docker://{name}", f"oci:{copy}:1"))
            shutil.rmtree(copy)
            return seconds

        found = pairs(ours, theirs, effort.slow_pairs, effort.patience)
    measure = f"pull of {LAYERS} layers of {megabytes} MB"
    return [compared(measure, "skopeo copy", found, 1 / 1.5, "from a registry on loopback; ours from a running process")]


def make_layout(path: Path, megabytes: int) -> Path:
    """An OCI layout with one image of noise, which nothing makes smaller."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": f"{_OCI}{media_type}", "digest": f"sha256:{digest}", "size": len(content)}

    layers, diff_ids = [], []
    for number in range(LAYERS):
        layer = _layer(number, megabytes << 20)
        diff_ids.append(f"sha256:{hashlib.sha256(layer).hexdigest()}")
        layers.append(put(gzip.compress(layer, 1), "layer.v1.tar+gzip"))
    machine = platform.machine()
    config = {"architecture": IMAGE_NAMES.get(machine, machine), "os": "linux",
              "rootfs": {"type": "layers", "diff_ids": diff_ids}}  # fmt: skip
    manifest = {"schemaVersion": 2, "mediaType": f"{_OCI}manifest.v1+json",
                "config": put(json.dumps(config).encode(), "config.v1+json"), "layers": layers}  # fmt: skip
    start = put(json.dumps(manifest).encode(), "manifest.v1+json")
    start["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [start]}))
    return path


def _layer(number: int, size: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(f"noise-{number}")
        member.size = size
        archive.addfile(member, io.BytesIO(os.urandom(size)))
    return buffer.getvalue()


@contextlib.contextmanager
def registry(work: Path) -> Iterator[str]:
    """A docker-registry on loopback, and where it listens."""
    work.mkdir(parents=True)
    settings = {
        "version": 0.1, "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(work)}}, "http": {"addr": "127.0.0.1:0"},
    }  # fmt: skip
    (work / "config.yml").write_text(json.dumps(settings))
    log = work / "log"
    with log.open("wb") as output:
        command = ["docker-registry", "serve", str(work / "config.yml")]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 30
        while not (found := _LISTENING.search(log.read_text("utf-8", "replace"))):
            if process.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"docker-registry does not start: {log.read_text('utf-8', 'replace')[-300:]}")
            time.sleep(0.02)
        yield found[1]
    finally:
        process.kill()
        process.wait()


def _skopeo(home: Path, *arguments: str) -> None:
    """With nobody's passwords: where it looks for them may even be closed to this user."""
    own = os.environ | {"HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
    done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, check=False, env=own)
    if done.returncode:
        raise OSError(f"skopeo: {done.stderr.strip()}")
