"""Containers that were finished ahead (sandbox.runtime.finished) are like those that are made when they are asked for."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conformance_cases import CASES
from conformance_observing import differences, observe, own_environment, probing
from gate import requires
from programs import descendants, name_of

import sandbox
from sandbox import Pod, Security
from sandbox.oci.seccomp_profile import default_profile
from sandbox.runtime import stub

pytestmark = [
    requires("userns", "overlay", "busybox"),
    pytest.mark.skipif(stub.HERE is None, reason="there is no stub for this machine"),
]
#: Of those, the cases that need the interpreter to the end.
_NEVER = {"terminal", "notified"}


def waiting() -> set[int]:
    """The processes that wait in a stub."""
    return {pid for pid in descendants(os.getpid()) if name_of(pid) == stub.NAME}


def until_waiting(start: Callable[[], Any], patience: float = 5.0) -> set[int]:
    """Start the same until one is finished ahead for the next."""
    for part in (0.04, 0.06, 0.1, 0.1, 0.15, 0.15, 0.2, 0.2):
        start()
        deadline = time.monotonic() + part * patience
        while time.monotonic() < deadline:
            if found := waiting():
                return found
            time.sleep(0.01)
    return set()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a busybox, old enough to be trusted not to change just now."""
    tree = tmp_path / "root"
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp"):
        (tree / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tree / "bin/busybox")
    for applet in ("sh", "cat", "true", "id", "pwd", "ls", "hostname", "sleep", "echo"):
        (tree / "bin" / applet).symlink_to("busybox")
    for directory in (tmp_path, tree, *tree.iterdir()):
        directory.chmod(0o755)
    time.sleep(0.05)
    return tree


@pytest.fixture
def run(root: Path) -> Callable[..., sandbox.Result[str]]:
    """Run a shell script in it."""
    return lambda script, **fields: sandbox.run(["/bin/sh", "-c", script], image=f"dir:{root}", **fields)


@requires("python")
@pytest.mark.parametrize("name", CASES)
def test_the_same_is_seen(name: str) -> None:
    pod = Pod([probing(**CASES[name].fields)], hostname="box")
    sandbox.run("true")  # of another shape, so what was finished for an earlier test is not for this
    first = own_environment(observe(pod, "native"))["main"]
    found = until_waiting(lambda: observe(pod, "native"), 1 if name in _NEVER else 5)
    assert bool(found) == (name not in _NEVER)
    again = own_environment(observe(pod, "native"))["main"]
    assert differences(first, again) == {}
    assert found - waiting() or name in _NEVER


@pytest.mark.parametrize(
    "security", [Security(seccomp="unconfined"), Security(no_new_privileges=False), Security(cap_drop=["all"])]
)
def test_rights(run: Any, security: Security) -> None:
    script = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:|Sig)' /proc/self/status; umask; ls /proc/self/fd; ulimit -n"
    first = run(script.replace("grep", "/bin/busybox grep"), security=security).stdout
    assert until_waiting(lambda: run("true", security=security))
    assert run(script.replace("grep", "/bin/busybox grep"), security=security).stdout == first


def test_each_has_its_own_name_and_words(run: Any) -> None:
    script = "hostname; cat /etc/hostname; cat /etc/hosts; echo $A; cat"
    for number in range(5):
        name = "a" * (number + 3)
        lines = run(script, hostname=name, env={"A": str(number)}, input=f"in {number}").stdout.splitlines()
        assert (lines[:2], lines[-2:]) == ([name] * 2, [str(number), f"in {number}"])
        assert f"127.0.0.1 {name}" in lines
        time.sleep(0.05)


def test_nothing_of_one_is_in_the_next(run: Any) -> None:
    for _ in range(5):
        assert run("ls /tmp /etc; echo x > /tmp/left; echo x > /etc/left; echo x >> /etc/hosts").stdout.split() == [
            "/etc:", "hostname", "hosts", "resolv.conf", "/tmp:"
        ]  # fmt: skip
        time.sleep(0.05)


def test_what_changes_below_the_root_is_seen(root: Path, run: Any) -> None:
    (root / "tmp/data").mkdir()
    (root / "tmp/data/file").write_text("0")
    time.sleep(0.05)
    for number in range(1, 4):
        found = until_waiting(lambda: run("true"))
        (root / "tmp/data").rename(root / f"tmp/old{number}")
        (root / "tmp/data").mkdir()
        (root / "tmp/data/file").write_text(str(number))
        assert run("cat /tmp/data/file").stdout == str(number)
        assert found - waiting()


