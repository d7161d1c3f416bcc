"""One document, three engines: what a program inside sees is what was declared, and the same under all of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conformance_accepted import judge
from conformance_observing import differences, flat, observe, probing
from gate import requires

from sandbox import Mount, Pod, Security
from sandbox.oci import capabilities

pytestmark = [requires("userns", "overlay", "python")]
OTHERS = [pytest.param(name, marks=requires(name)) for name in ("crun", "runc")]
ENGINES = ["native", *OTHERS]


class Case(NamedTuple):
    #: Arguments of the container.
    fields: dict[str, Any]
    #: Path into the report → what it has to be.
    declared: dict[str, Any]


def mask(*names: str) -> str:
    return f"{sum(1 << capabilities.ALL.index(name) for name in names):016x}"


DEFAULT = tuple(capabilities.DEFAULT)
NONE = mask()
READ_ONLY = "Read-only file system"
DENIED = "Permission denied"

CASES = {
    "plain": Case({}, {
        "identity.uids": [0, 0, 0], "identity.groups": [0], "identity.umask": "0o22", "identity.cwd": "/", "identity.pid": 1,
        "identity.ppid": 0, "identity.session_leader": True, "rights.CapEff": mask(*DEFAULT), "rights.CapBnd": mask(*DEFAULT),
        "rights.CapInh": NONE, "rights.CapAmb": NONE, "rights.NoNewPrivs": "1", "rights.Seccomp": "2", "rights.pdeathsig": 0,
        "rights.SigBlk": NONE, "hostname": "box", "setgroups": "allow", "terminal": None, "mounts./proc.type": "proc",
        "mounts./sys.type": "sysfs", "mounts./dev.type": "tmpfs", "mounts./dev/pts.type": "devpts",
        "mounts./dev/mqueue.type": "mqueue", "mounts./sys/fs/cgroup.type": "cgroup2", "devices.null": ["c", "0o666", [1, 3]],
        "usable.null": "ok", "usable.mknod": "Operation not permitted", "usable.ptmx": "ok", "network.lo": "0x9",
        "network.sockets": "ok", "writable./": "ok", "writable./etc": "ok", "usable.sysctl": DENIED,
        "writable./sys": READ_ONLY, "writable./sys/fs/cgroup": READ_ONLY, "sysctls.net/ipv4/ip_unprivileged_port_start": "0",
        "syscalls.unshare_user": "Operation not permitted", "syscalls.mount": "Operation not permitted",
        "proc_paths.sys": ["directory", "many", True], "mounts./.propagation": [],
    }),
    "user": Case({"user": "65534:65534", "groups": ["7"], "umask": 0o077, "working_dir": "/tmp"}, {
        "identity.uids": [65534] * 3, "identity.gids": [65534] * 3, "identity.groups": [7, 65534], "identity.umask": "0o77",
        "identity.cwd": "/tmp", "rights.CapEff": NONE, "rights.CapPrm": NONE, "writable./etc": DENIED, "writable./tmp": "ok",
    }),
    "capabilities": Case(
        {"user": "1000:1000", "security": Security(cap_add=["net_bind_service", "sys_chroot"], cap_drop=["chown"])}, {
            "rights.CapAmb": mask("CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT"),
            "rights.CapEff": mask("CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT"),
            "rights.CapBnd": mask(*{*DEFAULT, "CAP_SYS_CHROOT"} - {"CAP_CHOWN"}), "syscalls.chroot": "ok",
        },
    ),
    "read-only": Case({"security": Security(read_only_root=True), "mounts": [Mount.tmpfs("/opt/free")]}, {
        "writable./": READ_ONLY, "writable./etc": READ_ONLY, "writable./usr": READ_ONLY, "writable./tmp": READ_ONLY,
        "writable./dev": "ok", "usable.shm": "ok", "mounts./opt/free.type": "tmpfs",
    }),
    "limits": Case(
        {"ulimits": {"nofile": (100, 200), "core": 0}, "sysctls": {"net.core.somaxconn": "99", "kernel.shmmax": "4096"},
         "working_dir": "/new/directory", "oom_score_adj": 500, "env": {"OWN": "a b=c"}},
        {"rlimits.RLIMIT_NOFILE": [100, 200], "rlimits.RLIMIT_CORE": [0, 0], "sysctls.net/core/somaxconn": "99",
         "sysctls.kernel/shmmax": "4096", "identity.cwd": "/new/directory", "rights.oom_score_adj": "500",
         "identity.env.OWN": "a b=c"},
    ),
    "terminal": Case({"tty": True}, {
        "terminal.name": "/dev/pts/0", "terminal.controls": True, "terminal.console": True, "identity.env.TERM": "xterm",
        "usable.tty": "ok", "devices.console": ["c", "0o620", [136, 0]],
    }),
    "privileged": Case({"security": Security(privileged=True)}, {
        "rights.NoNewPrivs": "0", "rights.Seccomp": "0", "syscalls.unshare_user": "ok", "syscalls.mount": "ok",
        "usable.mknod": "Operation not permitted", "proc_paths.sys": ["directory", "many", False],
    }),
    "notified": Case({"notify": True}, {"identity.pid": 1}),
}  # fmt: skip


def check_declared(report: dict[str, Any], declared: dict[str, Any]) -> None:
    """Lists may go on: a device's row has its owner after its numbers."""
    leaves = dict(flat(report))
    for path, value in declared.items():
        found = leaves.get(path)
        assert (found[: len(value)] if isinstance(value, list) and value and found else found) == value, path


