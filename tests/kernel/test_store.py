"""The store against the kernel: owners on disk, many processes at once, kill -9, and the overlay made of its layers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images_helpers as make
import pytest
from gate import requires
from programs import patient

import sandbox
from sandbox.images import Store, resolve
from sandbox.images.blobs import LayerBlob
from sandbox.linux.idmap import IdMap, IdRange, host_map, run_in_mapped_namespace

pytestmark = requires("userns")

ROOT = os.geteuid() == 0
SOMETHING = [
    make.directory("d", mode=0o2755, uid=5, gid=6),
    make.file("d/f", "x", mode=0o4755, uid=7, gid=8),
    make.symlink("d/l", "f", uid=9, gid=10),
    make.fifo("d/p", uid=11, gid=12),
    make.file("mine", "y", mode=0o600),
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    for path in [*store.root.glob("layers/*/*"), *store.root.glob("tmp/*")]:
        store.remove_tree(path)  # pytest, as an ordinary user, has no power over files of sub-ids


def outside(ids: tuple[IdRange, ...], inside: int) -> int:
    """What an id of a container is on disk, for this user."""
    if ROOT:
        return inside
    return next(r.outside + inside - r.inside for r in ids if r.inside <= inside < r.inside + r.count)


# --- owners -----------------------------------------------------------------------------------------------------------


@requires("subuid")
def test_owners_are_those_of_the_layer_in_the_ids_of_the_container(store: Store) -> None:
    layer = make.unpack(store, *SOMETHING)
    idmap = host_map()
    for info, _ in SOMETHING:
        status = (layer.path / info.name).lstat()
        assert (status.st_uid, status.st_gid) == (
            outside(idmap.uids, info.uid),
            outside(idmap.gids, info.gid),
        )
    assert (layer.path / "d/f").stat().st_mode & 0o7777 == 0o4755
    assert not store.ownership_lost
    assert store.id_mapped == ROOT


def test_without_sub_ids_owners_are_lost_and_the_image_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = IdMap((IdRange(0, os.getuid(), 1),), (IdRange(0, os.getgid(), 1),))
    monkeypatch.setattr("sandbox.images.store.is_privileged", lambda: False)
    monkeypatch.setattr("sandbox.images.store.host_map", lambda: mine)
    layout = make.make_layout(tmp_path / "layout", make.tar(SOMETHING))
    image = resolve(f"oci:{layout}", store=tmp_path / "single")
    assert image.ownership_lost
    assert not image.id_mapped
    (layer,) = image.layers
    for info, _ in SOMETHING:
        status = (layer / info.name).lstat()
        assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
    assert (layer / "d/f").stat().st_mode & 0o7777 == 0o4755


@requires("subuid")
def test_an_owner_beyond_the_sub_ids_is_an_error(store: Store) -> None:
    if ROOT:
        assert (make.unpack(store, make.file("f", uid=3_000_000)).path / "f").stat().st_uid == 3_000_000
        return
    with pytest.raises(sandbox.ImageError, match="owner 3000000:0 may be outside of the ids") as caught:
        make.unpack(store, make.file("f", uid=3_000_000))
    assert "entry `f`" in str(caught.value)


def test_nobody_else_can_enter_the_store(store: Store) -> None:
    make.unpack(store, *SOMETHING)
    for path in (store.root, *(store.root / name for name in ("layers", "tmp", "locks"))):
        assert path.stat().st_mode & 0o777 == 0o700


def test_what_the_store_inherits_does_not_reach_the_layers(tmp_path: Path) -> None:
    """A set-group-id bit and a strict umask around the store change nothing inside."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2775)
    before = os.umask(0o077)
    try:
        layer = make.unpack(
            Store(tmp_path / "shared/store"), make.directory("d"), make.file("d/f", mode=0o666)
        )
    finally:
        os.umask(before)
    modes = [(layer.path / name).stat().st_mode & 0o7777 for name in (".", "d", "d/f")]
    assert modes == [0o755, 0o755, 0o666]


# --- many processes ---------------------------------------------------------------------------------------------------

WORKER = """
import gzip, hashlib, json, os, sys, time
from sandbox.images.blobs import LayerBlob
from sandbox.images.store import Store
archive, root, log, diff_id = sys.argv[1:5]
make = Store._unpack
def logged(*arguments):
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\\n")
    return make(*arguments)
Store._unpack = logged
sys.stdin.read(1)
layer, = Store(root).layers([LayerBlob("test", diff_id, lambda: open(archive, "rb"))])
print(layer.path)
"""


