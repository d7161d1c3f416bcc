"""From models to a spec: every field says what the runtime spec, docker and podman users expect."""

from __future__ import annotations

import json
import time
from typing import Any

import attrs
import pytest

from sandbox import oci
from sandbox.errors import SandboxError, SpecError, UnsupportedFeature, UserNotFound
from sandbox.linux.users import UserDatabase
from sandbox.models import Container, IoLimit, Mount, Pod, Resources, Security, as_pod
from sandbox.oci import Host, capabilities
from sandbox.oci.host import DeviceNumbers
from sandbox.oci.image import ExecutionConfig, ImageConfig, RootFS
from sandbox.oci.runtime import LinuxIdMapping, Spec

USERS = UserDatabase(
    "root:x:0:0::/root:/bin/sh\napp:x:10:20::/srv/app:/bin/sh\nbig:x:70000:0::/:/bin/sh\n",
    "root:x:0:\nwheel:x:3:app\ndocker:x:99:\nhuge:x:70000:app\n",
)
HOST = Host(pod_id="p1", memory_total=1 << 30, kernel=(6, 1))


def image(**config: Any) -> ImageConfig:
    return ImageConfig(
        architecture="amd64",
        os="linux",
        rootfs=RootFS(type="layers", diff_ids=()),
        config=ExecutionConfig(**config),
    )


def spec_of(
    subject: Pod | Container | None = None,
    *,
    config: ImageConfig | None = None,
    host: Host = HOST,
    users: Any = USERS,
    **fields: Any,
) -> Spec:
    pod = as_pod(subject, **({} if subject is not None else {"command": ["true"]}) | fields)
    return oci.to_spec(pod.containers[0], pod, config, host, users=users)


def document(*args: Any, **fields: Any) -> dict[str, Any]:
    return oci.to_dict(spec_of(*args, **fields))


# --- process ------------------------------------------------------------------

CMD = {"entrypoint": ("ep", "-a"), "cmd": ("cmd", "-b")}


@pytest.mark.parametrize(
    ("config", "fields", "args"),
    [
        (CMD, {}, ["ep", "-a", "cmd", "-b"]),
        (CMD, {"command": ["x"]}, ["ep", "-a", "x"]),
        (CMD, {"command": []}, ["ep", "-a"]),
        (CMD, {"entrypoint": ["y"]}, ["y"]),
        (CMD, {"entrypoint": ["y"], "command": ["x"]}, ["y", "x"]),
        (CMD, {"entrypoint": [], "command": ["x"]}, ["x"]),
        ({"cmd": ("cmd",)}, {}, ["cmd"]),
        ({}, {"command": "sh -c 'echo a'"}, ["sh", "-c", "echo a"]),
    ],
)
def test_command_line(config: dict[str, Any], fields: dict[str, Any], args: list[str]) -> None:
    assert document(Container(**fields), config=image(**config))["process"]["args"] == args


@pytest.mark.parametrize("fields", [{}, {"entrypoint": []}])
def test_no_command_at_all(fields: dict[str, Any]) -> None:
    with pytest.raises(
        SandboxError, match="start container `main`: the image 'host' has no command of its own"
    ):
        spec_of(Container(**fields), config=image(cmd=("c",) if fields else None))


def test_environment() -> None:
    env = document(
        Container(command=["x"], env={"LANG": "C", "B": "own"}, tty=True, hostname="h"),
        config=image(env=("PATH=/img", "LANG=de", "EMPTY=", "TWO=a=b")),
    )["process"]["env"]
    assert dict(line.split("=", 1) for line in env) == {
        "PATH": "/img", "LANG": "C", "B": "own", "EMPTY": "", "TWO": "a=b",
        "HOME": "/root", "HOSTNAME": "h", "TERM": "xterm", "container": "oci",
    }  # fmt: skip
    plain = document()["process"]["env"]
    assert "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" in plain
    assert not any(line.startswith("TERM=") for line in plain)


