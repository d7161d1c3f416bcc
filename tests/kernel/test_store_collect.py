"""Removing from a store while others use it, and by processes that are killed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images_helpers as make
import pytest
from gate import requires

import sandbox
from sandbox.images import Store, resolve
from sandbox.images.collect import prune, remove, users_of
from sandbox.images.layout import DirectoryBlobs
from sandbox.images.manifests import Descriptor
from sandbox.images.stored import Images, StoredImage

pytestmark = requires("userns")

PYTHON = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    for path in [*store.root.glob("layers/*/*"), *store.root.glob("tmp/*~*")]:
        store.remove_tree(path)


def put(store: Store, layout: Path, *layers: bytes, name: str | None = None) -> StoredImage:
    """An image in the store, with nothing unpacked."""
    layout.mkdir(exist_ok=True)
    found = make.put_image(layout, layers)
    start = Descriptor(found["mediaType"], found["digest"], found["size"])
    canonical = f"docker.io/library/{name}" if name else None
    return Images(store).copy(DirectoryBlobs(layout), start, name=canonical)


def layer(text: str) -> bytes:
    return make.tar([make.directory("d"), make.file(f"d/{text}", text)])


def in_another(code: str, *arguments: object) -> str:
    """Run code in a process of its own; whatever it used, it uses no more."""
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(argv, env=PYTHON, capture_output=True, text=True, check=True).stdout


SETUP = """
import sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
import test_store_collect as t
from sandbox.images import Store, resolve
store = Store(sys.argv[2]); layout = Path(sys.argv[3])
"""


def set_up(code: str, store: Store, tmp_path: Path) -> None:
    in_another(f"{SETUP}{code}", Path(__file__).parent, store.root, tmp_path / "layout")


def everything(store: Store) -> set[str]:
    """Blobs, layers, records: by their paths."""
    found = [*store.root.glob("blobs/*/*"), *store.root.glob("layers/*/*"), *store.root.glob("images/*")]
    return {str(path.relative_to(store.root)) for path in found}


def test_prune_keeps_what_has_a_name_and_takes_the_rest(store: Store, tmp_path: Path) -> None:
    code = """
t.put(store, layout, t.layer("shared"), t.layer("kept"), name="kept:1")
resolve("kept:1", store=store)
"""
    set_up(code, store, tmp_path)
    kept = everything(store)
    set_up(
        't.put(store, layout, t.layer("shared"), t.layer("old"))\nstore.blobs.add(b"stray")', store, tmp_path
    )
    set_up(
        "resolve(f\"oci:{t.make.make_layout(layout, t.layer('elsewhere'))}\", store=store)", store, tmp_path
    )
    before = everything(store)
    planned = prune(store, dry_run=True)
    assert everything(store) == before
    assert len(planned.images) == 1
    assert len(planned.blobs) == 4  # manifest, configuration and layer of the unnamed image; the stray one
    assert len(planned.layers) == 1
    assert planned.size > 0
    assert prune(store) == planned
    assert everything(store) == kept
    assert list((store.root / "tmp").iterdir()) == []
    assert prune(store).size == 0
    assert resolve("kept:1", store=store).layers


def test_everything_goes_when_told_so_but_for_what_is_in_use(store: Store, tmp_path: Path) -> None:
    set_up(
        't.put(store, layout, t.layer("a"), name="a:1")\nt.put(store, layout, t.layer("b"), name="b:1")',
        store,
        tmp_path,
    )
    image = resolve("a:1", store=store)  # by this process
    garbage = prune(store, everything=True)
    assert garbage.names == ("docker.io/library/b:1",)
    assert [each.names for each in Images(store).items()] == [("docker.io/library/a:1",)]
    assert (image.layers[0] / "d/a").read_text() == "a"
    assert resolve("a:1", store=store).layers == image.layers


def test_downloads_that_broke_off_and_caches_of_builds_go_unless_somebody_is_at_them(store: Store) -> None:
    digests = [make.sha256(name) for name in (b"broken", b"running")]
    partial = store.places.directory("partial")
    for digest in digests:
        (partial / digest.replace(":", "-")).write_bytes(b"half")
    caches = store.places.directory("build-caches")
    for name in ("used", "unused"):
        (caches / name / "inside").mkdir(parents=True)
    store.places.use("build-caches/used")
    with store.places.lock(f"blob-{digests[1]}"):
        assert [thing.name for thing in prune(store, dry_run=True).leftovers] == [
            f"partial/{digests[0].replace(':', '-')}"
        ]
        assert prune(store, everything=True).size == 4
    assert [path.name for path in partial.iterdir()] == [digests[1].replace(":", "-")]
    assert [path.name for path in caches.iterdir()] == ["used"]


def test_layers_that_a_cache_names_stay_until_everything_goes(store: Store, tmp_path: Path) -> None:
    """A build notes layers by themselves, which are uncompressed: their digests are those of what is unpacked."""
    code = """
