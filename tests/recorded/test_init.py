"""The child's half of a start: which system calls, in which order; and each of them made to fail in turn."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recorder as rec

from sandbox import oci
from sandbox.errors import SandboxError, SetupError
from sandbox.linux.syscalls import KernelError
from sandbox.models import Container, Pod, Resources, Security
from sandbox.runtime import init, plan as plans, process, rootfs as roots, steps

#: What a container gets for /bin/true with one directory of the host, a sysctl and few paths to hide.
CONTAINER = Container(
    command=["/bin/true"], mounts=["/usr:/host:ro"], sysctls={"net.core.somaxconn": "7"}, hostname="box",
    security=Security(masked_paths=["/proc/kcore", "/proc/acpi", "/nowhere"], readonly_paths=["/proc/sys"],
                      cap_add=["NET_RAW"], seccomp="unconfined"),
    resources=Resources(),
)  # fmt: skip

#: Sysctls that every container gets.
NET = ("ip_unprivileged_port_start", "ping_group_range")

GOLDEN = """\
unshare namespaces 0x2000000
sethostname box
mount overlay on root
open /proc
mount proc on /proc
open /dev
mount tmpfs on /dev
open /dev/pts
mount devpts on /dev/pts
open /dev/shm
mount tmpfs on /dev/shm
open /dev/mqueue
mount mqueue on /dev/mqueue
open /sys
mount sysfs on /sys
open /sys/fs/cgroup
mount cgroup2 on /sys/fs/cgroup
open /host
move_mount to /host from ?
open /host
mount flags on /host
"""


class Exited(BaseException):
    """Stands for _exit(2)."""


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scratch directory as the init finds it, and a root in it as the overlay would show it."""
    scratch = tmp_path / "scratch"
    rec.make_tree(
        scratch, "empty/", "stage/", "root/bin/true", "root/proc/kcore", "root/proc/acpi/",
        "root/proc/sys/net/core/somaxconn", *(f"root/proc/sys/net/ipv4/{name}" for name in NET),
        "root/dev/pts/", "root/dev/shm/", "root/dev/mqueue/", "root/sys/fs/cgroup/", "root/host/",
        *(f"root/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")),
    )  # fmt: skip
    monkeypatch.chdir(scratch)
    monkeypatch.setattr(steps, "is_mounted", lambda _fd, _root_fd: True)  # nothing is mounted here
    return scratch


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> Callable[[rec.Recorder], None]:
    """What would change this very process is only written down."""

    def install(recorder: rec.Recorder) -> None:
        def noted(name: str) -> Callable[..., None]:
            return lambda *arguments: recorder.note(f"{name} {' '.join(map(str, arguments))}")

        for name in ("setgroups", "setresuid", "setresgid"):
            monkeypatch.setattr(os, name, noted(name))
        monkeypatch.setattr(os, "umask", lambda mask: recorder.note(f"umask {mask:#o}"))
        monkeypatch.setattr(os, "chdir", lambda path: recorder.note(f"chdir {path}"))
        monkeypatch.setattr(os, "fchdir", lambda _fd: recorder.note("fchdir to the new root"))
        monkeypatch.setattr(resource, "setrlimit", lambda number, _limits: recorder.note(f"setrlimit {number}"))

        def execve(path: str, args: tuple[str, ...], _env: dict[str, str]) -> None:
            recorder.note(f"execve {path}")
            raise rec.Executed(path, args)

        def leave(status: int) -> None:
            raise Exited(status)

        monkeypatch.setattr(os, "execve", execve)
        monkeypatch.setattr(process, "set_oom_score", lambda _program: recorder.note("set oom_score_adj"))
        monkeypatch.setattr(os, "_exit", leave)

    return install


def order(scratch: Path, container: Container = CONTAINER) -> init.Order:
    host = oci.Host(pod_id="p", cgroup_parent="/p", kernel=(6, 1), machine="x86_64")
    spec = oci.to_dict(oci.to_spec(container, Pod([container]), None, host))
    plan = plans.build(spec)
    prepared = {bind.target: os.open("/", os.O_PATH | os.O_CLOEXEC) for bind in plan.binds}
    rootfs = roots.Rootfs((roots.Overlay("/", ("/layer",)),), idmap=False, size=None)
    return init.Order(plan, rootfs, [], prepared, (), (), str(scratch), {}, None)


def run(scratch: Path, monkeypatch: pytest.MonkeyPatch, identity: Any, **failure: Any) -> tuple[rec.Recorder, bytes]:
    """The calls, and what was sent to the shim."""
    recorder = rec.install(monkeypatch, rec.Recorder(**failure))
    identity(recorder)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told = order(scratch)
    with ours, theirs:
        ours.setblocking(False)
        progress = init.Progress()
        try:
            init.finish(told, theirs, progress)
        except rec.Executed:
            message = b""
        except BaseException as error:  # noqa: BLE001 - what the init's main does with all of them
            with pytest.raises(Exited):
                init.report(theirs, error, progress)
            message = last_message(ours)
    for fd in told.prepared.values():
        os.close(fd)
    return recorder, message


def last_message(sock: socket.socket) -> bytes:
    """Errors come last; what was changed of the image is handed over before."""
    message = b""
    try:
        while more := sock.recv(65536):
            message = more
    except BlockingIOError:
        pass
    return message


