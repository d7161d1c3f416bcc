"""Probes as values, and the waiting loop over probes that need no container."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import select
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any as AnyValue, Self, cast

import attrs
import pytest

import sandbox
from sandbox import All, Any, Exec, Healthcheck, Http, Log, ModelError, Notify, Port, ReadinessTimeout
from sandbox.linux.netlink import Endpoint
from sandbox.probes import _base, _messages, _network, wait_ready, wants_notify


@pytest.mark.parametrize(
    ("probe", "text"),
    [
        (Port(5432), "Port(5432)"),
        (Port(53, "localhost", protocol="udp"), "Port(53, host='127.0.0.1', protocol='udp')"),
        (Log("ready", count=2), "Log('ready', count=2)"),
        (Log(re.compile("x", re.IGNORECASE), stream="stderr"), "Log('x', stream='stderr')"),
        (Http(80), "Http(80)"),
        (Http(80, "/x?y=1", status=204, body="ok"), "Http(80, path='/x?y=1', status={204}, body='ok')"),
        (Exec("sh -c 'exit 3'", returncode=3), """Exec("sh -c 'exit 3'", returncode=3)"""),
        (Notify(), "Notify()"),
        (Healthcheck(), "Healthcheck()"),
        (All(Port(1), Any(Log("a"), Notify())), "All(Port(1), Any(Log('a'), Notify()))"),
        (All(len), "All(len())"),
    ],
)
def test_probes_are_values(probe: AnyValue, text: str) -> None:
    assert repr(probe) == text
    assert pickle.loads(pickle.dumps(probe)) == probe
    assert hash(probe) == hash(pickle.loads(pickle.dumps(probe)))
    assert attrs.evolve(sandbox.Container(), ready=probe).ready == probe
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        probe.port = 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Port(0), "Port.port = 0"),
        (lambda: Port(65536), "Port.port = 65536"),
        (lambda: Port(80, protocol="sctp"), "Port.protocol = 'sctp'"),
        (lambda: Port(80, host="example.org"), "Port.host = 'example.org'"),
        (lambda: Log("("), "Log.pattern = '('"),
        (lambda: Log("x", stream="stdin"), "Log.stream = 'stdin'"),
        (lambda: Log("x", count=0), "Log.count = 0"),
        (lambda: Http(80, "health"), "Http.path = 'health'"),
        (lambda: Http(80, "/a b"), "Http.path = '/a b'"),
        (lambda: Http(80, "/\r\nX: y"), "Http.path = "),
        (lambda: Http(80, host="a\r\nX: y"), "Http.host = "),
        (lambda: Http(80, status=99), "Http.status = 99"),
        (lambda: Http(80, body="["), "Http.body = '['"),
        (lambda: Http(80, timeout=-1), "Http.timeout = -1"),
        (lambda: Exec([]), "Exec.command = []"),
        (lambda: Exec("true", returncode=256), "Exec.returncode = 256"),
        (All, "All.probes = ()"),
        (lambda: Any(Port(1), "Port(2)"), "Any.probes = "),
    ],
)
def test_bad_values_name_class_field_and_value(make: AnyValue, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        make()
    assert words in str(caught.value)


def test_who_needs_a_notify_socket() -> None:
    assert wants_notify(Notify())
    assert wants_notify(All(Port(1), Any(Log("x"), Notify())))
    assert not wants_notify(All(Port(1), len))
    assert not wants_notify(None)


@pytest.mark.parametrize(
    ("address", "host", "reaches"),
    [
        ("0.0.0.0", None, True),
        ("127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("::", "127.0.0.1", True),
        ("::", "::1", True),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("::1", "127.0.0.1", False),
        ("0.0.0.0", "::1", False),
        ("127.0.0.2", "127.0.0.1", False),
    ],
)
def test_which_listener_an_address_reaches(address: str, host: str | None, reaches: bool) -> None:
    assert _network._reaches(address, host) is reaches


def test_what_listens_instead_is_told() -> None:
    bound = {Endpoint("::1", 9), Endpoint("127.0.0.1", 8)}
    assert _network._nothing(Port(80), bound) == "nothing listens on port 80, only 127.0.0.1:8, [::1]:9"
    assert _network._nothing(Port(80, "::1", "udp"), set()) == "nothing is bound to ::1 port 80"


# --- waiting ------------------------------------------------------------------------------------------------------


class Death:
    """What a container's ``watch_exit`` gives: readable once the container has ended."""

    def __init__(self, document: Mapping[str, AnyValue]) -> None:
        self._ours, self.theirs = socket.socketpair()
        self._document = document

    def fileno(self) -> int:
        return self._ours.fileno()

    def answer(self) -> tuple[Mapping[str, AnyValue], list[int]]:
        return self._document, []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self.theirs.close()