def start(archive: Path, store: Store, log: Path, diff_id: str) -> subprocess.Popen[str]:
    """A process that waits for a byte and then wants the layer."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(archive), str(store.root), str(log), diff_id],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("x")
    process.stdin.flush()


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, str]:
    """A layer of 1500 files and 12 MiB."""
    rng = random.Random(1)
    members = [make.file(f"d{n % 40}/f{n}", rng.randbytes(8192), uid=n % 3) for n in range(1500)]
    content = make.tar([make.directory(f"d{n}", uid=n) for n in range(40)] + members)
    (tmp_path / "layer.tar").write_bytes(content)
    return tmp_path / "layer.tar", make.sha256(content)


@requires("subuid")
def test_many_processes_make_one_unpack(tmp_path: Path, store: Store, archive: tuple[Path, str]) -> None:
    path, diff_id = archive
    log = tmp_path / "log"
    processes = [start(path, store, log, diff_id) for _ in range(8)]
    for process in processes:
        go(process)
    answers = [process.communicate(timeout=60) for process in processes]
    assert [error for _, error in answers] == [""] * 8
    assert len({output for output, _ in answers}) == 1
    assert len(log.read_text().splitlines()) == 1
    assert list((store.root / "tmp").iterdir()) == []


def helpers(store: Store) -> list[int]:
    """Helper processes that work for this store."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"sandbox.images.unpack" in command and os.fsencode(store.root) in command:
                found.append(int(entry.name))
    return found


@requires("subuid")
def test_killed_at_any_moment_nothing_half_is_left(
    tmp_path: Path, store: Store, archive: tuple[Path, str]
) -> None:
    path, diff_id = archive
    rng = random.Random(2)
    interrupted = 0
    began = time.monotonic()
    store.layers([LayerBlob("test", diff_id, lambda: path.open("rb"))])
    whole = time.monotonic() - began
    for done in store.root.glob("layers/sha256/*"):
        store.remove_tree(done)
    for _ in range(12):
        process = start(path, store, tmp_path / "log", diff_id)
        go(process)
        time.sleep(rng.uniform(0.0, whole))
        process.kill()
        process.communicate()
        deadline = time.monotonic() + patient(5)
        while helpers(store) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert helpers(store) == []
        for done in store.root.glob("layers/sha256/*"):
            assert sum(1 for _ in (done / "diff").rglob("f*")) == 1500
            store.remove_tree(done)
            break
        else:
            interrupted += 1
    assert interrupted, "every process was done before it was killed"
    layer = store.layers([LayerBlob("test", diff_id, lambda: path.open("rb"))])[0]
    assert layer.entries == 1540
    assert list((store.root / "tmp").iterdir()) == []


@requires("subuid")
def test_the_next_one_takes_over_from_a_killed_one(
    tmp_path: Path, store: Store, archive: tuple[Path, str]
) -> None:
    """One of two that wait for the same layer is stopped in mid-unpack and killed; the other gets the layer."""
    path, diff_id = archive
    log = tmp_path / "log"
    first, second = (start(path, store, log, diff_id) for _ in range(2))
    go(first)
    deadline = time.monotonic() + 20
    while not helpers(store) and time.monotonic() < deadline:
        time.sleep(0.001)
    first.send_signal(signal.SIGSTOP)
    go(second)
    time.sleep(0.2)
    survived = second.poll() is None
    first.kill()
    first.communicate()
    output, error = second.communicate(timeout=60)
    assert error == ""
    assert Path(output.strip(), "d0").is_dir()
    assert survived or len(log.read_text().splitlines()) == 1
    assert list((store.root / "tmp").iterdir()) == []


@requires("subuid")
def test_what_the_dead_left_is_swept_and_what_the_living_have_is_not(store: Store) -> None:
    make.unpack(store, make.file("a"))
    (dead, alive) = (store.root / "tmp" / f"sha256-{letter * 64}~x" for letter in "ab")
    for work in (dead, alive):
        (work / "diff/d").mkdir(parents=True)
        (work / "diff/d/f").write_text("x")
        (work / "diff/d").chmod(0o500)
    with store.places.lock(alive.name.partition("~")[0]):
        make.unpack(store, make.file("b"))
        assert [path.name for path in (store.root / "tmp").iterdir()] == [alive.name]
    make.unpack(store, make.file("c"))
    assert list((store.root / "tmp").iterdir()) == []


