"""Images whose programs name something of the host's as their interpreter: what is still open in the process that is about to
execute them, or the file that it executed before.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import images_helpers as make
import pytest
from gate import requires

import sandbox
from sandbox import Mount
from sandbox.errors import SandboxError
from sandbox.linux.idmap import host_map
from sandbox.pods import Options
from sandbox.runtime import native, rootfs

pytestmark = requires("userns", "overlay", "busybox")

_NUMBERS = range(3, 100)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A root file system with a script ``/bin/N`` for each number."""
    root = tmp_path / "root"
    for name in ("bin", "etc", "opt", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    for number in _NUMBERS:
        script(root / f"bin/{number}", f"#!/proc/self/fd/{number}/.\n")
    return root


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def open_directories(execute: Callable[[list[str]], object]) -> list[int]:
    """The numbers of directories that are open when a program is looked up."""
    found = []
    for number in _NUMBERS:
        with pytest.raises(SandboxError) as caught:
            execute([f"/bin/{number}"])
        # What is not open does not exist, and what is no directory leads nowhere; a directory is no program.
        if caught.value.errno not in (errno.ENOENT, errno.ENOTDIR):
            found.append(number)
    return found


class TestOpenDescriptors:
    @pytest.mark.parametrize("how", ["plain", "reaping", "mounts", "terminal", "user", "no cgroup"])
    def test_of_the_first_program(self, image: Path, how: str) -> None:
        ways: dict[str, dict[str, Any]] = {
            "plain": {}, "reaping": {"init": True}, "mounts": {"mounts": [Mount("/mnt", str(image), idmapped=False)]},
            "terminal": {"tty": True}, "user": {"user": "0:0"}, "no cgroup": {"options": Options(cgroups="none")},
        }  # fmt: skip
        assert open_directories(lambda args: sandbox.run(args, image=f"dir:{image}", **ways[how])) == []

    def test_of_the_second_container_of_a_pod(self, image: Path) -> None:
        def both(args: list[str]) -> None:
            first = sandbox.Container("first", image=f"dir:{image}", command=["busybox", "sleep", "inf"])
            second = sandbox.Container("second", image=f"dir:{image}", command=args, after=["first"])
            with sandbox.start(sandbox.Pod(containers=[first, second])):
                pass

        assert open_directories(both) == []

    @pytest.mark.parametrize("how", ["plain", "user", "terminal"])
    def test_of_what_is_executed_later(self, image: Path, how: str) -> None:
        ways: dict[str, dict[str, Any]] = {"plain": {}, "user": {"user": "root"}, "terminal": {"tty": True}}
        with sandbox.start(image=f"dir:{image}", command=["busybox", "sleep", "inf"]) as pod:
            assert open_directories(lambda args: pod.exec(args, **ways[how])) == []

    def test_a_working_directory_is_not_made_outside(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        outside.chmod(0o777)
        for number in range(3, 30):
            place = f"/proc/self/fd/{number}/{'../' * 30}{str(outside).lstrip('/')}/made"
            with pytest.raises(SandboxError):
                sandbox.run(["true"], image=with_working_directory(tmp_path / f"{number}", place))
        assert list(outside.iterdir()) == []


def with_working_directory(layout: Path, place: str) -> str:
    """An OCI image that wants to start there."""
    busybox = make.file("bin/true", Path("/bin/busybox").read_bytes(), mode=0o755)
    return f"oci:{make.make_layout(layout, make.tar([busybox]), config={'WorkingDir': place})}"


@requires("rootless")
def test_the_shims_interpreter_is_no_file_that_its_containers_may_change(tmp_path: Path) -> None:
    """As pyenv, uv and conda have it: the interpreter is the caller's own, and he is root in his containers."""
    own = tmp_path / "own"
    subprocess.run([sys.executable, "-m", "venv", "--copies", "--without-pip", own], check=True)
    report = json.loads(
        subprocess.run(
            [own / "bin/python", "-c", CHANGE], env=os.environ | {"PYTHONPATH": ":".join(filter(None, sys.path))}, check=True,
            capture_output=True, timeout=60,
        ).stdout
    )  # fmt: skip
    assert report.pop("monitor") == 0  # outside of the namespaces; it executes nothing for containers
    assert set(report) >= {"shim", "spare"}
    assert set(report.values()) == {errno.EROFS}


#: What changing the mode of the file that each process executes meets.
CHANGE = """
import json, os, sandbox, sys, time

def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]

def change(pid):
    try:
        os.chmod(f"/proc/{pid}/exe", 0o755)
        return 0
    except OSError as error:
        return error.errno

with sandbox.start(command=["sleep", "inf"]) as pod:
    for _ in range(4):
        sandbox.run(["true"])
        time.sleep(0.1)
    monitor, = (pid for pid in children(os.getpid()) if children(pid))
    shim, = children(monitor)
    found = {"monitor": change(monitor), "shim": change(shim)}
    for pid in children(shim):
        with open(f"/proc/{pid}/comm") as file:
            name = file.read().strip()
        if name == "sandbox-spare":
            found["spare"] = change(pid)
print(json.dumps(found))
"""


@requires("root", "idmap")
@pytest.mark.parametrize("mapped", [True, False])
def test_layers_come_in_read_only(tmp_path: Path, mapped: bool) -> None:
    """So that whoever should reach one, by whatever descriptor, cannot write to it."""
    layers = (str(tmp_path), str(tmp_path))
    userns = native.user_namespace(host_map())
    clones = rootfs.prepare(rootfs.Rootfs((rootfs.Overlay("/", layers, mapped=1),), idmap=mapped, size=None), userns)
    try:
        assert [bool(os.statvfs(f"/proc/self/fd/{fd}").f_flag & os.ST_RDONLY) for fd in clones] == [True, True]
    finally:
        for fd in (*clones, userns):
            os.close(fd)
