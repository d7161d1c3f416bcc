"""The image `host` where other things are mounted in its trees, as docker and podman do it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from gate import requires

pytestmark = requires("userns", "overlay")

MOUNTS = "mount -t tmpfs hidden /var/lib/misc && touch /var/lib/misc/of-the-mount && mount --bind /etc/hostname /etc/hosts"
SEE = "ls /var/lib/misc; ls -d /var/lib/dpkg /etc/skel; touch /etc/new /var/lib/dpkg/new && echo writable"
PROGRAM = f"import sandbox; print(sandbox.run(['sh', '-c', {SEE!r}], image='host', check=True).stdout)"


@pytest.mark.parametrize(
    "kind", [pytest.param("--mount", marks=requires("root")), "--mount --user --map-root-user"], ids=["root", "locked"]
)
def test_what_is_mounted_in_the_hosts_trees_is_not_seen_and_not_in_the_way(kind: str) -> None:
    done = subprocess.run(
        ["unshare", *kind.split(), "sh", "-c", f'{MOUNTS} && exec "$@"', "sh", sys.executable, "-c", PROGRAM],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["/etc/skel", "/var/lib/dpkg", "writable"]
