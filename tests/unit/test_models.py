"""Models: what they accept, what they store, what they refuse and in which words."""

from __future__ import annotations

import doctest
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from sandbox import _files, _limits, _mounts, _units, _validators, models
from sandbox.errors import ModelError, SandboxError
from sandbox.models import (
    Container,
    FrozenDict,
    IoLimit,
    Mount,
    Percent,
    Pod,
    Resources,
    Security,
    Volume,
    as_pod,
    parse_env_file,
    read_env_file,
    read_files,
)


@pytest.mark.parametrize("module", [models, _mounts, _limits, _units, _validators, _files])
def test_examples_in_docstrings(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


FULL = Pod(
    [
        Container(
            "db",
            image="oci:./db:1",
            command="postgres -c 'fsync=off'",
            entrypoint=["/bin/tini", "--"],
            env={"A": "b", "PORT": 5432, "DIR": Path("/x")},
            env_files="/etc/env",
            working_dir="/data/./x//",
            user="postgres:999",
            groups=["adm", 5],
            mounts=["/srv:/srv:ro,nosuid", ("data", "/data"), Mount.tmpfs("/tmp", size="10%", mode="700")],
            resources=Resources(
                memory="1.5G", swap=0, cpus="150%", cpu_weight=50, pids="max", hugepages={"2M": "64M"}
            ),
            security=Security(
                cap_add="net_admin", cap_drop=["CAP_CHOWN"], seccomp={"defaultAction": "SCMP_ACT_LOG"}
            ),
            stop_signal="int",
            restart="on-failure:3",
            ulimits={"RLIMIT_NOFILE": "10:20", "core": -1},
            sysctls={"net/ipv4/conf/eth0.1/forwarding": 1},
            extra_hosts=["mirror:10.0.0.1", "six:[::1]"],
            umask="077",
            hooks={"poststop": [{"path": "/bin/true", "args": ["true"]}]},
            devices=["/dev/fuse", "/dev/kvm:/dev/vm:rw"],
            ready=os.getpid,
        ),
        Container("api", after="db"),
    ],
    name="shop",
    volumes=["data", Volume("cache", size="1M")],
    labels={"team": "a"},
)


def test_what_is_stored_is_normal() -> None:
    db = FULL["db"]
    assert db.command == ("postgres", "-c", "fsync=off")
    assert db.env == {"A": "b", "PORT": "5432", "DIR": "/x"}
    assert db.working_dir == "/data/x"
    assert db.groups == ("adm", "5")
    assert [(m.type, m.source, m.target, m.read_only, m.options) for m in db.mounts] == [
        ("bind", "/srv", "/srv", True, ("nosuid",)),
        ("volume", "data", "/data", False, ()),
        ("tmpfs", None, "/tmp", False, ()),
    ]
    assert (db.mounts[2].size, db.mounts[2].mode) == (Percent(10), 0o700)
    assert (db.resources.memory, db.resources.cpus, db.resources.pids) == (3 << 29, 1.5, -1)
    assert db.resources.hugepages == {"2MB": 64 << 20}
    assert db.security.cap_add == ("CAP_NET_ADMIN",)
    assert (db.stop_signal, db.restart_limit, db.umask) == ("SIGINT", 3, 0o077)
    assert db.ulimits == {"nofile": (10, 20), "core": (-1, -1)}
    assert db.sysctls == {"net.ipv4.conf.eth0/1.forwarding": "1"}
    assert db.extra_hosts == {"mirror": "10.0.0.1", "six": "::1"}
    assert db.devices == ("/dev/fuse:/dev/fuse", "/dev/kvm:/dev/vm")
    assert FULL["api"].after == ("db",)
    assert FULL.volumes == (Volume("data"), Volume("cache", 1 << 20))


def test_models_are_hashable_picklable_and_evolve() -> None:
    assert hash(FULL) == hash(attrs.evolve(FULL))
    assert attrs.evolve(FULL) == FULL
    assert pickle.loads(pickle.dumps(FULL)) == FULL
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        FULL.name = "other"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        FULL["db"].env.extra = 1
    again = attrs.evolve(FULL["db"], env={**FULL["db"].env, "C": "d"})
    assert again.env == {"A": "b", "PORT": "5432", "DIR": "/x", "C": "d"}


def test_the_repr_shows_what_differs_from_the_defaults() -> None:
    assert repr(Container()) == "Container()"
    assert repr(Container("a", tty=True)) == "Container(name='a', tty=True)"


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: Resources(memory=-1), "Resources.memory = -1: must not be negative"),
    (lambda: Resources(memory="-1M"), "Resources.memory = '-1M': must not be negative"),
    (lambda: Resources(memory=0), "Resources.memory = 0: must be more than 0"),
    (lambda: Resources(memory="x"), "Resources.memory = 'x': not a size"),
    (lambda: Resources(memory=True), "Resources.memory = True: expected a size"),
    (lambda: Resources(memory="101%"), "Resources.memory = '101%': a share must be"),
    (lambda: Resources(memory="9E"), "Resources.memory = '9E': does not fit"),
    (lambda: Resources(swap="1M"), "Resources.swap = 1048576: limits swap beyond a memory limit"),
    (lambda: Resources(cpus=0), "Resources.cpus = 0: must be between"),
    (lambda: Resources(cpus="nan"), "Resources.cpus = 'nan': not a number of CPUs"),
    (lambda: Resources(cpus=float("inf")), "Resources.cpus = inf: must be between"),
    (lambda: Resources(cpu_weight=0), "Resources.cpu_weight = 0: must be from 1 to 10000"),
    (lambda: Resources(pids=0), "Resources.pids = 0: must be from 1"),
    (lambda: Resources(io={"sda": IoLimit()}), "Resources.io = "),
    (lambda: IoLimit(read_iops=0), "IoLimit.read_iops = 0: must be from 1"),
    (lambda: Resources(best_effort="no"), "Resources.best_effort = 'no': expected True or False"),  # type: ignore[arg-type]
    (lambda: Container("a/b"), "Container.name = 'a/b': expected 1 to 63 letters"),
    (lambda: Container(".."), "Container.name = '..': expected 1 to 63 letters"),
    (lambda: Container("x" * 64), "expected 1 to 63 letters"),
    (lambda: Container(hostname="h" * 4096), "(4098 characters): a host name has at most 64 characters"),
    (lambda: Container(hostname="a b"), "Container.hostname = 'a b': not a host name"),
    (lambda: Container(command=["a", 3]), "Container.command = ['a', 3]: expected a string"),  # type: ignore[list-item]
    (lambda: Container(command="'"), 'Container.command = "\'": No closing quotation'),
    (lambda: Container(command=["a\0"]), "must not contain a NUL"),
    (lambda: Container(command=[""]), "Container.command = ('',): the program has no name"),
    (lambda: Container(env={"A=B": "c"}), "'A=B' cannot be the name of an environment variable"),
    (lambda: Container(env={"A": None}), "the value of 'A' must be a string, a number or a path"),
    (lambda: Container(env="A=B"), "expected a mapping or a list"),
    (lambda: Container(env=["A"]), "Container.env = ['A']: expected 'key=value' strings"),
    (lambda: Container(working_dir="rel"), "Container.working_dir = 'rel': must be an absolute path"),
    (lambda: Container(user="a b"), "Container.user = 'a b': expected a user"),
    (lambda: Container(user=-1), "Container.user = -1: must be from 0"),
    (lambda: Container(user=2**32 - 1), "Container.user = 4294967295: must be from 0"),
    (lambda: Container(groups="adm"), "Container.groups = 'adm': expected a list of groups"),
    (lambda: Container(stop_signal="SIGFOO"), "Container.stop_signal = 'SIGFOO': no such signal"),
    (lambda: Container(stop_signal=65), "Container.stop_signal = 65: no such signal"),
    (lambda: Container(stop_timeout=-1), "Container.stop_timeout = -1: must be a finite number of seconds"),
    (lambda: Container(ready_timeout=0), "Container.ready_timeout = 0: must be more than 0 seconds"),
    (lambda: Container(ready=3), "Container.ready = 3: expected a probe"),
    (lambda: Container(restart="never"), "Container.restart = 'never': expected 'no', 'always'"),
    (lambda: Container(restart="always:3"), "Container.restart = 'always:3': expected"),
    (lambda: Container(ulimits={"nofile": (3, 1)}), "the soft limit of 'nofile' is above the hard one"),
    (lambda: Container(ulimits={"files": 1}), "there is no limit 'files'; known: as, core"),
    (lambda: Container(sysctls={"kernel.panic": 1}), "'kernel.panic' belongs to no namespace"),
    (lambda: Container(sysctls={"../../x": 1}), "'../../x' is not the name of a sysctl"),
    (lambda: Container(sysctls={"net.x": 1}, network="host"), "would change the host"),
    (lambda: Container(extra_hosts={"a": "1.2.3"}), "does not appear to be an IPv4 or IPv6 address"),
    (lambda: Container(network="bridge"), "Container.network = 'bridge': expected one of 'private', 'host'"),
    (lambda: Container(umask="1777"), "Container.umask = '1777': only permission bits"),
    (lambda: Container(oom_score_adj=1001), "Container.oom_score_adj = 1001: must be from -1000 to 1000"),
    (lambda: Container(devices="/etc/passwd"), "a device is in /dev"),
    (lambda: Container(hooks={"before": []}), "there is no hook 'before'"),
    (lambda: Container(hooks={"prestart": [{"path": "x"}]}), "the path of a hook must be absolute"),
    (lambda: Container(after="main"), "a container cannot wait for itself"),
    (lambda: Container(mounts=["/a:/x", "/b:/x/"]), "/x is the target of two mounts"),
    (lambda: Container(mounts=["/a"]), "Mount.target = '/a': expected 'source:target[:options]'"),
    (lambda: Container(mounts=["/a:/b:z"]), "relabelling for SELinux is not supported"),
    (lambda: Mount("/", "/x"), "Mount.target = '/': the root itself comes from the image"),
    (lambda: Mount.bind("/x", "/a/../b"), "Mount.target = '/a/../b': must not contain '..'"),
    (lambda: Mount.bind("/x", "/a\0"), "must not contain a NUL"),
    (lambda: Mount.bind("/x", "b"), "Mount.target = 'b': must be an absolute path"),
    (lambda: Mount("/x"), "Mount.source = None: a bind mount needs a source"),
    (lambda: Mount("/x", "/y", type="tmpfs"), "Mount.source = '/y': a tmpfs mount has no source"),
    (lambda: Mount("/x", "/y", type="nfs"), "Mount.type = 'nfs': expected one of"),
    (lambda: Mount("/x", "/y", size=1), "Mount.size = 1: only a tmpfs mount has it"),
    (lambda: Mount.tmpfs("/x", create=True), "Mount.create = True: only a bind mount has it"),
    (lambda: Mount.tmpfs("/x", options=["size=1,mode=7"]), "each option stands alone"),
    (lambda: Mount.volume("a/b", "/x"), "Mount.source = 'a/b': as the name of a volume: expected"),
    (lambda: Security(cap_add=["FOO"]), "Security.cap_add = ['FOO']: there is no capability 'FOO'"),
    (lambda: Security(seccomp={}), "Security.seccomp = {}: a seccomp profile in the runtime spec's form"),
    (lambda: Security(masked_paths="/proc"), "Security.masked_paths = '/proc': expected a list of paths"),
    (lambda: Pod([]), "Pod.containers = []: a pod needs at least one container"),
    (lambda: Pod([3]), "Pod.containers = [3]: expected containers, got 3"),  # type: ignore[list-item]
    (lambda: Pod([Container(), Container()]), "Pod.containers = 'main': two containers have this name"),
    (
        lambda: Pod(Container(after="db")),
        "Container.after = 'db': container 'main' waits for one that does not exist",
    ),
    (
        lambda: Pod(Container(mounts=["d:/d"])),
        "Mount.source = 'd': container 'main' mounts a volume that the pod",
    ),
    (lambda: Pod(Container(), volumes=["a", "a"]), "two volumes are named 'a'"),
    (lambda: Pod(Container(), network="host", sysctls={"net.core.somaxconn": 1}), "would change the host"),
    (lambda: Pod(Container(sysctls={"net.core.somaxconn": 1}), network="host"), "Container.sysctls"),
    (
        lambda: Pod([Container("a", network="host"), Container("b")]),
        "Container.network = 'host': containers of a pod",
    ),
    (
        lambda: Pod([Container("a", hostname="x"), Container("b")], name="y"),
        "set it on the pod: Pod(..., hostname='x')",
    ),
    (
        lambda: Pod(
            [Container("a", sysctls={"kernel.shmmax": 1}), Container("b", sysctls={"kernel.shmmax": 2})]
        ),
        "another one sets it to '1'",
    ),
    (lambda: Container(resources={"mem": 1}), "Container.resources = {'mem': 1}: "),
]