def check_same(engine: str, case: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    unexplained, idle = judge(engine, case, differences(ours, theirs))
    assert unexplained == {}
    assert idle == [], "rows of the table that no difference meets any more"


def check_isolated(report: dict[str, Any]) -> None:
    """None of the namespaces is the host's; time namespaces nobody asked for."""
    shared = {name for name in report["namespaces"] if report["namespaces"][name] == os.readlink(f"/proc/self/ns/{name}")}
    assert shared <= {"time", "time_for_children"}
    assert set(report["descriptors"]) == {"0", "1", "2"}


def own_environment(reports: dict[str, Any]) -> dict[str, Any]:
    """The address of the notification socket has the pod's id in it."""
    for report in reports.values():
        report["identity"]["env"].pop("NOTIFY_SOCKET", None)
    return reports


def pod_of(case: Case) -> Pod:
    return Pod([probing(**case.fields)], hostname="box")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_what_was_declared_is_seen(name: str, engine: str) -> None:
    report = observe(pod_of(CASES[name]), engine)["main"]
    check_isolated(report)
    check_declared(report, CASES[name].declared)


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize("name", CASES)
def test_engines_agree(name: str, engine: str) -> None:
    ours, theirs = (own_environment(observe(pod_of(CASES[name]), each)) for each in ("native", engine))
    check_same(engine, name, ours["main"], theirs["main"])


def a_pod_with_mounts(directory: Path) -> Pod:
    (directory / "file").write_text("hello")
    directory.chmod(0o755)
    mounts = [
        Mount.bind(directory, "/in", read_only=True), Mount.bind(directory, "/opt/deep/down/out"),
        Mount.bind(directory / "file", "/srv/single"), Mount.tmpfs("/made", size="1M", mode=0o1755), "data:/data",
    ]  # fmt: skip
    return Pod([probing(mounts=mounts)], volumes=["data"], hostname="box")


@pytest.mark.parametrize("engine", OTHERS)
def test_mounts(engine: str, tmp_path: Path) -> None:
    ours, theirs = (observe(a_pod_with_mounts(tmp_path), each)["main"] for each in ("native", engine))
    check_same(engine, "mounts", ours, theirs)
    check_declared(theirs, {
        "writable./in": READ_ONLY, "writable./data": "ok", "mounts./made.type": "tmpfs", "owners./in/file": [0, 0, "0o100644"],
        "owners./made": [0, 0, "0o41755"], "owners./data": [0, 0, "0o40777"],
    })  # fmt: skip
    assert {"ro", "nosuid", "nodev"} <= set(theirs["mounts"]["/in"]["options"])
    assert "size=1024k" in theirs["mounts"]["/made"]["data"]
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("engine", OTHERS)
def test_containers_of_a_pod(engine: str) -> None:
    pod = Pod([probing("first", env={"LINGER": "60"}), probing("second", env={"LINGER": "60"})], hostname="box")
    ours, theirs = (observe(pod, each) for each in ("native", engine))
    for name in ("first", "second"):
        check_isolated(theirs[name])
        check_same(engine, "two", ours[name], theirs[name])
    for reports in (ours, theirs):
        first, second = (reports[name]["namespaces"] for name in ("first", "second"))
        assert {name for name in first if first[name] == second[name]} - {"time", "time_for_children"} == {
            "ipc", "net", "user", "uts",
        }  # fmt: skip
