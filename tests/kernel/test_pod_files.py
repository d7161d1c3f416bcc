"""Files in and out of a running container, and what a hostile one cannot do with them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gate import requires

import sandbox
from sandbox import ModelError, SandboxError, UserNotFound
from sandbox.pods import RunningPod

pytestmark = requires("userns", "overlay")

OLD = 1_000_000_000_123_456_789


@pytest.fixture(scope="module")
def pod() -> Iterator[RunningPod]:
    with sandbox.start(command="sleep inf") as running:
        yield running


def sh(pod: RunningPod, script: str) -> str:
    return str(pod.exec(["sh", "-c", script], check=True).stdout)


def test_write_and_read(pod: RunningPod) -> None:
    pod.write_text("/made/on/the way/file", "grüße\n")
    assert pod.read_text("/made/on/the way/file") == "grüße\n"
    assert sh(pod, "cat '/made/on/the way/file'") == "grüße\n"
    pod.write_text("/made/on/the way/file", "more\n", append=True)
    assert pod.read_bytes(Path("/made/on/the way/file")) == "grüße\nmore\n".encode()
    pod.write_bytes("/made/short", b"x")
    assert pod.read_bytes("/made/short") == b"x"


def test_owner_and_mode(pod: RunningPod) -> None:
    pod.write_text("/tmp/own", "x", mode=0o4750, user=0)
    assert sh(pod, "stat -c %a:%u:%g /tmp/own") == "4750:0:0\n"
    found = pod.stat("/tmp/own")
    assert (found["type"], found["mode"], found["size"]) == ("file", 0o4750, 1)


def test_files_of_the_image_can_be_replaced(pod: RunningPod) -> None:
    """On the host nobody but root may write it; in here it is ours."""
    assert pod.exists("/usr/bin/env")
    pod.write_text("/usr/bin/env", "#!/bin/sh\necho replaced\n")
    assert sh(pod, "/usr/bin/env") == "replaced\n"
    assert Path("/usr/bin/env").stat().st_size > 100


def test_names_are_looked_at(pod: RunningPod) -> None:
    pod.mkdir("/d")
    pod.mkdir("/d/e/f", parents=True, mode=0o700)
    sh(pod, "ln -s nowhere /d/dangling; ln -s e /d/link; mkfifo /d/fifo")
    assert pod.listdir("/d") == ["dangling", "e", "fifo", "link"]
    assert (pod.exists("/d/dangling"), pod.exists("/d/link/f"), pod.exists("/nope")) == (False, True, False)
    assert pod.stat("/d/link", follow=False)["target"] == "e"
    assert pod.stat("/d/link")["type"] == "directory"
    assert pod.stat("/d/fifo")["type"] == "fifo"
    pod.remove("/d/dangling")
    with pytest.raises(SandboxError, match="Directory not empty"):
        pod.remove("/d/e")
    pod.remove("/d/link")
    assert pod.exists("/d/e/f")
    pod.remove("/d", recursive=True)
    assert not pod.exists("/d")


def test_what_is_wrong_is_told(pod: RunningPod) -> None:
    for use, text in (
        (lambda: pod.read_text("/no/such"), r"`/no/such`: No such file"),
        (lambda: pod.read_text("relative"), "paths in a container are absolute"),
        (lambda: pod.read_text("/etc"), "Is a directory"),
        (lambda: pod.mkdir("/etc"), "File exists"),
        (lambda: pod.listdir("/etc/passwd"), "Not a directory"),
        (lambda: pod.write_text("/proc/version", "x"), "/proc/version"),
        (lambda: pod.copy_in("/no/such/file", "/tmp"), "does not exist on the host"),
    ):
        with pytest.raises(SandboxError, match=text):
            use()


def test_nothing_blocks_on_special_files(pod: RunningPod) -> None:
    sh(pod, "mkfifo /tmp/fifo")
    with pytest.raises(SandboxError, match="it is a fifo, not a regular file"):
        pod.read_text("/tmp/fifo")
    with pytest.raises(SandboxError):
        pod.write_text("/tmp/fifo", "x")
    with pytest.raises(SandboxError, match="it is a device"):
        pod.read_bytes("/dev/zero")


def test_links_lead_nowhere_but_inside(pod: RunningPod, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    secret.chmod(0o644)
    sh(pod, f"ln -s {secret} /tmp/out; ln -s ../../../../../..{secret} /tmp/up; ln -s /proc/1/root{secret} /tmp/magic")
    for name in ("out", "up", "magic"):
        with pytest.raises(SandboxError):
            pod.read_text(f"/tmp/{name}")
    with pytest.raises(SandboxError, match=r"ELOOP|Too many levels"):
        pod.read_text("/proc/1/root/etc/passwd")
    sh(pod, f"ln -s {secret} /tmp/write")
    with pytest.raises(SandboxError):
        pod.write_text("/tmp/write", "overwritten")
    assert secret.read_text() == "of the host"


# --- trees --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "empty").mkdir(parents=True)
    (top / "sub").mkdir()
    (top / "sub" / "script").write_bytes(b"#!/bin/sh\n")
    (top / "sub" / "script").chmod(0o755)
    (top / "link").symlink_to("sub/script")
    (top / "sub").chmod(0o751)
    for path in (top / "sub/script", top / "sub", top / "empty", top):
        os.utime(path, ns=(OLD, OLD))
    return top


def listing(top: Path) -> dict[str, tuple[str, int, int | None]]:
    found = {}
    for path in (top, *top.rglob("*")):
        state = path.lstat()
        what = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else "directory"
        plain = not path.is_symlink()
        found[str(path.relative_to(top))] = (what, stat.S_IMODE(state.st_mode), state.st_mtime_ns if plain else None)
    return found


def test_a_tree_goes_in_and_comes_out_the_same(pod: RunningPod, tree: Path, tmp_path: Path) -> None:
    pod.copy_in(tree, "/srv/copy")
    assert sh(pod, "find /srv/copy ! -user 0") == ""
    assert pod.stat("/srv/copy/sub/script")["mtime_ns"] == OLD
    assert pod.copy_out("/srv/copy", tmp_path / "back") == tmp_path / "back"
    assert listing(tmp_path / "back") == listing(tree)


def test_copies_are_made_inside_directories_as_cp_does(pod: RunningPod, tree: Path, tmp_path: Path) -> None:
    pod.mkdir("/srv/there", parents=True)
    pod.copy_in(tree, "/srv/there")
    assert pod.exists("/srv/there/tree/sub/script")
    pod.copy_in(tree / "sub/script", "/srv/new/")
    assert pod.read_bytes("/srv/new/script") == b"#!/bin/sh\n"
    assert pod.copy_out("/srv/new/script", tmp_path) == tmp_path / "script"
    assert stat.S_IMODE((tmp_path / "script").stat().st_mode) == 0o755


def test_a_hostile_tree_writes_nothing_outside(pod: RunningPod, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    sh(pod, f"mkdir /evil; ln -s {victim} /evil/a; echo x > /evil/b; ln -s / /evil/c; chmod 4777 /evil/b")
    pod.copy_out("/evil", tmp_path / "out")
    assert list(victim.iterdir()) == []
    assert os.readlink(tmp_path / "out/a") == str(victim)
    assert stat.S_IMODE((tmp_path / "out/b").stat().st_mode) == 0o777


def test_a_tree_with_a_socket_or_fifo_is_refused_by_name(pod: RunningPod, tmp_path: Path) -> None:
    sh(pod, "mkdir /odd; echo x > /odd/a; mkfifo /odd/pipe; echo y > /odd/z")
    with pytest.raises(SandboxError, match="it is a fifo"):
        pod.copy_out("/odd", tmp_path / "odd")
    assert pod.read_text("/odd/z") == "y\n"


def test_a_tree_that_does_not_exist(pod: RunningPod, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="No such file"):
        pod.copy_out("/not/there", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_copy_that_fails_leaves_nothing_behind(pod: RunningPod, tmp_path: Path) -> None:
    sh(pod, "mkdir -p /half/closed; echo x > /half/closed/a; chmod 500 /half/closed; mkdir /half/d; mkfifo /half/d/pipe")
    with pytest.raises(SandboxError, match="/half/d/pipe"):
        pod.copy_out("/half", tmp_path / "half")
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_a_copy_that_fails_stays(pod: RunningPod, tmp_path: Path) -> None:
    sh(pod, "mkdir /part; echo x > /part/a; mkfifo /part/pipe")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "mine").write_text("mine")
    with pytest.raises(SandboxError) as caught:
        pod.copy_out("/part", tmp_path)
    assert (tmp_path / "part" / "mine").read_text() == "mine"
    assert str(tmp_path / "part") in caught.value.__notes__[0]


def test_what_is_in_the_way_on_the_host_is_named(pod: RunningPod, tmp_path: Path) -> None:
    sh(pod, "mkdir -p /way/d; echo x > /way/d/f")
    (tmp_path / "way").mkdir()
    (tmp_path / "way" / "d").write_text("mine")
    with pytest.raises(SandboxError, match=f"copy out to {tmp_path}/way/d: File exists"):
        pod.copy_out("/way", tmp_path)
    with pytest.raises(SandboxError, match=f"copy out to {tmp_path}/no/such: No such file"):
        pod.copy_out("/way", tmp_path / "no" / "such")


def test_files_of_the_host_that_nobody_in_there_may_read(pod: RunningPod, tmp_path: Path) -> None:
    """As root and as anybody else: root of the container is a stranger on the host, and told so with the whole path."""
    with pytest.raises(SandboxError, match=r"copy out `/etc/[^`]+`: Permission denied") as caught:
        pod.copy_out("/etc", tmp_path / "etc")
    assert "no id in the container" in str(caught.value)
    assert "copy out what lies beside it" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


@requires("tmpfs.xattr")  # an older kernel refuses even what may be removed
def test_a_tree_that_cannot_be_removed_is_named_in_full() -> None:
    with sandbox.start(command="sleep inf") as other:
        with pytest.raises(SandboxError, match=r"remove `/etc/[^`]+`: Permission denied") as caught:
            other.remove("/etc", recursive=True)
        assert "no id in the container" in str(caught.value)


def test_a_deep_tree_is_removed(pod: RunningPod) -> None:
    sh(pod, "mkdir /deep; cd /deep; i=0; while [ $i -lt 1500 ]; do mkdir d; cd -P d; i=$((i+1)); done")
    pod.remove("/deep", recursive=True)
    assert not pod.exists("/deep")


def test_what_the_readme_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8").partition("## In a script")[2]
    code = text.partition("```python")[2].partition("```")[0]
    assert "copy_out" in code
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "collected" / "app.toml").read_text() == "debug = true\n"


# --- wrong arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"mode": "755"}, r"write_bytes\.mode = '755'.*\n.*mode=0o755"), ({"mode": 7.5}, r"mode = 7\.5"),
        ({"mode": 0o10000}, "mode = 4096"), ({"user": -5}, "user = -5"), ({"user": 2**40}, "user = 1099511627776"),
        ({"user": "no such"}, "user = 'no such'"), ({"user": 1.5}, r"user = 1\.5"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named_and_ends_nothing(pod: RunningPod, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        pod.write_text("/tmp/typed", "x", **fields)
    assert not pod.exists("/tmp/typed")


def test_a_user_by_name(pod: RunningPod) -> None:
    pod.write_text("/etc/passwd", "root:x:0:0::/root:/bin/sh\nme:x:0:0::/me:/bin/sh\n")
    pod.write_text("/tmp/named", "x", user="me")
    assert pod.stat("/tmp/named")["uid"] == 0
    with pytest.raises(UserNotFound, match="nosuch"):
        pod.write_text("/tmp/of-nobody", "x", user="nosuch")
    assert not pod.exists("/tmp/of-nobody")


@requires("subuid")
def test_a_user_by_name_or_number_with_the_group(pod: RunningPod) -> None:
    pod.write_text("/etc/passwd", "root:x:0:0::/root:/bin/sh\nme:x:7:8::/me:/bin/sh\n")
    pod.write_text("/etc/group", "root:x:0:\nus:x:9:\n")
    for user, ids in (("me", (7, 8)), ("me:us", (7, 9)), (7, (7, 7)), ("5:us", (5, 9)), (0, (0, 0))):
        pod.write_text("/tmp/named", "x", user=user)
        found = pod.stat("/tmp/named")
        assert (found["uid"], found["gid"]) == ids, user


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "own", "path": "/tmp/agent", "mode": "755"}, {"op": "own", "path": "/tmp/agent", "uid": 2**40},
        {"op": "open", "path": 5, "flags": 0}, {"op": "put", "path": "/tmp/agent"}, {"op": "stat", "path": None},
        {"op": "nosuch"}, {"op": "open", "path": "/tmp/agent\0", "flags": 0}, {"op": "list", "path": [1]},
    ],
)  # fmt: skip
def test_an_agent_survives_requests_that_mean_nothing(pod: RunningPod, request_: dict[str, Any]) -> None:
    pod.write_text("/tmp/agent", "x")
    agent = pod._one().files
    before = agent._socket
    with pytest.raises(SandboxError):
        agent.ask(**request_)
    assert pod.read_text("/tmp/agent") == "x"
    assert agent._socket is before


def test_nul_ends_no_path(pod: RunningPod, tmp_path: Path) -> None:
    pod.write_text("/tmp/m", "mine")
    path = "/tmp/m\0zzz"
    uses: tuple[Callable[[], object], ...] = (
        lambda: pod.write_text(path, "x"), lambda: pod.read_text(path), lambda: pod.exists(path), lambda: pod.stat(path),
        lambda: pod.listdir(path), lambda: pod.mkdir(path), lambda: pod.remove(path), lambda: pod.copy_out(path, tmp_path),
        lambda: pod.copy_in("/etc/passwd", path), lambda: pod.copy_in(f"{tmp_path}\0", "/tmp"),
        lambda: pod.copy_out("/tmp/m", f"{tmp_path}\0"), lambda: pod.exec("true", cwd=path),
        lambda: pod.exec(["true", "\0"]), lambda: pod.exec("true", env={"A": "\0"}), lambda: pod.exec("true", env={"\0": ""}),
    )  # fmt: skip
    for use in uses:
        with pytest.raises(ModelError, match="NUL"):
            use()
    assert pod.read_text("/tmp/m") == "mine"


def test_files_stay_readable_after_the_end() -> None:
    with sandbox.start(command=["sh", "-c", "echo result > /tmp/result"]) as pod:
        assert pod.wait(20) == 0
        assert pod.read_text("/tmp/result") == "result\n"
