"""An image to be built by other tools, with whatever files and layers can do to each other; and those tools."""

from __future__ import annotations

import ast
import io
import os
import shlex
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import images_helpers as make
from dockerd import Dockerd

from sandbox.images import Store, resolve
from sandbox.images.tree import write_tree

#: What umoci notes where it cannot give files their owners.
ROOTLESS = "user.rootlesscontainers"
#: CAP_NET_BIND_SERVICE, permitted and effective: struct vfs_cap_data, version 2 (capabilities(7)).
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
NAME = "localhost/app:1"
_APPLETS = ("chmod", "chown", "dd", "ln", "mkdir", "mkfifo", "mv", "rm", "sh", "touch")
_FOLDERS = ("bin", "dev", "etc", "keep", "keep/deep", "opt", "opt/old", "proc", "run", "sys", "tmp")
_STEPS = r"""
RUN rm /gone && rm -r /opt/old && mkdir -p /opt/old /new/deep && touch /opt/old/c && chmod 1777 /tmp && chmod 4755 /bin/busybox
RUN ln /etc/passwd /new/passwd2 && ln -s nowhere /new/dangling && mkfifo /new/fifo && chown 5:6 /new/deep && \
    dd if=/dev/zero of=/new/sparse bs=1 seek=4000000 count=1 2>/dev/null
RUN rm /link && mkdir -m 750 /link && touch /link/x && rm -r /new/deep && touch -t 200101010101.01 /new/deep
RUN rm /same-b && echo more >> /same-a && rm /keep/a && mv /keep/deep /keep/moved && chmod 6755 /set-user && chown 77:88 /noted
RUN rm -r /shared && mkdir -m 2770 /shared && chown 9:10 /shared && touch /to-folder/through
"""
#: Entries of layers that a build of it has to write.
REMOVED = {".wh.gone", ".wh.same-b", "keep/.wh.a", "keep/.wh.deep"}


def context(home: Path, *, most: int = 100_000) -> Path:
    """A directory to build it from; no file belongs to a greater id than ``most``."""
    home.mkdir()
    (home / "base.tar").write_bytes(_base(most))
    (home / "sparse.tar").write_bytes(_sparse())
    (home / "Dockerfile").write_text(f"FROM scratch\nADD base.tar /\nADD sparse.tar /\nENV PATH=/bin\n{_STEPS}")
    return home


def _base(most: int) -> bytes:
    capability = {"SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape")}
    note = {"SCHILY.xattr.user.note": "y"}
    shell = make.file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    return make.tar([
        make.directory("./", mode=0o755), *(make.directory(name, mode=0o755) for name in _FOLDERS),
        shell, *(make.hard_link(f"bin/{name}", "bin/busybox", mode=0o755) for name in _APPLETS),
        make.file("etc/passwd", "root:x:0:0::/:/bin/sh\n"), make.file("gone", "x"), make.file("opt/old/a"),
        make.file("keep/a", "a"), make.file("keep/deep/b", "b"), make.symlink("to-folder", "keep"),
        make.symlink("link", "etc/passwd", uid=3, gid=3), make.file("d" * 150 + "/" + "f" * 150, "long"),
        make.file("same-a", "x"), make.hard_link("same-b", "same-a"), make.hard_link("same-c", "same-a"),
        make.file("ünïcode", "x", uid=7, gid=8, mode=0o600), make.file("none", "x", mode=0),
        make.file("set-user", "x", mode=0o4711), make.file("set-group", "x", uid=1, gid=2, mode=0o2755),
        make.directory("shared", mode=0o2775, gid=50), make.file("shared/x"), make.file("greatest", uid=most, gid=most - 1),
        make.file("capable", "x", mode=0o755, pax_headers=capability), make.file("noted", "x", pax_headers=note),
        make.file("first", mtime=0), make.file("split", mtime=1234567890.25), make.file("future", mtime=4_000_000_000),
    ])  # fmt: skip


def _sparse() -> bytes:
    """Data between two holes, as GNU tar writes it (its manual, Sparse Formats, 0.1)."""
    facts = {"numblocks": "1", "size": str(8 << 20), "map": f"{4 << 20},{1 << 20}"}
    head = make.pax_header(*(make.pax_record(f"GNU.sparse.{key}", value) for key, value in facts.items()))
    return head + make.raw_header(b"sparse", size=1 << 20, mode=b"0000600\0") + b"z" * (1 << 20) + make.END


_LOOK = """
import sys, pathlib, peer_images
for tree in sys.argv[1:]:
    print(peer_images.seen(pathlib.Path(tree)))
"""


def run(*argv: str | Path, **environ: str) -> str:
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, timeout=120, env={**os.environ, **environ}
    )
    assert done.returncode == 0, f"{argv}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def seen(root: Path, *, owners: bool = True) -> dict[str, tuple[Any, ...]]:
    """As ``observe``, without what only one of the tools notes."""
    found = make.observe(root)
    for name, (mode, owner, mtime, content, same, xattrs) in found.items():
        kept = {key: value for key, value in xattrs.items() if key != ROOTLESS}
        found[name] = (mode, owner if owners else None, mtime, content, same, kept)
    return found


