"""From a spec to a plan: what is done in which order, and what is refused by name before a process exists."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sandbox import oci
from sandbox.linux import constants as c
from sandbox.models import Container, Mount, Pod
from sandbox.runtime import plan as plans
from sandbox.runtime.failure import Failure
from sandbox.runtime.steps import Bind, Device, Mask, MountFilesystem, ReadOnly, Symlink, Sysctl

HOST = oci.Host(pod_id="p", cgroup_parent="/p", kernel=(6, 1), machine="x86_64")


def spec(**fields: Any) -> dict[str, Any]:
    container = Container(command=["/bin/true"], **fields)
    document = oci.to_dict(oci.to_spec(container, Pod([container]), None, HOST))
    document["linux"].pop("seccomp")
    return copy.deepcopy(document)


def refused(document: dict[str, Any], kind: str, **options: Any) -> dict[str, Any]:
    with pytest.raises(Failure) as caught:
        plans.build(document, **options)
    assert caught.value.facts["type"] == kind
    return caught.value.facts


def test_the_order_of_the_default_steps() -> None:
    """Mounts, then devices and links in /dev, sysctls, and at the end what makes paths read-only and hides them."""
    steps = plans.build(spec(sysctls={"net.core.somaxconn": "1"}, mounts=[Mount.bind("/usr", "/host")])).steps
    kinds = [type(step) for step in steps]
    assert list(dict.fromkeys(kinds)) == [MountFilesystem, Bind, Device, Symlink, Sysctl, ReadOnly, Mask]
    assert [step.target for step in steps if isinstance(step, MountFilesystem)] == [
        "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup",
    ]  # fmt: skip
    assert all(step.describe() for step in steps)


def test_the_plan_knows_the_rest() -> None:
    document = spec(hostname="box")
    document["root"]["readonly"] = True
    document["linux"]["rootfsPropagation"] = "rslave"
    document["annotations"] = {"a": "b"}
    document["hooks"] = {"prestart": [{"path": "/x"}], "poststop": []}
    plan = plans.build(document, init=True)
    assert (plan.hostname, plan.read_only_root, plan.init) == ("box", True, True)
    assert plan.propagation == c.MS_SLAVE | c.MS_REC
    assert plan.annotations == {"a": "b"}
    assert plan.hooks == {"prestart": [{"path": "/x"}]}
    assert set(plan.namespaces) >= {"user", "mount", "pid", "network", "ipc", "uts"}
    assert plan.program.args == ("/bin/true",)


def test_binds_are_those_that_need_the_host() -> None:
    plan = plans.build(spec(mounts=[Mount.bind("/usr", "/a"), Mount.tmpfs("/b"), Mount.bind("/etc", "/c")]))
    assert [bind.target for bind in plan.binds] == ["/a", "/c"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("linux.intelRdt", {"closID": "x"}),
        ("linux.mountLabel", "system_u:x"),
        ("process.apparmorProfile", "x"),
        ("process.selinuxLabel", "x"),
        ("process.scheduler", {"policy": "SCHED_FIFO"}),
        ("process.ioPriority", {"class": "IOPRIO_CLASS_RT"}),
        ("windows", {"layerFolders": ["x"]}),
        ("vm", {"kernel": {"path": "/x"}}),
    ],
)
def test_what_the_engine_does_not_have_is_refused_by_name(path: str, value: Any) -> None:
    document = spec()
    place: dict[str, Any] = document
    *parents, last = path.split(".")
    for name in parents:
        place = place[name]
    place[last] = value
    assert refused(document, "UnsupportedFeature")["feature"] == path


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda d: d.update(ociVersion="2.0.0"), "$.ociVersion"),
        (lambda d: d["process"].update(args=[]), "$.process.args"),
        (lambda d: d["process"].update(args=["a\0"]), "$.process"),
        (lambda d: d["process"].update(cwd="tmp"), "$.process.cwd"),
        (lambda d: d["process"].update(env=["NOVALUE"]), "$.process.env[0]"),
        (lambda d: d["process"].update(rlimits=[{"type": "RLIMIT_X", "soft": 1, "hard": 1}]), "$.process.rlimits"),
        (lambda d: d["process"]["capabilities"].update(bounding=["CAP_X"]), "$.process.capabilities"),
        (lambda d: d["linux"].update(namespaces=[]), "$.linux.namespaces"),
        (lambda d: d["linux"]["namespaces"].append({"type": "pid"}), ".type"),
        (lambda d: d["linux"]["namespaces"].append({"type": "soul"}), ".type"),
        (lambda d: d["linux"].update(rootfsPropagation="sideways"), "$.linux.rootfsPropagation"),
        (lambda d: d["linux"].update(maskedPaths=["relative"]), "$.linux.maskedPaths"),
        (lambda d: d["linux"].update(readonlyPaths=["/a/../b"]), "$.linux.readonlyPaths"),
        (lambda d: d["mounts"].append({"destination": "x", "type": "tmpfs"}), ".destination"),
        (lambda d: d["mounts"].append({"destination": "/", "type": "tmpfs"}), ".destination"),
        (lambda d: d["mounts"].append({"destination": "/a/../../b", "type": "tmpfs"}), ".destination"),
        (lambda d: d["mounts"].append({"destination": "/a\0b", "type": "tmpfs"}), ".destination"),
        (lambda d: d["mounts"].append({"destination": "/a", "type": "bind"}), ".source"),
        (lambda d: d["mounts"].append({"destination": "/a", "source": "/", "options": ["bind", "size=1"]}), ".options"),
        (lambda d: d.update(hooks={"nonsense": []}), "$.hooks.nonsense"),
        (lambda d: d["linux"].update(seccomp={"defaultAction": "SCMP_ACT_KILL"}), "$.linux.seccomp"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused_with_its_place(change: Any, path: str) -> None:
    document = spec()
    change(document)
    assert refused(document, "SpecError")["path"].endswith(path)


def test_namespaces_with_a_path() -> None:
    document = spec()
    for entry in document["linux"]["namespaces"]:
        if entry["type"] == "network":
            entry["path"] = "/proc/1/ns/net"
    assert plans.build(document).namespaces["network"] == "/proc/1/ns/net"
    for entry in document["linux"]["namespaces"]:
        if entry["type"] == "pid":
            entry["path"] = "/proc/1/ns/pid"
    assert "pid" in refused(document, "UnsupportedFeature")["feature"]


def test_without_a_uts_namespace_there_is_no_host_name() -> None:
    document = spec(hostname="box")
    document["linux"]["namespaces"] = [n for n in document["linux"]["namespaces"] if n["type"] != "uts"]
    assert refused(document, "SpecError")["path"] == "$.hostname"


@pytest.mark.parametrize(("given", "normal"), [("/a//b/./c/", "/a/b/c"), ("//etc", "/etc"), ("/a", "/a")])
def test_destinations_are_normalised(given: str, normal: str) -> None:
    assert plans.destination(given, "$") == normal


def test_a_cgroup_mount_is_version_2() -> None:
    (step,) = (s for s in plans.build(spec()).steps if isinstance(s, MountFilesystem) and s.target == "/sys/fs/cgroup")
    assert (step.fstype, step.options.data) == ("cgroup2", "")


def test_without_an_own_dev_no_devices_are_brought() -> None:
    document = spec()
    document["mounts"] = [mount for mount in document["mounts"] if not mount["destination"].startswith("/dev")]
    kinds = {type(step) for step in plans.build(document).steps}
    assert not kinds & {Device, Symlink}


def test_devices_of_the_spec_come_in_once() -> None:
    document = spec()
    document["linux"]["devices"] = [{"path": "/dev/null", "type": "c"}, {"path": "/dev/fuse", "type": "c"}]
    paths = [step.path for step in plans.build(document).steps if isinstance(step, Device)]
    assert paths.count("/dev/null") == 1
    assert paths[-1] == "/dev/fuse"