from sandbox.images.names import Names
added = store.blobs.add(t.layer("step"))
t.make.unpack(store, t.make.directory("d"), t.make.file("d/step", "step"))
Names(store, "cache").set("key", added.digest)
"""
    set_up(code, store, tmp_path)
    assert prune(store).size == 0
    assert len(list(store.root.glob("layers/*/*"))) == 1
    assert prune(store, everything=True).names == ("key",)
    assert everything(store) == set()


def test_remove_leaves_what_others_share(store: Store, tmp_path: Path) -> None:
    code = """
t.put(store, layout, t.layer("shared"), t.layer("a"), name="a:1")
t.put(store, layout, t.layer("shared"), t.layer("b"), name="b:1")
resolve("a:1", store=store); resolve("b:1", store=store)
store.blobs.add(b"stray")
"""
    set_up(code, store, tmp_path)
    garbage = remove(store, [Images(store).find("a:1").digest])
    assert garbage.names == ("docker.io/library/a:1",)
    assert (len(garbage.blobs), len(garbage.layers)) == (3, 1)
    assert store.blobs.has(make.sha256(b"stray"))  # nobody asked for that
    image = resolve("b:1", store=store)
    assert [(path / "d").is_dir() for path in image.layers] == [True, True]
    with pytest.raises(sandbox.ImageNotFound):
        Images(store).find("a:1")


def test_layers_made_for_what_is_below_them_go_with_it(store: Store, tmp_path: Path) -> None:
    """A layer without an entry for a directory is unpacked for each stack that it lies on."""
    code = """
upper = t.make.tar([t.make.file("d/upper")])
for name in ("a", "b"):
    t.put(store, layout, t.make.tar([t.make.directory("d", mode=0o700), t.make.file(f"d/{name}")]), upper, name=f"{name}:1")
    resolve(f"{name}:1", store=store)
"""
    set_up(code, store, tmp_path)
    assert len(list(store.root.glob("layers/*/*+on-*"))) == 2
    remove(store, [Images(store).find("a:1").digest])
    assert len(list(store.root.glob("layers/*/*+on-*"))) == 1
    assert prune(store).size == 0
    assert len(resolve("b:1", store=store).layers) == 2


HOLDER = f"""{SETUP}
image = resolve("used:1", store=store, pull="never")
print(image.layers[0], flush=True)
sys.stdin.read()
"""


def test_what_another_process_uses_stays_until_it_ends(store: Store, tmp_path: Path) -> None:
    set_up('t.put(store, layout, t.layer("used"), name="used:1")', store, tmp_path)
    digest = Images(store).find("used:1").digest
    argv = [
        sys.executable,
        "-c",
        HOLDER,
        str(Path(__file__).parent),
        str(store.root),
        str(tmp_path / "layout"),
    ]
    with subprocess.Popen(
        argv, env=PYTHON, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        used = Path(holder.stdout.readline().strip())
        assert users_of(store, digest) == {holder.pid}
        prune(store, everything=True)
        assert Images(store).look_up("used:1") is not None
        remove(store, [digest])
        assert Images(store).look_up("used:1") is None
        assert (used / "d/used").read_text() == "used"
        holder.kill()
    assert users_of(store, digest) == set()
    prune(store)
    assert everything(store) == set()
    assert not used.exists()


@requires("overlay", "subuid", "busybox")
def test_a_running_pods_layers_survive_prune_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pod reads, after the prune, a file that it has never read before."""
    store = Store(tmp_path / "store")
    busybox = Path("/bin/busybox").read_bytes()
    members = [
        make.directory("bin"),
        make.file("bin/sh", busybox, mode=0o755),
        make.hard_link("bin/sleep", "bin/sh"),
        make.file("late", "here\n"),
    ]
    layout = make.make_layout(tmp_path / "layout", make.tar(members))
    monkeypatch.setenv("SANDBOX_STORE", str(store.root))
    with sandbox.start(image=f"oci:{layout}", command=["/bin/sleep", "100"]) as pod:
        set_up("from sandbox.images.collect import prune\nprune(store, everything=True)", store, tmp_path)
        assert pod.exec(["/bin/sh", "-c", "read x < /late; echo $x"]).stdout == "here\n"


