"""The public face of pods, where it has to say no, and what it says then."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from gate import requires
from programs import PRELUDE, program

import sandbox
from sandbox import (
    Container,
    ModelError,
    Pod,
    PodStateError,
    Port,
    Resources,
    RunningPod,
    SetupError,
    TimeoutExpired,
)

pytestmark = requires("userns", "overlay")


@pytest.fixture(scope="module")
def pod() -> Iterator[RunningPod]:
    model = Pod(
        [Container("main", command="sleep inf"), Container("other", command="sleep inf", extra_hosts={"far": "127.0.0.9"})],
        name="face",
    )  # fmt: skip
    with sandbox.start(model) as running:
        yield running


class TestRunWithATerminal:
    def test_gives_what_the_terminal_showed(self) -> None:
        assert sandbox.run(["sh", "-c", "tty; echo err >&2"], tty=True).stdout == "/dev/pts/0\r\nerr\r\n"
        result = sandbox.run(["sh", "-c", "echo hi; exit 3"], tty=True, text=False)
        assert (result.stdout, result.stderr, result.returncode) == (b"hi\r\n", b"", 3)

    def test_all_of_it(self) -> None:
        assert sandbox.run(["seq", "50000"], tty=True).stdout.endswith("49999\r\n50000\r\n")

    def test_a_timeout_has_what_came_and_leaves_nothing(self) -> None:
        with pytest.raises(TimeoutExpired) as caught:
            sandbox.run(["sh", "-c", "echo begun; exec sleep 60"], tty=True, timeout=1)
        assert caught.value.output == "begun\r\n"

    def test_has_no_end_of_input(self) -> None:
        with pytest.raises(PodStateError, match="no end of input"):
            sandbox.run("cat", tty=True, input="x")


class TestPublish:
    @pytest.mark.parametrize("port", [0, -1, 65536, "9", True, 1.5])
    def test_what_is_no_port(self, pod: RunningPod, port: Any) -> None:
        for call in (pod.publish, pod.url, pod.connect):
            with pytest.raises(ModelError, match=re.escape(f"port = {port!r}: must be a number from 1 to 65535")):
                call(port)

    def test_what_is_no_port_of_the_host(self, pod: RunningPod) -> None:
        with pytest.raises(ModelError, match="host_port = 70000: must be a number from 0 to 65535"):
            pod.publish(80, host_port=70000)

    @pytest.mark.parametrize("host", ["no-such-host.invalid", "80:80", ""])
    def test_what_is_no_address(self, pod: RunningPod, host: str) -> None:
        with pytest.raises(SetupError, match="give an address of this host") as caught:
            pod.publish(80, host=host)
        assert "Unknown error" not in str(caught.value)
        assert caught.value.operation == "listen on"

    def test_a_name_of_this_host(self, pod: RunningPod) -> None:
        assert pod.publish(81, host="localhost")[0] == "127.0.0.1"

    def test_not_once_the_pod_is_closed(self) -> None:
        with sandbox.start(command="sleep inf") as one:
            one.publish(80)
        for call in (lambda: one.publish(80), lambda: one.url(80), lambda: one.publish(81)):
            with pytest.raises(PodStateError, match="no such pod"):
                call()


SERVER = PRELUDE + """
servers = [socket.create_server((host, 53)) for host in ("127.0.0.9", "127.0.0.1")]
signal.pause()
"""


@requires("python")
def test_connect_by_the_names_that_containers_have_there() -> None:
    model = Pod([Container("dns", command=program(SERVER), ready=Port(53), hostname="box", extra_hosts={"far": "127.0.0.9"})])
    with sandbox.start(model) as pod:
        for name in ("dns", "box", "localhost", "127.0.0.1", "far"):
            with pod.connect(53, host=name) as sock:
                assert sock.getpeername()[0] == ("127.0.0.9" if name == "far" else "127.0.0.1")
        with pytest.raises(socket.gaierror):
            pod.connect(53, host="no-such-host.invalid")


def test_membership_is_by_name_and_by_container(pod: RunningPod) -> None:
    assert "main" in pod
    assert pod["other"] in pod
    assert "nobody" not in pod
    assert 5 not in pod


def test_the_id_cannot_be_set(pod: RunningPod) -> None:
    assert re.fullmatch(r"face-[0-9a-f]{8}", pod.id)
    with pytest.raises(AttributeError):
        pod.id = "other"  # type: ignore[misc]


def test_closed_is_told() -> None:
    with sandbox.start(command="sleep inf") as one:
        assert not one.closed
    assert one.closed


@pytest.mark.parametrize("given", [{"stream": "out"}, {"tail": -1}, {"tail": "3"}])
def test_logs_of_what_there_is_not(pod: RunningPod, given: dict[str, Any]) -> None:
    ((field, value),) = given.items()
    with pytest.raises(ModelError, match=re.escape(f"logs.{field} = {value!r}")):
        pod["main"].logs(**given)


def test_a_limit_that_is_not_kept_is_told_where_it_was_asked_for() -> None:
    """By the line of the caller: Python shows a warning once for each line, and then never again."""
    options = sandbox.Options(cgroups="none")
    limit: dict[str, Any] = {"memory": "64M", "best_effort": True}
    with pytest.warns(UserWarning, match="container `db`: memory=.* is not enforced") as told:
        sandbox.start(Container("db", command="true"), options=options, **limit).close()
    with pytest.warns(UserWarning, match="container `main`: memory=.* is not enforced") as more:
        sandbox.run("true", options=options, **limit)
    shop = Pod([Container("a", command="true"), Container("b", command="true")], name="shop", resources=Resources(**limit))
    with pytest.warns(UserWarning, match="pod `shop`: memory=.* is not enforced") as whole:
        sandbox.start(shop, options=options).close()
    assert {record.filename for record in [*told, *more, *whole]} == {__file__}