def ours(reference: str, store: Store, where: Path, *, owners: bool = True) -> dict[str, tuple[Any, ...]]:
    write_tree(resolve(reference, store=store), where, store, owners=owners)
    return seen(where, owners=owners)


def names_in_layers(archive: Path) -> set[str]:
    """The entries of all layers of an archive, whatever its form."""
    found: set[str] = set()
    with tarfile.open(archive) as outer:
        for member in outer:
            file = outer.extractfile(member) if member.isreg() else None
            if file is not None:
                try:
                    with tarfile.open(fileobj=io.BytesIO(file.read())) as layer:
                        found.update(name.removeprefix("./") for name in layer.getnames())
                except tarfile.ReadError:
                    continue  # a document
    return found


class Builder(Protocol):
    """One of the tools, with a store of its own."""

    #: The forms of archive that it writes.
    forms: tuple[str, ...]
    #: What it adds to the image when it makes a container of it; directories have got other times by that.
    added: frozenset[str]

    def build(self, where: Path) -> None:
        """Build the image NAME from a context."""

    def save(self, form: str, file: Path) -> None:
        """Write it into a file."""

    def tree(self, where: Path) -> Path:
        """A directory with what it sees itself; ``where`` is an empty one to use."""


class Containers:
    """podman or buildah."""

    forms: tuple[str, ...] = ("oci-archive", "docker-archive")
    added: frozenset[str] = frozenset()

    def __init__(self, program: str, driver: str, home: Path) -> None:
        self._words = (program, "--root", f"{home}/root", "--runroot", f"{home}/run", "--storage-driver", driver)
        self._podman = program == "podman"
        self._runtime = str(home)

    def _run(self, *argv: str | Path, **environ: str) -> str:
        return run(*argv, XDG_RUNTIME_DIR=self._runtime, **environ)

    def build(self, where: Path) -> None:
        self._run(*self._words, "build", "-q", "--isolation", "chroot", "--layers", "-t", NAME, where)

    def save(self, form: str, file: Path) -> None:
        if self._podman:
            self._run(*self._words, "save", "-q", "--format", form, "-o", file, NAME)
        else:
            self._run(*self._words, "push", "-q", NAME, f"{form}:{file}:{NAME}")

    def tree(self, where: Path) -> Path:
        return Path(self._run("sh", "-c", self._mount, "sh", *self._words).strip())

    @property
    def _mount(self) -> str:
        """A script that prints where the image's files are; the words are its arguments."""
        return f'"$@" image mount {NAME}' if self._podman else f'"$@" mount "$("$@" from --pull-never {NAME})"'

    def seen_by_its_user(self, *trees: Path) -> list[dict[str, tuple[Any, ...]]]:
        """What ``seen`` tells of the image and of other trees in the user namespace that the tool makes for its user."""
        script = f"places=$({self._mount}) && exec {sys.executable} -c '{_LOOK}' $places {shlex.join(map(str, trees))}"
        paths = os.pathsep.join(sys.path)
        printed = self._run(*self._words, "unshare", "sh", "-c", script, "sh", *self._words, PYTHONPATH=paths)
        return [ast.literal_eval(line) for line in printed.splitlines()]

    def forget(self) -> None:
        """Remove its files; those of an ordinary user belong to sub-ids."""
        if os.geteuid() != 0:
            self._run(self._words[0], "unshare", "rm", "-rf", f"{self._runtime}/root")
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if (mounted := line.split(" ")[1]).startswith(f"{self._runtime}/"):
                run("umount", "--lazy", mounted)


class Docker:
    """docker, with a daemon that is there for the test alone."""

    forms: tuple[str, ...] = ("docker-archive",)
    added = frozenset({
        ".dockerenv", "dev", "dev/console", "dev/pts", "dev/shm", "etc", "etc/hostname", "etc/hosts", "etc/mtab",
        "etc/resolv.conf",
    })  # fmt: skip

    def __init__(self, daemon: Dockerd) -> None:
        self._docker = daemon

    def build(self, where: Path) -> None:
        self._docker("build", "--quiet", "--network=none", "--tag", NAME, where)

    def save(self, form: str, file: Path) -> None:
        self._docker("save", "--output", file, NAME)

    def tree(self, where: Path) -> Path:
        archive = where.with_suffix(".tar")
        self._docker("export", "--output", archive, self._docker("create", NAME, "sh").strip())
        run("tar", "-C", where, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", archive)
        return where


@contextmanager
def builder(kind: str) -> Iterator[Builder]:
    """``docker``, or ``podman`` or ``buildah`` with a storage driver: ``podman-vfs``."""
    # podman takes no run directory of more than 50 characters.
    with tempfile.TemporaryDirectory(prefix="peer-") as place:
        if kind == "docker":
            with Dockerd(Path(place)) as daemon:
                yield Docker(daemon)
            return
        program, _, driver = kind.partition("-")
        tool = Containers(program, driver, Path(place))
        try:
            yield tool
        finally:
            tool.forget()