CHURN = f"""{SETUP}
import random, time
from sandbox.images.collect import prune, remove
from sandbox.images.stored import Images
rng = random.Random(int(sys.argv[4]))
end = time.monotonic() + float(sys.argv[5])
done = 0
while time.monotonic() < end:
    name = f"n{{rng.randrange(3)}}:1"
    match rng.randrange(4):
        case 0:
            prune(store, everything=rng.random() < 0.3)
        case 1:
            found = Images(store).look_up(name)
            if found:
                remove(store, [found.digest])
        case _:
            t.put(store, layout / sys.argv[4], t.layer("shared"), t.layer(name), name=name)
            try:
                image = resolve(f"docker://{{name}}", store=store, pull="never")
            except t.sandbox.ImageNotFound:
                continue  # another process was told to remove it
            for path in image.layers:
                assert (path / "d").is_dir(), path
            done += 1
print(done)
"""


def check_whole(store: Store) -> None:
    """Whatever is there is whole: blobs are what they are called, layers have all their files."""
    for path in store.root.glob("blobs/sha256/*"):
        assert make.sha256(path.read_bytes()) == f"sha256:{path.name}"
    for path in store.root.glob("layers/*/*"):
        facts = json.loads((path / "layer.json").read_text())
        assert facts["entries"] == 2
        assert len(list((path / "diff/d").iterdir())) == 1


def churn(store: Store, tmp_path: Path, seed: int, seconds: float) -> subprocess.Popen[str]:
    (tmp_path / "layout").mkdir(exist_ok=True)
    argv = [
        sys.executable,
        "-c",
        CHURN,
        str(Path(__file__).parent),
        str(store.root),
        str(tmp_path / "layout"),
    ]
    return subprocess.Popen(
        [*argv, str(seed), str(seconds)], env=PYTHON, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


@requires("subuid")
def test_users_and_collectors_at_the_same_time(store: Store, tmp_path: Path) -> None:
    processes = [churn(store, tmp_path, seed, 2.5) for seed in range(4)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [error for _, error in answers] == [""] * 4
    assert all(int(output) > 0 for output, _ in answers)
    check_whole(store)
    prune(store, everything=True)
    assert everything(store) == set()
    assert list((store.root / "tmp").iterdir()) == []


@requires("subuid")
def test_killed_at_any_moment_the_store_stays_whole(store: Store, tmp_path: Path) -> None:
    rng = random.Random(3)
    for seed in range(10):
        process = churn(store, tmp_path, seed, 10)
        time.sleep(rng.uniform(0.25, 0.6))
        os.killpg(process.pid, 9)
        process.communicate()
        check_whole(store)
        for image in Images(store).items():
            assert image.parts.layers
    argv: list[Any] = [store, tmp_path, 99, 0.6]
    output, error = churn(*argv).communicate(timeout=60)
    assert error == ""
    assert int(output) > 0
    prune(store, everything=True)
    assert everything(store) == set()
    assert list((store.root / "tmp").iterdir()) == []
    assert list((store.root / "leases").iterdir()) == [] or len(list((store.root / "leases").iterdir())) == 1
