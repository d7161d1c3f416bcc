"""The subcommands for images, on a store of their own, beside skopeo, podman, crun and runc."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images_helpers as make
import pytest
from gate import requires

from sandbox.images import Store
from sandbox.images.collect import prune

pytestmark = requires("userns", "busybox")

CONFIG = {"Cmd": ["/bin/sh", "-c", "echo hello"], "Env": ["A=1"], "Labels": {"team": "blue"}}


def base() -> bytes:
    shell = make.file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    links = [make.hard_link(f"bin/{name}", "bin/busybox") for name in ("sh", "cat", "id", "sleep")]
    folders = [make.directory(name) for name in ("bin", "etc", "dev", "proc", "sys", "tmp")]
    return make.tar(
        [*folders, shell, *links, make.file("etc/passwd", "root:x:0:0::/:/bin/sh\n"), make.file("gone")]
    )


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return make.make_layout(
        tmp_path / "layout", base(), make.tar([make.file(".wh.gone"), make.file("new", "new\n", uid=3, gid=4)]),
        tag="app", config=CONFIG,
    )  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The store of every `sandbox` that the test starts."""
    store = Store(tmp_path / "store")
    monkeypatch.setenv("SANDBOX_STORE", str(store.root))
    monkeypatch.setenv("SANDBOX_PULL", "never")
    yield store
    for path in store.root.glob("layers/*/*"):
        store.remove_tree(path)


@pytest.fixture
def sandbox(cli: Any, home: Store, layout: Path) -> Any:
    """`sandbox …` that has to succeed and say nothing on standard error; returns what it printed."""

    def run(*arguments: object, **options: Any) -> str:
        done = cli(*map(str, arguments), **options)
        assert (done.returncode, done.stderr) == (0, "")
        out: str = done.stdout
        return out

    run("load", "--name", "app:1", layout)
    return run


def names(sandbox: Any) -> list[str]:
    return sorted(name for row in json.loads(sandbox("images", "--json")) for name in row["names"])


def test_images_of_the_store_are_listed_and_run(sandbox: Any) -> None:
    (row,) = json.loads(sandbox("images", "--json"))
    assert row["names"] == ["docker.io/library/app:1"]
    assert row["unpacked"] is None
    assert len(row["layers"]) == 2
    assert sandbox("run", "app:1") == "hello\n"
    assert sandbox(
        "run", row["id"][7:15], "/bin/sh", "-c", "cat /new; echo $A; cat /gone 2>&1 || :"
    ).startswith("new\n1\n")
    (row,) = json.loads(sandbox("images", "--json"))
    assert row["unpacked"] > 1_000_000
    header, line = sandbox("images").splitlines()
    assert header.split() == ["NAME", "ID", "CREATED", "SIZE", "UNPACKED"]
    assert line.split()[:2] == ["docker.io/library/app:1", row["id"][7:19]]
    assert sandbox("images", "-q").strip() == row["id"][7:19]
    assert row["digest"] in sandbox("images", "--digests")
    assert len(sandbox("images", "nope").splitlines()) == 1
    assert len(sandbox("images", "app").splitlines()) == 2


def test_names_come_and_go_and_the_image_with_the_last_one(sandbox: Any, cli: Any, home: Store) -> None:
    sandbox("tag", "app:1", "example.com/team/app", "other:2")
    assert names(sandbox) == [
        "docker.io/library/app:1",
        "docker.io/library/other:2",
        "example.com/team/app:latest",
    ]
    (row,) = json.loads(sandbox("images", "--json"))
    refused = cli("rm", row["id"][7:19])
    assert refused.returncode == 1
    assert "it is called docker.io/library/app:1, " in refused.stderr
    assert "--force" in refused.stderr
    assert sandbox("rm", "app:1", "other:2") == "docker.io/library/app:1\ndocker.io/library/other:2\n"
    assert names(sandbox) == ["example.com/team/app:latest"]
    assert sandbox("rm", "example.com/team/app").splitlines() == [
        "example.com/team/app:latest",
        row["digest"],
    ]
    assert names(sandbox) == []
    assert list(home.blobs.items()) == []
    missing = cli("rm", "app:1")
    assert (missing.returncode, "there is: nothing" in missing.stderr) == (1, True)


