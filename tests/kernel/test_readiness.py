"""Readiness of real containers: each probe sees its event at once, and every way not to become ready is told."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from typing import Any as AnyValue

import pytest
from gate import requires
from programs import PRELUDE, SOON, patient, program

import sandbox
from sandbox import All, Any, Container, ContainerExited, Exec, Http, Log, Notify, Port, ReadinessTimeout

pytestmark = requires("userns", "overlay", "python")

#: Listens, says when, and stays.
LISTEN = PRELUDE + """
s = socket.socket(socket.{family}, socket.{kind})
s.bind(({address!r}, {port}))
if socket.{kind} == socket.SOCK_STREAM:
    s.listen()
print(time.time(), flush=True)
signal.pause()
"""

def listener(port: int, *, address: str = "127.0.0.1", kind: str = "SOCK_STREAM", delay: float = 0.0) -> list[str]:
    family = "AF_INET6" if ":" in address else "AF_INET"
    code = LISTEN if not delay else LISTEN.replace("s.listen()", f"time.sleep({delay}); s.listen()")
    return program(code, family=family, kind=kind, address=address, port=port)


def late(pod: sandbox.RunningPod, now: float) -> float:
    """How long ago the program printed its time."""
    Log(r"^\d").wait(pod, timeout=5)  # it comes by another way than the event
    return now - float(pod.logs(stream="stdout").split()[0])


@pytest.fixture
def sleeper() -> Iterator[sandbox.RunningPod]:
    with sandbox.start(command="sleep inf", log_size="64K") as pod:
        yield pod


# --- ports --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "kind"),
    [("127.0.0.1", "SOCK_STREAM"), ("0.0.0.0", "SOCK_STREAM"), ("::", "SOCK_STREAM"), ("::1", "SOCK_STREAM"),
     ("127.0.0.1", "SOCK_DGRAM")],
)  # fmt: skip
def test_a_port_is_seen_when_it_opens(address: str, kind: str) -> None:
    probe = Port(7777, protocol="tcp" if kind == "SOCK_STREAM" else "udp")
    command = listener(7777, address=address, kind=kind, delay=0.05)
    with sandbox.start(command=command, ready=probe) as pod:
        assert late(pod, time.time()) < patient(SOON)


def test_nobody_connects_to_find_out() -> None:
    code = PRELUDE + """
s = socket.create_server(("127.0.0.1", 70))
s.settimeout(0.2)
try:
    s.accept()
except TimeoutError:
    print('alone', flush=True)"""
    with sandbox.start(command=program(code), ready=Port(70)) as pod:
        pod.wait(timeout=10)
        assert pod.logs().endswith("alone\n")


def test_an_address_may_matter() -> None:
    with sandbox.start(command=listener(70, address="127.0.0.2"), ready=Port(70)) as pod:
        Port(70, "127.0.0.2").wait(pod, timeout=5)
        with pytest.raises(ReadinessTimeout, match=r"nothing listens on 127\.0\.0\.1 port 70, only 127\.0\.0\.2:70"):
            Port(70, "127.0.0.1").wait(pod, timeout=0.05)


def test_a_port_that_never_opens() -> None:
    start = time.monotonic()
    with pytest.raises(ReadinessTimeout) as caught:
        sandbox.start(command=[*listener(7777)], ready=Port(7778), ready_timeout=patient(0.5))
    assert patient(0.5) <= time.monotonic() - start < patient(3)
    assert caught.value.last_seen == "nothing listens on port 7778, only 127.0.0.1:7777"
    assert caught.value.container == "main"
    assert isinstance(caught.value, TimeoutError)
    assert len(caught.value.logs) == 1, "what it wrote is there"


def test_the_host_listens_elsewhere(sleeper: sandbox.RunningPod) -> None:
    """A port of the host is none of the pod's."""
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(ReadinessTimeout, match="nothing listens"):
        Port(server.getsockname()[1]).wait(sleeper, timeout=0.05)


