"""Pods in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sandbox
from sandbox import podfile

SHOP = """
name = "shop"
memory = "512M"
volumes = ["data"]

[containers.db]
image = "oci:./images/db:15"
memory = "64M"
cap_add = ["net_admin"]
mounts = ["./conf:/etc/conf:ro", "data:/data", { source = "/srv", target = "/srv" }]
ready = { port = 5432 }

[containers.api]
image = "./api"
command = "serve --fast"
after = ["db"]
ready = { http = 8000, path = "/health" }
"""


def test_the_fields_are_those_of_the_models(tmp_path: Path) -> None:
    file = tmp_path / "shop.toml"
    file.write_text(SHOP)
    pod = podfile.load(file)
    assert pod.names == ("db", "api")
    assert (pod.name, pod.resources.memory, pod.volumes[0].name) == ("shop", 512 << 20, "data")
    db, api = pod.containers
    assert db.image == f"oci:{tmp_path}/./images/db:15"
    assert db.resources.memory == 64 << 20
    assert db.ready == sandbox.Port(5432)
    assert [mount.source for mount in db.mounts] == [f"{tmp_path}/./conf", "data", "/srv"]
    assert db.security == sandbox.Security(cap_add=["net_admin"])
    assert (api.image, api.command) == (f"{tmp_path}/./api", ("serve", "--fast"))
    assert api.ready == sandbox.Http(8000, "/health")


def test_json_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "pod.json"
    file.write_text(json.dumps({"containers": [{"name": "a", "image": "host", "ready": {"notify": True}}]}))
    assert podfile.load(file) == sandbox.Pod([sandbox.Container("a", image="host", ready=sandbox.Notify())])


def test_a_pod_of_one() -> None:
    pod = podfile.loads('image = "host"\nname = "x"\ncommand = ["true"]\nvolumes = ["d"]\nmemory = "1M"')
    assert pod.name == "x"
    assert pod.containers[0].command == ("true",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a =", "not TOML"),
        ("containers = 3", "expected tables, one for each container"),
        ("[containers]", "expected tables, one for each container"),
        ("containers = [3]", "expected a table of fields"),
        ('imagee = "host"', "did you mean 'image'"),
        ("[containers.x]\nvolumes = ['a']", "Container.volumes = .*no such field"),
        ("memry = 3\n[containers.x]\n", "Pod.memry = 3"),
        ("[containers.x]\nready = 3", "expected a table with one of port, http"),
        ("[containers.x]\nready = { port = 1, log = 'x' }", "expected a table with one of"),
        ("[containers.x]\nready = { port = 80, foo = 1 }", "unexpected keyword argument 'foo'"),
        ("[containers.x]\nmemory = 'much'", "Resources.memory"),
    ],
)
def test_mistakes_are_told_with_the_file(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(sandbox.SandboxError, match=words) as caught:
        podfile.load(file)
    assert caught.value.path == str(file)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(sandbox.SandboxError, match="No such file"):
        podfile.load(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(sandbox.SandboxError, match="read the pod"):
        podfile.load(tmp_path / "bytes.toml")
