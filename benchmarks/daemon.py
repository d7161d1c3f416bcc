"""docker, and testcontainers above it: both need a daemon."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools import dockerd

from . import material
from .elsewhere import PeerError
from .measure import timed
from .peers import FOREVER, TRUE, Peer


class Daemon:
    """The docker daemon that answers, or else one of our own."""

    def __init__(self, work: Path, root: Path) -> None:
        self._work = work
        self._root = root
        self._own: dockerd.Dockerd | None = None
        self._users = 0

    @property
    def options(self) -> list[str]:
        """Options of the client."""
        return self._own.options if self._own else []

    @property
    def host(self) -> str | None:
        """The value for DOCKER_HOST."""
        return self._own.host if self._own else None

    def why_not(self) -> str | None:
        """The client alone is not enough."""
        if shutil.which("docker") is None:
            return "docker is not installed"
        if self._own or dockerd.answers([]):
            return None
        return (reason := dockerd.why_not()) and f"no daemon answers, and none can be started ({reason})"

    def open(self) -> None:
        """Make sure that it runs and has the image. Raises :class:`PeerError`."""
        self._users += 1
        if self._users > 1:
            return
        if not dockerd.answers([]):
            try:
                self._own = dockerd.Dockerd(self._work)
            except dockerd.DockerFailed as error:
                raise PeerError(str(error)) from error
        archive = material.make_archive(self._root, self._work / "image.tar")
        self._client("load", "--input", str(archive))

    def _client(self, *arguments: str) -> None:
        command = ["docker", *self.options, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise PeerError(f"docker: {done.stderr.strip()}")

    def close(self) -> None:
        """One user less; the last one ends our own daemon, and another's forgets our image."""
        self._users -= 1
        if self._users > 0:
            return
        with contextlib.suppress(PeerError):
            self._client("rmi", "--force", material.TAG)
        if self._own is not None:
            self._own.close()
            self._own = None


class Docker(Peer):
    """docker run and docker exec."""

    name = "docker"
    start_target = 0.05
    slow = True

    def why_not(self) -> str | None:
        """A client and a daemon."""
        return self.place.daemon.why_not()

    def prepare(self) -> None:
        """Find or start the daemon, load the image."""
        self.place.daemon.open()
        self.start()

    def start(self) -> float:
        """``run --rm``."""
        return self._run("run", "--rm", "--network=none", material.TAG, *TRUE)

    def _run(self, *arguments: str) -> float:
        return self.runner.run(["docker", *self.place.daemon.options, *arguments])

    @contextlib.contextmanager
    def container(self) -> Iterator[None]:
        """A detached container."""
        self._id = self.next_id()
        self._run("run", "--detach", "--network=none", "--name", self._id, material.TAG, *FOREVER)
        try:
            yield
        finally:
            self._run("rm", "--force", self._id)

    def exec(self) -> float:
        """``exec``."""
        return self._run("exec", self._id, *TRUE)

    def close(self) -> None:
        """No longer a user of the daemon."""
        self.place.daemon.close()
        super().close()


class Testcontainers(Peer):
    """testcontainers-python over the same daemon; without its reaper, which would want an image from a registry."""

    name = "testcontainers"
    start_target = 0.05
    slow = stays = True
    _before: dict[str, str | None] | None = None

    def why_not(self) -> str | None:
        """The package, and a daemon."""
        if importlib.util.find_spec("testcontainers") is None:
            return f"not installed for {sys.executable}"
        return self.place.daemon.why_not()

    def prepare(self) -> None:
        """Tell the package where the daemon is."""
        self.place.daemon.open()
        changes = {"TESTCONTAINERS_RYUK_DISABLED": "true", "DOCKER_HOST": self.place.daemon.host}
        self._before = {name: os.environ.get(name) for name in changes}
        os.environ.update({name: value for name, value in changes.items() if value is not None})
        self.start()

    @staticmethod
    def _container() -> Any:
        module = importlib.import_module("testcontainers.core.container")
        return module.DockerContainer(material.TAG).with_command(FOREVER).with_kwargs(network_mode="none")

    def start(self) -> float:
        """Its context manager, entered and left."""

        def once() -> None:
            with self._container():
                pass

        return timed(once)

    @contextlib.contextmanager
    def container(self) -> Iterator[None]:
        """One that stays."""
        with self._container() as self._kept:
            yield

    def exec(self) -> float:
        """Its ``exec``."""
        return timed(lambda: self._kept.exec(TRUE))

    def close(self) -> None:
        """Put the environment back."""
        for name, value in (self._before or {}).items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self.place.daemon.close()
        super().close()