@pytest.mark.parametrize(
    ("make", "text"), REFUSED, ids=lambda value: value[:40] if isinstance(value, str) else ""
)
def test_a_bad_value_is_refused_by_class_field_and_value(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ModelError) as caught:
        make()
    assert text in str(caught.value)
    assert caught.value.class_name
    assert caught.value.field


def test_a_cycle_is_named() -> None:
    with pytest.raises(ModelError, match="a → b → c → a"):
        Pod(
            [
                Container("a", after="b"),
                Container("b", after=["c"]),
                Container("c", after=["a"]),
                Container("d"),
            ]
        )


def test_a_pod_of_many_containers_in_a_row_is_fine() -> None:
    chain = [Container("c0"), *(Container(f"c{n}", after=f"c{n - 1}") for n in range(1, 1500))]
    assert len(Pod(chain).names) == 1500


def test_paths_on_the_host_are_absolute_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mount = Mount.parse("./data:/data")
    seccomp = Security(seccomp="profile.json").seccomp
    monkeypatch.chdir("/")
    assert mount.source == f"{tmp_path}/./data"
    assert seccomp == f"{tmp_path}/profile.json"
    assert Container(image=Path("api")).image == "./api"
    assert Container(image="api").image == "api"


def test_frozen_dict() -> None:
    one = FrozenDict({"a": 1, "b": 2})
    assert (list(one.keys()), list(one.values()), list(one.items())) == (
        ["a", "b"],
        [1, 2],
        [("a", 1), ("b", 2)],
    )
    assert one == {"b": 2, "a": 1} == one
    assert hash(one) == hash(FrozenDict([("b", 2), ("a", 1)]))
    assert one | {"a": 3} == {"a": 3, "b": 2}
    assert one["a"] == 1
    assert pickle.loads(pickle.dumps(one)) == one
    assert one != {"a": 1}
    with pytest.raises(TypeError):
        one["c"] = 1  # type: ignore[index]


