"""The pure parts of the external engines: the document they get, their complaints, where they are found."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from sandbox.runtime import bundle, complaints, plan as plans, tools
from sandbox.runtime.failure import Failure
from sandbox.runtime.process import Surroundings
from sandbox.runtime.tools import Tool

CRUN, RUNC = Tool("crun", "/usr/bin/crun"), Tool("runc", "/usr/sbin/runc")


OWN = [{"type": kind} for kind in ("user", "mount", "pid")]


def document(**changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {"args": ["prog"], "cwd": "/work", "env": ["PATH=/bin:/opt"]},
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/in/", "type": "bind", "source": "/host", "options": ["rbind", "ro", "rro", "idmap"]},
            {"destination": "/file", "type": "bind", "source": "/f", "options": ["bind"], "uidMappings": [{"size": 1}]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("user", "mount", "pid", "ipc", "uts", "network", "cgroup")],
            "uidMappings": [{"containerID": 0, "hostID": 1, "size": 2}], "gidMappings": [], "cgroupsPath": "/x/y",
            "resources": {"pids": {"limit": 5}}, "sysctl": {"net.core.somaxconn": "9"}, "maskedPaths": ["/proc/keys"],
        },
    }  # fmt: skip
    return {**spec, **changes}


def translated(spec: dict[str, Any], **surroundings: Any) -> dict[str, Any]:
    plan = plans.build(spec, surroundings=Surroundings(**surroundings))
    return bundle.document(spec, plan, root="/s/root", sources=bundle.places(plan, "/s/binds"))


def test_the_pods_namespaces_are_joined_and_its_user_namespace_is_there_already() -> None:
    linux = translated(document())["linux"]
    assert linux["namespaces"] == [
        {"type": "mount"},
        {"type": "pid"},
        {"type": "ipc", "path": "/proc/self/ns/ipc"},
        {"type": "uts", "path": "/proc/self/ns/uts"},
        {"type": "network", "path": "/proc/self/ns/net"},
        {"type": "cgroup"},
    ]
    assert set(linux) == {"namespaces", "maskedPaths"}


def test_the_host_network_stays_the_host_network() -> None:
    spec = document(linux={"namespaces": OWN}, hostname=None)
    assert translated(spec)["linux"]["namespaces"] == [{"type": "mount"}, {"type": "pid"}]


def test_bound_files_come_from_where_they_were_attached() -> None:
    mounts = {mount["destination"]: mount for mount in translated(document())["mounts"]}
    assert mounts["/proc"] == {"destination": "/proc", "type": "proc", "source": "proc"}
    assert mounts["/in/"] == {"destination": "/in/", "type": "bind", "source": "/s/binds/0", "options": ["rbind", "ro"]}
    assert mounts["/file"] == {"destination": "/file", "type": "bind", "source": "/s/binds/1", "options": ["bind"]}


def test_the_original_is_not_touched() -> None:
    spec = document()
    translated(spec)
    assert spec == document()


def test_limits_are_those_that_the_native_engine_would_set() -> None:
    spec = document(process={"args": ["x"], "cwd": "/", "rlimits": [
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 18446744073709551615}]})  # fmt: skip
    rows = translated(spec, open_files=77)["process"]["rlimits"]
    assert rows[0] == {"type": "RLIMIT_CORE", "soft": 0, "hard": 18446744073709551615}
    assert (rows[1]["type"], rows[1]["soft"]) == ("RLIMIT_NOFILE", 77)


def test_hooks_after_the_start_are_the_shims() -> None:
    hook = [{"path": "/bin/true"}]
    spec = document(hooks={"createRuntime": hook, "poststart": hook, "poststop": hook})
    assert translated(spec)["hooks"] == {"createRuntime": hook}


def test_mount_points_below_a_directory() -> None:
    spec = document(mounts=[
        {"destination": "/etc/a", "type": "bind", "source": "/f", "options": ["bind"]},
        {"destination": "/etc/b", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/etcetera", "type": "tmpfs", "source": "tmpfs"},
    ])  # fmt: skip
    assert list(bundle.mount_points(plans.build(spec), "/etc")) == [("/etc/a", None), ("/etc/b", True)]


@pytest.mark.parametrize(
    ("changes", "options", "feature"),
    [
        ({}, {"init": True}, "init"),
        ({"domainname": "example.org"}, {}, "domainname"),
        ({"linux": {"namespaces": [*OWN, {"type": "uts"}, {"type": "time"}]}}, {}, "linux.timeOffsets"),
        ({"linux": {"namespaces": [*OWN, {"type": "uts", "path": "/x"}]}}, {}, "linux.namespaces uts with a path"),
    ],
)  # fmt: skip
def test_what_they_would_ignore_is_refused(changes: dict[str, Any], options: dict[str, Any], feature: str) -> None:
    with pytest.raises(Failure) as caught:
        bundle.check(plans.build(document(**changes), **options), "runc")
    assert (caught.value.facts["type"], caught.value.facts["feature"]) == ("UnsupportedFeature", feature)


def explained(tool: Tool, *messages: str, code: int = 1, **changes: Any) -> dict[str, Any]:
    process = {"args": ["prog"], "cwd": "/work", "env": ["PATH=/bin:/opt"], "oomScoreAdj": -500}
    return complaints.explain(tool, document(process=process, **changes), "create", messages, code, "it 1.0").facts


_RUNC = "runc create failed: unable to start container process: "


@pytest.mark.parametrize(
    ("tool", "message", "facts"),
    [
        (CRUN, "executable file `prog` not found in $PATH: No such file or directory",
         {"type": "CommandNotFound", "object": "prog", "errno": errno.ENOENT, "cause": "it is in none of /bin:/opt"}),
        (RUNC, _RUNC + 'exec: "prog": executable file not found in $PATH',
         {"type": "CommandNotFound", "object": "prog", "errno": errno.ENOENT, "cause": "it is in none of /bin:/opt"}),
        (RUNC, _RUNC + 'exec: "/prog": stat /prog: no such file or directory', {"type": "CommandNotFound"}),
        (CRUN, "open executable: Permission denied", {"type": "CommandNotExecutable", "object": "prog"}),
        (CRUN, "open executable: Operation not permitted", {"type": "CommandNotExecutable", "errno": errno.EACCES}),
        (RUNC, _RUNC + 'exec: "/etc": permission denied', {"type": "CommandNotExecutable"}),
        (CRUN, "chdir `/work`: Not a directory",
         {"type": "SetupError", "operation": "enter the working directory", "object": "/work", "errno": errno.ENOTDIR}),
        (RUNC, _RUNC + "error during container init: mkdir /work: not a directory",
         {"operation": "enter the working directory", "object": "/work", "errno": errno.ENOTDIR}),
        (CRUN, "setrlimit `RLIMIT_NOFILE`: Operation not permitted", {"operation": "set", "object": "RLIMIT_NOFILE"}),
        (RUNC, _RUNC + "error during container init: error setting rlimits for ready process: error setting rlimit type 7: "
         "operation not permitted", {"operation": "set", "object": "RLIMIT_NOFILE", "errno": errno.EPERM}),
        (CRUN, "write to /proc/self/oom_score_adj: Permission denied",
         {"operation": "set oom_score_adj to", "object": "-500", "errno": errno.EACCES}),
        (CRUN, "something new happened: Invalid argument",
         {"type": "SetupError", "operation": "start container", "detail": "something new happened: Invalid argument"}),
    ],
)  # fmt: skip
def test_complaints_become_facts(tool: Tool, message: str, facts: dict[str, Any]) -> None:
    found = explained(tool, message)
    assert {name: found.get(name) for name in facts} == facts
    assert found["engine"] == "it 1.0"


def test_all_complaints_are_told_once() -> None:
    assert explained(RUNC, "first", "first", "second")["detail"] == "first; second"


def test_a_silent_failure() -> None:
    assert explained(CRUN, code=-9)["detail"] == "crun create was killed by signal 9, and wrote nothing about it"
    found = explained(RUNC, code=2)
    assert found["detail"] == "runc create ended with status 2, and wrote nothing about it"
    assert found["cause"] == "runc itself has up to 16 threads, and the limit is 5"


def test_a_program_that_was_never_executed() -> None:
    found = explained(CRUN, code=0)
    assert (found["type"], found["object"]) == ("CommandNotExecutable", "prog")


def test_tools_are_found_beyond_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ordinary users lack /usr/sbin, where some distributions put runc."""
    program = tmp_path / "runc"
    program.write_text("#!/bin/sh\necho runc version 9.9\necho more\n")
    monkeypatch.setenv("PATH", "/nonesuch")
    monkeypatch.setattr(tools, "_SYSTEM_PATHS", (str(tmp_path),))
    tools.find.cache_clear()
    try:
        with pytest.raises(Failure) as caught:
            tools.find("runc")
        assert caught.value.facts["feature"] == "engine runc"
        assert "apt install runc" in caught.value.facts["hint"]
        program.chmod(0o755)
        tool = tools.find("runc")
        assert (tool.path, tool.version()) == (str(program), "runc version 9.9")
        assert Tool("runc", "/nonesuch/runc").version() == ""
    finally:
        tools.find.cache_clear()


def test_an_unknown_engine() -> None:
    with pytest.raises(Failure) as caught:
        tools.find("kata")
    assert caught.value.facts["feature"] == "engine kata"
    assert "crun" in caught.value.facts["hint"]


@pytest.mark.parametrize(("tool", "own"), [(CRUN, "--cgroup-manager=disabled"), (RUNC, "--rootless=true")])
def test_commands(tool: Tool, own: str) -> None:
    """Neither may make a cgroup: the shim has one for the container."""
    argv = tool.command("/s/state", "log", "create", "id")
    assert argv == [tool.path, own, "--root=/s/state", "--log=log", "--log-format=json", "create", "id"]