@requires("root")
def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", small], check=True)
    try:
        store = Store(small / "store")
        with pytest.raises(sandbox.ImageError, match="No space left on device") as caught:
            make.unpack(store, make.file("big", os.urandom(4 << 20)))
        assert "entry `big`" in str(caught.value)
        assert "SANDBOX_STORE" in str(caught.value)
        assert list((store.root / "tmp").iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)  # this process uses the store until it ends


# --- the overlay ------------------------------------------------------------------------------------------------------

OBSERVE = """
import ctypes, json, os, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result:
        sys.exit(os.strerror(ctypes.get_errno()))
lower, where = sys.argv[1:3]
check(libc.unshare(0x20000))
check(libc.mount(b"none", b"/", None, 0x44000, None))
check(libc.mount(b"none", os.fsencode(where), b"tmpfs", 0, None))
for name in ("upper", "work", "merged"):
    os.mkdir(f"{where}/{name}")
options = f"lowerdir={lower},upperdir={where}/upper,workdir={where}/work,userxattr"
root = f"{where}/merged"
check(libc.mount(b"overlay", os.fsencode(root), b"overlay", 0, os.fsencode(options)))
seen = {}
for directory, directories, files in os.walk(root):
    for name in directories + files:
        path = os.path.join(directory, name)
        status = os.lstat(path)
        content = None
        if stat.S_ISREG(status.st_mode):
            content = open(path, "rb").read().decode("latin-1")
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        seen[path[len(root) + 1:]] = [oct(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, content]
json.dump(seen, sys.stdout)
"""


def merged(layers: tuple[Path, ...], where: Path) -> dict[str, Any]:
    """Every file of the overlay of these layers, as container root sees it."""
    where.mkdir()
    ids = (IdRange(0, 0, 65536),)
    idmap = IdMap(ids, ids) if ROOT else host_map()
    lower = ":".join(str(path) for path in reversed(layers))
    process = run_in_mapped_namespace(
        [sys.executable, "-I", "-S", "-c", OBSERVE, lower, str(where)], idmap, stdout=subprocess.PIPE
    )
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(output)
    return found


@requires("overlay", "subuid")
def test_whiteouts_and_opaque_directories_work_in_a_user_namespace(tmp_path: Path, store: Store) -> None:
    lower = make.tar([
        make.file("gone"), make.file("kept", "1"), make.directory("opaque"), make.file("opaque/old"),
        make.directory("replaced"), make.file("replaced/x"), make.file("dir-from-file"), make.file("device"),
        make.directory("merged", uid=3), make.file("merged/low"),
    ])  # fmt: skip
    upper = make.tar([
        make.file(".wh.gone"), make.directory("opaque"), make.file("opaque/.wh..wh..opq"), make.file("opaque/new"),
        make.file("replaced", "a file"), make.directory("dir-from-file"), make.device("device"),
        make.file("merged/high", uid=4), make.file(".wh.never-was"),
    ])  # fmt: skip
    layout = make.make_layout(tmp_path / "layout", lower, upper)
    seen = merged(resolve(f"oci:{layout}", store=store).layers, tmp_path / "mnt")
    assert sorted(seen) == ["dir-from-file", "kept", "merged", "merged/high", "merged/low", "opaque", "opaque/new",
                            "replaced"]  # fmt: skip
    assert seen["merged"][1] == 3  # the upper layer has no entry for it: it stays as it was
    assert seen["merged/high"][1] == 4
    assert seen["replaced"][4] == "a file"


# --- beside other tools -----------------------------------------------------------------------------------------------


def umoci(*arguments: str | Path) -> None:
    subprocess.run(["umoci", *arguments], check=True, capture_output=True)


