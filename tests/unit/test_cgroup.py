"""cgroup files, read and written in a directory that looks like a cgroup."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sandbox.linux import cgroup
from sandbox.linux.cgroup import Cgroup
from sandbox.linux.errors import KernelError
from sandbox.linux.mounts import parse_mountinfo


def put(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


def test_directories_of_both_versions(tmp_path: Path) -> None:
    group = Cgroup(str(tmp_path / "v2/pod/c"), {"memory": str(tmp_path / "m/c"), "pids": str(tmp_path / "m/c")})
    group.create()
    group.create()
    assert (tmp_path / "v2/pod/c").is_dir()
    assert group.paths == [str(tmp_path / "v2/pod/c"), str(tmp_path / "m/c")]
    assert group.child("main").v2 == str(tmp_path / "v2/pod/c/main")
    assert group.child("main").v1["memory"] == str(tmp_path / "m/c/main")
    assert group.v2_only().v1 == {}
    group.child("main").create()
    assert not group.remove_empty()
    assert group.child("main").remove_empty()
    assert group.remove_empty()
    assert not (tmp_path / "m/c").exists()


def test_a_cgroup_that_goes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd removes its scopes when it likes: the kernel reads nothing from what is gone."""

    def read(_fd: int, _size: int) -> bytes:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    put(tmp_path, memory__current="1\n", cpu__stat="usage_usec 5\n")
    with monkeypatch.context() as patched:
        patched.setattr(os, "read", read)
        text = cgroup.read(str(tmp_path / "memory.current"))
        found = Cgroup(str(tmp_path)).statistics()
        kills = Cgroup(str(tmp_path)).oom_kills()
    assert (text, found, kills) == (None, {}, 0)


def test_events_are_read_where_they_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    with (tmp_path / "cgroup.events").open("rb") as file:
        assert [cgroup.read_event(file.fileno(), "frozen") for _ in range(2)] == [1, 1]
        assert cgroup.read_event(file.fileno(), "unheard") == 0

        def pread(_fd: int, _size: int, _offset: int) -> bytes:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

        monkeypatch.setattr(os, "pread", pread)
        assert cgroup.read_event(file.fileno(), "frozen") is None


def test_remove_takes_what_is_below(tmp_path: Path) -> None:
    group = Cgroup(str(tmp_path / "a"))
    Cgroup(str(tmp_path / "a/b/c")).create()
    group.remove()
    assert not (tmp_path / "a").exists()
    group.remove()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KernelError) as caught:
        Cgroup(str(tmp_path / "file/x")).create()
    assert caught.value.operation == "make the cgroup"
    assert str(tmp_path) in caught.value.object


def test_a_refused_value_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"write '7' to `.*memory\.max`: No such file"):
        cgroup.write(str(tmp_path / "memory.max"), "7")
    assert cgroup.read(str(tmp_path / "memory.max")) is None


def test_statistics_of_version_2(tmp_path: Path) -> None:
    put(
        tmp_path / "c", cpu__stat="usage_usec 5\nuser_usec 2\nsystem_usec 3\nnr_throttled 1\nthrottled_usec 4\n",
        memory__current="10\n", memory__peak="20\n", memory__max="max\n", pids__current="2\n", pids__max="9\n",
        io__stat="8:0 rbytes=1 wbytes=2 rios=1\n8:16 rbytes=10 wbytes=20\n",
        memory__events="oom 3\noom_kill 2\n", cgroup__events="populated 1\nfrozen 0\n",
        cpu__pressure="some avg10=1.50 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0 avg300=0 total=0\n",
    )  # fmt: skip
    group = Cgroup(str(tmp_path / "c"))
    assert group.statistics() == {
        "cpu_usec": 5, "cpu_user_usec": 2, "cpu_system_usec": 3, "cpu_throttled": 1, "cpu_throttled_usec": 4,
        "memory_current": 10, "memory_peak": 20, "pids_current": 2, "pids_limit": 9, "io_read_bytes": 11, "io_write_bytes": 22,
    }  # fmt: skip
    assert group.oom_kills() == 2
    assert (group.populated(), group.frozen()) == (True, False)
    assert group.pressure("cpu")["some_avg10"] == 1.5
    assert group.pressure("memory") == {}


def test_statistics_of_version_1_beside_it(tmp_path: Path) -> None:
    put(tmp_path / "c", cpu__stat="usage_usec 5\n", memory__current="1\n")
    put(
        tmp_path / "m", memory__usage_in_bytes="30\n", memory__max_usage_in_bytes="40\n",
        memory__limit_in_bytes=f"{(1 << 63) - 4096}\n", memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    )  # fmt: skip
    group = Cgroup(str(tmp_path / "c"), {"memory": str(tmp_path / "m")})
    assert group.statistics() == {"cpu_usec": 5, "memory_current": 30, "memory_peak": 40}
    assert group.oom_kills() == 1


def test_without_version_2(tmp_path: Path) -> None:
    group = Cgroup(None, {"pids": str(tmp_path)})
    put(tmp_path, tasks="")
    assert (group.open_directory(), group.kill(), group.available(), group.pressure("cpu")) == (-1, False, set(), {})
    (fd,) = group.open_v1_tasks()
    os.write(fd, b"0")
    os.close(fd)
    assert (tmp_path / "tasks").read_text() == "0"


def test_controllers_are_handed_down(tmp_path: Path) -> None:
    put(tmp_path, cgroup__subtree_control="", cgroup__controllers="cpu memory\n", cgroup__kill="", cgroup__freeze="")
    group = Cgroup(str(tmp_path))
    group.enable({"memory", "cpu"})
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert group.available() == {"cpu", "memory"}
    group.enable(set())
    assert group.kill()
    group.freeze(True)
    assert ((tmp_path / "cgroup.kill").read_text(), (tmp_path / "cgroup.freeze").read_text()) == ("1", "1")


def test_flat_keyed() -> None:
    assert cgroup.flat_keyed("a 1\nb x\nc 2 3\n\nd 4") == {"a": 1, "d": 4}
    assert cgroup.flat_keyed(None) == {}


def test_where_cgroups_are_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount point that something else lies on has no cgroup.procs."""
    for name in ("memory", "cpu,cpuacct", "unified"):
        put(tmp_path / name, cgroup__procs="")
    table = (
        f"30 20 0:26 / {tmp_path} rw - tmpfs tmpfs rw,mode=755\n"
        f"31 30 0:27 / {tmp_path}/memory rw - cgroup cgroup rw,memory\n"
        f"32 30 0:28 / {tmp_path}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        f"33 30 0:28 / {tmp_path}/covered rw - cgroup cgroup rw,pids\n"
        f"34 30 0:29 / {tmp_path}/unified rw - cgroup2 cgroup2 rw\n"
    )
    monkeypatch.setattr(cgroup, "mount_table", lambda _process: list(parse_mountinfo(table)))
    found = cgroup.hierarchies()
    assert found.v2 == f"{tmp_path}/unified"
    both = f"{tmp_path}/cpu,cpuacct"
    assert found.v1 == {"memory": f"{tmp_path}/memory", "cpu": both, "cpuacct": both}


def test_a_cgroup_that_stays_busy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c").mkdir()

    def busy(path: str) -> None:
        raise OSError(errno.EBUSY, "busy", path)

    monkeypatch.setattr(os, "rmdir", busy)
    monkeypatch.setattr(cgroup, "_REMOVE_PATIENCE", 0.01)
    with pytest.raises(KernelError, match="remove the cgroup"):
        Cgroup(str(tmp_path / "c")).remove()