def test_a_pod_in_the_hosts_network() -> None:
    with socket.socket() as reserve:
        reserve.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserve.bind(("127.0.0.1", 0))
        port = reserve.getsockname()[1]
    with sandbox.start(command=listener(port), network="host", ready=Port(port)) as pod:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        assert pod.state == "running"


def test_a_network_of_its_own_is_not_the_pods() -> None:
    pod = sandbox.Pod([Container(command=["sleep", "inf"], ready=Port(1), network="host")])
    with pytest.raises(sandbox.UnsupportedFeature, match="a network of its own"):
        sandbox.start(pod)


# --- what it writes -----------------------------------------------------------------------------------------------


def test_a_line_is_seen_when_it_is_written() -> None:
    code = PRELUDE + "print('warming up'); time.sleep(0.1); print(time.time(), 'ready', flush=True); signal.pause()"
    with sandbox.start(command=program(code), ready=Log("ready$")) as pod:
        now = time.time()
        written = float(pod.logs().splitlines()[-1].split()[0])
        assert now - written < patient(SOON)


def test_a_prompt_has_no_end_of_line() -> None:
    code = PRELUDE + "sys.stdout.write('db> '); sys.stdout.flush(); signal.pause()"
    start = time.monotonic()
    with sandbox.start(command=program(code), ready=Log("^db> $")):
        assert time.monotonic() - start < 3


def test_a_line_that_goes_on_is_no_match() -> None:
    code = PRELUDE + """
for part in ('read', 'y to give up', '\\n', 'ready\\n'):
    sys.stdout.write(part); sys.stdout.flush()
print(time.time(), flush=True); signal.pause()"""
    with sandbox.start(command=program(code), ready=Log("^ready$")) as pod:
        assert pod.logs().startswith("ready to give up\nready\n")


def test_streams_and_counts() -> None:
    code = PRELUDE + """
print('ready', flush=True)
for _ in range(2):
    time.sleep(0.05); print('ready', file=sys.stderr, flush=True)
signal.pause()"""
    with sandbox.start(command=program(code), ready=Log("ready", stream="stderr", count=2)) as pod:
        assert pod.logs(stream="stderr") == "ready\nready\n"
        with pytest.raises(ReadinessTimeout, match=r"2 of 3 matching lines, and the line 'ready'"):
            Log("ready", stream="stderr", count=3).wait(pod, timeout=0.05)


def test_silence_is_told(sleeper: sandbox.RunningPod) -> None:
    with pytest.raises(ReadinessTimeout, match="last seen: no output at all"):
        Log("ready").wait(sleeper, timeout=0.02)


def test_a_flood_of_lines_does_not_hide_the_one() -> None:
    code = PRELUDE + """
for i in range(200_000):
    print('noise', i)
print('ready', flush=True)
signal.pause()"""
    with sandbox.start(command=program(code), ready=Log("^ready$"), log_size="16K", ready_timeout=30) as pod:
        assert pod.logs(tail=1) == "ready\n"


def test_a_container_may_say_so_and_end() -> None:
    """The last thing it wrote was what we waited for."""
    with sandbox.start(command=["echo", "done"], ready=Log("^done$")) as pod:
        assert pod.wait(timeout=5) == 0


# --- requests -----------------------------------------------------------------------------------------------------

SERVER = PRELUDE + """
import http.server
calls = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global calls
        calls += 1
        status = 503 if calls < {busy} else 200
        body = b'still busy' if status == 503 else b'all ' + self.headers['Host'].encode()
        if calls == {hang}:
            time.sleep(30)
        self.send_response(status)
        if {length}:
            self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if status == 200:
            print(time.time(), flush=True)
        self.wfile.write(body)
    def log_message(self, *arguments): pass
time.sleep({delay})
http.server.ThreadingHTTPServer(({address!r}, 80), Handler).serve_forever()
"""


def server(*, busy: int = 0, hang: int = 0, length: bool = True, delay: float = 0.0, address: str = "") -> list[str]:
    return program(SERVER, busy=busy, hang=hang, length=length, delay=delay, address=address)


