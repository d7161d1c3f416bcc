"""Builds in real pods: what ends up in the layers, what is done again, what fails and how."""

from __future__ import annotations

import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from build_contexts import make
from build_helpers import own_store, tree_of
from gate import requires

import sandbox
from sandbox.build import known_files
from sandbox.build.executor import Settings
from sandbox.build.source import build
from sandbox.errors import ImageError, UnsupportedFeature
from sandbox.images import Store
from sandbox.images.stored import Images

pytestmark = requires("userns", "overlay", "busybox", "subuid")

ROOT = os.geteuid() == 0


class Counting:
    """What a build did, and what it knew already."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.known = 0
        self.lines: list[str] = []

    def step(self, _stage: Any, _number: int, _total: int, instruction: Any) -> None:
        self.done.append(instruction.keyword)

    def cached(self) -> None:
        self.known += 1

    def output(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with own_store(tmp_path_factory.mktemp("build") / "store") as store:
        yield store


Build = Callable[..., Any]


@pytest.fixture
def built(store: Store, tmp_path: Path) -> Build:
    """Build a Dockerfile with some files beside it; the image's digest."""

    def do(text: str, files: dict[str, Any] | None = None, settings: Settings | None = None, **options: Any) -> str:
        make(tmp_path, {"Dockerfile": text, **(files or {})})
        return build(tmp_path, store=store, settings=settings, **options).digest

    return do


@requires("tmpfs.xattr")
def test_what_a_command_changes(store: Store, built: Build) -> None:
    """Whiteouts, opaque directories, owners, modes, links, times; and nothing of ours."""
    digest = built(
        "FROM localhost/base:1\n"
        "RUN mkdir -p /d/old /e && echo 1 > /d/old/1 && echo 2 > /e/2 && echo 3 > /e/3 && touch -d '2001-02-03 04:05:06' /t\n"
        "RUN rm -rf /d/old && mkdir /d/old && echo new > /d/old/new && rm /e/2 && chown 7:8 /e/3 && chmod 4750 /e/3"
        " && ln /e/3 /e/hard && ln -s 3 /e/soft && mkfifo /e/pipe\n"
    )
    found = tree_of(store, digest)
    ours = {path: entry for path, entry in found.items() if path.startswith(("d", "e/", "t")) and not path.startswith("dev")}
    assert set(ours) - {"tmp"} == {"d", "d/old", "d/old/new", "e/3", "e/hard", "e/soft", "e/pipe", "t"}
    assert (found["e/3"]["owner"], found["e/3"]["mode"]) == ((7, 8), "0o4750")
    assert found["e/hard"]["link"] == "e/3"
    assert found["e/soft"]["link"] == "3"
    assert found["e/pipe"]["type"] == "6"
    for path in ("etc/hosts", "etc/resolv.conf", "etc/hostname", "dev/null", "proc/self"):
        assert path not in found, path


def test_layers_have_only_what_changed(store: Store, built: Build) -> None:
    digest = built("FROM localhost/base:1\nRUN echo x > /srv/x\nRUN true\nRUN rm /srv/x\n")
    images = Images(store)
    parts = images.get(digest).parts
    assert len(parts.layers) == 3, "RUN true makes none"
    for layer, names in zip(parts.layers[1:], ({"srv", "srv/x"}, {"srv", "srv/.wh.x"}), strict=True):
        with store.blobs.open(f"blobs/sha256/{layer.digest.partition(':')[2]}") as file, tarfile.open(fileobj=file) as tar:
            assert set(tar.getnames()) == names


def test_a_second_build_does_nothing(store: Store, built: Build) -> None:
    text = "FROM localhost/base:1\nCOPY a /a\nRUN echo $RANDOM > /random\nENV a=b\nWORKDIR /w\n"
    first, second = Counting(), Counting()
    digest = built(text, {"a": "1"}, progress=first)
    assert built(text, {"a": "1"}, progress=second) == digest
    assert (first.known, second.known) == (0, 3)
    assert second.done == first.done


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"a": "2"}, (2,)), ({"a": ("1", 0o755)}, (2,)), ({"unused": "x"}, (0,)),
        ({"settings": Settings({"arg": "2"})}, (1,)),
        ({"settings": Settings(network="none")}, (2, 3)), ({"settings": Settings(no_cache=True)}, (3,)),
    ],
)  # fmt: skip
def test_what_makes_a_step_another_one(built: Build, tmp_path: Path, change: dict[str, Any], again: tuple[int, ...]) -> None:
    """Where a command that runs again in the same second leaves the same layer, what is copied on top of it is known."""
    text = f"FROM localhost/base:1\nRUN echo {tmp_path} > /first\nCOPY a /a\nARG arg=1\nRUN echo $arg > /second\n"
    built(text, {"a": "1"})
    settings = change.pop("settings", None)
    progress = Counting()
    built(text, {"a": "1", **change}, settings, progress=progress)
    assert 3 - progress.known in again