def test_what_a_pod_uses_is_only_removed_by_name_and_by_force(sandbox: Any, cli: Any, home: Store) -> None:
    with cli.start("run", "app:1", "/bin/sh", "-c", "echo on; exec sleep 1000") as process:
        assert process.stdout.readline() == "on\n"
        refused = cli("rm", "app:1")
        assert refused.returncode == 1
        assert f"in use by process {process.pid}" in refused.stderr
        sandbox("prune", "--all")
        assert names(sandbox) == ["docker.io/library/app:1"]
        sandbox("rm", "--force", "app:1")
        assert names(sandbox) == []
        assert len(list(home.root.glob("layers/*/*"))) == 2
        process.kill()
    sandbox("prune")
    assert list(home.root.glob("layers/*/*")) == []


def test_prune_says_first_what_it_would_do(sandbox: Any, home: Store) -> None:
    sandbox("run", "app:1")
    (row,) = json.loads(sandbox("du", "--json"))["images"]
    assert row["own"] == row["size"] > 1_000_000
    assert "docker.io/library/app:1" in sandbox("du", "-v")
    planned = json.loads(sandbox("prune", "--all", "--dry-run", "--json"))
    assert (planned["removed"], planned["names"], len(planned["layers"])) == (
        False,
        ["docker.io/library/app:1"],
        2,
    )
    assert names(sandbox) == ["docker.io/library/app:1"]
    assert sandbox("prune").startswith("removed 0 images, 0 blobs, 0 unpacked layers")
    assert json.loads(sandbox("prune", "--all", "--json")) == {**planned, "removed": True}
    assert [total["number"] for total in json.loads(sandbox("du", "--json"))["totals"]] == [0, 0]
    assert prune(home).size == 0