def test_a_request_is_answered() -> None:
    probe = Http(80, "/health?x=1", status=200, host="shop.test", body="^all shop.test$")
    with sandbox.start(command=server(delay=0.05), ready=probe) as pod:
        assert late(pod, time.time()) < patient(SOON)


def test_an_answer_that_ends_with_the_connection() -> None:
    with sandbox.start(command=server(length=False), ready=Http(80, body="all")):
        pass


def test_a_server_that_is_busy_at_first() -> None:
    with sandbox.start(command=server(busy=5), ready=Http(80)) as pod:
        assert late(pod, time.time()) < patient(SOON)


def test_a_request_that_hangs_is_made_anew() -> None:
    start = time.monotonic()
    with sandbox.start(command=server(hang=1), ready=Http(80, timeout=0.3)):
        assert time.monotonic() - start < 5


def test_the_wrong_answer_is_told() -> None:
    with sandbox.start(command=server(busy=10**6), ready=Port(80)) as pod:
        with pytest.raises(ReadinessTimeout, match=r"last seen: GET / was answered with status 503"):
            Http(80).wait(pod, timeout=0.1)
        Http(80, status={503}).wait(pod, timeout=5)
        with pytest.raises(ReadinessTimeout, match="a body without 'fine': b'still busy'"):
            Http(80, status=503, body="fine").wait(pod, timeout=0.1)


def test_something_else_than_http_answers() -> None:
    code = PRELUDE + """
s = socket.create_server(("127.0.0.1", 80))
while True:
    c, _ = s.accept(); c.recv(100); c.send(b'+PONG\\r\\n'); c.close()
"""
    with sandbox.start(command=program(code), ready=Port(80)) as pod, pytest.raises(ReadinessTimeout) as caught:
        Http(80).wait(pod, timeout=0.1)
    assert "GET / was answered with something that is not HTTP: b'+PONG" in str(caught.value)


def test_before_the_port_opens_there_is_nothing_to_ask(sleeper: sandbox.RunningPod) -> None:
    with pytest.raises(ReadinessTimeout, match=r"last seen: nothing listens on port 80$"):
        Http(80).wait(sleeper, timeout=0.05)


def test_a_server_on_ipv6_only() -> None:
    code = PRELUDE + """
import http.server
class Server(http.server.HTTPServer):
    address_family = socket.AF_INET6
Server(("::1", 80), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
    with sandbox.start(command=program(code), ready=Http(80)):
        pass


# --- together -----------------------------------------------------------------------------------------------------


def test_all_and_any() -> None:
    code = PRELUDE + """