def afresh(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had been run in the scene yet."""
    monkeypatch.undo()
    monkeypatch.chdir(scene)
    monkeypatch.setattr(steps, "is_mounted", lambda _fd, _root_fd: True)
    for left in scene.glob("0.*"):
        left.unlink() if left.is_symlink() else left.rmdir()


def test_the_order_of_the_steps(scene: Path, monkeypatch: pytest.MonkeyPatch, identity: Any) -> None:
    recorder, message = run(scene, monkeypatch, identity)
    assert message == b""
    text = "\n".join(recorder.calls) + "\n"
    assert text.startswith(GOLDEN)
    for earlier, later in (
        ("mount sysfs on /sys", "open_tree /dev/null"),
        ("open_tree /dev/tty", "open net/core/somaxconn"),
        ("open net/core/somaxconn", "move_mount to /proc/sys from copy of "),
        ("move_mount to /proc/sys from copy of ", "move_mount to /proc/kcore from copy of /dev/null"),
        ("move_mount to /proc/kcore from copy of /dev/null", "fchdir to the new root"),
        ("fchdir to the new root", "pivot_root to ."),
        ("pivot_root to .", "unmount ."),
        ("unmount .", "umask 0o22"),
        ("umask 0o22", "setgroups"),
        ("setgroups", "setresgid 0 0 0"),
        ("setresgid 0 0 0", "setresuid 0 0 0"),
        ("setresuid 0 0 0", "capset"),
        ("capset", f"prctl {38}"),
        (f"prctl {38}", "execve /bin/true"),
    ):
        assert 0 <= text.index(earlier) < text.index(later), (earlier, later)
    assert recorder.calls[-1] == "execve /bin/true"
    assert (scene / "root/proc/sys/net/core/somaxconn").read_text() == "7"
    assert "/nowhere from" not in text


def test_masked_directories_and_files(scene: Path, monkeypatch: pytest.MonkeyPatch, identity: Any) -> None:
    recorder, _ = run(scene, monkeypatch, identity)
    assert "move_mount to /proc/kcore from copy of /dev/null" in recorder.calls
    cover = f"copy of {scene}/empty"
    position = recorder.calls.index(f"move_mount to /proc/acpi from {cover}")
    assert recorder.calls[position - 1] == f"mount_setattr {cover}"


#: Enough for every call of a start; those beyond the last are the start that succeeds.
MOST_CALLS = 140


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOMEM])
def test_every_call_fails_once(
    scene: Path, monkeypatch: pytest.MonkeyPatch, identity: Any, number: int
) -> None:
    """Each failure is told with the step, the object and the kernel's reason; the program is not executed."""
    whole = len(run(scene, monkeypatch, identity)[0].calls)
    assert 60 < whole < MOST_CALLS
    for position in range(whole - 1):
        afresh(scene, monkeypatch)
        recorder, message = run(scene, monkeypatch, identity, fail_at=position, error=number)
        doing = recorder.calls[position]
        assert message, f"{doing}: nothing was told"
        error = SandboxError.from_dict(json.loads(message)["error"])
        assert isinstance(error, SandboxError), doing
        assert error.errno == number, doing
        assert error.operation, doing
        assert error.object, doing
        assert os.strerror(number) in str(error), doing
        assert not any(call.startswith("execve") for call in recorder.calls), doing


def test_a_step_is_named(scene: Path, monkeypatch: pytest.MonkeyPatch, identity: Any) -> None:
    whole, _ = run(scene, monkeypatch, identity)
    afresh(scene, monkeypatch)
    at = whole.calls.index("mount mqueue on /dev/mqueue")
    _, message = run(scene, monkeypatch, identity, fail_at=at, error=errno.EINVAL)
    error = SandboxError.from_dict(json.loads(message)["error"])
    assert isinstance(error, SetupError)
    assert error.step == "mount mqueue on /dev/mqueue"
    assert str(error) == "mount mqueue on `/dev/mqueue`: Invalid argument"


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ENODEV, "the kernel has no overlayfs"),
        (errno.EPERM, "overlayfs in a user namespace"),
        (errno.ENOENT, "a layer is missing"),
    ],
)
def test_overlay_failures_are_explained(
    scene: Path, monkeypatch: pytest.MonkeyPatch, identity: Any, number: int, cause: str
) -> None:
    at = GOLDEN.splitlines().index("mount overlay on root")
    _, message = run(scene, monkeypatch, identity, fail_at=at, error=number)
    error = SandboxError.from_dict(json.loads(message)["error"])
    assert cause in (error.cause or "")
    assert error.hint


def test_what_is_mounted_there_already_is_covered_first(
    scene: Path, monkeypatch: pytest.MonkeyPatch, identity: Any
) -> None:
    """As cgroup2 is where /sys is the host's: the kernel refuses to put a file system on itself."""
    at = GOLDEN.splitlines().index("mount cgroup2 on /sys/fs/cgroup")
    recorder, message = run(scene, monkeypatch, identity, fail_at=at, error=errno.EBUSY)
    assert not message
    cover, again = recorder.calls[at + 1 : at + 3]
    assert cover.startswith(f"mount {scene}/empty on "), cover
    assert again == recorder.calls[at]


def test_nothing_can_be_imported_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules would be the container's: a child forgets how to import before anything else."""
    import sys

    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(process, "open_oom_score", lambda: None)
    init.begin((), ())
    assert not sys.meta_path


def test_a_shim_that_is_gone_ends_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(status: int) -> None:
        raise Exited(status)

    monkeypatch.setattr(os, "_exit", leave)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with theirs, pytest.raises(Exited):
        init.await_go(theirs)


def test_kernel_errors_have_the_class_of_their_errno() -> None:
    for number, kind in ((errno.ENOENT, FileNotFoundError), (errno.ESRCH, ProcessLookupError), (errno.EPERM, PermissionError)):
        error = KernelError(number, "do", "it")
        assert issubclass(type(error), kind)
        assert (error.errno, str(error)) == (number, f"do `it`: {os.strerror(number)}")
    assert type(KernelError(errno.EINVAL, "do")) is KernelError
