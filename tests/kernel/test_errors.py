"""Every bad input has an error of its own: operation, object, cause and hint; and nothing is left of the attempt."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images_helpers as make
import pytest
from gate import requires
from programs import SERVANTS, descendants, is_holder, name_of

import sandbox
from sandbox import (
    CommandNotExecutable,
    CommandNotFound,
    Container,
    ContainerExited,
    ImageError,
    ImageVerificationError,
    LimitNotEnforceable,
    Log,
    ModelError,
    Mount,
    Port,
    ReadinessTimeout,
    SandboxError,
    SetupError,
    UnsupportedFeature,
    UserNotFound,
)
from sandbox.pods import Options
from sandbox.shim.client import Conversation, own_shim

pytestmark = requires("userns", "overlay")

#: A pod that is ready is made ahead (sandbox.runtime.spare), so its process and descriptors come and go.
_SETTLE = 3.0


def traces() -> dict[str, object]:
    """What a start that failed may have left: pods, processes, mounts of the shim, our descriptors."""
    shim = own_shim()
    helpers = list(descendants(os.getpid()))
    mounts = [line.split()[4] for line in Path(f"/proc/{helpers[1]}/mountinfo").read_text().splitlines()]
    names = [name_of(pid) for pid in helpers if not is_holder(pid)]
    return {
        "pods": shim.call("pod.list")["pods"],
        "programs": sorted(name for name in names if name and not name.startswith(SERVANTS)),
        "mounts": sorted(mounts),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def settled_traces() -> dict[str, object]:
    """As they are when what is made ahead is made."""
    deadline = time.monotonic() + _SETTLE
    now = traces()
    while time.monotonic() < deadline:
        before = now
        time.sleep(0.02)
        if (now := traces()) == before:
            break
    return now


def _as_before(before: dict[str, object], after: dict[str, object]) -> bool:
    """Nothing more; descriptors may have been on their way to the next scope at first."""
    no_more = after["descriptors"] <= before["descriptors"]  # type: ignore[operator]
    return no_more and {**after, "descriptors": 0} == {**before, "descriptors": 0}


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    sandbox.run("true")
    before = settled_traces()
    yield
    deadline = time.monotonic() + _SETTLE
    while not _as_before(before, after := traces()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _as_before(before, after), (before, after)


def refused(kind: type[SandboxError], /, **fields: object) -> SandboxError:
    with pytest.raises(kind) as caught:
        sandbox.run(fields.pop("command", "true"), **fields)  # type: ignore[arg-type]
    assert type(caught.value) is kind
    return caught.value


# --- images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("nosuch:image", "nosuch"),
        ("dir:/no/such/directory", "/no/such/directory"),
        ("dir:/etc/passwd", "/etc/passwd"),
        ("oci:/no/such/layout", "/no/such/layout"),
        ("oci-archive:/no/such.tar", r"/no/such\.tar"),
        ("docker-archive:/etc/passwd", "/etc/passwd"),
    ],
)
def test_unknown_images(image: str, text: str) -> None:
    with pytest.raises(ImageError, match=text) as caught:
        sandbox.run("true", image=image)
    assert image in str(caught.value)
    assert caught.value.container == "main"


def test_an_image_that_does_not_verify(tmp_path: Path) -> None:
    layout = make.make_layout(tmp_path / "layout", make.tar([make.file("a", "b")]))
    options = Options(store=str(tmp_path / "store"))
    largest = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[0] ^= 1
    largest.write_bytes(content)
    error = refused(ImageVerificationError, image=f"oci:{layout}", options=options)
    assert isinstance(error, ImageVerificationError)
    assert largest.name in str(error)
    assert error.expected != error.actual


def test_a_digest_that_is_not_there(tmp_path: Path) -> None:
    layout = make.make_layout(tmp_path / "layout", make.tar([make.file("a", "b")]))
    with pytest.raises(ImageError, match="nosuchtag"):
        sandbox.run("true", image=f"oci:{layout}:nosuchtag", options=Options(store=str(tmp_path / "store")))


# --- commands and users -------------------------------------------------------------------------------------------


def test_command_not_found() -> None:
    error = refused(CommandNotFound, command="nonsense --now", env={"PATH": "/bin:/opt"})
    assert str(error) == (
        "container `main`: execute `nonsense`: No such file or directory\n"
        "  cause: it is in none of /bin:/opt\n"
        "  hint: install it in the image, or give the path it has there"
    )
    assert isinstance(error, FileNotFoundError)
    assert "/no/such" in str(refused(CommandNotFound, command="/no/such"))


@pytest.mark.parametrize(
    ("content", "mode", "kind", "cause", "hint"),
    [
        ("#!/bin/sh\n", 0o644, CommandNotExecutable, "no permission to execute it", "chmod +x /in/it"),
        ("not a program", 0o755, CommandNotExecutable, "neither a program of this machine", "add a #! line"),
        ("#!/no/such/interpreter\n", 0o755, CommandNotFound, "its interpreter /no/such/interpreter", "install the"),
        (None, 0o755, CommandNotExecutable, "it is a directory", "give the path of a program"),
    ],
)
def test_command_not_executable(
    tmp_path: Path, content: str | None, mode: int, kind: type[SandboxError], cause: str, hint: str
) -> None:
    path = tmp_path / "it"
    path.mkdir() if content is None else path.write_text(content)
    path.chmod(mode)
    error = refused(kind, command="/in/it", mounts=[Mount.bind(tmp_path, "/in")])
    assert (error.operation, error.object) == ("execute", "/in/it")
    assert cause in (error.cause or "")
    assert hint in (error.hint or "")


def test_arguments_that_are_too_long() -> None:
    error = refused(CommandNotExecutable, command=["echo", "x" * (1 << 18)])
    assert error.errno == errno.E2BIG
    assert "too long" in (error.cause or "")


def test_unknown_users() -> None:
    assert "no-such-user" in str(refused(UserNotFound, user="no-such-user"))
    assert "no-such-group" in str(refused(UserNotFound, user="0:no-such-group"))
    with sandbox.start(command="sleep inf") as pod, pytest.raises(UserNotFound, match="add it there") as caught:
        pod.exec("true", user="no-such-user")
    assert (caught.value.operation, caught.value.object) == ("look up the user", "no-such-user")


def test_an_id_that_is_not_mapped() -> None:
    error = refused(UserNotFound, user="4000000000")
    assert "user 4000000000 is not among the" in str(error)
    assert "/etc/subuid" in (error.hint or "")


def test_a_working_directory_that_is_a_file() -> None:
    error = refused(SetupError, working_dir="/etc/passwd")
    assert "enter the working directory `/etc/passwd`: Not a directory" in str(error)


# --- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"hostname": "h" * 4096}, r"hostname = 'hhh.*64"),
        ({"memory": -1}, r"memory = -1"),
        ({"memory": "-64M"}, r"memory = '-64M'"),
        ({"command": ["a\0b"]}, "command"),
        ({"env": {"A=B": "c"}}, "env"),
        ({"mounts": ["/a:/../b"]}, r"\.\."),
        ({"comand": "x"}, "did you mean 'command'"),
    ],
)
def test_models_refuse_at_once(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ModelError, match=text) as caught:
        sandbox.start(**fields)  # type: ignore[arg-type]
    assert caught.value.field is not None
    assert len(str(caught.value)) < 1000


# --- limits -------------------------------------------------------------------------------------------------------

NO_CGROUPS = Options(cgroups="none")


@pytest.mark.parametrize(
    ("field", "value", "controller"),
    [("memory", "64M", "memory"), ("pids", 9, "pids"), ("cpus", 0.5, "cpu"), ("hugepages", {"2M": "2M"}, "hugetlb")],
)
def test_a_limit_that_cannot_be_enforced(field: str, value: object, controller: str) -> None:
    error = refused(LimitNotEnforceable, options=NO_CGROUPS, **{field: value})
    assert isinstance(error, LimitNotEnforceable)
    assert error.controller == controller
    assert f"the cgroup controller `{controller}` is not available here" in str(error)
    assert "best_effort=True" in (error.hint or "")


def test_a_limit_that_cannot_be_enforced_on_the_pod() -> None:
    pod = sandbox.Pod([Container(command="true")], resources={"memory": "64M"})
    with pytest.raises(LimitNotEnforceable, match="memory"):
        sandbox.start(pod, options=NO_CGROUPS)


def test_best_effort_goes_without_and_says_so() -> None:
    with pytest.warns(UserWarning, match=r"memory=.* is not enforced"):
        assert sandbox.run("true", memory="64M", best_effort=True, options=NO_CGROUPS).returncode == 0


def test_a_giver_that_does_not_exist() -> None:
    with pytest.raises(SandboxError, match="nobody") as caught:
        sandbox.run("true", options=Options(cgroups="nobody"))
    assert "known: auto" in (caught.value.hint or "")


def test_an_engine_that_does_not_exist() -> None:
    with pytest.raises(UnsupportedFeature, match="warp"):
        sandbox.run("true", options=Options(engine="warp"))


def test_a_rlimit_above_the_hard_one() -> None:
    error = refused(SetupError, ulimits={"nofile": 1 << 30})
    assert "set `RLIMIT_NOFILE`" in str(error)
    assert "raise the limit of the calling process" in (error.hint or "")


def test_a_sysctl_that_is_not_the_containers() -> None:
    error = refused(SetupError, sysctls={"kernel.shmmax": "many"})
    assert "set the sysctl `kernel.shmmax=many`: Invalid argument" in str(error)


# --- mounts -------------------------------------------------------------------------------------------------------


def test_mount_source_missing() -> None:
    error = refused(SetupError, mounts=["/no/such/source:/x"])
    assert "bind mount `/no/such/source`: No such file or directory" in str(error)
    assert "the source of the mount at /x does not exist on the host" in str(error)
    assert "create it first" in str(error)


def test_mount_of_a_directory_on_a_file(tmp_path: Path) -> None:
    error = refused(SetupError, mounts=[Mount.bind(tmp_path, "/etc/passwd")])
    assert "mount on `/etc/passwd`: Not a directory" in str(error)
    assert "a file only on a file" in str(error)


def test_a_device_that_is_none() -> None:
    with pytest.raises(SandboxError, match="/dev/no-such-device"):
        sandbox.run("true", devices=["/dev/no-such-device"])


# --- readiness ----------------------------------------------------------------------------------------------------


def test_port_never_open() -> None:
    with pytest.raises(ReadinessTimeout, match="8000") as caught:
        sandbox.start(command="sleep inf", ready=Port(8000), ready_timeout=0.2)
    assert (caught.value.timeout, caught.value.container) == (0.2, "main")
    assert caught.value.last_seen


def test_process_dies_during_start() -> None:
    began = time.monotonic()
    with pytest.raises(ContainerExited, match="exit status 41") as caught:
        sandbox.start(command=["sh", "-c", "echo the reason >&2; exit 41"], ready=Port(8000), ready_timeout=60)
    assert time.monotonic() - began < 20
    assert (caught.value.returncode, caught.value.container) == (41, "main")
    assert "the reason" in str(caught.value)


def test_process_is_killed_during_start() -> None:
    kill = ["sh", "-c", "sleep inf & kill -9 $!; wait $!; exit 3"]
    with pytest.raises(ContainerExited, match="exit status 3"):
        sandbox.start(command=kill, ready=Log("never"))


# --- resources run out --------------------------------------------------------------------------------------------


def test_disk_full_on_the_overlay() -> None:
    with sandbox.start(command="sleep inf", ephemeral_storage="1M") as pod:
        assert "No space left" in pod.exec(["sh", "-c", "head -c 4M /dev/zero > /tmp/big"]).stderr
        with pytest.raises(OSError, match="No space left"):
            pod.write_bytes("/tmp/more", bytes(1 << 21))


def test_disk_full_before_it_starts() -> None:
    error = refused(SetupError, ephemeral_storage="4K", mounts=[Mount.tmpfs(f"/m/{number}") for number in range(9)])
    assert error.errno == errno.ENOSPC
    assert "No space left on device" in str(error)


def python(script: str, *, prefix: tuple[str, ...] = ()) -> str:
    """Run a script of a process that gets in trouble; what it prints."""
    command = [*prefix, sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


OUT_OF_DESCRIPTORS = """
import os, resource, sandbox
{before}
held, errors = [], []
resource.setrlimit(resource.RLIMIT_NOFILE, {limit})
try:
    for _ in range(400):
        {act}
