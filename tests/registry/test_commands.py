"""``sandbox pull``, ``push`` and ``lock``, and pytest with a sandbox.lock, as a user has them."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import images_helpers as make
import pytest
import registries
from gate import requires
from registries import Fault, Middle, Registry

from sandbox.images import Store
from sandbox.images.stored import Images

pytestmark = requires("docker-registry", "skopeo", "openssl", "userns")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@pytest.fixture
def cli(tmp_path: Path, store: Store) -> Cli:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sandbox.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    return run


@pytest.fixture
def between(started: Callable[[str], Registry]) -> Iterator[Middle]:
    with registries.middle(started("plain").host) as found:
        yield found


@pytest.fixture
def name(started: Callable[[str], Registry], tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """An image that runs: a static busybox."""
    program = shutil.which("busybox") or "/bin/true"
    layer = make.tar([
        make.directory("bin"), make.file("bin/busybox", Path(program).read_bytes(), mode=0o755),
        make.symlink("bin/sh", "busybox"), make.symlink("bin/cat", "busybox"), make.file("version", "one\n"),
    ])  # fmt: skip
    found = f"cli-{os.getpid()}/{make.sha256(request.node.nodeid.encode())[7:20]}:1"
    started("plain").put(make.make_layout(tmp_path / "one", layer, config={"Env": ["PATH=/bin"]}), found)
    return found


@pytest.fixture
def move(started: Callable[[str], Registry], tmp_path: Path, name: str) -> Callable[[], str]:
    """Let the name mean another image from now on."""

    def again() -> str:
        layer = make.tar([make.file("version", "two\n")])
        return started("plain").put(make.make_layout(tmp_path / "two", layer), name)

    return again


def test_pull_and_push(cli: Cli, between: Middle, name: str, started: Callable[[str], Registry]) -> None:
    full = between.name(name)
    done = cli("pull", full)
    digest = started("plain").digest(name)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{full}@{digest}\n", "")
    asked = len(between.requests)
    (document,) = json.loads(cli("pull", "--json", full).stdout)
    assert (document["digest"], document["fetched"]) == (digest, False)
    assert [each.method for each in between.requests[asked:]] == ["HEAD"]
    assert cli("pull", "--policy", "missing", full).stdout == done.stdout
    assert len(between.requests) == asked + 1

    target = between.name(name.replace(":1", "-pushed:2"))
    done = cli("push", full, target)
    assert (done.returncode, done.stdout) == (0, f"{target}@{digest}\n")
    assert started("plain").digest(name.replace(":1", "-pushed:2")) == digest
    document = json.loads(cli("push", "--json", document["id"][7:19], target).stdout)
    assert (document["name"], document["sent"], document["present"]) == (target, 0, 2)


def test_what_goes_wrong_is_told(cli: Cli, between: Middle) -> None:
    def problem(*words: str) -> str:
        done = cli(*words)
        assert done.returncode == (2 if "--help" in done.stderr else 1)
        assert done.stdout == ""
        return done.stderr

    assert "expected an image" in problem("pull")
    assert "expected always or missing" in problem("pull", "--policy", "never", "x")
    assert "`host` is not in a registry" in problem("pull", "host")
    assert "has no tag `none`" in problem("pull", between.name("nothing:none"))
    assert "No such file" in problem("pull", "--lock", "none.lock")
    assert "has no such image" in problem("push", between.name("nothing:none"))
    assert "No such file" in problem("lock")
    assert "it needs no pin" in problem("lock", f"x@sha256:{'ab' * 32}")
    assert "No such file" in problem("lock", "--remove", "x")


def test_bars_on_a_terminal(store: Store, between: Middle, name: str) -> None:
    between.rule(lambda request: Fault(slow=0.05) if "/blobs/" in request.path else None)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    command = [sys.executable, "-m", "sandbox.cli", "pull", between.name(name)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    seen = read_all(ours)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert DIGEST.search(output.decode())
    assert re.search(rb"[0-9a-f]{12} \[=* *\] .* / ", seen)
    assert b"\033[2A\r\033[J" in seen or b"\033[3A\r\033[J" in seen


def test_lock(cli: Cli, between: Middle, name: str, move: Callable[[], str], tmp_path: Path) -> None:
    full = between.name(name)
    done = cli("lock", full)
    assert done.returncode == 0, done.stderr
    old = DIGEST.findall(done.stdout)[0]
    assert done.stdout == f"{full}@{old} (changed)\n"
    table = tomllib.loads((tmp_path / "sandbox.lock").read_text())["images"][full]
    assert table["digest"] == old
    assert list(table["platforms"].values()) == [old]
    assert cli("lock", "--check").returncode == 0

    new = move()
    assert cli("lock", "--check").stdout == f"{full}@{new} (changed)\n"
    assert cli("lock", "--check").returncode == 1
    assert tomllib.loads((tmp_path / "sandbox.lock").read_text())["images"][full]["digest"] == old
    assert json.loads(cli("lock", "--json").stdout)[0]["digest"] == new
    assert tomllib.loads((tmp_path / "sandbox.lock").read_text())["images"][full]["digest"] == new

    assert cli("lock", "--remove", "other:1").returncode == 2
    assert cli("lock", "--remove", full).returncode == 0
    assert "images" not in tomllib.loads((tmp_path / "sandbox.lock").read_text())


def test_a_lock_of_an_index_has_every_platform(
    cli: Cli, started: Callable[[str], Registry], tmp_path: Path
) -> None:
    from sandbox.images.platforms import host_platform

    layout = tmp_path / "multi"
    here = host_platform().architecture
    parts = [
        make.put_image(layout, [make.tar([make.file(kind)])], platform={"os": "linux", "architecture": kind})
        for kind in (here, "vax")
    ]
    index = make.put_json(layout, {"schemaVersion": 2, "mediaType": make.INDEX, "manifests": parts}, make.INDEX)
    make.put_index(layout, make.tagged(index, "latest"))
    registry = started("plain")
    registry.skopeo("copy", "--all", f"oci:{layout}:latest", f"@cli-{os.getpid()}/multi:1")
    full = registry.name(f"cli-{os.getpid()}/multi:1")
    assert cli("lock", full).returncode == 0
    table = tomllib.loads((tmp_path / "sandbox.lock").read_text())["images"][full]
    assert table["digest"] == index["digest"]
    assert table["platforms"] == {f"linux/{kind}": part["digest"] for kind, part in zip((here, "vax"), parts, strict=True)}


def test_blobs_are_forgotten_if_one_wants(
    cli: Cli, between: Middle, name: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOX_KEEP_BLOBS", "no")
    full = between.name(name)
    assert cli("pull", full).returncode == 0
    (image,) = Images(Store(store.root)).items()
    kept = {path.name for path in store.root.glob("blobs/sha256/*")}
    assert kept == {image.digest[7:], image.id[7:]}
    asked = len(between.requests)
    assert json.loads(cli("pull", "--json", full).stdout)[0]["fetched"] is False
    assert [each.method for each in between.requests[asked:]] == ["HEAD"]
    for words in (("push", full, between.name("elsewhere:1")), ("save", "--output", "saved.tar", full)):
        told = cli(*words).stderr
        assert "is not in the store" in told
        assert f"`sandbox pull {full}`" in told
    assert not Path(store.root.parent / "saved.tar").exists()
    monkeypatch.delenv("SANDBOX_KEEP_BLOBS")
    assert json.loads(cli("pull", "--json", full).stdout)[0]["fetched"] is True, "what the hint says helps"
    assert cli("save", "--output", "saved.tar", full).returncode == 0


@requires("overlay")
@pytest.mark.parametrize("forgotten", ["before", "after"])
def test_what_was_built_on_a_forgotten_image_is_whole(
    cli: Cli, started: Callable[[str], Registry], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """The base is forgotten when it is pulled for the build, or by the pull of an image that has the same layer."""
    base, layout = started("plain").name(name), tmp_path / "one"
    (tmp_path / "Dockerfile").write_text(f'FROM {base}\nRUN ["/bin/sh", "-c", "echo two > /version"]\n')
    if forgotten == "before":
        monkeypatch.setenv("SANDBOX_KEEP_BLOBS", "no")
    else:
        monkeypatch.setenv("SANDBOX_PULL", "missing")
    assert cli("build", "--tag", "localhost/built:1", ".").returncode == 0
    if forgotten == "after":
        assert cli("rm", base).returncode == 0
        make.put_index(layout, make.tagged(put_another(layout), "latest"))
        started("plain").put(layout, f"{name}-other")
        monkeypatch.setenv("SANDBOX_KEEP_BLOBS", "no")
        assert cli("pull", f"{base}-other").returncode == 0
        assert "is not in the store" in cli("save", "--output", "other.tar", f"{base}-other").stderr
    saved = cli("save", "--output", "saved.tar", "localhost/built:1")
    assert saved.returncode == 0, saved.stderr
    monkeypatch.setenv("SANDBOX_STORE", str(tmp_path / "another"))
    assert cli("load", "--input", "saved.tar").returncode == 0
    assert cli("run", "localhost/built:1", "cat", "/version").stdout == "two\n"


def put_another(layout: Path) -> dict[str, Any]:
    """An image with the layer of the one in a layout, and one more."""
    (start,) = json.loads((layout / "index.json").read_text())["manifests"]
    document = json.loads((layout / "blobs/sha256" / start["digest"][7:]).read_text())
    (packed,) = (layout / "blobs/sha256" / layer["digest"][7:] for layer in document["layers"])
    return make.put_image(layout, [gzip.decompress(packed.read_bytes()), make.tar([make.file("more", "x")])])


def test_what_was_begun_and_left_is_pruned(cli: Cli, between: Middle, name: str, store: Store) -> None:
    between.rule(lambda request: Fault(cut=70_000) if "/blobs/" in request.path else None)
    process = subprocess.Popen([sys.executable, "-m", "sandbox.cli", "pull", "-q", between.name(name)])
    while not [path for path in store.root.glob("partial/*") if path.stat().st_size > 60_000]:
        assert process.poll() is None
    process.kill()
    process.wait()
    assert cli("prune").returncode == 0
    assert list(store.root.glob("partial/*")) == []


# --- pytest ---------------------------------------------------------------------------------------

TEST = """
import pytest