# --- as_pod -------------------------------------------------------------------


def test_as_pod_keeps_a_pod() -> None:
    assert as_pod(FULL) is FULL


def test_as_pod_splits_keywords_between_the_models() -> None:
    pod = as_pod(
        image="redis:7", memory="64M", pids=9, cap_add=["net_admin"], read_only_root=True, hostname="h",
        network="host", volumes=["d"], mounts=["d:/d"], labels={"a": "b"}, name="r",
    )  # fmt: skip
    (container,) = pod.containers
    assert (container.name, container.image, dict(container.labels)) == ("r", "redis:7", {"a": "b"})
    assert (container.resources.memory, container.resources.pids) == (64 << 20, 9)
    assert container.security == Security(cap_add=["CAP_NET_ADMIN"], read_only_root=True)
    assert (pod.hostname, pod.network, pod.volumes) == ("h", "host", (Volume("d"),))


def test_as_pod_overrides_a_container() -> None:
    base = Container("c", resources=Resources(memory="1M", pids=3), hostname="old", network="private")
    pod = as_pod(base, memory="2M", hostname="new", network="host", tty=True)
    (container,) = pod.containers
    assert container.resources == Resources(memory="2M", pids=3)
    assert (pod.hostname, container.hostname) == ("new", None)
    assert (pod.network, container.network) == ("host", None)
    assert container.tty