except Exception as error:
    errors.append(error)
for item in held:
    item.close() if hasattr(item, "close") else os.close(item)
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
print(type(errors[0]).__name__, errors[0])
print(sandbox.run("echo works again", timeout=30).stdout)
"""


def test_our_file_descriptors_are_exhausted() -> None:
    act = 'held.append(os.dup(0)) if len(os.listdir("/proc/self/fd")) < 62 else sandbox.run("true")'
    out = python(OUT_OF_DESCRIPTORS.format(before='sandbox.run("true")', limit="(64, 4096)", act=act))
    assert "Too many open files" in out or "descriptor limit" in out
    assert out.rstrip().endswith("works again")


def test_the_shims_file_descriptors_are_exhausted() -> None:
    """Its limit is ours at the time when it was started."""
    act = 'held.append(sandbox.start(command="sleep inf"))'
    out = python(OUT_OF_DESCRIPTORS.format(before="", limit="(96, 96)", act=act))
    assert "Too many open files" in out or "descriptor limit" in out
    assert out.rstrip().endswith("works again")


def test_no_user_namespaces() -> None:
    """A user namespace in which no further one may be made stands for a kernel that allows none."""
    script = """
import sandbox
try:
    sandbox.run("true")
except sandbox.SandboxError as error:
    print(type(error).__name__, error)
