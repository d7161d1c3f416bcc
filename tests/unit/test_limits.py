"""Limits of a spec as writes to cgroup files, for either version of cgroups."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from sandbox.errors import SandboxError
from sandbox.runtime.failure import Failure
from sandbox.runtime.limits import Setting, refused, settings, tight

V1 = {"memory", "pids", "cpu", "blkio", "cpuset", "hugetlb"}
V2 = {"memory", "pids", "cpu", "io", "cpuset", "hugetlb"}


def files(resources: dict[str, Any], v1: set[str], v2: set[str]) -> dict[str, str]:
    found = settings(resources, v1, v2)
    assert len({(s.version, s.file) for s in found}) == len(found) or "throttle" in str(found)
    return {s.file: s.value for s in found}


@pytest.mark.parametrize(
    ("resources", "version_1", "version_2"),
    [
        ({"memory": {"limit": 1 << 20}}, {"memory.limit_in_bytes": "1048576"},
         {"memory.max": "1048576", "memory.oom.group": "0"}),
        ({"memory": {"limit": 100, "swap": 150}},
         {"memory.limit_in_bytes": "100", "memory.memsw.limit_in_bytes": "150"},
         {"memory.max": "100", "memory.oom.group": "0", "memory.swap.max": "50"}),
        ({"memory": {"limit": -1, "swap": -1}},
         {"memory.limit_in_bytes": "-1", "memory.memsw.limit_in_bytes": "-1"},
         {"memory.max": "max", "memory.oom.group": "0", "memory.swap.max": "max"}),
        ({"memory": {"reservation": 7}}, {"memory.soft_limit_in_bytes": "7"}, {"memory.low": "7"}),
        ({"pids": {"limit": 5}}, {"pids.max": "5"}, {"pids.max": "5"}),
        ({"pids": {"limit": -1}}, {"pids.max": "max"}, {"pids.max": "max"}),
        ({"pids": {"limit": 0}}, {}, {}),
        ({"cpu": {"quota": 150_000, "period": 100_000}},
         {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"}, {"cpu.max": "150000 100000"}),
        ({"cpu": {"quota": 50_000}}, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"},
         {"cpu.max": "50000 100000"}),
        ({"cpu": {"quota": -1}}, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1"}, {"cpu.max": "max 100000"}),
        ({"cpu": {"shares": 2}}, {"cpu.shares": "2"}, {"cpu.weight": "1"}),
        ({"cpu": {"shares": 262_144}}, {"cpu.shares": "262144"}, {"cpu.weight": "10000"}),
        ({"cpu": {"cpus": "0-1", "mems": "0"}}, {"cpuset.cpus": "0-1", "cpuset.mems": "0"},
         {"cpuset.cpus": "0-1", "cpuset.mems": "0"}),
        ({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 9}]}},
         {"blkio.throttle.read_bps_device": "8:0 9"}, {"io.max": "8:0 rbps=9"}),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 4}]}, {"hugetlb.2MB.limit_in_bytes": "4"},
         {"hugetlb.2MB.max": "4"}),
        ({"devices": [{"allow": False}], "memory": {}, "pids": None}, {}, {}),
    ],
)  # fmt: skip
def test_settings(resources: dict[str, Any], version_1: dict[str, str], version_2: dict[str, str]) -> None:
    assert files(resources, V1, set()) == version_1
    assert files(resources, set(), V2) == version_2
    assert all(setting.version == 1 for setting in settings(resources, V1, set()))
    assert all(setting.version == 2 for setting in settings(resources, set(), V2))


def test_files_of_version_2_by_name() -> None:
    assert files({"unified": {"memory.high": "1"}}, set(), {"memory"}) == {"memory.high": "1"}
    with pytest.raises(Failure) as caught:
        settings({"unified": {"../x": "1"}}, set(), {"memory"})
    assert caught.value.facts["type"] == "UnsupportedFeature"


@pytest.mark.parametrize(
    ("resources", "controller"),
    [
        ({"memory": {"limit": 1}}, "memory"),
        ({"pids": {"limit": 1}}, "pids"),
        ({"cpu": {"quota": 1}}, "cpu"),
        ({"cpu": {"shares": 5}}, "cpu"),
        ({"cpu": {"cpus": "0"}}, "cpuset"),
        ({"blockIO": {"weight": 10}}, "io"),
        ({"blockIO": {"throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 9}]}}, "io"),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 4}]}, "hugetlb"),
        ({"unified": {"memory.high": "1"}}, "memory"),
    ],
)
def test_a_host_without_the_controller(resources: dict[str, Any], controller: str) -> None:
    with pytest.raises(Failure) as caught:
        settings(resources, set(), set())
    facts = caught.value.facts
    assert (facts["type"], facts["controller"]) == ("LimitNotEnforceable", controller)
    assert facts["limit"]
    assert facts["hint"]


@pytest.mark.parametrize(
    "resources",
    [{"cpu": {"realtimeRuntime": 5}}, {"blockIO": {"leafWeight": 5}}, {"rdma": {"x": {}}}, {"network": {"classID": 1}}],
)
def test_what_the_engine_does_not_have(resources: dict[str, Any]) -> None:
    with pytest.raises(Failure) as caught:
        settings(resources, V1, V2)
    assert caught.value.facts["type"] == "UnsupportedFeature"
    assert caught.value.facts["feature"].startswith("linux.resources.")


def test_what_the_kernel_refuses_is_not_told_as_a_missing_controller() -> None:
    setting = Setting("memory", 1, "memory.limit_in_bytes", "1024")
    text = str(SandboxError.from_dict(refused(setting, errno.EBUSY, "409600").facts))
    assert "limit `memory.limit_in_bytes=1024`: Device or resource busy (the kernel refused it)" in text
    assert "409600 bytes are in use there already" in text
    assert "ask for more than 409600" in text
    assert "not available" not in text
    assert "not available" not in str(SandboxError.from_dict(refused(setting, errno.EINVAL, None).facts))
    assert "delegated cgroup" in str(SandboxError.from_dict(refused(setting, errno.EACCES, None).facts))


@pytest.mark.parametrize(
    ("memory", "expected"),
    [({"limit": 64}, True), ({"limit": 15 << 20}, True), ({"limit": 16 << 20}, False), ({"limit": -1, "swap": -1}, False),
     ({"limit": None}, False), ({}, False), (None, False)],
)  # fmt: skip
def test_so_little_memory_that_nothing_may_be_there_before(memory: Any, expected: bool) -> None:
    assert tight({"memory": memory}) is expected