def test_as_pod_changes_only_what_is_the_pods() -> None:
    changed = as_pod(FULL, memory="1G", hostname="x")
    assert changed.resources.memory == 1 << 30
    assert changed.containers == FULL.containers
    with pytest.raises(ModelError, match=r"Pod\.image = 'x': belongs to a container"):
        as_pod(FULL, image="x")
    assert as_pod([Container("a"), Container("b")], network="host").network == "host"


def test_as_pod_helps_with_names() -> None:
    with pytest.raises(ModelError, match="did you mean 'memory'") as caught:
        as_pod(memroy="1M")
    assert caught.value.field == "memroy"
    with pytest.raises(ModelError, match="known: after, annotations"):
        as_pod(xyzzy=1)
    with pytest.raises(ModelError):
        as_pod(3)  # type: ignore[arg-type]


# --- files that models name ---------------------------------------------------


def test_env_file_syntax() -> None:
    text = '# comment\n\nA=1\n  B=two words  \nC=\nD="quoted" # kept\nHOME\nNOT_SET_ANYWHERE\n'
    assert parse_env_file(text, {"HOME": "/h"}) == {
        "A": "1",
        "B": "two words  ",
        "C": "",
        "D": '"quoted" # kept',
        "HOME": "/h",
    }
    with pytest.raises(ValueError, match="line 2: 'A B'"):
        parse_env_file("X=1\nA B=c", {})