def test_times_of_the_context_do_not_count(built: Build, tmp_path: Path) -> None:
    text = "FROM localhost/base:1\nCOPY a /a\n"
    digest = built(text, {"a": "same"})
    os.utime(tmp_path / "a", (1, 1))
    assert built(text, {"a": "same"}) == digest


def test_a_context_that_has_not_changed_is_not_read_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for COPY nor for a mount; a build without the cache reads it, and so does one after a change."""
    reads: list[str] = []
    read = known_files._read_file

    def noted(tree: Any, path: str) -> Any:
        reads.append(path)
        return read(tree, path)

    monkeypatch.setattr(known_files, "_read_file", noted)
    text = "FROM localhost/base:1\nCOPY large /a\nRUN --mount=type=bind,source=large,target=/b cmp /a /b\n"
    make(tmp_path, {"Dockerfile": text, "large": b"x" * (2 << 20)})
    time.sleep(0.3)  # what was changed just now is read again to be safe
    digests = [build(tmp_path, store=store).digest for _ in range(2)]
    assert reads == ["large"]
    build(tmp_path, store=store, settings=Settings(no_cache=True))
    assert reads == ["large"] * 2
    state = (tmp_path / "large").stat()
    (tmp_path / "large").write_bytes(b"y" * (2 << 20))
    os.utime(tmp_path / "large", ns=(state.st_atime_ns, state.st_mtime_ns))
    digests.append(build(tmp_path, store=store).digest)
    assert digests[0] == digests[1] != digests[2]


def test_only_the_stages_that_are_needed(built: Build) -> None:
    text = "FROM localhost/base:1 AS a\nRUN exit 1\nFROM localhost/base:1 AS b\nRUN echo b > /b\nFROM scratch\n"
    text += "COPY --from=b /b /\n"
    progress = Counting()
    built(text, progress=progress)
    assert progress.done == ["FROM", "COPY", "FROM", "RUN"]
    with pytest.raises(ImageError, match="exit status 1"):
        built(text, target="a")


def test_heredocs(store: Store, built: Build) -> None:
    digest = built(
        "FROM localhost/base:1\nENV who=me\nRUN <<A\necho one > /one\necho $who >> /one\nA\n"
        "RUN cat <<A > /two && echo after >> /two\n$who\nA\n"
        "RUN <<A\n#!/bin/busybox sh\necho script $0 > /three\nA\n"
        "COPY <<A <<'B' /files/\n$who\nA\n$who\nB\n"
    )
    shown = sandbox.run(["cat", "/one", "/two", "/three", "/files/A", "/files/B"], image=digest)
    assert shown.stdout == "one\nme\nme\nafter\nscript /dev/pipes/A\nme\n$who\n"
    assert "dev/pipes" not in tree_of(store, digest)


def test_a_command_that_fails(built: Build, tmp_path: Path) -> None:
    with pytest.raises(sandbox.BuildError) as caught:
        built("FROM localhost/base:1\n\nRUN echo before && \\\n  nonsense\n")
    assert caught.value.line == f"{tmp_path}/Dockerfile:3"
    assert "exit status 127" in str(caught.value)
    assert "before" in caught.value.logs
    assert any("nonsense" in line for line in caught.value.logs)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("COPY none /x", 2, "there is no `none`"), ("COPY a b /x", 2, "`/x` is not a directory"), ("COPY a /etc", 0, ""),
        ("COPY d /bin/sh", 2, "is none"), ("COPY a /bin/busybox/x", 2, "is not a directory"),
        ("COPY --what a /x", 2, "has no flag --what"),
        ("COPY --chown=nobody-here a /x", 2, "nobody-here"), ("COPY --chmod=rwx a /x", 2, "octal"),
        ("COPY a /d\nCOPY d /d", 3, "is none"),
        ("ADD https://example.org/x.git /x", 2, "git"), ("RUN --mount=type=ssh true", 2, "type=ssh"),
        ("RUN --mount=type=bind,rw,target=/x true", 2, "read-only"), ("RUN --network=mine true", 2, "--network=mine"),
        ("RUN [\"/none\"]", 2, "/none"), ("USER nobody-here\nRUN true", 3, "nobody-here"),
        ("COPY broken /x", 2, "leads nowhere"),
    ],
)  # fmt: skip
def test_steps_that_cannot_be_done(built: Build, tmp_path: Path, text: str, line: int, what: str) -> None:
    files = {"a": "a", "b": "b", "d/x": "x", "broken": "-> none"}
    if not what:
        built(f"FROM localhost/base:1\n{text}\n", files)
        return
    with pytest.raises(sandbox.BuildError) as caught:
        built(f"FROM localhost/base:1\n{text}\n", files)
    assert what in str(caught.value)
    assert caught.value.line == f"{tmp_path}/Dockerfile:{line}"


def test_a_context_leads_nowhere_else(store: Store, built: Build, tmp_path: Path) -> None:
    """Links and ``..`` end at the context's root."""
    outside = tmp_path.parent / "outside"
    outside.write_text("secret")
    inside = {"link": f"-> {outside}", "up": "-> ../outside", "real": "fine"}
    for source in ("link", "up", "../outside"):
        with pytest.raises(sandbox.BuildError, match=r"no `|leads nowhere"):
            built(f"FROM scratch\nCOPY {source} /x\n", inside)
    digest = built("FROM scratch\nCOPY . /all/\nCOPY ../real /real\n", inside)
    found = tree_of(store, digest)
    assert found["all/link"]["link"] == str(outside)
    assert found["real"]["type"] == "0"