"""
    forbid = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\""
    out = python(script, prefix=("unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh"))
    assert out.startswith("NamespaceUnavailable")
    assert "user namespace" in out
    assert "hint:" in out


def test_errors_are_told_from_every_thread() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def attempt(number: int) -> str:
        with pytest.raises(CommandNotFound) as caught:
            sandbox.run(f"nonsense-{number}")
        return str(caught.value.object)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(attempt, range(12))) == [f"nonsense-{number}" for number in range(12)]


@pytest.mark.parametrize("containers", [1, 2])
def test_ctrl_c_when_the_pod_has_just_been_made(monkeypatch: pytest.MonkeyPatch, containers: int) -> None:
    """Nobody but the shim knows of it yet."""

    def interrupted(conversation: Conversation, timeout: float | None = None) -> tuple[dict[str, Any], list[int]]:
        message, fds = answer(conversation, timeout)
        if message.get("event") in ("created", "started"):
            monkeypatch.undo()
            raise KeyboardInterrupt
        return message, fds

    def pods() -> list[str]:
        return [pod["id"] for pod in own_shim().call("pod.list")["pods"]]

    before, answer = pods(), Conversation.answer
    monkeypatch.setattr(Conversation, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sandbox.start(sandbox.Pod([sandbox.Container(f"c{n}", command="sleep inf") for n in range(containers)]))
    assert pods() == before


@pytest.mark.parametrize("more", [{"tty": True}, {"ready": sandbox.Notify()}])
def test_of_a_program_that_was_never_executed_the_shim_keeps_nothing(more: dict[str, Any]) -> None:
    """Neither its terminal nor its notification socket, and with them the keyring of who opened them: a user has 200."""

    def open_descriptors() -> int:
        monitor = own_shim()._monitor.pid
        shim = Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()[0]
        return len(os.listdir(f"/proc/{shim}/fd"))

    before = open_descriptors()
    for _ in range(40):
        with pytest.raises(CommandNotFound):
            sandbox.start(command=["/missing"], **more)
    assert open_descriptors() < before + 40  # a spare may have come meanwhile, which has less than a dozen
