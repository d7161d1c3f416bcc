"""The peers: how each runs a command in a container of its own, and in a container that is there already."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from . import material
from .elsewhere import Elsewhere, Here, PeerError, Runner, runner_for_crun

if TYPE_CHECKING:
    from .daemon import Daemon

TRUE = ["/bin/true"]
FOREVER = ["/bin/sleep", "1000"]


class Place(NamedTuple):
    """What the peers share: a root file system, and a docker daemon for those that need one."""

    root: Path
    daemon: Daemon


class Peer:
    """One of them. Made in ``work``, a directory of its own; ``close`` takes away what it made elsewhere."""

    name: ClassVar[str]
    #: Most that our time may be of theirs, for a start and for an exec.
    start_target: ClassVar[float | None] = None
    exec_target: ClassVar[float | None] = None
    #: Takes a tenth of a second and more.
    slow: ClassVar[bool] = False
    #: A start is of a container that would stay, and is then stopped.
    stays: ClassVar[bool] = False

    def __init__(self, place: Place, work: Path) -> None:
        self.place = place
        self.work = work
        self.runner: Runner = Here()
        #: What has to be known to understand its numbers.
        self.note = ""
        self._count = 0

    def why_not(self) -> str | None:
        """What is missing here; None if it can be tried."""
        return None if shutil.which(self.name) else "not installed"

    def prepare(self) -> None:
        """Whatever is not part of a start. Raises :class:`PeerError`."""

    def start(self) -> float:
        """Run ``true`` in a new container until it is gone; seconds."""
        raise NotImplementedError

    def container(self) -> contextlib.AbstractContextManager[None]:
        """A container for :meth:`exec`. Raises :class:`PeerError` if there is no such thing."""
        raise PeerError("it has no exec")

    def exec(self) -> float:
        """Run ``true`` in that container; seconds."""
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back."""
        self.runner.close()

    def run_detached(self, command: list[str]) -> None:
        """Run what leaves a container behind, with a file for its output.

        Not with our pipes, or reading them would never end; and not with /dev/null: crun gives the streams to the
        root of the container, and the host's node would belong to a sub-id from then on.
        """
        self.runner.run(["sh", "-c", 'exec "$@" >"$0" 2>&1', str(self.work / "output"), *command])

    def next_id(self) -> str:
        """A new name for a container."""
        self._count += 1
        return f"sandbox-bench-{os.getpid()}-{self._count}"


class Bubblewrap(Peer):
    """bwrap, with the mounts that it has of ours."""

    name = "bwrap"

    def start(self) -> float:
        """New namespaces, the root bound, proc, dev, tmp and shm."""
        return self.runner.run([
            "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--hostname", "bench", "--cap-drop", "ALL",
            "--bind", str(self.place.root), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/dev/shm",
            "--mqueue", "/dev/mqueue", "--tmpfs", "/tmp", *TRUE,
        ])  # fmt: skip