@pytest.mark.parametrize("number", range(2))
@pytest.mark.sandbox(image={image!r}, command=["sh", "-c", "while :; do read x; done"])
def test_version(sandbox, number):
    assert sandbox.exec(["cat", "/version"], check=True).stdout == "one\\n"
"""


EXPORTED = """
def test_builds_and_services_go_by_it_too():
    import os
    assert os.environ["SANDBOX_LOCK"].endswith("/sandbox.lock")
    assert os.environ["SANDBOX_PULL"] == "missing"
"""


@requires("busybox")
def test_with_a_lock_pytest_runs_offline_and_alike(
    cli: Cli, between: Middle, name: str, move: Callable[[], str], pytester: pytest.Pytester, tmp_path: Path
) -> None:
    full = between.name(name)
    assert cli("lock", full).returncode == 0
    shutil.copy(tmp_path / "sandbox.lock", pytester.path)
    move()
    assert cli("pull", "-q", full).returncode == 0  # the store follows, the lock does not
    asked = len(between.requests)
    pytester.makepyfile(TEST.format(image=full) + EXPORTED)
    options = ("-p", "no:hypothesispytest")
    pytester.runpytest_subprocess(*options, "--sandbox-pull=missing").assert_outcomes(passed=3)
    assert len(between.requests) == asked

    pytester.makepyfile(TEST.format(image=full.replace(":1", ":other")))
    result = pytester.runpytest_subprocess(*options, "--sandbox-pull=missing")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*sandbox.lock does not say which image this is*", "*sandbox lock *:other*"])
    assert len(between.requests) == asked


@requires("busybox")
def test_always_asks_once_in_a_run(
    between: Middle, name: str, pytester: pytest.Pytester, store: Store
) -> None:
    pytester.makepyfile(TEST.format(image=between.name(name)))
    for _ in range(2):
        asked = between.count("GET", "/manifests/") + between.count("HEAD", "/manifests/")
        result = pytester.runpytest_subprocess("-p", "no:hypothesispytest", "--sandbox-pull=always", "--sandbox-lock=none")
        result.assert_outcomes(passed=2)
        assert between.count("GET", "/manifests/") + between.count("HEAD", "/manifests/") == asked + 1


#: Takes the terminal on its standard input as its own, then becomes pytest: what a shell does.
IN_THE_FOREGROUND = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]])
"""


@requires("busybox")
def test_a_slow_pull_says_what_takes_so_long(
    between: Middle, name: str, pytester: pytest.Pytester, store: Store
) -> None:
    """On the terminal, although pytest has the standard streams."""
    between.rule(lambda request: Fault(slow=0.3) if "/blobs/" in request.path else None)
    pytester.makepyfile(TEST.format(image=between.name(name)))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_THE_FOREGROUND, "-p", "no:hypothesispytest", "--sandbox-pull=missing"],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = read_all(ours).decode()
    assert process.wait() == 0, seen
    assert re.search(f"pulling {re.escape(between.name(name))}: [0-9.]+ [kM]B of [0-9.]+ MB", seen)


def read_all(descriptor: int) -> bytes:
    """What a terminal shows until nobody writes to it any more."""
    seen = b""
    with contextlib.suppress(OSError):
        while piece := os.read(descriptor, 4096):
            seen += piece
    os.close(descriptor)
    return seen


def test_a_lock_that_is_not_there(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("-p", "no:hypothesispytest", "--sandbox-lock", "other.lock")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*there is no file */other.lock*"])
