"""What tests of builds share: a base image of busybox, podman beside us, and trees to compare."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerd import remove_cgroups

from sandbox.build.copying import Order
from sandbox.build.draft import LAYER_TYPE, Draft, LayerRef
from sandbox.build.workshop import Workshop, layers_of
from sandbox.images import Store, resolve
from sandbox.images.stored import Images

PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:App:/home/app:/bin/sh\n"
GROUP = "root:x:0:\napp:x:1000:\nstaff:x:2000:\n"
_DIRECTORIES = ("bin", "etc", "usr", "usr/bin", "usr/lib", "usr/local", "usr/local/bin", "var", "var/lib", "var/cache",
                "home", "srv", "opt", "proc", "sys", "dev", "run")  # fmt: skip


def base_archive() -> bytes:
    """A root file system of busybox."""
    busybox = Path(shutil.which("busybox") or "/bin/busybox")
    names = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True, timeout=10).stdout.split()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:

        def add(name: str, kind: bytes, mode: int, *, owner: int = 0, link: str = "", content: bytes = b"") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.linkname, info.size = kind, mode, link, len(content)
            info.uid = info.gid = owner
            info.mtime = 1_500_000_000
            tar.addfile(info, io.BytesIO(content) if content else None)

        for name in _DIRECTORIES:
            add(name, tarfile.DIRTYPE, 0o755)
        add("tmp", tarfile.DIRTYPE, 0o1777)
        add("root", tarfile.DIRTYPE, 0o700)
        add("home/app", tarfile.DIRTYPE, 0o755, owner=1000)
        add("lib", tarfile.SYMTYPE, 0o777, link="usr/lib")
        add("bin/busybox", tarfile.REGTYPE, 0o755, content=busybox.read_bytes())
        for name in names:
            if name != "busybox":
                add(f"bin/{name}", tarfile.SYMTYPE, 0o777, link="busybox")
        for name, text in (("passwd", PASSWD), ("group", GROUP)):
            add(f"etc/{name}", tarfile.REGTYPE, 0o644, content=text.encode())
    return out.getvalue()


def store_base(store: Store, name: str = "localhost/base:1", archive: bytes | None = None) -> str:
    """The base image in a store of ours; its digest."""
    blob = store.blobs.add(archive or base_archive(), media_type=LAYER_TYPE)
    draft = Draft.scratch().configured(Env=["PATH=/bin:/usr/bin"], Cmd=["sh"]).noted("base", LayerRef(blob.digest, blob))
    start = draft.save(store)
    Images(store).add(start, name=name)
    return start.digest


@contextlib.contextmanager
def own_store(path: Path) -> Iterator[Store]:
    """A store with the base image, which builds and pods use meanwhile; what it has unpacked is removed."""
    store = Store(path)
    store_base(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANDBOX_STORE", str(path))
        yield store
    for unpacked in [*path.glob("layers/*/*"), *path.glob("tmp/*")]:
        store.remove_tree(unpacked)


def tree_of(store: Store, reference: str) -> dict[str, Any]:
    """Everything in an image's root: path → type, mode, owner, link or content."""
    workshop = Workshop(store)
    image = resolve(reference, store=store)
    layer = workshop.copy([], layers_of(image), Order(target="/", patterns=("",), owner=None, lenient=True))
    assert layer is not None
    found: dict[str, Any] = {}
    inodes: dict[str, str] = {}
    with store.blobs.open(f"blobs/sha256/{layer.blob.digest.partition(':')[2]}") as file, tarfile.open(fileobj=file) as tar:
        for member in tar:
            inodes[member.name] = member.linkname if member.islnk() else member.name
            content = tar.extractfile(member) if member.isreg() else None
            found[member.name] = {
                "type": "hard" if member.islnk() else member.type.decode(), "mode": oct(member.mode),
                "owner": (member.uid, member.gid), "link": member.linkname if member.issym() else inodes[member.name],
                "content": hashlib.sha256(content.read()).hexdigest()[:12] if content else None,
                "xattrs": {key: value for key, value in member.pax_headers.items() if key.startswith("SCHILY.")},
            }  # fmt: skip
    return found


class Podman:
    """podman with a store of its own, where it needs neither overlayfs nor a network."""

    def __init__(self, home: Path) -> None:
        self._words = ["podman", "--root", str(home / "store"), "--runroot", str(home / "run"), "--storage-driver", "vfs"]
        self._cgroup = f"podman-{os.getpid()}-{home.name}"
        self._environ = {**os.environ, "XDG_RUNTIME_DIR": str(home), "TMPDIR": str(home)}

    def __call__(self, *arguments: str | Path, timeout: float = 120) -> str:
        done = subprocess.run([*self._words, *map(str, arguments)], capture_output=True, text=True, check=False,
                              timeout=timeout, env=self._environ)  # fmt: skip
        assert done.returncode == 0, f"podman {arguments}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def run(self, image: str, *arguments: str) -> str:
        """Run a container to its end, as root; what it printed. Where root lacks CAP_SYS_RESOURCE, podman asks for too much."""
        limits = (f"--ulimit={name}=1024:1024" for name in ("nofile", "nproc"))
        try:
            return self("--runtime=runc", "--cgroup-manager=cgroupfs", "run", "--rm", "--network=none", *limits,
                        f"--cgroup-parent=/{self._cgroup}", image, *arguments)  # fmt: skip
        finally:
            remove_cgroups(self._cgroup)
