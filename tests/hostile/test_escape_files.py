"""Files that go in and out of a container that means harm: nothing is read or written but what was meant."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gate import requires
from programs import PYTHON

import sandbox
from sandbox import RunningPod, SandboxError

pytestmark = requires("userns", "overlay")

#: Swaps a directory or file that appears in a place it shares with the host for a link to somewhere else of the host.
SWAPPER = """
import os, sys
name, target = sys.argv[1:]
print("on", flush=True)
while True:
    try:
        if not os.path.islink(name):
            os.rename(name, name + ".was")
            os.symlink(target, name)
    except OSError:
        pass
"""
#: Makes a file and a link to somewhere else of the host out of each other, as fast as it can.
FLICKER = """
import os, sys
name, target = sys.argv[1:]
print("on", flush=True)
while True:
    for make in (lambda: os.symlink(target, name + ".new"), lambda: open(name + ".new", "w").write("mine")):
        make()
        os.rename(name + ".new", name)
"""


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of the host that no container has."""
    place = tmp_path / "victim"
    place.mkdir()
    (place / "secret").write_text("of the host")
    return place


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory of the host that the container may write to."""
    place = tmp_path / "shared"
    place.mkdir()
    return place


def attacker(program: str, shared: Path, name: str, target: Path) -> RunningPod:
    pod = sandbox.start(
        command=[PYTHON, "-c", program, f"/shared/{name}", str(target)], mounts=[(shared, "/shared")]
    )  # fmt: skip
    next(record for record in pod.log_records(follow=True) if record.line == "on")
    return pod


class TestASharedPlace:
    """The classic: copy to or from a directory that the container has too, while it turns things into links."""

    def test_copying_out_writes_nothing_elsewhere(self, shared: Path, victim: Path) -> None:
        with attacker(SWAPPER, shared, "out/d", victim) as pod:
            script = "mkdir -p /tree/d && cd /tree/d && for i in $(seq 300); do echo pwned > f$i; done"
            pod.exec(["sh", "-c", script], check=True)
            for number in range(5):
                try:
                    pod.copy_out("/tree", shared / "out")
                except (SandboxError, OSError):
                    pass  # to find its directories gone is an honest end; what was made is removed then
                with contextlib.suppress(FileNotFoundError):
                    (shared / "out").rename(shared / f"out{number}")
        assert os.listdir(victim) == ["secret"]
        assert (victim / "secret").read_text() == "of the host"

    def test_copying_in_reads_nothing_elsewhere(self, shared: Path, victim: Path) -> None:
        with attacker(FLICKER, shared, "f", victim / "secret") as pod:
            for number in range(150):
                try:
                    pod.copy_in(shared, f"/copy{number}/")
                except (SandboxError, OSError):
                    pass
            found = pod.exec(["sh", "-c", "find /copy* -type f -exec cat {} +"]).stdout
        assert "mine" in found, "nothing was copied at all"
        assert "of the host" not in found

    def test_a_fifo_where_a_copy_goes_does_not_hang(self, shared: Path) -> None:
        with sandbox.start(command=["sleep", "inf"], mounts=[(shared, "/shared")]) as pod:
            pod.exec(["mkfifo", "/shared/out"], check=True)
            pod.write_text("/file", "x")
            with pytest.raises((SandboxError, OSError)):
                pod.copy_out("/file", shared / "out")

    def test_a_fifo_in_what_is_copied_in_does_not_hang(self, shared: Path) -> None:
        with sandbox.start(command=["sleep", "inf"], mounts=[(shared, "/shared")]) as pod:
            pod.exec(["mkfifo", "/shared/pipe"], check=True)
            with pytest.raises(SandboxError, match="neither a file"):
                pod.copy_in(shared, "/copy")


@pytest.fixture(scope="module")
def pod() -> Iterator[RunningPod]:
    with sandbox.start(command=["sleep", "inf"]) as running:
        yield running


class TestInside:
    """The container's own links, swapped while we work: whatever happens, it happens inside."""

    @pytest.mark.parametrize("how", ["/etc", "../../../../../etc", "/proc/self/root/etc", "/proc/1/root/etc"])
    def test_links_to_directories_of_the_host(self, pod: RunningPod, how: str, tmp_path: Path) -> None:
        marker = f"marker{os.getpid()}"
        pod.exec(["ln", "-sfn", how, "/link"], check=True)
        actions: list[tuple[Callable[..., Any], Any, Any]] = [
            (pod.write_text, f"/link/{marker}", "x"), (pod.mkdir, f"/link/{marker}.d", 0o755),
            (pod.copy_in, __file__, f"/link/{marker}.py"),
        ]  # fmt: skip
        for action, *arguments in actions:
            with contextlib.suppress(SandboxError):
                action(*arguments)
        assert not [name for name in os.listdir("/etc") if name.startswith(marker)]

    @pytest.mark.parametrize("path", ["/proc/self/root/etc/hostname", "/proc/self/fd/3", "/proc/self/environ"])
    def test_the_agent_finds_no_process_of_its_own(self, pod: RunningPod, path: str) -> None:
        """It is no process of the container, so /proc has no `self` for it."""
        with pytest.raises(SandboxError):
            pod.read_bytes(path)

    def test_the_environment_of_the_first_process_is_the_containers(self, pod: RunningPod) -> None:
        assert b"container=oci" in pod.read_bytes("/proc/1/environ")

    def test_removing_a_tree_that_turns_into_a_link(self, pod: RunningPod) -> None:
        pod.exec(["sh", "-c", "mkdir -p /keep/d; echo kept > /keep/d/file"], check=True)
        script = "while :; do mkdir -p /t/d; rm -rf /t/d; ln -sfn /keep/d /t/d; rm -f /t/d; done"
        swapper = pod.popen(["sh", "-c", script])
        try:
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline:
                try:
                    pod.remove("/t", recursive=True)
                except SandboxError:
                    pass
        finally:
            swapper.kill()
            swapper.wait()
            swapper.close()
        assert pod.read_text("/keep/d/file") == "kept\n"

    def test_a_file_that_grows_as_fast_as_it_is_read(self, pod: RunningPod, tmp_path: Path) -> None:
        """An endless source is the container's choice; ours is that others go on meanwhile."""
        pod.exec(["sh", "-c", "head -c 1M /dev/zero > /grows"], check=True)
        writer = pod.popen(["sh", "-c", "head -c 300M /dev/zero >> /grows"])
        copier = threading.Thread(target=pod.copy_out, args=["/grows", tmp_path / "grows"])
        copier.start()
        assert sandbox.run(["echo", "on"], timeout=20).stdout == "on\n"
        writer.wait(60)
        writer.close()
        copier.join(60)
        assert not copier.is_alive()

    def test_devices_are_not_read(self, pod: RunningPod, tmp_path: Path) -> None:
        for action in (lambda: pod.read_bytes("/dev/zero"), lambda: pod.copy_out("/dev/zero", tmp_path / "zero"),
                       lambda: pod.write_bytes("/dev/full", b"x")):  # fmt: skip
            with pytest.raises(SandboxError, match="device"):
                action()