def test_links_in_an_image_do_not_lead_out_of_it(store: Store, built: Build) -> None:
    digest = built(
        "FROM localhost/base:1\nRUN ln -s /etc /srv/abs && ln -s ../../../../etc /srv/up\n"
        "COPY a /srv/abs/1\nCOPY a /srv/up/2\nCOPY --from=localhost/base:1 /lib/../etc/passwd /srv/abs/3\n", {"a": "a"}
    )  # fmt: skip
    found = tree_of(store, digest)
    assert {"etc/1", "etc/2", "etc/3"} <= set(found)
    assert found["srv/abs"]["type"] == "2"


def test_owners_of_archives_and_of_what_they_are_given_to(store: Store, built: Build) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as tar:
        info = tarfile.TarInfo("f")
        info.uid, info.gid, info.mode = 5, 6, 0o2711
        tar.addfile(info)
    digest = built("FROM scratch\nADD a.tar.xz /1/\nADD --chown=7:8 a.tar.xz /2/\n", {"a.tar.xz": out.getvalue()})
    found = tree_of(store, digest)
    assert [(found[path]["owner"], found[path]["mode"]) for path in ("1/f", "2/f")] == [((5, 6), "0o2711"), ((7, 8), "0o2711")]


def test_an_archive_that_leads_out(built: Build) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../../x"))
    with pytest.raises(sandbox.BuildError, match=r"`\.\.` would lead out"):
        built("FROM scratch\nADD a.tar /x/\n", {"a.tar": out.getvalue()})


