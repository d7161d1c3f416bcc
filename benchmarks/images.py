"""Images: unpacking a Debian one beside umoci and podman, and starting pods whose images have many files."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sandbox
from sandbox.images import Store, resolve
from sandbox.images.blobs import inflater
from sandbox.pods import Options

from . import material
from .measure import Effort, Row, Run, compared, pairs, timed

#: Files of the large image whose pods are started; the small one has a busybox and nothing else.
_MANY = 20_000
_OCI = "application/vnd.oci.image."
#: Ours must take at most so much of a peer's time.
_TARGET = 1 / 1.5
_START_TARGET = 1.1


def measure(work: Path, effort: Effort, tell: Callable[[str], None]) -> tuple[list[Row], dict[str, str]]:
    """The rows, and why one is missing."""
    rows: list[Row] = []
    missing: dict[str, str] = {}
    archive, reason = debian(work)
    if archive is None:
        missing["unpack a Debian image"] = reason
    else:
        layout = make_layout(work / "debian", archive)
        for name, peer in (("umoci", _umoci), ("podman", _podman)):
            tell(name)
            if shutil.which(name) is None:
                missing[f"unpack: {name}"] = "not installed"
                continue
            found = pairs(_ours(work, layout), peer(work, layout), effort.slow_pairs, effort.patience)
            rows.append(compared("unpack a Debian image", name, found, _TARGET, _note(archive)))
        archive.unlink()
    tell("starts")
    rows.append(_starts(work, effort))
    return rows, missing


def debian(work: Path) -> tuple[Path | None, str]:
    """An archive of what a minimal Debian has, from this machine's own files; or the reason why there is none."""
    if shutil.which("dpkg-query") is None:
        return None, "the files of a Debian are taken from the machine, and this one is none"
    query = ["dpkg-query", "--show", "--showformat=${Package} ${Priority}\n"]
    rows = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()
    packages = [row.split()[0] for row in rows if row.endswith((" required", " important"))]
    listed = subprocess.run(["dpkg", "--listfiles", *packages], check=False, capture_output=True, text=True).stdout
    names = {name for name in listed.splitlines() if name.startswith("/") and os.path.lexists(name)}
    # By where they really are: /lib is a link on machines with a merged /usr.
    places = {os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name)) for name in names}
    path = work / "debian.tar"
    with tarfile.open(path, "w") as archive:
        for name in sorted(places - {"/"}):
            if os.path.islink(name) or os.access(name, os.R_OK):
                archive.add(name, recursive=False)
    return path, ""


def make_layout(path: Path, *layers: Path) -> Path:
    """An OCI layout with one image of these layers, compressed as registries have them."""
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes, media_type: str, **extra: Any) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content), **extra}

    architecture = material.IMAGE_NAMES.get(platform.machine(), platform.machine())
    plain = [layer.read_bytes() for layer in layers]
    config = {
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in plain]},
    }  # fmt: skip
    manifest = {
        "schemaVersion": 2, "mediaType": f"{_OCI}manifest.v1+json",
        "config": put(json.dumps(config).encode(), f"{_OCI}config.v1+json"),
        "layers": [put(gzip.compress(layer, 6, mtime=0), f"{_OCI}layer.v1.tar+gzip") for layer in plain],
    }  # fmt: skip
    note = {"annotations": {"org.opencontainers.image.ref.name": "it"}}
    index = put(json.dumps(manifest).encode(), f"{_OCI}manifest.v1+json", **note)
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', "utf-8")
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [index]}), "utf-8")
    return path


def _note(archive: Path) -> str:
    with tarfile.open(archive) as opened:
        entries = sum(1 for _ in opened)
    size = archive.stat().st_size / 1e6
    return f"{entries} entries, {size:.0f} MB uncompressed, one gzip layer; ours decompresses with {inflater().__name__}"


# --- each of them, once, into an empty place; what was there before is removed off the clock --------------------------


def _ours(work: Path, layout: Path) -> Run:
    def once() -> float:
        store = Store(work / "store")
        for layer in store.root.glob("layers/*/*"):
            store.remove_tree(layer)
        return timed(lambda: resolve(f"oci:{layout}:it", store=store))

    return once


def _umoci(work: Path, layout: Path) -> Run:
    bundle = work / "umoci"
    rootless = ["--rootless"] if os.geteuid() else []

    def once() -> float:
        shutil.rmtree(bundle, ignore_errors=True)
        return timed(lambda: _run(["umoci", "unpack", *rootless, "--image", f"{layout}:it", str(bundle)]))

    return once


def _podman(work: Path, layout: Path) -> Run:
    place = work / "podman"  # its run directory must not have a name of more than 50 characters
    base = ["podman", "--root", f"{place}/root", "--runroot", f"{place}/run"]

    def once() -> float:
        try:
            return timed(lambda: _run([*base, "pull", "--quiet", f"oci:{layout}:it"]))
        finally:
            _run([*base, "rmi", "--all", "--force"])

    return once


def _run(argv: list[str]) -> None:
    subprocess.run(argv, check=True, capture_output=True)


# --- starts -----------------------------------------------------------------------------------------------------------


def _starts(work: Path, effort: Effort) -> Row:
    """Pods of an image with many files beside pods of one with few, both unpacked."""
    root = work / "few"
    material.make_root(root)
    with tarfile.open(work / "few.tar", "w") as archive:
        archive.add(root, arcname=".")
    with tarfile.open(work / "many.tar", "w") as archive:
        for number in range(_MANY):
            info = tarfile.TarInfo(f"many/{number % 200}/{number}")
            archive.addfile(info)
    store = str(work / "store")
    small = f"oci:{make_layout(work / 'small', work / 'few.tar')}:it"
    large = f"oci:{make_layout(work / 'large', work / 'few.tar', work / 'many.tar')}:it"

    def start(image: str) -> Run:
        options = Options(store=store)
        return lambda: timed(lambda: sandbox.run(["/bin/true"], image=image, options=options, check=True))

    found = pairs(start(large), start(small), effort.pairs, effort.patience)
    note = f"an image of {_MANY} files in two layers against one of {len(list(root.rglob('*')))}, unpacked"
    return compared("start to gone, large image", "ours, small image", found, _START_TARGET, note)
