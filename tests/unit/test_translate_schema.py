"""What we write validates against the runtime spec's own JSON schema."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from gate import SCHEMAS, requires

from sandbox import oci
from sandbox.models import Container, IoLimit, Mount, Pod, Resources, Security, as_pod
from sandbox.oci.image import ExecutionConfig, ImageConfig, RootFS

pytestmark = requires("schema")

DATA = Path(__file__).parents[1] / "data" / "oci"
HOST = oci.Host(pod_id="p1", memory_total=1 << 30)

PODS = {
    "plain": as_pod(command=["true"]),
    "host network": as_pod(command=["true"], network="host"),
    "privileged": as_pod(command=["true"], privileged=True, tty=True),
    "all": Pod(
        Container(
            "all",
            command=["sh"],
            env={"A": "b"},
            working_dir="/srv",
            user="1:2",
            groups=[3],
            mounts=["/a:/a:ro", "d:/d", Mount.tmpfs("/t", size="1M", mode=0o700)],
            devices=["/dev/fuse"],
            resources=Resources(
                memory="64M",
                swap=0,
                cpus=0.5,
                cpu_weight=3,
                pids=5,
                io={"8:0": IoLimit(read_bps=1, write_bps=2, read_iops=3, write_iops=4)},
                hugepages={"2M": 0},
            ),
            security=Security(cap_add=["ALL"], read_only_root=True),
            ulimits={"nofile": (1, 2), "nproc": -1},
            sysctls={"kernel.shmmax": 1},
            umask=0o77,
            oom_score_adj=-5,
            annotations={"x": "y"},
            hooks={"prestart": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 1}]},
            init=True,
        ),
        volumes=["d"],
        network="private",
    ),
}


@functools.cache
def validator() -> Any:
    import jsonschema
    from referencing import Registry
    from referencing.jsonschema import DRAFT4

    directory = SCHEMAS / "runtime-spec" / "schema"

    def retrieve(uri: str) -> Any:
        text = (directory / uri.rpartition("/")[2]).read_text("utf-8")
        return DRAFT4.create_resource(json.loads(text))

    schema = json.loads((directory / "config-schema.json").read_text("utf-8"))
    schema.pop("id", None)  # references are relative to the directory, not to a web site
    registry: Any = Registry(retrieve=retrieve)  # type: ignore[call-arg]
    return jsonschema.Draft4Validator(schema, registry=registry)


@pytest.mark.parametrize("name", PODS)
@pytest.mark.parametrize("cgroup_version", [1, 2])
def test_a_generated_spec_is_valid(name: str, cgroup_version: int) -> None:
    pod = PODS[name]
    image = ImageConfig(
        architecture="amd64",
        os="linux",
        rootfs=RootFS(type="layers", diff_ids=()),
        config=ExecutionConfig(env=("A=b",), working_dir="/w"),
    )
    host = oci.Host(pod_id="p1", memory_total=1 << 30, cgroup_version=cgroup_version)
    spec = oci.to_spec(pod.containers[0], pod, image, host)
    validator().validate(json.loads(oci.dumps(spec)))


@pytest.mark.parametrize("name", ["crun-spec", "runc-spec", "docker", "containerd"])
def test_documents_of_others_are_valid_after_a_round_trip(name: str) -> None:
    text = (DATA / f"{name}.json").read_text("utf-8")
    before = [error.message for error in validator().iter_errors(json.loads(text))]
    after = [error.message for error in validator().iter_errors(json.loads(oci.dumps(oci.loads(text))))]
    assert after == before


def test_the_schema_is_really_applied() -> None:
    """Errors deep in a referenced file are seen, so the tests above mean something."""
    bad = {"ociVersion": "1.0.2", "linux": {"namespaces": [{"type": "nonsense"}]}}
    assert [list(error.absolute_path) for error in validator().iter_errors(bad)] != []
    bad = {"ociVersion": "1.0.2", "process": {"cwd": 3}}
    assert [list(error.absolute_path) for error in validator().iter_errors(bad)] == [["process", "cwd"]]