class Files(http.server.BaseHTTPRequestHandler):
    """One file, and a count of how often it was asked for."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200 if self.path.startswith("/file") else 404)
        self.send_header("Last-Modified", "Sat, 03 Feb 2001 04:05:06 GMT")
        self.end_headers()
        self.wfile.write(b"from afar")

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    Files.asked = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_files_from_urls(store: Store, built: Build, server: str) -> None:
    import hashlib

    found = tree_of(store, built(f"FROM scratch\nADD {server}/file.txt?x=1 /dir/\nADD {server}/file /name\n"))
    assert (found["dir/file.txt"]["mode"], found["name"]["mode"]) == ("0o600", "0o600")
    digest = f"sha256:{hashlib.sha256(b'from afar').hexdigest()}"
    text = f"FROM scratch\nADD --checksum={digest} --chmod=644 {server}/file /name\n"
    built(text)
    asked = Files.asked
    built(text)
    assert Files.asked == asked, "with a checksum, what is known is not fetched again"
    with pytest.raises(sandbox.BuildError, match="not sha256:0"):
        built(f"FROM scratch\nADD --checksum=sha256:{64 * '0'} {server}/file /name\n")
    with pytest.raises(sandbox.BuildError, match="404"):
        built(f"FROM scratch\nADD {server}/none /name\n")


def test_secrets_stay_outside(store: Store, built: Build, tmp_path: Path) -> None:
    secret = tmp_path.parent / "token"
    secret.write_text("xyzzy-plugh")
    settings = Settings(secrets={"token": secret})
    text = "FROM localhost/base:1\nRUN --mount=type=secret,id=token,required=true wc -c < /run/secrets/token > /length\n"
    digest = built(text, settings=settings)
    found = tree_of(store, digest)
    assert "length" in found
    assert not [path for path in found if path.startswith("run/")]
    assert b"xyzzy-plugh" not in b"".join(path.read_bytes() for path in (store.root / "blobs/sha256").iterdir())
    with pytest.raises(sandbox.BuildError, match="was not given"):
        built(text.replace("/length", "/other"))


def test_without_a_network(built: Build) -> None:
    text = "FROM localhost/base:1\nRUN --network=none test $(ls /sys/class/net | wc -l) = 1 && test ! -s /etc/resolv.conf\n"
    built(text)


def test_an_argument_that_nothing_takes(built: Build) -> None:
    with pytest.raises(sandbox.BuildError, match="no ARG of what was built takes `NAEM`") as caught:
        built("FROM localhost/base:1\nARG NAME=x\n", settings=Settings({"NAEM": "y"}))
    assert "NAME" in (caught.value.hint or "")


def test_references(store: Store, built: Build, tmp_path: Path) -> None:
    built("FROM localhost/base:1\nCMD [\"echo\", \"default\"]\n")
    for reference in (f"build:{tmp_path}", f"build:{tmp_path}/Dockerfile", str(tmp_path), tmp_path):
        assert sandbox.run(image=reference, options=sandbox.Options(store=str(store.root))).stdout == "default\n"
    with pytest.raises(sandbox.BuildError, match="no Dockerfile in it"):
        sandbox.run(image=f"build:{tmp_path.parent}")


def test_many_processes_build_once(store: Store, built: Build, tmp_path: Path) -> None:
    text = "FROM localhost/base:1\nRUN echo x >> /ran && sleep 0.3 && cat /proc/sys/kernel/random/uuid > /id\n"
    make(tmp_path, {"Dockerfile": text})
    code = "import sys; from sandbox.build.source import build; print(build(sys.argv[1]).digest)"
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    digests = {process.communicate(timeout=60)[0] for process in running}
    assert len(digests) == 1
    assert digests != {""}


# -- in Python --------------------------------------------------------------------------------------------------------


def test_an_image_in_python(store: Store, tmp_path: Path) -> None:
    make(tmp_path, {"conf/a": "from the context", "conf/b.pyc": "x"})
    tools = sandbox.Image("localhost/base:1").run("mkdir /tools && echo tool > /tools/t")
    image = (
        sandbox.Image("localhost/base:1", context=tmp_path)
        .env(GREETING="hello $USER_NAME", QUOTED='a "b"\\').copy("conf", "/etc/conf", exclude=["*.pyc"])
        .copy("/tools/t", "/usr/t", source=tools).write("/etc/text", "line $GREETING", chmod=0o600)
        .run(["sh", "-c", "echo $GREETING > /ran"]).workdir("/work").user("app").label(a=1).expose(80, "53/udp")
        .cmd(["sh", "-c", "id -u; pwd; cat /usr/t /ran; ls /etc/conf; echo \"$QUOTED\""])
    )  # fmt: skip
    done = sandbox.run(image=image)
    assert done.stdout.splitlines() == ["1000", "/work", "tool", "hello", "a", 'a "b"\\']
    assert tree_of(store, image.build(store=store).digest)["etc/text"]["mode"] == "0o600"
    assert image != tools
    assert image.build(store=store).digest == image.build(store=store).digest


def test_images_are_values() -> None:
    import pickle

    base = sandbox.Image("localhost/base:1")
    more = base.run("true")
    assert base != more
    assert hash(more) == hash(pickle.loads(pickle.dumps(more)))
    assert sandbox.Container(image=more).image is more
    with pytest.raises(sandbox.BuildError):
        base.run(" ")


def test_errors_say_where_the_program_described_the_step(store: Store) -> None:
    image = sandbox.Image("localhost/base:1").run("exit 3")
    with pytest.raises(sandbox.BuildError, match="exit status 3") as caught:
        image.build(store=store)
    assert (caught.value.line or "").startswith(f"{__file__}:")


def test_commit(store: Store) -> None:
    with sandbox.start(image="localhost/base:1", command=["sleep", "inf"]) as pod:
        pod.exec(["sh", "-c", "mkdir /made && echo x > /made/x && chown 3:4 /made/x && rm /etc/group"], check=True)
        reference = pod.commit("localhost/committed:1", changes={"Cmd": ["cat", "/made/x"]}, message="by hand")
        digest = pod.commit()
    assert reference == "localhost/committed:1"
    assert sandbox.run(image=reference).stdout == "x\n"
    found = tree_of(store, digest)
    assert found["made/x"]["owner"] == (3, 4)
    assert "etc/group" not in found
    assert "etc/hosts" not in found


def test_commit_of_what_cannot_be() -> None:
    with sandbox.start(command=["sleep", "inf"]) as pod, pytest.raises(UnsupportedFeature, match="this machine itself"):
        pod.commit()