def test_a_path_that_was_made_read_only_is_not_taken_for_one_that_is_hidden(root: Path, run: Any) -> None:
    (root / "secret").mkdir()
    (root / "secret/key").write_text("the secret")
    time.sleep(0.05)
    readable = Security(masked_paths=(), readonly_paths=("/secret",))
    assert until_waiting(lambda: run("true", security=readable))
    hidden = Security(masked_paths=("/secret",), readonly_paths=())
    assert run("cat /secret/key", security=hidden).stdout == ""
    assert run("cat /secret/key", security=readable).stdout == "the secret"


def test_what_is_mounted_or_hidden_far_down_is_looked_for_when_it_is_needed(root: Path, run: Any) -> None:
    """The kernel remembers what it saw there, and nobody would notice that it has changed."""
    (root / "tmp/deep/app").mkdir(parents=True)
    time.sleep(0.05)
    fields = {"mounts": [sandbox.Mount.tmpfs("/tmp/deep/app/cache")], "security": Security(masked_paths=("/tmp/deep/key",))}
    for number in range(1, 4):
        for _ in range(3):
            run("true", **fields)
            time.sleep(0.05)
        (root / "tmp/deep").rename(root / f"tmp/old{number}")
        (root / "tmp/deep/app").mkdir(parents=True)
        (root / "tmp/deep/key").write_text("the secret")
        (root / "tmp/deep/app/new").write_text(str(number))
        assert run("cat /tmp/deep/key; cat /tmp/deep/app/new", **fields).stdout == str(number)


def test_a_root_that_is_gone_does_no_harm_to_others(root: Path, run: Any) -> None:
    other = root.parent / "other"
    shutil.copytree(root, other, symlinks=True)
    time.sleep(0.05)
    for _ in range(3):
        sandbox.run(["/bin/true"], image=f"dir:{other}")
    shutil.rmtree(other)
    with pytest.raises(sandbox.ImageNotFound):
        sandbox.run(["/bin/true"], image=f"dir:{other}")
    assert until_waiting(lambda: run("true"))
    shutil.rmtree(root)
    with pytest.raises(sandbox.ImageNotFound):
        run("true")


def test_what_changes_in_the_root_itself_is_seen(root: Path, run: Any) -> None:
    for number in range(1, 4):
        (root / "data").mkdir()
        (root / "data/file").write_text(f"{number}\n")
        (root / f"new{number}").write_text("")
        seen = run("cat /data/file; ls -d /new*").stdout.split()
        assert seen == [str(number), *(f"/new{n}" for n in range(1, number + 1))]
        time.sleep(0.05)
        assert until_waiting(lambda: run("cat /data/file"))
        (root / "data").rename(root.parent / f"old{number}")


@pytest.mark.parametrize(
    ("command", "kind", "words"),
    [
        (["nope"], sandbox.CommandNotFound, "in none of"),
        (["/bin/nope"], sandbox.CommandNotFound, "/bin/nope"),
        (["/etc"], sandbox.CommandNotExecutable, "directory"),
        (["/etc/script"], sandbox.CommandNotExecutable, "permission"),
        (["/etc/loader"], sandbox.CommandNotFound, "interpreter /no/such"),
    ],
)
def test_what_cannot_be_executed_is_explained(root: Path, run: Any, command: list[str], kind: type, words: str) -> None:
    (root / "etc/script").write_text("#!/bin/sh\n")
    (root / "etc/loader").write_text("#!/no/such\n")
    (root / "etc/loader").chmod(0o755)
    time.sleep(0.05)
    assert until_waiting(lambda: run("true"))
    for _ in range(2):
        with pytest.raises(kind, match=words):
            sandbox.run(command, image=f"dir:{root}")
    assert run("cat", input="still here").stdout == "still here"


def test_it_is_told_also_under_a_filter_that_forbids_to_tell(root: Path, run: Any, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["sendmsg"], "action": "SCMP_ACT_ERRNO"}]}'
    )
    security = Security(seccomp=str(profile))
    for _ in range(4):
        run("true", security=security)
        time.sleep(0.05)
    with pytest.raises(sandbox.CommandNotFound):
        sandbox.run(["nope"], image=f"dir:{root}", security=security)