@pytest.mark.parametrize(
    ("user", "expected", "home"),
    [
        (None, {"uid": 10, "gid": 20, "umask": 0o022, "additionalGids": [20, 3]}, "/srv/app"),
        ("root", {"uid": 0, "gid": 0, "umask": 0o022, "additionalGids": [0]}, "/root"),
        (0, {"uid": 0, "gid": 0, "umask": 0o022, "additionalGids": [0]}, "/root"),
        ("app:docker", {"uid": 10, "gid": 99, "umask": 0o022, "additionalGids": [99]}, "/srv/app"),
        ("1234:5", {"uid": 1234, "gid": 5, "umask": 0o022, "additionalGids": [5]}, "/"),
    ],
)
def test_user(user: str | int | None, expected: dict[str, Any], home: str) -> None:
    process = document(Container(command=["x"], user=user), config=image(user="app"))["process"]
    assert process["user"] == expected
    assert f"HOME={home}" in process["env"]


def test_groups_that_were_asked_for() -> None:
    user = document(user="app", groups=["docker", 7, 20], umask=0)["process"]["user"]
    assert user == {"uid": 10, "gid": 20, "umask": 0, "additionalGids": [20, 3, 99, 7]}


@pytest.mark.parametrize(
    ("fields", "users", "words"),
    [
        ({"user": "bob"}, USERS, "look up user `bob`: no user named `bob`"),
        ({"user": "app:nogroup"}, USERS, "no group named `nogroup`"),
        ({"groups": ["nogroup"]}, USERS, "no group named `nogroup`"),
        ({"user": "app"}, None, "the image has no /etc/passwd; use numbers"),
        ({"user": "big"}, USERS, "user 70000 is not among the 65536 ids"),
        ({"groups": ["huge"]}, USERS, "group 70000 is not among the 65536 ids"),
    ],
)
def test_users_that_do_not_exist(fields: dict[str, Any], users: Any, words: str) -> None:
    with pytest.raises(UserNotFound) as caught:
        spec_of(users=users, **fields)
    assert words in str(caught.value)
    assert caught.value.container == "main"


def test_an_image_without_user_files_has_numbers() -> None:
    process = document(users=None)["process"]
    assert process["user"]["uid"] == 0
    assert "HOME=/root" in process["env"]
    assert document(users=None, user="5:6")["process"]["user"]["gid"] == 6


@pytest.mark.parametrize(
    ("own", "img", "cwd"),
    [(None, None, "/"), (None, "", "/"), (None, "/a", "/a"), ("/b", "/a", "/b"), (None, "c", "/c")],
)
def test_working_directory(own: str | None, img: str | None, cwd: str) -> None:
    process = document(Container(command=["x"], working_dir=own), config=image(working_dir=img))["process"]
    assert process["cwd"] == cwd


def test_rlimits_and_the_rest_of_the_process() -> None:
    process = document(ulimits={"nofile": (10, 20), "core": -1}, oom_score_adj=500, tty=True)["process"]
    assert process["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20},
        {"type": "RLIMIT_CORE", "soft": 2**64 - 1, "hard": 2**64 - 1},
    ]
    assert (process["oomScoreAdj"], process["terminal"], process["noNewPrivileges"]) == (500, True, True)
    assert document(no_new_privileges=False)["process"]["noNewPrivileges"] is False


# --- rights -------------------------------------------------------------------


def test_default_capabilities_are_the_justified_ones() -> None:
    sets = document()["process"]["capabilities"]
    assert sorted(sets["bounding"]) == sorted(capabilities.DEFAULT)
    assert sets["effective"] == sets["permitted"] == sets["bounding"]
    assert sets["inheritable"] == sets["ambient"] == []
    assert not {"CAP_NET_RAW", "CAP_MKNOD", "CAP_SYS_ADMIN", "CAP_AUDIT_WRITE"} & set(sets["bounding"])


