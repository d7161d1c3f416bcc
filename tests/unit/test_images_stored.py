"""What a store has by name: blobs, records of images, names. Nothing is unpacked here."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import images_helpers as make
import pytest

from sandbox.errors import ImageError, ImageNotFound, ImageVerificationError
from sandbox.images import Store, parse
from sandbox.images.blobstore import path_of
from sandbox.images.errors import StoreError
from sandbox.images.layout import DirectoryBlobs
from sandbox.images.manifests import Descriptor
from sandbox.images.names import Names
from sandbox.images.stored import Images

LOW, HIGH = make.tar([make.file("a", "1")]), make.tar([make.file("b", "2")])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def image_in(layout: Path, *layers: bytes, **options: object) -> Descriptor:
    """An image in a layout, as its descriptor."""
    layout.mkdir(exist_ok=True)
    found = make.put_image(layout, layers, config=dict(options))
    return Descriptor(found["mediaType"], found["digest"], found["size"])


def test_blobs_are_verified_before_they_have_their_name(store: Store) -> None:
    added = store.blobs.add(b"abc", media_type="text/plain")
    assert added == Descriptor("text/plain", make.sha256(b"abc"), 3)
    assert store.blobs.add(io.BytesIO(b"abc"), added.digest, size=3).digest == added.digest
    with store.blobs.open(path_of(added.digest)) as file:
        assert file.read() == b"abc"
    assert store.blobs.has(added.digest, 3)
    assert not store.blobs.has(added.digest, 4)
    for digest, size in ((make.sha256(b"abd"), None), (added.digest, 2), (added.digest, 4)):
        with pytest.raises(ImageVerificationError, match="tampered"):
            store.blobs.add(b"abc", digest, size=size)
    assert list(store.blobs.items()) == [(added.digest, 3)]
    assert list((store.root / "tmp").iterdir()) == []


def test_other_algorithms_and_malformed_digests(store: Store) -> None:
    import hashlib

    digest = f"sha512:{hashlib.sha512(b'x').hexdigest()}"
    assert store.blobs.add(b"x", digest).digest == digest
    assert (store.root / path_of(digest)).read_bytes() == b"x"
    for bad in ("sha256:../../x", "md5:" + "a" * 32, "x"):
        with pytest.raises(ImageError, match="is not a digest"):
            store.blobs.add(b"x", bad)


def test_what_is_not_committed_is_forgotten(store: Store) -> None:
    with store.blobs.writer() as writer:
        writer.write(b"half")
        assert len(list((store.root / "tmp").iterdir())) == 1
    with pytest.raises(ImageVerificationError, match="expected 3"), store.blobs.writer(size=3) as writer:
        writer.write(b"more")
    assert list((store.root / "tmp").iterdir()) == []
    assert list(store.blobs.items()) == []


def test_an_image_is_copied_and_found_by_every_name_of_it(store: Store, tmp_path: Path) -> None:
    images = Images(store)
    start = image_in(tmp_path / "layout", LOW, HIGH)
    name = parse("myapp:1").canonical
    copied = images.copy(DirectoryBlobs(tmp_path / "layout"), start, name=name)
    assert copied.names == ("docker.io/library/myapp:1",)
    assert copied.size == sum(layer.size for layer in copied.parts.layers) > 0
    hexadecimal = start.digest.partition(":")[2]
    for text in (
        "myapp:1",
        name,
        f"myapp@{start.digest}",
        start.digest,
        hexadecimal,
        hexadecimal[:12],
        copied.id[7:19],
    ):
        assert images.find(text) == copied, text
        assert images.start_of(text) == copied.start, text
    assert [each.digest for each in images.items()] == [start.digest]
    assert next(images.names.items()).digest == start.digest
    assert [blob.diff_id for blob in images.layer_blobs(copied)] == [make.sha256(LOW), make.sha256(HIGH)]


def test_a_name_moves_and_goes(store: Store, tmp_path: Path) -> None:
    images = Images(store)
    old, new = (image_in(tmp_path / "layout", layer) for layer in (LOW, HIGH))
    for start in (old, new):
        images.copy(DirectoryBlobs(tmp_path / "layout"), start, name="docker.io/library/x:1")
    assert images.find("x:1").digest == new.digest
    assert {each.digest: each.names for each in images.items()} == {
        old.digest: (),
        new.digest: ("docker.io/library/x:1",),
    }
    assert images.names.remove("docker.io/library/x:1")
    assert not images.names.remove("docker.io/library/x:1")
    assert images.look_up("x:1") is None
    assert images.start_of("x:1") is None
    with pytest.raises(ImageNotFound, match="there is: nothing"):
        images.find("x:1")


def test_an_index_is_kept_as_what_was_asked_for(store: Store, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    layout.mkdir()
    here = make.put_image(layout, [LOW], platform={"os": "linux", "architecture": os.uname().machine})
    here["platform"]["architecture"] = {"x86_64": "amd64", "aarch64": "arm64"}.get(
        os.uname().machine, os.uname().machine
    )
    other = {**make.put_image(layout, [HIGH]), "platform": {"os": "plan9", "architecture": "386"}}
    index = make.put_json(
        layout, {"schemaVersion": 2, "mediaType": make.INDEX, "manifests": [other, here]}, make.INDEX
    )
    start = Descriptor(index["mediaType"], index["digest"], index["size"])
    copied = Images(store).copy(DirectoryBlobs(layout), start, name="docker.io/library/multi:latest")
    assert copied.digest == index["digest"]
    assert copied.parts.manifest.digest == here["digest"]
    assert not store.blobs.has(other["digest"])
    assert Images(store).find("multi").parts == copied.parts


def test_only_complete_images_are_added(store: Store, tmp_path: Path) -> None:
    start = image_in(tmp_path / "layout", LOW)
    (layer,) = Images(Store(tmp_path / "other")).copy(DirectoryBlobs(tmp_path / "layout"), start).parts.layers
    for path in (tmp_path / "layout/blobs/sha256").iterdir():
        if layer.digest != f"sha256:{path.name}":
            store.blobs.add(path.read_bytes())
    with pytest.raises(ImageError, match=f"{layer.digest} is not in the store"):
        Images(store).add(start)
    assert list(Images(store).items()) == []


def test_damaged_blobs_do_not_get_in(store: Store, tmp_path: Path) -> None:
    start = image_in(tmp_path / "layout", LOW)
    for path in (tmp_path / "layout/blobs/sha256").iterdir():
        if path.name != start.digest[7:]:
            path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(ImageVerificationError):
        Images(store).copy(DirectoryBlobs(tmp_path / "layout"), start)
    assert list(Images(store).items()) == []


def test_ids_that_begin_alike_are_an_error_that_lists_them(store: Store, tmp_path: Path) -> None:
    images = Images(store)
    (store.root / "images").mkdir(parents=True)
    digests = [images.copy(DirectoryBlobs(tmp_path / "layout"), image_in(tmp_path / "layout", LOW, Env=[f"A={n}"])).digest
               for n in range(40)]  # fmt: skip
    assert len(set(digests)) == 40
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("sandbox.images.stored._ID", __import__("re").compile("([0-9a-f]{1,64})"))
        ambiguous = next(d for d in "0123456789abcdef" if sum(x[7:].startswith(d) for x in digests) > 1)
        with pytest.raises(ImageNotFound, match="several images"):
            images.find(ambiguous)


def test_a_record_that_a_power_failure_emptied_is_none(store: Store, tmp_path: Path) -> None:
    names = Names(store)
    names.set("docker.io/library/a:1", make.sha256(b"1"))
    names.set("docker.io/library/b:1", make.sha256(b"2"))
    next((store.root / "names").iterdir()).write_bytes(b"")
    assert len(list(names.items())) == 1


WORKER = """
import sys
from sandbox.images.names import Names
from sandbox.images.store import Store
names = Names(Store(sys.argv[1]))
for number in range(200):
    names.set("docker.io/library/same:1", "sha256:" + sys.argv[2] * 64)
    names.set(f"docker.io/library/{sys.argv[2]}:{number}", "sha256:" + sys.argv[2] * 64)
    assert names.get("docker.io/library/same:1") in {"sha256:" + digit * 64 for digit in "abcd"}