def test_inspect_and_history(sandbox: Any, cli: Any, layout: Path) -> None:
    document = json.loads(sandbox("inspect", "app:1"))
    assert document["config"] == CONFIG
    assert document["names"] == ["docker.io/library/app:1"]
    assert json.loads(sandbox("inspect", f"oci:{layout}:app"))["config"] == CONFIG
    assert [row["layer"] for row in json.loads(sandbox("history", "--json", "app:1"))] == document["layers"][
        ::-1
    ]
    assert len(sandbox("history", "app:1").splitlines()) == 3
    nothing = cli("inspect", "--type", "image", "nope")
    assert nothing.returncode == 1
    assert "images are: docker.io/library/app:1" in nothing.stderr


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_save_and_load_again(sandbox: Any, home: Store, tmp_path: Path, form: str) -> None:
    sandbox("tag", "app:1", "app:2")
    (before,) = json.loads(sandbox("images", "--json"))
    piped = subprocess.run(
        [*_command(), "save", "--format", form, "app:1"], capture_output=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    sandbox("save", "--format", form, "--output", tmp_path / "app.tar", "app:1")
    assert (tmp_path / "app.tar").read_bytes() == piped  # and every time the same
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app.tar", "layout", "store"]
    sandbox("prune", "--all")
    assert sandbox("load", "-i", tmp_path / "app.tar").splitlines() == before["names"]
    (after,) = json.loads(sandbox("images", "--json"))
    assert (after["id"], after["names"]) == (before["id"], before["names"])
    assert (after["digest"] == before["digest"]) == (form == "oci-archive")
    assert sandbox("run", "app:2") == "hello\n"


def _command() -> list[str]:
    return [sys.executable, "-m", "sandbox.cli"]


def test_load_from_a_pipe_and_under_another_name(sandbox: Any, cli: Any, tmp_path: Path) -> None:
    sandbox("save", "-o", tmp_path / "app.tar", "app:1")
    sandbox("prune", "--all")
    with (tmp_path / "app.tar").open("rb") as file:
        assert sandbox("load", "--name", "mine", stdin=file) == "docker.io/library/mine:latest\n"
    assert names(sandbox) == ["docker.io/library/mine:latest"]


@pytest.mark.parametrize("cut", [0, 600, 5000, 400_000])
def test_a_damaged_archive_is_refused_whole(
    sandbox: Any, cli: Any, home: Store, tmp_path: Path, cut: int
) -> None:
    sandbox("save", "-o", tmp_path / "app.tar", "app:1")
    sandbox("prune", "--all")
    content = (tmp_path / "app.tar").read_bytes()
    (tmp_path / "app.tar").write_bytes(content[:cut] or b"not an archive")
    done = cli("load", tmp_path / "app.tar")
    assert done.returncode == 1
    assert "app.tar" in done.stderr
    assert "Traceback" not in done.stderr
    assert names(sandbox) == []
    assert list((home.root / "tmp").iterdir()) == []


@requires("skopeo")
@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_skopeo_reads_what_we_save(sandbox: Any, tmp_path: Path, form: str) -> None:
    sandbox("save", "--format", form, "-o", tmp_path / "app.tar", "app:1")
    copy = ["skopeo", "--insecure-policy", "--tmpdir", str(tmp_path), "copy", "-q", f"{form}:{tmp_path}/app.tar"]
    subprocess.run([*copy, f"oci:{tmp_path}/copy:app"], check=True, capture_output=True)
    index = json.loads((tmp_path / "copy/index.json").read_text())
    (row,) = json.loads(sandbox("images", "--json"))
    if form == "oci-archive":
        assert index["manifests"][0]["digest"] == row["digest"]
    sandbox("load", "--name", "copied", f"{tmp_path}/copy")
    assert sandbox("run", "copied") == "hello\n"


@pytest.fixture
def podman() -> Iterator[list[str]]:
    """Podman with a store of its own; its directories must not have long names."""
    with tempfile.TemporaryDirectory(prefix="podman-") as place:
        yield ["podman", "--root", f"{place}/root", "--runroot", f"{place}/run", "--storage-driver", "vfs"]


@requires("podman", "root")
@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_podman_loads_what_we_save_and_we_what_it_saves(
    sandbox: Any, podman: list[str], tmp_path: Path, form: str
) -> None:
    sandbox("save", "--format", form, "-o", tmp_path / "app.tar", "app:1")
    (row,) = json.loads(sandbox("images", "--json"))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run(
        [*podman, "load", "-q", "-i", f"{tmp_path}/app.tar"], check=True, capture_output=True, env=environment
    )
    (theirs,) = json.loads(
        subprocess.run([*podman, "images", "--format", "json"], check=True, capture_output=True).stdout
    )
    assert theirs["Names"] == row["names"]
    assert theirs["Id"] == row["id"][7:]
    save = [*podman, "save", "-q", "--format", form, "-o", f"{tmp_path}/back.tar", "app:1"]
    subprocess.run(save, check=True, capture_output=True, env=environment)
    sandbox("prune", "--all")
    assert sandbox("load", tmp_path / "back.tar").splitlines() == row["names"]
    assert json.loads(sandbox("images", "--json"))[0]["id"] == row["id"]


def test_unpack_makes_a_plain_tree(sandbox: Any, cli: Any, tmp_path: Path) -> None:
    assert " entries, " in sandbox("unpack", "--no-owners", "app:1", tmp_path / "root")
    root = tmp_path / "root"
    assert sorted(path.name for path in root.iterdir()) == ["bin", "dev", "etc", "new", "proc", "sys", "tmp"]
    assert (root / "new").stat().st_uid == os.getuid()
    assert (root / "bin/sh").stat().st_nlink == 5
    assert (root / "bin/sh").stat().st_mtime == make.WHEN
    again = cli("unpack", "app:1", root)
    assert again.returncode == 1
    assert "the directory is not empty" in again.stderr
    assert (root / "new").read_text() == "new\n"
    host = cli("unpack", "host", tmp_path / "host")
    assert "this machine's own root" in host.stderr
    assert not (tmp_path / "host").exists()


@requires("root")
def test_an_unpacked_tree_can_be_entered(sandbox: Any, tmp_path: Path) -> None:
    sandbox("unpack", "app:1", tmp_path / "root")
    assert (tmp_path / "root/new").stat().st_uid == 3
    done = subprocess.run(
        ["chroot", tmp_path / "root", "/bin/cat", "/new"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "new\n"


def crun(bundle: Path, name: str) -> list[str]:
    """In a mount namespace of its own with cgroup2 where it looks for it: crun refuses hybrid layouts."""
    run = f"crun --cgroup-manager=disabled --root {bundle}/state run --bundle {bundle} {name}"
    return ["unshare", "--mount", "sh", "-c", f"mount -t cgroup2 none /sys/fs/cgroup && exec {run}"]


def runc(bundle: Path, name: str) -> list[str]:
    return ["runc", "--root", f"{bundle}/state", "run", "--bundle", str(bundle), name]


RUNTIMES = [
    pytest.param(crun, marks=requires("crun", "root")),
    pytest.param(runc, marks=requires("runc", "subuid")),
]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_other_runtimes_run_a_bundle(
    sandbox: Any, cli: Any, tmp_path: Path, runtime: Any, unique: str
) -> None:
    bundle = tmp_path / "bundle"
    sandbox("bundle", "app:1", bundle, "/bin/sh", "-c", "cat new; id -u; echo $A")
    config = json.loads((bundle / "config.json").read_text())
    assert config["annotations"]["team"] == "blue"
    argv = runtime(bundle, f"t-{unique}")
    # With pipes only: they give their standard streams to the container's user, and /dev/null is the host's.
    done = subprocess.run(argv, capture_output=True, text=True, input="", check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "new\n0\n1\n"), done.stderr
    again = cli("bundle", "app:1", str(bundle))
    assert (again.returncode, "File exists" in again.stderr) == (1, True)
    assert (bundle / "rootfs/new").exists()


def test_a_bundle_that_fails_leaves_nothing(sandbox: Any, cli: Any, tmp_path: Path) -> None:
    done = cli("bundle", "host", tmp_path / "bundle")
    assert done.returncode == 1
    assert not (tmp_path / "bundle").exists()
    assert "Traceback" not in done.stderr


def test_a_damaged_image_does_not_hide_the_others(sandbox: Any, cli: Any, home: Store, tmp_path: Path) -> None:
    other = make.make_layout(tmp_path / "other", make.tar([make.file("x")]), config={"Cmd": ["x"]})
    sandbox("load", "--name", "other", other)
    (row,) = json.loads(sandbox("images", "--json", "app:1"))
    path = home.root / "blobs/sha256" / row["id"][7:]
    path.write_bytes(b" " * path.stat().st_size)
    done = cli("images", "--json")
    assert [row["names"] for row in json.loads(done.stdout)] == [["docker.io/library/other:latest"]]
    assert "left out: " in done.stderr
    assert row["id"] in done.stderr


def test_a_file_is_saved_whole_or_not_at_all(sandbox: Any, cli: Any, tmp_path: Path, home: Store) -> None:
    (digest, _) = max(home.blobs.items(), key=lambda row: row[1])
    (home.root / "blobs/sha256" / digest[7:]).unlink()
    (tmp_path / "app.tar").write_text("old")
    done = cli("save", "-o", tmp_path / "app.tar", "app:1")
    assert done.returncode == 1
    assert digest[7:] in done.stderr
    assert (tmp_path / "app.tar").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app.tar", "layout", "store"]


def test_saved_archives_have_nothing_of_the_machine(sandbox: Any, tmp_path: Path) -> None:
    sandbox("save", "-o", tmp_path / "app.tar", "app:1")
    with tarfile.open(tmp_path / "app.tar") as archive:
        assert {(info.mtime, info.uid, info.uname) for info in archive} == {(0, 0, "")}