def test_capabilities_as_docker_and_podman_count_them() -> None:
    def bounding(**fields: Any) -> set[str]:
        return set(document(**fields)["process"]["capabilities"]["bounding"])

    default = set(capabilities.DEFAULT)
    assert bounding(cap_add=["net_admin"], cap_drop=["kill"]) == default - {"CAP_KILL"} | {"CAP_NET_ADMIN"}
    assert bounding(cap_drop=["ALL"]) == set()
    assert bounding(cap_drop=["ALL"], cap_add=["chown"]) == {"CAP_CHOWN"}
    assert bounding(cap_add=["ALL"]) == set(capabilities.ALL)
    assert bounding(cap_add=["ALL"], cap_drop=["sys_admin"]) == set(capabilities.ALL) - {"CAP_SYS_ADMIN"}
    assert bounding(capabilities=["kill"], cap_add=["chown"]) == {"CAP_KILL", "CAP_CHOWN"}
    assert bounding(privileged=True) == set(capabilities.ALL)


def test_another_user_keeps_only_what_was_asked_for_by_name() -> None:
    sets = document(user="app")["process"]["capabilities"]
    assert sorted(sets.pop("bounding")) == sorted(capabilities.DEFAULT)
    assert set(map(tuple, sets.values())) == {()}
    sets = document(user="app", cap_add=["net_bind_service"])["process"]["capabilities"]
    assert sets["ambient"] == sets["effective"] == ["CAP_NET_BIND_SERVICE"]


def test_the_two_lists_of_capabilities_agree() -> None:
    from sandbox.linux import capabilities as kernel

    assert kernel.NAMES == capabilities.ALL


def test_privileged_lifts_everything_but_the_user_namespace() -> None:
    made = document(privileged=True)
    linux = made["linux"]
    assert "seccomp" not in linux
    assert linux["maskedPaths"] == linux["readonlyPaths"] == []
    assert {"type": "user"} in linux["namespaces"]
    assert made["process"]["noNewPrivileges"] is False
    assert linux["uidMappings"][0]["hostID"] != 0


def test_paths_and_seccomp_can_be_replaced() -> None:
    linux = document(masked_paths=["/a"], readonly_paths=[], seccomp={"defaultAction": "SCMP_ACT_ALLOW"})[
        "linux"
    ]
    assert (linux["maskedPaths"], linux["readonlyPaths"]) == (["/a"], [])
    assert linux["seccomp"] == {"defaultAction": "SCMP_ACT_ALLOW"}
    assert "seccomp" not in document(seccomp="unconfined")["linux"]
    assert "/proc/kcore" in document()["linux"]["maskedPaths"]
    assert document(read_only_root=True)["root"] == {"path": "rootfs", "readonly": True}


@pytest.mark.parametrize(
    "security",
    [{}, {"cap_add": ["sys_admin"]}, {"seccomp": "unconfined"}, {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}},
     {"privileged": True}],
)  # fmt: skip
def test_seccomp_can_be_left_out_and_asked_for_by_itself(security: dict[str, Any]) -> None:
    pod = as_pod(command=["true"], security=security)
    container = pod.containers[0]
    whole = oci.to_spec(container, pod, None, HOST)
    without = oci.to_spec(container, pod, None, HOST, seccomp=False)
    profile = oci.seccomp_of(container, HOST)
    assert whole.linux is not None
    assert without.linux is not None
    assert without.linux.seccomp is None
    assert whole == attrs.evolve(without, linux=attrs.evolve(without.linux, seccomp=profile))


def test_documents_do_not_share_what_can_be_changed() -> None:
    first, second = document(), document()
    for part in (first["mounts"], first["linux"]["namespaces"], first["process"]["capabilities"]["bounding"]):
        part.clear()
    document()["mounts"][0]["options"].append("changed")
    assert document() == second