class Dummy:
    """As much of a running container as the loop needs."""

    name = "main"
    exit = None

    def __init__(self) -> None:
        self.document: dict[str, AnyValue] = {"returncode": -9, "oom_killed": True}
        self.death = Death(self.document)

    def watch_exit(self) -> Death:
        return self.death

    def logs(self, tail: int) -> str:
        return "one\ntwo\n"

    def exited(self, document: Mapping[str, AnyValue], doing: str) -> Exception:
        return sandbox.ContainerExited(operation=doing, returncode=document["returncode"], oom_killed=True)


class OnPipe(_base.Looking):
    """Ready when a byte came through a pipe; otherwise it would be looked at never again."""

    def __init__(self) -> None:
        super().__init__(60, 60)
        self.reader, self.writer = os.pipe()
        self.closed = False
        self.told = "warming up"

    def fds(self) -> Mapping[int, int]:
        return {self.reader: select.POLLIN}

    def delay(self) -> float | None:
        return None

    def step(self) -> bool:
        self.last_seen = "an empty pipe"
        return bool(select.select([self.reader], [], [], 0)[0])

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)
        self.closed = True


@attrs.frozen
class Pipe(_base.Probe):
    watcher: OnPipe = attrs.field(factory=OnPipe, eq=False)

    def watch(self, container: object) -> OnPipe:
        return self.watcher


def wait(probe: object, timeout: float = 5.0) -> Dummy:
    container = Dummy()
    wait_ready(cast("sandbox.RunningContainer", container), probe, timeout)
    return container


def test_a_callable_is_asked_until_it_says_yes() -> None:
    asked: list[float] = []

    def third_time(container: object) -> bool:
        asked.append(time.monotonic())
        return len(asked) == 3

    wait(third_time)
    assert len(asked) == 3
    assert asked[2] - asked[0] < 0.05


def test_a_callable_that_fails_is_what_was_seen_last() -> None:
    def broken(container: object) -> bool:
        raise ValueError("not that far yet")

    with pytest.raises(ReadinessTimeout) as caught:
        wait(broken, 0.01)
    assert caught.value.last_seen == "ValueError: not that far yet"
    assert caught.value.timeout == 0.01
    assert caught.value.logs == ("one", "two")
    assert "wait for `broken()`" in str(caught.value)


@pytest.mark.parametrize("bug", [ZeroDivisionError("by zero"), NameError("nmae"), TypeError("one argument too many")])
def test_a_bug_in_a_callable_ends_the_wait_at_once(bug: Exception) -> None:
    def broken(container: object) -> bool:
        raise bug

    start = time.monotonic()
    with pytest.raises(sandbox.SandboxError, match=r"wait for `broken\(\)`: it has a bug") as caught:
        wait(broken)
    assert time.monotonic() - start < 2
    assert not isinstance(caught.value, ReadinessTimeout)
    assert f"cause: {type(bug).__name__}: {bug}" in str(caught.value)
    assert caught.value.__cause__ is bug


def test_a_class_is_no_probe() -> None:
    with pytest.raises(ModelError, match=r"Container.ready.*Log is a class; expected one of its instances, Log\(…\)"):
        sandbox.Container("db", command=["true"], ready=Log)
    with pytest.raises(ModelError, match="Port is a class"):
        All(Port, Log("x"))


def test_a_test_that_gives_up_in_a_callable_gives_up() -> None:
    """pytest.skip and friends are no ordinary exceptions."""

    def gives_up(container: object) -> bool:
        pytest.skip("no use")

    with pytest.raises(pytest.skip.Exception):
        wait(gives_up)


def test_somebody_elses_probe_is_waited_for() -> None:
    class Theirs:
        rounds = 0

        def wait(self, container: object, timeout: float) -> None:
            self.rounds += 1
            if self.rounds < 3:
                raise TimeoutError

    theirs = Theirs()
    wait(theirs)
    assert theirs.rounds == 3
    wait(All(Theirs(), len_is_enough))


def len_is_enough(container: object) -> bool:
    return True


def test_a_timeout_is_kept_while_only_descriptors_matter() -> None:
    probe = Pipe()
    start = time.monotonic()
    with pytest.raises(ReadinessTimeout, match=r"not ready after 0.05 s; last seen: an empty pipe") as caught:
        wait(probe, 0.05)
    assert 0.05 <= time.monotonic() - start < 0.5
    assert caught.value.cause == "it said: warming up"
    assert probe.watcher.closed