def test_it_is_told_also_under_a_filter_that_kills_for_calls_it_does_not_know(root: Path, run: Any) -> None:
    every = frozenset(f"CAP_{name}" for name in ("SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE"))
    known = default_profile(os.uname().machine, every).syscalls or ()
    names = sorted({name for rule in known if rule.action == "SCMP_ACT_ALLOW" for name in rule.names})
    rules = [{"names": names, "action": "SCMP_ACT_ALLOW"}]
    security = Security(seccomp={"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": rules})
    assert until_waiting(lambda: run("true", security=security))
    with pytest.raises(sandbox.CommandNotFound):
        sandbox.run(["nope"], image=f"dir:{root}", security=security)


def test_the_next_entry_of_the_path_is_tried(root: Path, run: Any) -> None:
    (root / "usr").mkdir()
    for name in ("one", "two"):
        (root / "usr" / name).mkdir()
    (root / "usr/one/tool").write_text("not for all")
    (root / "usr/two/tool").write_text("#!/bin/sh\necho found\n")
    (root / "usr/two/tool").chmod(0o755)
    time.sleep(0.05)
    path = {"PATH": "/nowhere:/usr/one:/usr/two:/bin"}
    for _ in range(5):
        assert sandbox.run(["tool"], image=f"dir:{root}", env=path).stdout == "found\n"
        time.sleep(0.05)


def test_a_working_directory_that_leads_out(root: Path, run: Any) -> None:
    """Of the finished one no descriptor leads anywhere, but one of the standard streams could."""
    outside = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert until_waiting(lambda: run("true"))
        with pytest.raises(sandbox.SandboxError, match="working directory"):
            run("pwd", working_dir="/proc/self/fd/0", stdin=outside)
    finally:
        os.close(outside)
    with pytest.raises(sandbox.SandboxError, match="working directory"):
        run("pwd", working_dir="/proc/self/fd/3")
    with pytest.raises(sandbox.SandboxError, match="working directory"):
        run("pwd", working_dir="/bin/busybox")


def test_one_that_was_killed_is_replaced(run: Any) -> None:
    for pid in until_waiting(lambda: run("true")):
        os.kill(pid, signal.SIGKILL)
    assert run("echo fine").stdout == "fine\n"


def test_many_arguments(root: Path) -> None:
    words = ["word"] * 30_000  # more than a message holds
    for _ in range(4):
        assert len(sandbox.run(["echo", *words], image=f"dir:{root}").stdout) == 5 * len(words)
        time.sleep(0.05)


def test_a_working_directory_far_down(run: Any) -> None:
    directory = "/d" * 200
    for _ in range(4):
        assert run("pwd", working_dir=directory).stdout == f"{directory}\n"
        time.sleep(0.05)


def test_a_path_with_many_entries(root: Path) -> None:
    path = ":".join(f"/no/{number}" for number in range(200)) + ":/bin"
    for _ in range(4):
        assert sandbox.run(["echo", "x"], image=f"dir:{root}", env={"PATH": path}).stdout == "x\n"
        time.sleep(0.05)


def test_a_program_that_is_another_in_a_stub() -> None:
    """What /proc/self/exe means before execve(2) is ours, and means the same whether or not it waits in a stub."""
    command = ["/proc/self/exe", "-I", "-S", "-c", "raise SystemExit(7)"]
    found = set()
    for _ in range(5):
        try:
            found.add(str(sandbox.run(command).returncode))
        except sandbox.SandboxError as error:  # a Python that the image `host` has no libraries for
            found.add(type(error).__name__)
        sandbox.run(["true"])
        sandbox.run(["true"])
        time.sleep(0.1)
    assert len(found) == 1


@requires("memory.limit")
def test_very_little_memory_is_the_same_with_and_without(run: Callable[..., sandbox.Result[str]]) -> None:
    """What was made ahead has used some already: the limit would be refused, or met later."""
    assert until_waiting(lambda: run("true"))
    for _ in range(2):  # the second time there is none
        ended = run("true", memory="300K")
        assert (ended.returncode, ended.oom_killed) == (-signal.SIGKILL, True)
