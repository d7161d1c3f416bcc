"""What breaks on the way: connections, bytes, servers, our own process. Nothing wrong gets into the store."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import images_helpers as make
import pytest
import registries
from gate import requires
from registries import Fault, Middle, Registry, Request

from sandbox.errors import ImageVerificationError
from sandbox.images import Store, resolve
from sandbox.images.distribution import push as push_module
from sandbox.images.distribution.pull import Pulled, pull
from sandbox.images.distribution.push import push
from sandbox.images.distribution.transport import Patience
from sandbox.images.errors import RateLimited, RegistryError
from sandbox.images.references import parse
from sandbox.images.stored import Images

pytestmark = requires("docker-registry", "skopeo", "openssl", "userns")

QUICK = Patience(connect=5, silence=5, attempts=4, backoff=0.01, longest=2)
SIZE = 3 << 20
NOISE = random.Random(4).randbytes(SIZE)
LAYER = make.tar([make.file("noise", NOISE)])
SMALL = make.tar([make.file("small", b"x")])


@pytest.fixture(scope="module")
def upstream(
    started: Callable[[str], Registry], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Registry, str]:
    """A registry with an image of a large and a small layer."""
    registry = started("plain")
    layout = make.make_layout(tmp_path_factory.mktemp("broken") / "layout", LAYER, SMALL)
    name = f"broken-{os.getpid()}/app:1"
    registry.put(layout, name)
    return registry, name


@pytest.fixture
def between(upstream: tuple[Registry, str]) -> Iterator[Middle]:
    with registries.middle(upstream[0].host) as found:
        yield found


@pytest.fixture
def name(upstream: tuple[Registry, str]) -> str:
    return upstream[1]


def get(between: Middle, name: str, store: Store, patience: Patience = QUICK) -> Pulled:
    return pull(parse(between.name(name)), store, patience=patience)


def check(done: Pulled) -> None:
    assert done.image is not None
    assert (done.image.layers[0] / "noise").read_bytes() == NOISE


def nothing_is_left(store: Store) -> None:
    """No image, no name; what is half done is not taken for more."""
    assert list(Images(store).items()) == []
    assert list(Images(store).names.items()) == []
    assert list(store.root.glob("tmp/*")) == []
    for path in store.root.glob("blobs/sha256/*"):
        assert make.sha256(path.read_bytes()) == f"sha256:{path.name}"


def partials(store: Store) -> list[Path]:
    return sorted(store.root.glob("partial/*"))


def big(request: Request) -> bool:
    """A request for the large layer: the small one and the configuration are done in one piece anyway."""
    return request.method == "GET" and "/blobs/" in request.path


# --- connections ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_broken_connection_goes_on_where_it_was(between: Middle, name: str, store: Store, ranges: bool) -> None:
    between.rule(
        lambda request: (
            Fault(cut=1_200_000, no_range=not ranges) if big(request) and request.before < 2 else Fault(no_range=not ranges)
        )
    )
    check(get(between, name, store))
    starts = [each.headers.get("Range") for each in between.requests if big(each) and "Range" in each.headers]
    assert starts[:2] == (["bytes=1200000-", "bytes=2400000-"] if ranges else ["bytes=1200000-"] * 2)[: len(starts)]
    assert len(starts) == 2
    assert partials(store) == []


def test_a_connection_that_always_breaks_ends_in_an_error(between: Middle, name: str, store: Store) -> None:
    between.rule(lambda request: Fault(cut=100_000) if big(request) else None)
    with pytest.raises(RegistryError, match="the connection broke after") as caught:
        get(between, name, store)
    assert caught.value.temporary
    nothing_is_left(store)
    (partial,) = partials(store)
    assert 0 < partial.stat().st_size < SIZE
    between.rule(lambda _: None)
    check(get(between, name, store))
    assert partials(store) == []


def test_silence_counts_as_broken(between: Middle, name: str, store: Store) -> None:
    between.rule(lambda request: Fault(slow=1.0) if big(request) and request.before == 0 else None)
    check(get(between, name, store, QUICK._replace(silence=0.3)))


# --- bytes ----------------------------------------------------------------------------------------


def test_a_damaged_layer_is_refused_and_nothing_of_it_stays(between: Middle, name: str, store: Store) -> None:
    between.rule(lambda request: Fault(corrupt=2_000_000) if big(request) else None)
    with pytest.raises(ImageVerificationError):
        get(between, name, store)
    nothing_is_left(store)
    assert partials(store) == []


def test_a_damaged_manifest_is_refused(between: Middle, name: str, store: Store) -> None:
    between.rule(lambda request: Fault(corrupt=40) if "/manifests/" in request.path else None)
    with pytest.raises(ImageVerificationError):
        get(between, name, store)
    nothing_is_left(store)


def test_what_a_mirror_has_damaged_comes_from_the_registry(
    between: Middle, upstream: tuple[Registry, str], store: Store, settings: Path
) -> None:
    registry, name = upstream
    between.rule(lambda request: Fault(corrupt=2_000_000) if big(request) else None)
    (settings / "registries.conf").write_text(
        f'[[registry]]\nlocation = "{registry.host}"\n[[registry.mirror]]\nlocation = "{between.host}"\n'
    )
    check(pull(parse(registry.name(name)), store, patience=QUICK))
    assert between.count("GET", "/blobs/") > 0


def test_what_was_tampered_with_on_disk_is_fetched_anew(between: Middle, name: str, store: Store) -> None:
    between.rule(lambda request: Fault(cut=1_000_000) if big(request) else None)
    with pytest.raises(RegistryError):
        get(between, name, store, QUICK._replace(attempts=1))
    (partial,) = partials(store)
    with partial.open("r+b") as file:
        file.write(b"not what came")
    between.rule(lambda _: None)
    check(get(between, name, store))


# --- servers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_failures_that_pass(between: Middle, name: str, store: Store, status: int) -> None:
    between.rule(lambda request: Fault(status=status) if request.before < 2 else None)
    check(get(between, name, store))


def test_a_server_that_stays_broken(between: Middle, name: str, store: Store) -> None:
    between.rule(lambda _: Fault(status=503))
    with pytest.raises(RegistryError, match="answered 503: Service Unavailable"):
        get(between, name, store)
    assert len(between.requests) == QUICK.attempts


def test_retry_after_is_kept_to(between: Middle, name: str, store: Store) -> None:
    between.rule(lambda request: Fault(status=429, headers={"Retry-After": "1"}) if request.before == 0 else None)
    began = time.monotonic()
    pull(parse(between.name(name)), store, patience=QUICK, unpack=False)
    assert time.monotonic() - began >= 1


def test_a_rate_limit_is_explained(between: Middle, name: str, store: Store) -> None:
    body = json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": "You have reached your pull rate limit."}]})
    headers = {"Retry-After": "3600", "ratelimit-limit": "100;w=21600", "ratelimit-remaining": "0;w=21600"}
    between.rule(lambda _: Fault(status=429, headers=headers, body=body.encode()))
    with pytest.raises(RateLimited) as caught:
        get(between, name, store)
    assert caught.value.retry_after == 3600
    assert "the limit is 100 in 6 hours" in str(caught.value)
    assert "log in" in str(caught.value)
    assert len(between.requests) == 1


# --- pushing --------------------------------------------------------------------------------------


def test_an_upload_goes_on_where_it_broke(
    between: Middle, name: str, store: Store, monkeypatch: pytest.MonkeyPatch, upstream: tuple[Registry, str]
) -> None:
    monkeypatch.setattr(push_module, "_PIECE", 1 << 20)
    stored = get(between, name, store).stored
    target = f"broken-{os.getpid()}/pushed-{time.monotonic_ns()}"
    monkeypatch.setattr(push_module, "_origins", lambda *_: {})
    failing = {"PATCH": {1, 3}, "PUT": {0}}
    counts = {"PATCH": 0, "PUT": 0}
    guard = threading.Lock()

    def rule(request: Request) -> Fault | None:
        if request.method not in counts or "/uploads/" not in request.path:
            return None
        with guard:
            number = counts[request.method]
            counts[request.method] += 1
        return Fault(status=502) if number in failing[request.method] else None

    between.rule(rule)
    done = push(stored, parse(between.name(f"{target}:1")), store, patience=QUICK)
    assert done.sent == 3
    assert upstream[0].digest(f"{target}:1") == stored.digest
    assert counts["PATCH"] > 4


# --- our own process ------------------------------------------------------------------------------

PULL = """
import sys
import sandbox.images.distribution.pull
from sandbox.images import resolve
print("begins", flush=True)
print(resolve(sys.argv[1]).layers[0], flush=True)
"""


def start_pull(between: Middle, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PULL, between.name(name)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def something_arrived(store: Store) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return any(path.stat().st_size > 200_000 for path in partials(store))
    return False


def test_after_kill_9_the_next_one_goes_on(between: Middle, name: str, store: Store) -> None:
    between.rule(lambda request: Fault(slow=0.05) if big(request) else None)
    process = start_pull(between, name)
    until(lambda: something_arrived(store))
    process.kill()
    process.communicate()
    between.rule(lambda _: None)
    check(get(between, name, store))
    resumed = [each.headers["Range"] for each in between.requests if "Range" in each.headers]
    assert resumed
    assert all(int(text.removeprefix("bytes=").rstrip("-")) > 100_000 for text in resumed)
    assert partials(store) == []
    assert list(store.root.glob("tmp/*")) == []


def test_ctrl_c_ends_it_at_once(between: Middle, name: str, store: Store) -> None:
    between.rule(lambda request: Fault(slow=20) if big(request) and request.before == 0 else None)
    process = start_pull(between, name)
    until(lambda: between.count("GET", "/blobs/") >= 2)
    time.sleep(0.2)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, problem = process.communicate(timeout=15)
    assert time.monotonic() - began < 10
    assert "KeyboardInterrupt" in problem
    nothing_is_left(store)


@pytest.mark.parametrize("killed", [False, True], ids=["all live", "the first is killed"])
def test_eight_processes_pull_once(between: Middle, name: str, store: Store, killed: bool) -> None:
    go_on = threading.Event()
    between.rule(lambda request: Fault(hold=go_on) if big(request) else None)
    processes = [start_pull(between, name)]
    until(lambda: something_arrived(store))
    processes += [start_pull(between, name) for _ in range(3 if killed else 7)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
    time.sleep(0.5)  # by now they ask for it
    if killed:
        processes[0].kill()
    go_on.set()
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [-signal.SIGKILL if killed else 0] + [0] * (len(processes) - 1)
    answers = answers[killed:]
    lines = [line for _, problem in answers for line in problem.splitlines()]
    assert not [line for line in lines if not line.startswith("pulling ")]  # said if the machine is slow
    assert len({answer for answer, _ in answers}) == 1
    fetched = [each for each in between.requests if big(each) and "Range" not in each.headers]
    digests = [each.path.rpartition("/")[2] for each in fetched]
    assert len(digests) == len(set(digests)) or killed
    assert between.count("GET", "/manifests/") == (2 if killed else 1)
    assert (Path(answers[0][0].strip()) / "noise").read_bytes() == NOISE
    assert partials(store) == []
    assert list(store.root.glob("tmp/*")) == []


def test_a_pull_and_an_image_that_shares_its_layers(between: Middle, name: str, store: Store) -> None:
    """Two names of one image at once: two pulls, each layer once."""
    between.rule(lambda request: Fault(slow=0.02) if big(request) else None)
    digest = resolve(between.name(name), store=Store(store.root.with_name("other"))).digest
    repository = between.name(name).rpartition(":")[0]
    first, second = start_pull(between, name), None
    second = subprocess.Popen(
        [sys.executable, "-c", PULL, f"{repository}@{digest}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    before = len(between.requests)
    answers = {process.communicate(timeout=60) for process in (first, second)}
    assert len(answers) == 1
    fetched = [each.path for each in between.requests[before:] if big(each)]
    assert len(fetched) == len(set(fetched))
