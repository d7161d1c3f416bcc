"""One document, three engines: what a program inside sees is what was declared, and the same under all of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from conformance_accepted import judge
from conformance_cases import CASES, READ_ONLY, Case
from conformance_observing import differences, flat, observe, own_environment, probing
from gate import requires

from sandbox import Mount, Pod

pytestmark = [requires("userns", "overlay", "python")]
OTHERS = [pytest.param(name, marks=requires(name)) for name in ("crun", "runc")]
ENGINES = ["native", *OTHERS]


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