class _Runtime(Peer):
    """crun or runc with a bundle that is there already."""

    options: ClassVar[list[str]] = []

    @property
    def command(self) -> list[str]:
        """The program and what comes before the verb."""
        return [self.name, "--root", str(self.work / "state"), *self.options]

    def prepare(self) -> None:
        """Two bundles: one ends at once, the other stays for exec."""
        document = self.document()
        for name, command in (("run", TRUE), ("stay", FOREVER)):
            material.make_bundle(self.work / name, self.root(), document, command)
        self.start()

    def root(self) -> Path:
        """The root file system of the bundles."""
        return self.place.root

    def document(self) -> dict[str, Any]:
        """What its own ``spec`` command writes."""
        folder = self.work / "spec"
        folder.mkdir()
        rootless = ["--rootless"] if os.geteuid() else []
        done = subprocess.run([self.name, "spec", *rootless], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PeerError(done.stderr.strip())
        document: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        return document

    def start(self) -> float:
        """``run``."""
        return self.runner.run([*self.command, "run", "--bundle", str(self.work / "run"), self.next_id()])

    @contextlib.contextmanager
    def container(self) -> Iterator[None]:
        """A detached container."""
        self._id = self.next_id()
        run = [*self.command, "run", "--detach", "--bundle", str(self.work / "stay"), self._id]
        self.run_detached(run)
        try:
            yield
        finally:
            self.runner.run([*self.command, "delete", "--force", self._id])

    def exec(self) -> float:
        """``exec``."""
        return self.runner.run([*self.command, "exec", self._id, *TRUE])


class Crun(_Runtime):
    """crun with the document of ``crun spec``: no user namespace, no seccomp, no limits, read-only root."""

    name = "crun"
    start_target, exec_target = 0.6, 0.3
    options: ClassVar[list[str]] = ["--cgroup-manager=disabled"]

    def prepare(self) -> None:
        """In a namespace that it likes."""
        self.runner = runner_for_crun()
        super().prepare()


class CrunWithOurs(Crun):
    """crun with the document that we start the same container from."""

    def document(self) -> dict[str, Any]:
        """Asked of the shim that runs it."""
        import sandbox

        if os.geteuid():
            raise PeerError("an ordinary user's document describes namespaces within the shim's: crun cannot use it")
        with sandbox.start(image=f"dir:{self.place.root}", command=FOREVER) as pod:
            answer = pod.shim.call("container.spec", pod=pod.id, container=pod.model.names[0])
        document: dict[str, Any] = answer["spec"]
        material.make_root(self.work / "root", document["linux"]["uidMappings"][0]["hostID"])
        return document

    def root(self) -> Path:
        """Owned by the root of the container, for crun maps no ids of file systems."""
        return self.work / "root"


class Runc(_Runtime):
    """runc with the document of ``runc spec``."""

    name = "runc"


class Podman(Peer):
    """podman with a storage of its own and no network; the first runtime that works here."""

    name = "podman"
    #: What it is told about the network of a container.
    network: ClassVar[list[str]] = ["--network=none"]
    start_target = 0.05
    slow = True
    #: podman asks for more than it may have by default where root lacks CAP_SYS_RESOURCE.
    _limits: ClassVar[list[str]] = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]

    def prepare(self) -> None:
        """Load the image, find a runtime."""
        archive = material.make_archive(self.place.root, self.work / "image.tar")
        failures = []
        for storage in ("overlay", "vfs"):
            for runtime in ("crun", "runc"):
                self.command = self._podman(storage, runtime)
                try:
                    self.runner.run([*self.command, "load", "--input", str(archive)])
                    self.start()
                except PeerError as error:
                    failures.append(f"{storage}, {runtime}: {error}")
                else:
                    self.note = f"runtime {runtime}, storage {storage}"
                    return
        raise PeerError("; ".join(failures))

    def _podman(self, storage: str, runtime: str) -> list[str]:
        places = ["--root", str(self.work / storage), "--runroot", str(self.work / f"{storage}-run")]
        kinds = ["--storage-driver", storage, "--runtime", runtime, "--cgroup-manager", "cgroupfs"]
        private = [f"{name}={self.work}" for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR")]
        return ["env", *private, "podman", *places, *kinds, "--events-backend", "none"]

    def start(self) -> float:
        """``run --rm``."""
        return self.runner.run([*self.command, "run", "--rm", *self.network, *self._limits, material.TAG, *TRUE])

    @contextlib.contextmanager
    def container(self) -> Iterator[None]:
        """A detached container."""
        name = self._id = self.next_id()
        options = ["--detach", *self.network, "--name", name, *self._limits]
        run = [*self.command, "run", *options, material.TAG, *FOREVER]
        self.run_detached(run)
        try:
            yield
        finally:
            self.runner.run([*self.command, "rm", "--force", "--time=0", name])

    def exec(self) -> float:
        """``exec``."""
        return self.runner.run([*self.command, "exec", self._id, *TRUE])

    def close(self) -> None:
        """Root's storage is a mount, and an ordinary user's podman leaves a process that holds its namespaces."""
        if hasattr(self, "command"):
            for verb in (["rmi", "--all", "--force"], *([["system", "migrate"]] if os.geteuid() else [])):
                subprocess.run([*self.command, *verb], capture_output=True, check=False, timeout=60)
            for storage in ("overlay", "vfs"):
                subprocess.run(["umount", str(self.work / storage / "overlay")], capture_output=True, check=False)
        super().close()


class PodmanBridge(Podman):
    """podman as it comes: containers have a network that can be reached, as ours have."""

    network: ClassVar[list[str]] = []

    def prepare(self) -> None:
        """Its bridge is made in a network of its own."""
        if os.geteuid():
            raise PeerError("an ordinary user's podman has no bridge")
        self.runner = Elsewhere(network=True)
        super().prepare()
