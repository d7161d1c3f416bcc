"""Calls for files that are interrupted, made from several threads or in a forked child, and agents that die."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from gate import requires
from programs import descendants

import sandbox
from sandbox import PodStateError, SandboxError
from sandbox.pods import RunningPod
from sandbox.shim import protocol

pytestmark = requires("userns", "overlay")


class Stopped(TimeoutError):
    """What the handler of a signal raises: an OSError that is not the kernel's, and must not be taken for one."""


@pytest.fixture(scope="module")
def pod() -> Iterator[RunningPod]:
    with sandbox.start(command="sleep inf") as running:
        for name in "abc":
            running.write_text(f"/srv/tree/{name}", name)
        yield running


@contextlib.contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, function: str, after: int) -> Iterator[None]:
    """A real signal, whose handler raises, arrives around a call of the protocol: before the ``after``-th, or after it."""
    calls = 0
    original = getattr(protocol, function)

    def handler(_number: int, _frame: FrameType | None) -> None:
        raise Stopped

    def slow(sock: socket.socket, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after:
            os.kill(os.getpid(), signal.SIGUSR1)
        result = original(sock, *arguments)
        if calls == -after:
            os.kill(os.getpid(), signal.SIGUSR1)
        return result

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(protocol, function, slow)
            with pytest.raises(Stopped):
                yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def all_is_well(pod: RunningPod) -> None:
    pod.write_text("/tmp/right", "right")
    assert pod.read_text("/tmp/right") == "right"
    assert (pod.exists("/nope"), pod.exists("/etc/passwd"), pod.listdir("/srv/tree")) == (False, True, ["a", "b", "c"])


@pytest.mark.parametrize("function", ["send", "receive"])
@pytest.mark.parametrize("use", ["exists", "read", "write"])
def test_an_interrupted_call_leaves_no_answer_to_the_next(
    pod: RunningPod, monkeypatch: pytest.MonkeyPatch, function: str, use: str
) -> None:
    all_is_well(pod)
    uses: dict[str, Callable[[], object]] = {
        "exists": lambda: pod.exists("/etc/passwd"),
        "read": lambda: pod.read_text("/etc/passwd"),
        "write": lambda: pod.write_text("/tmp/wrong", "wrong"),
    }
    with interrupted(monkeypatch, function, 1):
        uses[use]()
    all_is_well(pod)


def test_a_copy_that_is_interrupted_half_way(pod: RunningPod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with interrupted(monkeypatch, "receive", 3):
        pod.copy_out("/srv/tree", tmp_path / "out")
    all_is_well(pod)
    with interrupted(monkeypatch, "receive", 2):
        pod.copy_in(Path(__file__).parent, "/srv/in")
    all_is_well(pod)


def test_an_interrupted_agent_is_not_left_behind(pod: RunningPod, monkeypatch: pytest.MonkeyPatch) -> None:
    all_is_well(pod)
    before = len(list(descendants(os.getpid())))
    for _ in range(5):
        with interrupted(monkeypatch, "receive", 1):
            pod.exists("/etc/passwd")
        all_is_well(pod)
    assert len(list(descendants(os.getpid()))) < before + 5


def test_threads_get_their_own_answers(pod: RunningPod) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for turn in range(30):
                pod.write_text(f"/tmp/thread{number}", f"{number} {turn}")
                if (text := pod.read_text(f"/tmp/thread{number}")) != f"{number} {turn}":
                    wrong.append((number, turn, text))
                if pod.exists(f"/nope/{number}"):
                    wrong.append(number)
        except BaseException as error:  # noqa: BLE001 - it must fail the test, not the thread
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


# --- agents ---------------------------------------------------------------------------------------------------------


def agent_of(pod: RunningPod) -> int:
    """The process at the other end: the newest of the shim's, for it was started last."""
    before = set(descendants(os.getpid()))
    pod._one().files.close()
    pod.exists("/")
    new = [pid for pid in descendants(os.getpid()) if pid not in before]
    assert new
    return max(new)


def test_an_agent_that_died_is_replaced(pod: RunningPod) -> None:
    agent = agent_of(pod)
    pidfd = os.pidfd_open(agent)
    os.kill(agent, signal.SIGKILL)
    import select

    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    all_is_well(pod)


def test_a_pod_that_is_closed_says_so(tmp_path: Path) -> None:
    with sandbox.start(command="sleep inf") as running:
        assert running.exists("/etc/passwd")
    with pytest.raises(PodStateError):
        running.exists("/etc/passwd")


# --- fork(2) --------------------------------------------------------------------------------------------------------


def in_a_child(work: Callable[[], object]) -> str:
    """What ``work`` returned or raised, in a forked child."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)  # a child that hangs must not stay
        try:
            try:
                said = f"returned {work()!r}"
            except BaseException as error:  # noqa: BLE001 - the child must not go on as pytest
                said = f"{type(error).__name__}: {error}" if isinstance(error, SandboxError) else traceback.format_exc()
            os.write(write, said.encode()[:4000])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return said


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    "use",
    [
        lambda pod: pod.read_text("/etc/passwd"), lambda pod: pod.exists("/nope"), lambda pod: pod.exec("true"),
        lambda pod: pod.logs(), lambda pod: pod.connect(80), lambda pod: pod.state, lambda pod: pod.kill(),
        lambda pod: pod.wait(1), lambda pod: pod.copy_out("/etc/passwd", "/tmp/x"),
    ],
)  # fmt: skip
def test_a_forked_child_is_refused(pod: RunningPod, use: Callable[[RunningPod], object]) -> None:
    all_is_well(pod)
    said = in_a_child(lambda: use(pod))
    assert said.startswith("PodStateError: use the pod"), said
    assert f"it was made by another process ({os.getpid()})" in said
    assert "start one in this process" in said
    all_is_well(pod)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_a_parent_started_is_not_the_childs(pod: RunningPod) -> None:
    with pod.popen(["sleep", "inf"]) as process:
        for use in (process.poll, process.kill, process.communicate):
            assert "it was made by another process" in in_a_child(use)
        assert process.poll() is None
        process.kill()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_leaving_the_pod_in_a_child_is_not_its_end() -> None:
    with sandbox.start(command="sleep inf") as running:
        running.exists("/")
        assert in_a_child(running.close) == "returned None"
        assert running.state == "running"
        assert running.exists("/etc/passwd")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_of_a_thread_that_holds_the_connection_does_not_hang(pod: RunningPod) -> None:
    files = pod._one().files
    with files._lock:
        assert "it was made by another process" in in_a_child(lambda: pod.exists("/"))
    all_is_well(pod)
