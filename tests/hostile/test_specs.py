"""Specs and root file systems of somebody who means harm, given straight to the shim.

Whatever it is, it is refused by name or stays inside; the host is as it was, and the shim still answers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from gate import requires
from hostile_house import House, Spec, bind, mount, namespaces, spec

from sandbox import errors

pytestmark = requires("userns", "overlay", "busybox")

#: So often that one thing left each time is told from a spare that comes and goes.
_MANY = 40


class TestLinksInTheRoot:
    @pytest.mark.parametrize("name", ["dev", "proc", "sys"])
    @pytest.mark.parametrize("times", [1, 4], ids=["anew", "from a spare"])
    def test_in_place_of_a_standard_directory(self, house: House, name: str, times: int) -> None:
        (house.root / name).rmdir()
        (house.root / name).symlink_to(house.outside)
        for _ in range(times):
            with pytest.raises(errors.SandboxError, match=f"/{name}.*symbolic link"):
                house.run(spec("true"))
            time.sleep(0.05)

    @pytest.mark.parametrize("target", ["/data", "/data/deep/down"])
    @pytest.mark.parametrize("link", ["{outside}", "../../../../../../../../{outside}", "/proc/self/cwd", "/../..{outside}"])
    def test_in_place_of_a_mount_target_it_leads_nowhere_else(self, house: House, target: str, link: str) -> None:
        (house.root / "data").symlink_to(link.format(outside=house.outside))
        document = spec("sh", "-c", "cat /proc/mounts; cat /secret")
        document["mounts"].append(mount(target, "tmpfs"))
        with contextlib.suppress(errors.SetupError):
            status, said = house.run(document)
            assert (status, "of the host" in said) == (1, False)

    def test_a_file_bound_over_a_link_is_refused(self, house: House) -> None:
        (house.root / "etc/hosts").symlink_to(house.outside / "secret")
        given = house.root.parent / "given"
        given.write_text("ours\n")
        document = spec("cat", "/etc/hosts")
        document["mounts"].append(bind(given, "/etc/hosts", "ro"))
        with pytest.raises(errors.SandboxError, match="/etc/hosts"):
            house.run(document)

    def test_links_that_go_round(self, house: House) -> None:
        (house.root / "a").symlink_to("/b")
        (house.root / "b").symlink_to("/a")
        document = spec("true")
        document["mounts"].append(mount("/a/x", "tmpfs"))
        with pytest.raises(errors.SandboxError) as caught:
            house.run(document)
        assert caught.value.errno == errno.ELOOP

    def test_a_file_where_a_directory_is_wanted(self, house: House) -> None:
        (house.root / "proc").rmdir()
        (house.root / "proc").write_text("")
        with pytest.raises(errors.SandboxError, match="/proc"):
            house.run(spec("true"))

    def test_masked_and_readonly_paths_follow_links_inside_only(self, house: House) -> None:
        (house.root / "etc/m").symlink_to(house.outside / "secret")
        (house.root / "etc/r").symlink_to(house.outside)
        document = spec("true", linux__maskedPaths=["/etc/m", "/none"], linux__readonlyPaths=["/etc/r", "/none"])
        assert house.run(document)[0] == 0

    def test_files_of_the_pod_are_not_written_through_links(self, house: House) -> None:
        (house.root / "etc/hosts").symlink_to(house.outside / "secret")
        rootfs = house.rootfs(files={"/etc/hosts": "127.0.0.1 localhost\n"})
        assert house.run(spec("cat", "/etc/hosts"), rootfs=rootfs) == (0, "127.0.0.1 localhost\n")

    @pytest.mark.parametrize("path", ["/../../x", "/etc/../../../x", "/.."])
    def test_files_of_the_pod_stay_in_the_root(self, house: House, path: str) -> None:
        with pytest.raises(errors.SpecError):
            house.run(spec("true"), rootfs=house.rootfs(files={path: "x"}))

    def test_a_fifo_in_place_of_the_program(self, house: House) -> None:
        os.mkfifo(house.root / "bin/pipe", 0o755)
        with pytest.raises(errors.CommandNotExecutable, match="/bin/pipe"):
            house.run(spec(process__args=["/bin/pipe"]))


class TestWorkingDirectory:
    @pytest.mark.parametrize("number", range(3, 40, 4))
    def test_a_descriptor_leads_nowhere(self, house: House, number: int) -> None:
        """Or, where the number happens to be that of the new root itself, no further than there."""
        with contextlib.suppress(errors.SandboxError):
            assert house.run(spec("pwd", process__cwd=f"/proc/self/fd/{number}")) == (0, "/\n")

    @pytest.mark.parametrize("cwd", ["/proc/self/root/..", "/..", "/../../..", "/proc/1/root/../.."])
    def test_above_the_root_is_the_root(self, house: House, cwd: str) -> None:
        status, said = house.run(spec("ls", process__cwd=cwd))
        assert status == 0
        assert set(said.split()) == {"bin", "dev", "etc", "proc", "sys", "tmp"}

    def test_through_a_link_it_stays_inside(self, house: House) -> None:
        (house.root / "out").symlink_to(house.outside)
        with contextlib.suppress(errors.SandboxError):
            assert house.run(spec("cat", "secret", process__cwd="/out"))[0] == 1

    @pytest.mark.parametrize("cwd", ["", "tmp", None])
    def test_it_has_to_be_absolute(self, house: House, cwd: str | None) -> None:
        with pytest.raises(errors.SpecError, match="cwd"):
            house.run(spec("true", process__cwd=cwd))


BAD_NAMES = ["..", ".", "a/b", "../x", "/x", "", "-x", "a\n", "a\0", "x" * 129]


class TestNames:
    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_of_a_pod(self, house: House, name: str) -> None:
        with pytest.raises(errors.SpecError):
            house.run(spec("true"), pod=house.pod() | {"id": name})

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_of_a_container(self, house: House, name: str) -> None:
        with pytest.raises(errors.SpecError):
            house.run(spec("true"), name=name)

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_of_a_volume(self, house: House, name: str) -> None:
        with pytest.raises(errors.SpecError):
            house.run(spec("true"), pod=house.pod(volumes=[{"name": "good"}, {"name": name}]))

    @pytest.mark.parametrize("member", ["v2", "memory"])
    def test_of_a_cgroup(self, house: House, member: str, tmp_path: Path) -> None:
        path = f"{tmp_path}/x/../y"
        grant: dict[str, Any] = {"v2": None, "v1": {member: path}, "controllers": []}
        if member == "v2":
            grant |= {"v2": path, "v1": {}}
        with pytest.raises(errors.SpecError, match="y"):
            house.run(spec("true"), pod={"id": "hostile", "cgroup": grant})
        assert not (tmp_path / "y").exists()

    @pytest.mark.parametrize("target", ["/a/../b", "/..", "..", "a", "", "/", "/a\0b", None])
    def test_of_a_mount_target(self, house: House, target: str | None) -> None:
        document = spec("true")
        document["mounts"].append({"destination": target, "type": "tmpfs", "source": "tmpfs"})
        with pytest.raises(errors.SpecError):
            house.run(document)

    @pytest.mark.parametrize("member", ["maskedPaths", "readonlyPaths"])
    def test_of_a_masked_path(self, house: House, member: str) -> None:
        with pytest.raises(errors.SpecError, match=member):
            house.run(spec("true", **{f"linux__{member}": ["/proc/../etc"]}))


class TestNamespaces:
    @pytest.mark.parametrize("kind", ["user", "mount", "pid"])
    def test_no_container_without(self, house: House, kind: str) -> None:
        with pytest.raises(errors.SpecError, match=kind):
            house.run(spec("true", linux__namespaces=namespaces(kind)))

    @pytest.mark.parametrize("extra", [{"type": "pid"}, {"type": "future"}, {"type": None}, {}])
    def test_twice_or_unknown(self, house: House, extra: Spec) -> None:
        with pytest.raises(errors.SpecError, match="namespace"):
            house.run(spec("true", linux__namespaces=[*namespaces(), extra]))

    @pytest.mark.parametrize("kind", ["pid", "mount", "cgroup"])
    def test_of_the_host_by_path(self, house: House, kind: str) -> None:
        entry = {"type": kind, "path": f"/proc/1/ns/{kind[:3].replace('mou', 'mnt')}"}
        with pytest.raises(errors.UnsupportedFeature, match=kind):
            house.run(spec("true", linux__namespaces=[*namespaces(kind), entry]))

    @pytest.mark.parametrize("kind", ["user", "network", "ipc", "uts"])
    def test_by_a_path_that_is_none(self, house: House, kind: str) -> None:
        entry = {"type": kind, "path": str(house.outside / "secret")}
        with pytest.raises(errors.SandboxError):
            house.run(spec("true", linux__namespaces=[*namespaces(kind), entry]))

    def test_a_host_name_without_a_namespace_for_it(self, house: House) -> None:
        before = os.uname().nodename
        with pytest.raises(errors.SpecError, match="uts"):
            house.run(spec("true", hostname="pwned", linux__namespaces=namespaces("uts")))
        assert os.uname().nodename == before


UNSUPPORTED: list[tuple[str, Any]] = [
    ("process__apparmorProfile", "x"), ("process__selinuxLabel", "x"), ("process__scheduler", {"policy": "SCHED_FIFO"}),
    ("process__ioPriority", {"class": "IOPRIO_CLASS_RT"}), ("process__execCPUAffinity", {"initial": "0"}),
    ("linux__intelRdt", {"closID": "x"}), ("linux__mountLabel", "x"), ("linux__netDevices", {"eth0": {}}),
    ("linux__memoryPolicy", {"mode": "MPOL_BIND"}), ("linux__personality", {"domain": "PER_BSD"}),
    ("linux__resources", {"rdma": {"x": {}}}), ("linux__resources", {"unified": {"../x": "1"}}), ("windows", {"x": 1}),
    ("vm", {"x": 1}),
]  # fmt: skip


class TestDocuments:
    @pytest.mark.parametrize(("member", "value"), UNSUPPORTED)
    def test_what_is_not_supported_is_refused_by_name(self, house: House, member: str, value: Any) -> None:
        words = [member.rsplit("__", maxsplit=1)[-1], *(value if isinstance(value, dict) else ())]
        with pytest.raises((errors.UnsupportedFeature, errors.LimitNotEnforceable)) as caught:
            house.run(spec("true", **{member: value}))
        assert any(word in str(caught.value) for word in words)

    @pytest.mark.parametrize("member", ["process__args", "process__env", "process__cwd"])
    def test_nul(self, house: House, member: str) -> None:
        value: Any = "/\0" if member.endswith("cwd") else ["/bin/busybox", "a=\0"]
        with pytest.raises(errors.SpecError, match="NUL"):
            house.run(spec("true", **{member: value}))

    @pytest.mark.parametrize(
        "changes",
        [
            {"process__args": 5}, {"process__args": [1]}, {"process__user": "root"}, {"process__env": [5]}, {"mounts": 5},
            {"mounts": [5]}, {"linux": []}, {"linux__namespaces": "all"}, {"process__rlimits": [{}]}, {"hooks": {"x": []}},
            {"process__user": {"uid": "0"}}, {"process__user": {"umask": "x"}}, {"hostname": 5}, {"process": None},
            {"linux__sysctl": ["x"]}, {"linux__resources": {"memory": {"limit": "x"}}},
            {"annotations": {"x": ["y"]}, "linux": 7},
            {"ociVersion": "2.0.0"}, {"ociVersion": None}, {"linux__rootfsPropagation": "x"},
        ],
    )  # fmt: skip
    def test_nonsense(self, house: House, changes: dict[str, Any]) -> None:
        with pytest.raises(errors.SandboxError):
            house.run(spec("true", **changes))

    @pytest.mark.parametrize("number", [-1, 1 << 32, (1 << 32) - 1, 1 << 70, 900_000])
    @pytest.mark.parametrize("member", ["uid", "gid"])
    def test_ids_that_nobody_has(self, house: House, number: int, member: str) -> None:
        with pytest.raises(errors.SandboxError):
            house.run(spec("true", process__user={"uid": 1, "gid": 1, member: number}))

    def test_a_huge_environment(self, house: House) -> None:
        env = [f"V{number}={'x' * 1000}" for number in range(1500)]
        assert house.run(spec("sh", "-c", "echo ${#V1499}", process__env=env)) == (0, "1000\n")
        with pytest.raises(errors.CommandNotExecutable, match="too long"):
            house.run(spec("true", process__env=[f"V{number}={'x' * 100_000}" for number in range(60)]))

    @pytest.mark.parametrize("size", [5_000, 70_000, 300_000])
    def test_an_error_about_something_huge_comes_back(self, house: House, size: int) -> None:
        for command, path in (("/" + "x" * size, "/bin"), ("nope", "/" + "ä" * size)):
            with pytest.raises(errors.SandboxError) as caught:
                house.run(spec(process__args=[command], process__env=[f"PATH={path}"]))
            assert len(str(caught.value)) < 40_000
        with house.living(spec("sleep", "inf")) as where, pytest.raises(errors.SandboxError):
            house.execute(where, spec(process__args=["/" + "x" * size]))

    @pytest.mark.parametrize("rows", [300, 3000])
    def test_many_mounts(self, house: House, rows: int) -> None:
        document = spec("sh", "-c", "grep -c ' /many' /proc/mounts")
        document["process"]["args"] = ["/bin/busybox", "grep", "-c", " /many", "/proc/mounts"]
        document["mounts"] += [mount(f"/many/{number}", "tmpfs", "size=4k") for number in range(rows)]
        assert house.run(document, timeout=60) == (0, f"{rows}\n")

    def test_many_binds(self, house: House) -> None:
        document = spec()
        document["process"]["args"] = ["/bin/busybox", "grep", "-c", " /many", "/proc/mounts"]
        document["mounts"] += [bind(house.outside, f"/many/{number}", "ro") for number in range(300)]
        assert house.run(document) == (0, "300\n")

    def test_two_binds_at_one_place_leave_no_descriptor(self, house: House) -> None:
        document = spec("true")
        document["mounts"] += [bind(house.outside, "/x", "ro"), bind(house.outside, "/x", "ro")]
        for _ in range(3):
            with contextlib.suppress(errors.SandboxError):
                house.run(document)
        before = _descriptors(house)
        for _ in range(_MANY):
            with contextlib.suppress(errors.SandboxError):
                house.run(document)
        # A spare may have come or gone meanwhile, and it has less than a dozen.
        assert _descriptors(house) < before + _MANY

    @pytest.mark.parametrize("kind", ["nofs", "ext4", "proc\0", "../x"])
    def test_a_file_system_that_there_is_not(self, house: House, kind: str) -> None:
        document = spec("true")
        document["mounts"].append(mount("/x", kind))
        with pytest.raises(errors.SandboxError):
            house.run(document)

    def test_a_domain_name(self, house: House) -> None:
        for _ in range(4):  # from one that was finished ahead too
            assert house.run(spec("cat", "/proc/sys/kernel/domainname", domainname="a.domain")) == (0, "a.domain\n")
            time.sleep(0.05)

    def test_no_standard_directory_but_something_below(self, house: House) -> None:
        (house.root / "sys").rmdir()
        document = spec("true", mounts=[mount("/proc", "proc"), mount("/dev/shm", "tmpfs"), mount("/sys/x", "tmpfs")])
        for _ in range(5):  # from a spare too
            assert house.run(document)[0] == 0
            time.sleep(0.1)


def _descriptors(house: House) -> int:
    shim = Path(f"/proc/{house.shim._monitor.pid}/task/{house.shim._monitor.pid}/children").read_text().split()[0]
    return len(os.listdir(f"/proc/{shim}/fd"))


class TestKernelParameters:
    @pytest.mark.parametrize("name", ["kernel.panic", "vm.overcommit_memory", "kernel.core_pattern", "fs.file-max"])
    def test_of_the_host(self, house: House, name: str) -> None:
        path = Path("/proc/sys", name.replace(".", "/"))
        before = path.read_text()
        with pytest.raises(errors.SandboxError, match=name):
            house.run(spec("true", linux__sysctl={name: before.strip()}))
        assert path.read_text() == before

    @pytest.mark.parametrize("name", ["../../etc/passwd", "net/../../../etc/passwd", "/../../tmp/pipe", "net/../pipe"])
    def test_that_are_none(self, house: House, name: str) -> None:
        os.mkfifo(house.root / "tmp/pipe")
        with pytest.raises(errors.SandboxError, match="sysctl"):
            house.run(spec("cat", "/etc/passwd", linux__sysctl={name: "x"}))

    def test_of_a_root_that_only_plays_proc(self, house: House) -> None:
        os.makedirs(house.root / "proc/sys/net")
        os.mkfifo(house.root / "proc/sys/net/pipe")
        (house.root / "proc/sys/net/file").write_text("")
        for name in ("net.pipe", "net.file"):
            with pytest.raises(errors.SandboxError, match="sysctl"):
                house.run(spec("true", linux__sysctl={name: "1"}, mounts=[]))


class TestDevicesAndLimits:
    @pytest.mark.parametrize("path", ["/etc/passwd", "/dev", "/nothing"])
    def test_a_device_that_is_none(self, house: House, path: str) -> None:
        with pytest.raises(errors.SandboxError, match=path):
            house.run(spec("true", linux__devices=[{"path": path, "type": "c", "major": 1, "minor": 1}]))

    @requires("root")
    def test_a_node_in_the_root_is_dead(self, house: House) -> None:
        os.mknod(house.root / "tmp/mem", 0o666 | 0o020000, os.makedev(1, 5))
        status, said = house.run(spec("sh", "-c", "head -c 1 /tmp/mem"))
        assert (status, "denied" in said or "not permitted" in said) == (1, True), said

    def test_a_set_user_id_program_in_the_root(self, house: House) -> None:
        (house.root / "bin/busybox").chmod(0o4755)
        status, said = house.run(spec("id", "-u", process__user={"uid": 1, "gid": 1}))
        assert (status, said) == (0, "1\n")

    def test_a_limit_above_the_hard_one(self, house: House) -> None:
        rows = [{"type": "RLIMIT_NOFILE", "soft": 1 << 40, "hard": 1 << 40}]
        with pytest.raises(errors.SandboxError, match="RLIMIT_NOFILE"):
            house.run(spec("true", process__rlimits=rows))

    @pytest.mark.parametrize("row", [{"type": "RLIMIT_X", "soft": 1, "hard": 1}, {"type": "RLIMIT_CORE", "soft": 2, "hard": 1}])
    def test_a_limit_that_is_none(self, house: House, row: Spec) -> None:
        with pytest.raises(errors.SandboxError, match=row["type"]):
            house.run(spec("true", process__rlimits=[row]))

    @pytest.mark.parametrize("number", [0, 1, 3])
    def test_no_descriptors_for_the_program(self, house: House, number: int) -> None:
        rows = [{"type": "RLIMIT_NOFILE", "soft": number, "hard": number}]
        with contextlib.suppress(errors.SandboxError):
            status, said = house.run(spec("echo", "x", process__rlimits=rows))
            assert said == "x\n" or status != 0

    def test_a_read_only_root_without_mount_points(self, house: House) -> None:
        for name in ("dev", "proc", "sys"):
            (house.root / name).rmdir()
        status, said = house.run(spec("sh", "-c", "cat /proc/self/status >/dev/null && : >/x", root__readonly=True))
        assert status != 0
        assert "Read-only" in said