def test_seccomp_profiles_with_conditions_are_refused() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": None,
        "syscalls": [
            {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "excludes": {}, "includes": {"caps": ["CAP_BPF"]}}
        ],
    }
    with pytest.raises(UnsupportedFeature, match="`includes` is not in the OCI runtime spec"):
        spec_of(seccomp=profile)
    with pytest.raises(SpecError, match=r"\$\.syscalls"):
        spec_of(seccomp={"defaultAction": "SCMP_ACT_LOG", "syscalls": 3})


def test_files_must_have_been_read() -> None:
    for fields in ({"env_files": ["/x"]}, {"seccomp": "/x"}):
        with pytest.raises(SandboxError, match="read_files"):
            spec_of(**fields)


# --- namespaces, network, host name -------------------------------------------


def kinds(made: dict[str, Any]) -> set[str]:
    assert all(set(namespace) == {"type"} for namespace in made["linux"]["namespaces"])
    return {namespace["type"] for namespace in made["linux"]["namespaces"]}


def test_namespaces() -> None:
    everything = {"user", "mount", "pid", "ipc", "uts", "cgroup", "network"}
    assert kinds(document()) == everything
    assert kinds(document(network="host")) == everything - {"network"}
    assert kinds(document(Container(command=["x"], network="host"))) == everything - {"network"}
    assert kinds(document(Pod(Container(command=["x"], network="private"), network="host"))) == everything


def test_the_hosts_network_takes_the_hosts_sysfs_and_no_sysctls() -> None:
    made = document(network="host")
    (sys,) = (mount for mount in made["mounts"] if mount["destination"] == "/sys")
    assert (sys["type"], sys["source"]) == ("bind", "/sys")
    assert {"rbind", "ro"} <= set(sys["options"])
    assert "sysctl" not in made["linux"]


def test_sysctls() -> None:
    assert document()["linux"]["sysctl"] == {
        "net.ipv4.ping_group_range": "0 65535",
        "net.ipv4.ip_unprivileged_port_start": "0",
    }
    pod = Pod(
        Container(command=["x"], sysctls={"kernel.shmmax": 2}), sysctls={"kernel.shmmax": 1, "net.a": 3}
    )
    sysctls = document(pod)["linux"]["sysctl"]
    assert (sysctls["kernel.shmmax"], sysctls["net.a"]) == ("2", "3")


@pytest.mark.parametrize(
    ("pod", "name"),
    [
        (Pod(Container(command=["x"])), "p1"),
        (Pod(Container(command=["x"]), name="shop"), "shop"),
        (Pod(Container(command=["x"]), name="shop", hostname="h.example"), "h.example"),
        (Pod(Container(command=["x"], hostname="own"), hostname="h"), "own"),
    ],
)
def test_host_name(pod: Pod, name: str) -> None:
    assert document(pod)["hostname"] == name
    lines = oci.etc_hosts(pod.containers[0], pod, HOST).splitlines()
    assert lines[0] == "127.0.0.1 localhost"
    assert f"127.0.1.1 {name}" in lines


def test_etc_hosts_has_the_extra_hosts() -> None:
    pod = Pod(Container(extra_hosts={"a": "10.0.0.1"}), extra_hosts={"a": "10.0.0.9", "b": "::2"})
    text = oci.etc_hosts(pod.containers[0], pod, HOST)
    assert "10.0.0.1 a\n" in text
    assert "::2 b\n" in text
    assert "10.0.0.9" not in text


# --- mounts -------------------------------------------------------------------


def mount_of(made: dict[str, Any], target: str) -> dict[str, Any]:
    (found,) = (mount for mount in made["mounts"] if mount["destination"] == target)
    assert isinstance(found, dict)
    return found


def test_standard_mounts() -> None:
    made = document()
    assert [mount["destination"] for mount in made["mounts"]] == [
        "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup",
    ]  # fmt: skip
    assert "gid=5" in mount_of(made, "/dev/pts")["options"]
    assert "ro" in mount_of(made, "/sys/fs/cgroup")["options"]