def layered_image(tmp_path: Path) -> Path:
    """An image of three layers that umoci made from changes to a tree."""
    layout, bundle = tmp_path / "umoci", tmp_path / "bundle"
    umoci("init", "--layout", layout)
    umoci("new", "--image", f"{layout}:it")
    umoci("unpack", "--image", f"{layout}:it", bundle)
    root = bundle / "rootfs"
    with tarfile.open(fileobj=__import__("io").BytesIO(make.tar(SOMETHING))) as archive:
        archive.extraction_filter = staticmethod(tarfile.fully_trusted_filter) if hasattr(tarfile, "data_filter") else None
        archive.extractall(root)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "usr/share/doc").mkdir(parents=True)
    for number in range(30):
        (root / f"usr/share/doc/{number}").write_text("x" * number)
        os.chown(root / f"usr/share/doc/{number}", number, 1000 + number)
    os.link(root / "mine", root / "usr/mine-too")
    os.setxattr(root / "mine", "user.note", b"\0binary")
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 20)
    umoci("repack", "--image", f"{layout}:it", "--refresh-bundle", bundle)
    shutil.rmtree(root / "usr/share/doc")
    (root / "usr/share/doc").mkdir(mode=0o711)
    (root / "usr/share/doc/fresh").write_text("fresh")
    (root / "d/f").unlink()
    (root / "d/l").unlink()
    (root / "d/l").mkdir()
    umoci("repack", "--image", f"{layout}:it", "--refresh-bundle", bundle)
    (root / "usr/share/doc").chmod(0o755)
    (root / "d/l").rmdir()
    (root / "d/f").symlink_to("/nowhere")
    umoci("repack", "--image", f"{layout}:it", "--refresh-bundle", bundle)
    return layout


def plain(root: Path) -> dict[str, Any]:
    """A tree on disk in the words of ``merged``."""
    seen = {}
    for path in root.rglob("*"):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else None
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes().decode("latin-1")
        name = str(path.relative_to(root))
        seen[name] = [oct(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, content]
    return seen


@requires("root", "umoci", "overlay")
def test_an_image_that_umoci_made_looks_as_umoci_unpacks_it(tmp_path: Path, store: Store) -> None:
    layout = layered_image(tmp_path)
    umoci("unpack", "--image", f"{layout}:it", tmp_path / "again")
    image = resolve(f"oci:{layout}:it", store=store)
    assert len(image.layers) == 3
    assert merged(image.layers, tmp_path / "mnt") == plain(tmp_path / "again/rootfs")


@requires("root", "umoci")
def test_a_single_layer_is_what_umoci_unpacks(tmp_path: Path, store: Store) -> None:
    """Attribute for attribute: modes, owners, nanoseconds, links, extended attributes, hard links, sparse files."""
    tree = tmp_path / "tree"
    shutil.copytree("/etc", tree / "etc", symlinks=True)
    (tree / "run").mkdir()
    os.mkfifo(tree / "run/fifo", 0o620)
    os.link(tree / "etc/passwd", tree / "run/passwd")
    os.chown(tree / "run/fifo", 12, 34)
    (tree / "run/su").write_text("x")
    (tree / "run/su").chmod(0o6755)
    os.setxattr(tree / "run/su", "user.note", b"\0\1")
    os.setxattr(
        tree / "run/su", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000")
    )
    (tree / "run/sparse").write_bytes(b"start")
    os.truncate(tree / "run/sparse", 1 << 22)
    content = subprocess.run(
        ["tar", "-C", tree, "--format=posix", "--xattrs", "--xattrs-include=*", "-S", "-cf", "-", "."],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    layout = make.make_layout(tmp_path / "layout", content)
    umoci("unpack", "--image", f"{layout}:latest", tmp_path / "bundle")
    (layer,) = resolve(f"oci:{layout}", store=store).layers
    assert make.observe(layer) == make.observe(tmp_path / "bundle/rootfs")
    sparse = (layer / "run/sparse").stat()
    assert sparse.st_blocks * 512 < sparse.st_size


@requires("skopeo")
@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_what_skopeo_writes(tmp_path: Path, store: Store, transport: str) -> None:
    lower = make.tar([make.directory("etc"), make.file("etc/passwd", "a:x:1:1::/:\n"), make.file("gone")])
    layout = make.make_layout(tmp_path / "layout", lower, make.tar([make.file(".wh.gone")]))
    target = f"{tmp_path}/copy"
    name = "example.com/app:1" if transport == "docker-archive" else "app"
    subprocess.run(
        ["skopeo", "--insecure-policy", "--tmpdir", tmp_path, "copy", "-q", f"oci:{layout}:latest",
         f"{transport}:{target}:{name}"],
        check=True, capture_output=True,
    )  # fmt: skip
    expected = resolve(f"oci:{layout}", store=store)
    image = resolve(f"{transport}:{target}:{name}", store=store)
    assert image.layers == expected.layers
    assert image.users == expected.users
    if transport != "docker-archive":
        assert image.digest == expected.digest