s = socket.create_server(("127.0.0.1", 70))
time.sleep(0.1)
print("ready", flush=True)
signal.pause()"""
    with sandbox.start(command=program(code), ready=All(Port(70), Log("^ready$"), Exec("true"))) as pod:
        assert pod.logs() == "ready\n"
        Any(Port(71), Log("nothing"), Http(72), lambda container: container.state == "running").wait(pod, timeout=5)
        with pytest.raises(ReadinessTimeout) as caught:
            Any(Port(71), Log("nothing")).wait(pod, timeout=0.05)
        assert "Port(71): nothing listens on port 71, only 127.0.0.1:70; Log('nothing'): the line" in str(caught.value)


def test_a_callable_may_use_the_container() -> None:
    command = ["sh", "-c", "sleep 0.1; echo 1 > /tmp/state; sleep 1000"]
    with sandbox.start(command=command, ready=lambda c: c.read_text("/tmp/state") == "1\n") as pod:
        assert pod.exists("/tmp/state")


def test_waiting_by_hand_asks_which_container() -> None:
    two = [Container("a", command="sleep inf"), Container("b", command="sleep inf")]
    with sandbox.start(two) as pod:
        with pytest.raises(sandbox.PodStateError, match=r"pod\['a'\]"):
            Log("x").wait(pod, timeout=1)
        Exec("true").wait(pod["b"], timeout=5)


# --- the end of the container -------------------------------------------------------------------------------------


NEVER: list[AnyValue] = [Port(1), Log("never"), Http(1), Exec("false"), Notify(), All(Port(1), Log("x"))]


@pytest.mark.parametrize("probe", [*NEVER, lambda _: False], ids=lambda probe: type(probe).__name__)
@pytest.mark.parametrize(("end", "words"), [("exit 7", "exit status 7"), ("kill -9 $$", "killed by SIGKILL")])
def test_death_ends_every_wait_at_once(probe: AnyValue, end: str, words: str) -> None:
    command = ["sh", "-c", f"echo started; sleep 0.1; echo 'out of luck' >&2; {end}"]
    start = time.monotonic()
    with pytest.raises(ContainerExited) as caught:
        sandbox.start(Container("db", init=True, command=command, ready=probe))
    assert time.monotonic() - start < 5
    error = caught.value
    assert re.search(words, str(error)) or "137" in str(error), "an init passes a signal on as 128 + its number"
    assert error.container == "db"
    assert error.logs == ("started", "out of luck")
    assert "wait for" in str(error)


def test_what_has_died_is_not_ready_although_another_listens() -> None:
    listens = PRELUDE + "s = socket.create_server(('127.0.0.1', 70)); signal.pause()"
    first = Container("a", command=program(listens), ready=Port(70))
    with sandbox.start(sandbox.Pod([first, Container("b", command=["sleep", "inf"], ready=Port(70))])) as pod:
        pod["b"].kill()
        pod["b"].wait(10)
        with pytest.raises(ContainerExited, match="container `b`"):
            Port(70).wait(pod["b"], 10)


@requires("memory.limit")
def test_death_by_a_memory_limit_is_told() -> None:
    code = PRELUDE + "print('eating', flush=True)\nx = bytearray()\nwhile True: x += b'x' * 1_000_000"
    with pytest.raises(ContainerExited, match="out of memory at its limit") as caught:
        sandbox.start(command=program(code), memory="32M", ready=Port(1))
    assert caught.value.oom_killed
    assert caught.value.logs == ("eating",)


def test_a_restart_is_not_the_end() -> None:
    command = ["sh", "-c", "echo again; sleep 0.05; exit 1"]
    with sandbox.start(command=command, restart="always", ready=Log("again", count=2)) as pod:
        assert pod.logs().count("again") >= 2
    with pytest.raises(ContainerExited, match="exit status 1"):
        sandbox.start(command=command, restart="on-failure:1", ready=Log("again", count=5))


def test_readiness_orders_the_containers_of_a_pod() -> None:
    early = PRELUDE + "time.sleep(0.1); s = socket.create_server(('127.0.0.1', 70)); signal.pause()"
    after = PRELUDE + "socket.create_connection(('127.0.0.1', 70)); print('connected', flush=True); signal.pause()"
    both = [
        Container("web", command=program(after), after=["db"], ready=Log("connected")),
        Container("db", command=program(early), ready=Port(70)),
    ]
    with sandbox.start(both) as pod:
        assert pod["web"].logs() == "connected\n"


def test_one_that_dies_ends_the_waits_of_the_others() -> None:
    start = time.monotonic()
    both = [
        Container("web", command="sleep inf", ready=Port(80)),
        Container("db", command=["sh", "-c", "echo no disk; exit 5"], ready=Port(70)),
    ]
    with pytest.raises(ContainerExited, match=r"container `db`.*exit status 5"):
        sandbox.start(both)
    assert time.monotonic() - start < 5


def test_waits_leave_no_descriptors_behind(sleeper: sandbox.RunningPod) -> None:
    Exec("true").wait(sleeper, timeout=5)
    before = set(os.listdir("/proc/self/fd"))
    for probe in (*NEVER[:4], Exec("sleep 9"), All(Port(1), Log("x")), Any(Exec("false"))):
        with pytest.raises(ReadinessTimeout):
            probe.wait(sleeper, timeout=0.02)
    with pytest.raises(sandbox.CommandNotFound):
        All(Port(1), Exec("no-such-program")).wait(sleeper, timeout=5)
    # Threads that prepare for the next pod have some open for a moment.
    deadline = time.monotonic() + patient(5)
    while (left := set(os.listdir("/proc/self/fd")) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left
