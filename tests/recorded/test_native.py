"""The shim's half of a start and of an exec: the order of the calls; each made to fail, and nothing stays open."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recorder as rec

from sandbox import oci
from sandbox.linux import syscalls
from sandbox.linux.idmap import IdMap, IdRange
from sandbox.models import Container, Mount, Pod
from sandbox.runtime import native, plan as plans, rootfs as roots
from sandbox.runtime.failure import Failure, describe

IDMAP = IdMap((IdRange(0, 100_000, 65_536),), (IdRange(0, 100_000, 65_536),))
NOWHERE = native.Placement(-1, ())


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., rec.Recorder]:
    """A recorder in the kernel's place; what is done to other processes is only written down."""

    def install(**failure: Any) -> rec.Recorder:
        recorder = rec.install(monkeypatch, rec.Recorder(**failure))
        monkeypatch.setattr(native, "write_map", lambda pid, _map: recorder.note(f"write_map {pid}"))
        real_open = os.open

        def waited(pid: int, _options: int) -> tuple[int, int]:
            recorder.note(f"waitpid {pid}")
            return pid, 9

        monkeypatch.setattr(os, "waitpid", waited)

        def noted_open(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if str(path).startswith("/proc/4"):
                kind = str(path).rpartition("/")[2]
                recorder.note(f"open_namespace {kind}")
                return real_open(f"/proc/self/ns/{kind}", flags)
            return real_open(path, flags, *rest, **named)

        monkeypatch.setattr(os, "open", noted_open)
        return recorder

    return install


def plan_of(tmp_path: Path) -> plans.Plan:
    (tmp_path / "data").mkdir(exist_ok=True)
    mounts = [Mount.bind("/usr", "/usr2", read_only=True), Mount.bind(tmp_path / "data", "/data")]
    container = Container(command=["/bin/true"], mounts=mounts)
    facts = oci.Host(pod_id="p", cgroup_parent="/p", kernel=(6, 1), machine="x86_64")
    spec = oci.to_spec(container, Pod([container]), None, facts)
    assert spec.linux is not None
    document = oci.to_dict(spec)
    del document["linux"]["seccomp"]
    return plans.build(document)


def start(plan: plans.Plan, **changes: Any) -> native.Launch:
    rootfs = roots.Rootfs((roots.Overlay("/", ("/lower", "/upper")),), idmap=True, size=None)
    fields: dict[str, Any] = {
        "idmap": IDMAP, "userns_fd": 99, "pod": None, "stdio": (0, 1, 2), "placement": NOWHERE, "scratch": "/scratch",
        "state": {},
    }  # fmt: skip
    return native.start(plan, rootfs, **{**fields, **changes})


def close(launch: native.Launch) -> None:
    launch.channel.close()
    for fd in (launch.pidfd, *launch.namespaces.values()):
        os.close(fd)


ORDER = [
    "open_tree /lower", "mount_setattr copy of /lower",
    "open_tree /upper", "mount_setattr copy of /upper",
    "open_tree /usr", "mount_setattr copy of /usr", "mount_setattr copy of /usr",
    "open_tree {data}", "mount_setattr copy of {data}", "mount_setattr copy of {data}",
    "clone3 0x7c020000", "write_map 4000001",
    "open_namespace ", "open_namespace ", "open_namespace ", "open_namespace ", "open_namespace ", "open_namespace ",
]  # fmt: skip


def test_the_order_of_a_start(
    tmp_path: Path, host: Callable[..., rec.Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs the host is made ready before there is a child; ids are mapped before the child goes on."""
    recorder = host()
    real_pair, childs = socket.socketpair, []

    def pair(*kinds: Any) -> tuple[socket.socket, socket.socket]:
        ours, theirs = real_pair(*kinds)
        childs.append(theirs.dup())
        return ours, theirs

    monkeypatch.setattr(socket, "socketpair", pair)
    before = rec.open_descriptors()
    launch = start(plan_of(tmp_path))
    with childs[0] as child:
        assert child.recv(16) == b"go"
    expected = [line.format(data=tmp_path / "data") for line in ORDER]
    assert [call.rpartition("open_namespace ")[1] or call for call in recorder.calls] == expected
    assert {call.split()[1] for call in recorder.calls if call.startswith("open_namespace")} == {
        "user", "mnt", "pid", "net", "ipc", "uts",
    }  # fmt: skip
    assert set(launch.namespaces) == {"user", "mount", "pid", "network", "ipc", "uts"}
    close(launch)
    assert rec.open_descriptors() == before


@pytest.mark.parametrize("number", [errno.EPERM, errno.EMFILE])
def test_every_call_of_a_start_fails_once(tmp_path: Path, host: Callable[..., rec.Recorder], number: int) -> None:
    plan = plan_of(tmp_path)
    for position in range(len(ORDER)):
        before = rec.open_descriptors()
        recorder = host(fail_at=position, error=number)
        with pytest.raises((Failure, OSError)) as caught:
            start(plan)
        doing = recorder.calls[position]
        facts = describe(caught.value, "start the container")
        assert facts["errno"] == number, doing
        assert facts["operation"], doing
        assert facts["object"], doing
        assert rec.open_descriptors() == before, doing
        born = any(call.startswith("clone3") for call in recorder.calls[:position])
        assert (f"signal {9}" in recorder.calls) == born, doing
        assert any(call.startswith("waitpid") for call in recorder.calls) == born, doing


def test_a_source_that_is_missing_is_explained(tmp_path: Path, host: Callable[..., rec.Recorder]) -> None:
    host(fail_at=ORDER.index("open_tree /usr"), error=errno.ENOENT)
    with pytest.raises(Failure) as caught:
        start(plan_of(tmp_path))
    assert caught.value.facts["object"] == "/usr"
    assert "does not exist on the host" in caught.value.facts["cause"]


def test_a_file_system_without_idmapped_mounts_is_explained(tmp_path: Path, host: Callable[..., rec.Recorder]) -> None:
    host(fail_at=ORDER.index("mount_setattr copy of /upper"), error=errno.EINVAL)
    with pytest.raises(Failure) as caught:
        start(plan_of(tmp_path))
    assert caught.value.facts["type"] == "UnsupportedFeature"
    assert caught.value.facts["feature"] == "idmapped mounts"
    assert caught.value.facts["object"] == "/upper"


def test_what_was_made_ahead_gets_the_order(tmp_path: Path, host: Callable[..., rec.Recorder]) -> None:
    recorder = host()
    seen: list[Any] = []
    spare = native.Launch(1, -1, None, {})  # type: ignore[arg-type]

    def hand_over(order: Any) -> native.Launch:
        seen.append(order)
        return spare

    assert start(plan_of(tmp_path), hand_over=hand_over) is spare
    assert not any(call.startswith("clone3") for call in recorder.calls)
    assert set(seen[0].prepared) == {"/usr2", "/data"}
    assert len(seen[0].layers) == 2


# --- exec ---------------------------------------------------------------------------------------------------------


def execute(plan: plans.Plan) -> native.Launch:
    return native.execute(
        plan.program, None, pidns_fd=50, own_pidns_fd=51, init_pidfd=52, namespaces=list(plan.namespaces), stdio=(0, 1, 2),
        placement=NOWHERE, mark=False,
    )  # fmt: skip


def test_the_order_of_an_exec(tmp_path: Path, host: Callable[..., rec.Recorder]) -> None:
    recorder = host()
    before = rec.open_descriptors()
    launch = execute(plan_of(tmp_path))
    assert recorder.calls == ["setns 0x20000000", "clone3 0x0", "setns 0x20000000"]
    close(launch)
    assert rec.open_descriptors() == before


def test_the_shim_comes_back_from_the_containers_process_namespace(tmp_path: Path, host: Callable[..., rec.Recorder]) -> None:
    """Its next children must not be born in there, whatever becomes of this one."""
    recorder = host(fail_at=1, error=errno.EAGAIN)
    before = rec.open_descriptors()
    with pytest.raises(OSError) as caught:
        execute(plan_of(tmp_path))
    assert caught.value.errno == errno.EAGAIN
    assert recorder.calls[-1] == "setns 0x20000000"
    assert rec.open_descriptors() == before


def test_invoke_is_the_only_way_to_the_kernel() -> None:
    """A system call that went around it would be neither recorded nor explained."""
    source = Path(syscalls.__file__).read_text("utf-8")
    body = source[source.index("def invoke") :]
    for name in ("_mount", "_clone3", "_setns", "_openat2", "_capset"):
        assert f" {name}(" not in body, name