def test_a_descriptor_ends_the_wait() -> None:
    probe = Pipe()
    os.write(probe.watcher.writer, b"x")
    wait(probe)


def test_the_end_of_the_container_ends_the_wait() -> None:
    container = Dummy()
    container.death.theirs.send(b"x")
    start = time.monotonic()
    with pytest.raises(sandbox.ContainerExited, match=r"wait for Pipe.*out of memory") as caught:
        _base.wait_for(Pipe(), cast("sandbox.RunningContainer", container), 30)
    assert time.monotonic() - start < 1
    assert caught.value.cause == "it said: warming up"
    assert container.exit == container.document


def test_what_came_before_the_end_counts() -> None:
    container, probe = Dummy(), Pipe()

    class Both(OnPipe):
        def delay(self) -> float | None:  # between the first step and the poll
            container.death.theirs.send(b"x")
            return None

        def last_step(self) -> bool:
            return True

    watcher = Both()
    probe.watcher.close()
    _base.wait_for(Pipe(watcher), cast("sandbox.RunningContainer", container), 30)
    assert watcher.closed


def test_a_restart_that_failed_is_that_error() -> None:
    container = Dummy()
    container.document.update(returncode=None, error={"type": "SetupError", "operation": "mount", "errno": 1})
    container.death.theirs.send(b"x")
    with pytest.raises(sandbox.SetupError, match="mount"):
        _base.wait_for(Pipe(), cast("sandbox.RunningContainer", container), 30)


def test_all_waits_for_each_and_any_for_one() -> None:
    first, second = Pipe(), Pipe()
    os.write(first.watcher.writer, b"x")
    with pytest.raises(ReadinessTimeout) as caught:
        wait(All(first, second), 0.02)
    assert caught.value.last_seen is not None
    assert caught.value.last_seen.count("an empty pipe") == 1, "the one that was ready is done with"
    assert first.watcher.closed
    assert second.watcher.closed

    first, second = Pipe(), Pipe()
    os.write(second.watcher.writer, b"x")
    wait(Any(first, second))
    assert first.watcher.closed
    assert second.watcher.closed


def test_in_a_group_each_may_have_its_moment() -> None:
    """One was ready and is not any more; it has been, and that counts for All."""
    moments = iter([True, False, False, False])
    later = iter([False, False, True])
    wait(All(lambda _: next(moments), lambda _: next(later)))


def test_a_group_whose_second_probe_cannot_begin_closes_the_first() -> None:
    first = Pipe()
    container = Dummy()
    cast("AnyValue", container).notify_socket = None
    with contextlib.closing(container.death.theirs), pytest.raises(sandbox.PodStateError, match="NOTIFY_SOCKET"):
        wait_ready(cast("sandbox.RunningContainer", container), All(first, Notify()), 1)
    assert first.watcher.closed


# --- sd_notify(3) -------------------------------------------------------------------------------------------------


@pytest.fixture
def notify() -> Iterator[tuple[_messages._NotifyWatch, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        yield _messages._NotifyWatch(ours), theirs


def test_notify_reads_several_lines_and_datagrams(notify: tuple[_messages._NotifyWatch, socket.socket]) -> None:
    watch, program = notify
    assert not watch.step()
    assert watch.last_seen == "no message on the NOTIFY_SOCKET"
    program.send(b"MAINPID=7")
    assert not watch.step()
    assert watch.last_seen == "MAINPID on the NOTIFY_SOCKET, but not READY=1"
    program.send(b"STATUS=Loading \xff\nREADY=0\n")
    program.send(b"ERRNO=2\n")
    assert not watch.step()
    assert watch.told == f"STATUS=Loading \ufffd ERRNO=2 ({os.strerror(2)})"
    program.send(b"STATUS=Up\nREADY=1")
    program.send(b"STATUS=later")
    assert watch.step()
    assert watch.told == "STATUS=Up"


def test_notify_lets_a_barrier_pass(notify: tuple[_messages._NotifyWatch, socket.socket]) -> None:
    """sd_notify_barrier(3) waits until the descriptor that it sent along was closed by the receiver."""
    watch, program = notify
    reader, writer = os.pipe()
    socket.send_fds(program, [b"BARRIER=1"], [writer])
    os.close(writer)
    assert not select.select([reader], [], [], 0)[0]
    assert not watch.step()
    assert select.select([reader], [], [], 1)[0]
    os.close(reader)
