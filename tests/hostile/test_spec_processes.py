"""Hostile filters, users and hooks; and what programs inside do to those who look after them."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gate import requires
from hostile_house import House, Spec, spec

import sandbox
from sandbox import errors

pytestmark = requires("userns", "overlay", "busybox")

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000


def _filter(action: int) -> dict[str, Any]:
    """A seccomp program of one instruction, ``return action``, and its profile."""
    program = (0x06).to_bytes(2, "little") + bytes(2) + action.to_bytes(4, "little")
    profile = {"defaultAction": "SCMP_ACT_KILL_PROCESS" if action == _KILL_PROCESS else "SCMP_ACT_ALLOW"}
    return {"seccomp": f"hostile-{action:x}", "seccomp_program": base64.b64encode(program).decode(),
            "seccomp_profile": profile}  # fmt: skip


class TestSeccomp:
    @pytest.mark.parametrize(("more", "status"), [({}, -signal.SIGSYS), ({"init": True}, 128 + signal.SIGSYS)])
    def test_a_filter_that_kills_everything(self, house: House, more: dict[str, Any], status: int) -> None:
        assert house.run(spec("echo", "x"), **_filter(_KILL_PROCESS), **more) == (status, "")

    @pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EINTR, 0])
    def test_a_filter_that_refuses_everything(self, house: House, code: int) -> None:
        """With EINTR the process tries again forever, with 0 it is even told that everything went well."""
        with contextlib.suppress(errors.SandboxError, TimeoutError):
            status, said = house.run(spec("echo", "x"), **_filter(0x00050000 | code), timeout=1)
            assert (status != 0, said) == (True, "")

    def test_a_program_that_is_none(self, house: House) -> None:
        broken = _filter(_ALLOW) | {"seccomp": "hostile-broken", "seccomp_program": base64.b64encode(b"12345678").decode()}
        with pytest.raises(errors.SandboxError):
            house.run(spec("true"), **broken)

    def test_one_that_the_shim_has_never_seen(self, house: House) -> None:
        with pytest.raises(errors.SandboxError, match="unknown"):
            house.run(spec("true"), seccomp="0" * 64)


class TestUsers:
    @pytest.mark.parametrize("how", ["fifo", "link", "directory", "loop", "garbage", "huge"])
    def test_a_users_file_that_is_none(self, house: House, how: str) -> None:
        path = house.root / "etc/passwd"
        path.unlink()
        (house.outside.parent / "passwd").write_text("app:x:1:1::/:/bin/sh\n")
        makers: dict[str, Callable[[], object]] = {
            "fifo": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(house.outside.parent / "passwd"),
            "directory": path.mkdir, "loop": lambda: path.symlink_to("passwd"),
            "garbage": lambda: path.write_bytes(b"app\0:x:1\napp:x:-1:x\napp:::::::\n\xff" * 99),
            "huge": lambda: os.truncate(path, path.write_text("") or 1 << 40),
        }  # fmt: skip
        makers[how]()
        with house.living(spec("sleep", "inf")) as where, pytest.raises(errors.UserNotFound, match="app"):
            house.execute(where, spec("true"), user="app")

    @pytest.mark.parametrize("number", [(1 << 32) - 1, 1 << 32, 900_000])
    def test_ids_in_it_that_nobody_has(self, house: House, number: int) -> None:
        (house.root / "etc/passwd").write_text(f"app:x:{number}:{number}::/:/bin/sh\n")
        with house.living(spec("sleep", "inf")) as where, pytest.raises(errors.SandboxError):
            house.execute(where, spec("true"), user="app")


HOOKS = ["prestart", "createRuntime", "createContainer", "startContainer"]


class TestHooks:
    @pytest.mark.parametrize("kind", HOOKS)
    @pytest.mark.parametrize(
        ("hook", "says"),
        [
            ({"path": "/bin/busybox", "args": ["busybox", "false"]}, "status 1"),
            ({"path": "/bin/busybox", "args": ["busybox", "sleep", "60"], "timeout": 1}, "timed out after 1 s"),
            ({"path": "/nothing"}, "status 127"),
            ({"path": "/etc/passwd"}, "status 126"),
            ({}, "path"),
            ({"path": "/bin/busybox", "timeout": -1}, "hook"),
        ],
        ids=["fails", "hangs", "is missing", "is none", "has no path", "negative time"],
    )
    def test_that_do_not_do(self, house: House, kind: str, hook: Spec, says: str) -> None:
        began = time.monotonic()
        with pytest.raises(errors.SandboxError, match=says):
            house.run(spec("true", hooks={kind: [hook]}))
        assert time.monotonic() - began < 5

    def test_that_hang_hold_nobody_up(self, house: House) -> None:
        hook = {"path": "/bin/busybox", "args": ["busybox", "sleep", "5"], "timeout": 1}
        request: dict[str, Any] = {"pod": house.pod(), "name": "main", "spec": spec("true", hooks={"prestart": [hook]}),
                   "rootfs": house.rootfs(), "stdio": "log"}  # fmt: skip
        with house.shim.ask("container.start", request) as waiting:
            assert house.run(spec("echo", "meanwhile"), timeout=2) == (0, "meanwhile\n")
            house.shim.call("pod.remove", pod=request["pod"]["id"])
            with contextlib.suppress(errors.SandboxError):
                waiting.answer(2)
        assert house.shim.call("pod.list")["pods"] == []

    @pytest.mark.parametrize("kind", ["prestart", "startContainer"])
    def test_that_do_not_read_a_state_larger_than_a_pipe(self, house: House, kind: str) -> None:
        hook = {"path": "/bin/busybox", "args": ["busybox", "sleep", "60"], "timeout": 1}
        with pytest.raises(errors.SandboxError, match="timed out"):
            house.run(spec("true", hooks={kind: [hook]}, annotations={"x": "y" * 200_000}), timeout=5)


def test_signal_of_the_end(house: House) -> None:
    """The same way of asking tells the truth about an ordinary death."""
    assert house.run(spec("sh", "-c", "kill -SEGV $$"), init=True)[0] == 128 + signal.SIGSEGV


def test_copying_out_again_follows_no_link_of_the_first_time(house: House, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with sandbox.start(image=f"dir:{house.root}", command=["sleep", "inf"]) as pod:
        pod.exec(["sh", "-c", f"mkdir /r; ln -s {house.outside}/secret /r/evil"], check=True)
        pod.copy_out("/r", out)
        pod.exec(["sh", "-c", "rm /r/evil; echo owned > /r/evil"], check=True)
        with pytest.raises((OSError, errors.SandboxError)):
            pod.copy_out("/r/evil", out / "r" / "evil")


def test_a_tree_without_a_ground(house: House, tmp_path: Path) -> None:
    deep = "i=0; mkdir /r; cd /r; while [ $i -lt 1500 ]; do mkdir d; cd d; i=$((i+1)); done"
    with sandbox.start(image=f"dir:{house.root}", command=["sleep", "inf"]) as pod:
        pod.exec(["sh", "-c", deep], check=True, timeout=60)
        with pytest.raises((OSError, errors.SandboxError)):
            pod.copy_out("/r", tmp_path / "out")
        # pytest removes old directories with a function that calls itself for each level.
        subprocess.run(["rm", "-rf", tmp_path / "out"], check=True)
        assert pod.read_text("/etc/passwd").startswith("root:")


@requires("cgroup2", "python")
def test_a_container_that_starves_its_own_spawner_does_not_stop_the_shim(house: House) -> None:
    busy = "sleep 1.5; for i in $(seq 100); do (while :; do :; done) & done; wait"
    with sandbox.start(image="host", command=["sh", "-c", busy], cpus=0.05) as pod:
        for _ in range(3):
            pod.exec(["true"])
            time.sleep(0.05)
        worst, end = 0.0, time.monotonic() + 5
        while time.monotonic() < end:
            began = time.monotonic()
            house.shim.call("ping")
            worst = max(worst, time.monotonic() - began)
            time.sleep(0.02)
        assert worst < 1