def test_a_single_mapped_id_has_no_group_of_terminals() -> None:
    one = (LinuxIdMapping(container_id=0, host_id=1000, size=1),)
    host = attrs.evolve(HOST, rootless=True, uid_mappings=one, gid_mappings=one)
    made = document(host=host)
    assert not any(option.startswith("gid=") for option in mount_of(made, "/dev/pts")["options"])
    assert made["linux"]["sysctl"]["net.ipv4.ping_group_range"] == "0 0"
    assert made["process"]["user"] == {"uid": 0, "gid": 0, "umask": 0o022}
    with pytest.raises(UserNotFound, match="not among the 1 ids"):
        spec_of(host=host, user="app")


def test_bind_mounts_are_idmapped_for_root() -> None:
    made = document(mounts=["/src:/dst:ro", Mount.bind("/raw", "/raw", idmapped=False)])
    mount = mount_of(made, "/dst")
    assert (mount["type"], mount["source"]) == ("bind", "/src")
    assert set(mount["options"]) == {"rbind", "ro", "nosuid", "nodev", "rprivate", "idmap"}
    assert "idmap" not in mount_of(made, "/raw")["options"]


@pytest.mark.parametrize("host", [attrs.evolve(HOST, rootless=True), attrs.evolve(HOST, kernel=(5, 4))])
def test_idmapped_is_used_where_possible_and_demanded_aloud(host: Host) -> None:
    assert "idmap" not in mount_of(document(host=host, mounts=["/a:/a"]), "/a")["options"]
    with pytest.raises(UnsupportedFeature, match="idmapped mounts"):
        spec_of(host=host, mounts=["/a:/a:idmap"])


def test_options_that_were_asked_for_win() -> None:
    options = mount_of(document(mounts=["/a:/a:suid,dev,rslave"]), "/a")["options"]
    assert {"suid", "dev", "rslave"} <= set(options)
    assert not {"nosuid", "nodev", "rprivate"} & set(options)


def test_volumes_live_in_the_pods_directory() -> None:
    pod = Pod(Container(command=["x"], mounts=["data:/data:ro"]), volumes=["data"])
    mount = mount_of(document(pod), "/data")
    assert mount["source"] == "/run/sandbox/pods/p1/volumes/data"
    assert "ro" in mount["options"]
    assert "idmap" not in mount["options"]


def test_tmpfs() -> None:
    made = document(mounts=[Mount.tmpfs("/tmp", size="10%"), Mount.tmpfs("/run", mode=0o755, read_only=True)])
    assert mount_of(made, "/tmp")["options"] == ["nosuid", "nodev", "mode=1777", f"size={(1 << 30) // 10}"]
    assert mount_of(made, "/run")["options"] == ["nosuid", "nodev", "mode=755", "ro"]


def test_parents_are_mounted_first_and_standard_mounts_can_be_replaced() -> None:
    made = document(mounts=["/b:/a/b/c", "/a:/a", Mount.tmpfs("/dev/shm", size="1G")], devices=["/dev/fuse"])
    targets = [mount["destination"] for mount in made["mounts"]]
    assert targets.count("/dev/shm") == 1
    assert targets.index("/dev") < targets.index("/dev/shm")
    assert targets.index("/a") < targets.index("/a/b/c")
    assert mount_of(made, "/dev/shm")["options"][-1] == f"size={1 << 30}"
    fuse = mount_of(made, "/dev/fuse")
    assert (fuse["type"], fuse["source"], "nodev" in fuse["options"]) == ("bind", "/dev/fuse", False)


# --- limits -------------------------------------------------------------------


def limits(host: Host = HOST, **fields: Any) -> dict[str, Any]:
    found = document(host=host, **fields)["linux"]["resources"]
    assert isinstance(found, dict)
    return found


