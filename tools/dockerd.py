"""A docker daemon of one's own, for tests and benchmarks: it needs no systemd, and nothing of it stays.

Usage, as root: python3 tools/dockerd.py COMMAND…, which finds the daemon in DOCKER_HOST.

It has private mount and network namespaces: a /run of its own, no bridge, no rules of a firewall; its containers are in a
cgroup of their own, and its files in one directory. It ends with whoever started it, also after ``kill -9``, and takes its
containers along. Standard library only.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

#: Seconds that a daemon may take to answer.
PATIENCE = 30.0
_SCRIPT = 'mount --make-rprivate / && mount -t tmpfs none /run && mkdir /run/docker && exec "$@"'


class DockerFailed(Exception):
    """The daemon does not start, or a command of docker failed; the text is the end of what it said."""


def why_not() -> str | None:
    """What a daemon lacks here."""
    for program in ("docker", "dockerd"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return None if os.geteuid() == 0 else "dockerd needs root"


class Dockerd:
    """A daemon whose files lie in ``home``; it is there when the constructor returns.

    :raises DockerFailed: it does not start
    """

    def __init__(self, home: Path) -> None:
        self.host = f"unix://{home}/docker.sock"
        #: Options of the client.
        self.options = ["--host", self.host]
        # No configuration of the user's: contexts and credentials are not ours. BuildKit is a program that may be missing.
        self.environment = {**os.environ, "DOCKER_HOST": self.host, "DOCKER_CONFIG": str(home), "DOCKER_BUILDKIT": "0"}
        self._cgroup = f"dockerd-{os.getpid()}-{time.monotonic_ns()}"
        self._log = home / "dockerd.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "setpriv", "--pdeathsig=TERM", "unshare", "--mount", "--net", "sh", "-c", _SCRIPT, "sh",
                    "dockerd", *self.options, "--data-root", str(home / "data"), "--exec-root", "/run/docker",
                    "--pidfile", "/run/docker/pid", "--iptables=false", "--ip6tables=false", "--bridge=none",
                    "--cgroup-parent", f"/{self._cgroup}",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not answers(self.options):
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self._log.read_text(errors="replace").strip().splitlines()
                raise DockerFailed(f"dockerd does not start: {lines[-1] if lines else 'it says nothing'}")
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, *arguments: str | Path, timeout: float = 120) -> str:
        """Run docker(1) to its end; what it printed. Raises :class:`DockerFailed`."""
        done = subprocess.run(
            ["docker", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=timeout,
            env=self.environment,
        )  # fmt: skip
        if done.returncode:
            said = (done.stdout[-3000:] + done.stderr[-3000:]).strip()
            raise DockerFailed(f"docker {arguments[0]} ended with {done.returncode}: {said}")
        return done.stdout

    def close(self) -> None:
        """End it, its containers and their cgroups."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        remove_cgroups(self._cgroup)


def remove_cgroups(name: str) -> None:
    """Remove a cgroup and those below it, in whatever hierarchies there are."""
    for top in ("", "*/"):  # cgroup v2 alone, or one for each controller
        for mine in Path("/sys/fs/cgroup").glob(f"{top}{name}"):
            for folder, *_ in os.walk(mine, topdown=False):
                _remove_cgroup(folder)


def _remove_cgroup(folder: str) -> None:
    """As soon as what was in it (podman's conmon) has ended."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            os.rmdir(folder)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return


def answers(options: list[str]) -> bool:
    """Whether a client with these options finds a daemon."""
    command = ["docker", *options, "version", "--format", "{{.Server.Version}}"]
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


def main() -> int:
    """Run a command beside a daemon."""
    if reason := why_not():
        print(f"no docker daemon: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="dockerd-") as home, Dockerd(Path(home)) as docker:
        return subprocess.run(sys.argv[1:], check=False, env=docker.environment).returncode


if __name__ == "__main__":
    sys.exit(main())