def test_read_files(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("A=1\nB=1\n")
    (tmp_path / "two").write_text("\ufeffB=2\nC=2\n", "utf-8")
    (tmp_path / "profile").write_text('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"]}]}')
    container = Container(
        env={"C": "3"},
        env_files=[tmp_path / "one", tmp_path / "two"],
        security=Security(seccomp=tmp_path / "profile"),
    )
    read = read_files(container)
    assert read.env == {"A": "1", "B": "2", "C": "3"}
    assert read.env_files == ()
    assert read.security.seccomp == {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": ({"names": ("x",)},)}
    assert hash(read) == hash(read_files(container))
    assert read_files(read) is read


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match=r"read the environment file .*/none: No such file"):
        read_env_file(tmp_path / "none")
    (tmp_path / "bad").write_text("A B=1")
    with pytest.raises(SandboxError, match="line 1"):
        read_files(Container(env_files=[tmp_path / "bad"]))
    (tmp_path / "big").write_bytes(b"#" * (_files.MAX_FILE + 1))
    with pytest.raises(SandboxError, match="larger than"):
        read_env_file(tmp_path / "big")
    (tmp_path / "json").write_text("[]")
    with pytest.raises(SandboxError, match="no defaultAction"):
        read_files(Container(security=Security(seccomp=tmp_path / "json")))
    (tmp_path / "json").write_text("{")
    with pytest.raises(SandboxError, match="not JSON"):
        read_files(Container(security=Security(seccomp=tmp_path / "json")))


def test_a_fifo_does_not_hang_us(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert read_env_file(tmp_path / "fifo") == {}


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("redis:7", "= 'redis:7': expected a Pod, a Container or several\n  hint: did you mean image='redis:7'?"),
        ({"image": "redis:7"}, "several\n  hint: did you mean **fields?"),
        (["redis:7"], "got 'redis:7': did you mean Container(image='redis:7')?"),
        (5, "as_pod.subject = 5: expected a Pod, a Container or several"),
    ],
)
def test_what_people_give_for_a_subject(subject: Any, words: str) -> None:
    with pytest.raises(ModelError, match=re.escape(words)):
        as_pod(subject)
    with pytest.raises(ModelError, match="got 'redis:7'"):
        Pod("redis:7")  # type: ignore[arg-type]