"""


def test_names_set_by_many_processes_at_once(store: Store) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", WORKER, str(store.root)]
    workers = [subprocess.Popen([*argv, digit], env=environment) for digit in "abcd"]
    assert [worker.wait(timeout=60) for worker in workers] == [0] * 4
    assert len(list(Names(store).items())) == 801
    assert list((store.root / "tmp").iterdir()) == []


def test_leases_tell_who_uses_what_and_end_with_their_process(store: Store) -> None:
    code = "import sys; from sandbox.images import Store; s = Store(sys.argv[1]); s.places.use('x', 'y'); print(1, flush=True)"
    code += "; sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, store.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == b"1\n"
    store.places.use("x")
    assert store.places.in_use() == {"x": {os.getpid(), other.pid}, "y": {other.pid}}
    assert store.places.in_use(by_others=True) == {"x": {other.pid}, "y": {other.pid}}
    other.kill()
    other.communicate()
    assert store.places.in_use() == {"x": {os.getpid()}}
    assert len(list((store.root / "leases").iterdir())) == 1


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file")
    with pytest.raises(StoreError, match="SANDBOX_STORE"):
        store.blobs.add(b"x")
    with pytest.raises(StoreError, match="SANDBOX_STORE"):
        Names(store).set("docker.io/library/x:1", make.sha256(b"x"))


def test_records_are_json_that_others_can_read(store: Store) -> None:
    Names(store).set("docker.io/library/x:1", make.sha256(b"x"))
    (path,) = (store.root / "names").iterdir()
    record = json.loads(path.read_bytes())
    assert record["name"] == "docker.io/library/x:1"
    assert record["digest"] == make.sha256(b"x")