def test_limits() -> None:
    assert limits() == {"pids": {"limit": 4096}}
    assert limits(memory="64M")["memory"] == {"limit": 64 << 20}
    assert limits(memory="64M", swap=0)["memory"] == {"limit": 64 << 20, "swap": 64 << 20}
    assert limits(memory="64M", swap="1M")["memory"] == {"limit": 64 << 20, "swap": 65 << 20}
    assert limits(memory="50%", swap="max")["memory"] == {"limit": 1 << 29, "swap": -1}
    assert limits(cpus=1.5)["cpu"] == {"quota": 150_000, "period": 100_000}
    assert limits(cpus=0.01)["cpu"] == {"quota": 1_000, "period": 100_000}
    assert limits(pids=7)["pids"] == {"limit": 7}
    assert limits(pids="max")["pids"] == {"limit": -1}
    assert limits(hugepages={"2M": "4M"})["hugepageLimits"] == [{"pageSize": "2MB", "limit": 4 << 20}]


def test_a_pods_own_limit_on_processes_replaces_the_default() -> None:
    pod = Pod(Container(command=["x"]), resources=Resources(pids=9))
    assert "resources" not in document(pod)["linux"]
    pod_level = oci.resources_to_oci(pod.resources, HOST)
    assert pod_level is not None
    assert oci.to_dict(pod_level) == {"pids": {"limit": 9}}


def test_cpu_weight_in_the_words_of_either_hierarchy() -> None:
    assert limits(cpu_weight=50)["unified"] == {"cpu.weight": "50"}
    legacy = attrs.evolve(HOST, cgroup_version=1)
    assert [limits(host=legacy, cpu_weight=w)["cpu"]["shares"] for w in (1, 100, 10_000)] == [
        10,
        1024,
        102_400,
    ]


def test_io_limits() -> None:
    host = attrs.evolve(HOST, devices={"/dev/sda": DeviceNumbers("b", 8, 0)})
    io = {"/dev/sda": IoLimit(read_bps="1M", write_iops=5), "253:1": {"write_bps": 10}}
    assert limits(host=host, io=io)["blockIO"] == {
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1 << 20}],
        "throttleWriteBpsDevice": [{"major": 253, "minor": 1, "rate": 10}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 5}],
    }
    with pytest.raises(SandboxError, match="`/dev/sda`: the host has no such block device"):
        limits(io=io)


def test_a_share_of_unknown_memory_is_refused() -> None:
    with pytest.raises(SandboxError, match="how much it has is not known"):
        limits(host=attrs.evolve(HOST, memory_total=0), memory="10%")


# --- the rest -----------------------------------------------------------------


def test_hooks_annotations_and_cgroup() -> None:
    hooks = {"poststop": [{"path": "/bin/true", "args": ["true"], "timeout": 2}]}
    made = document(hooks=hooks, annotations={"a": "b"}, init=True)
    assert made["hooks"] == hooks
    assert made["annotations"] == {"io.pytest-sandbox.init": "true", "a": "b"}
    assert made["linux"]["cgroupsPath"] == "/sandbox/p1/main"
    assert "annotations" not in document()


def test_stop_signal() -> None:
    assert oci.stop_signal(Container()) == "SIGTERM"
    assert oci.stop_signal(Container(), image(stop_signal="SIGINT")) == "SIGINT"
    assert oci.stop_signal(Container(stop_signal="hup"), image(stop_signal="SIGINT")) == "SIGHUP"


def test_translation_is_pure() -> None:
    subject = Container(command=["x"], mounts=["/a:/b"], security=Security(cap_add=["sys_ptrace"]))
    assert spec_of(subject) == spec_of(subject)
    assert oci.loads(oci.dumps(spec_of(subject))) == spec_of(subject)


def test_it_is_fast_once_warm() -> None:
    """Well under a millisecond; the best of several rounds, so that a busy machine does not matter."""
    pod = as_pod(command=["true"], memory="64M", mounts=["/a:/b"])

    def once() -> float:
        started = time.perf_counter()
        text = oci.dumps(oci.to_spec(pod.containers[0], pod, None, HOST, users=USERS))
        assert json.loads(text)
        return time.perf_counter() - started

    assert min(once() for _ in range(50)) < 0.002
