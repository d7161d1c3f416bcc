"""A real service: wait until it is ready, then talk to it.

`ready=` says how to tell that a service is up. `Port` looks into the kernel's socket tables, `Http` makes a request, `Log`
reads along; a service that dies while we wait fails the test at once, with its last words. To talk to it there is no need
for a port of the host: `sandbox.connect` gives a socket inside the pod's network. For clients that want an address,
`sandbox.url` publishes one.
"""

from __future__ import annotations

import http.client
import os
import time
import urllib.request

import pytest

import sandbox as sb

PYTHON = "/usr/bin/python3"
SERVER = [PYTHON, "-m", "http.server", "8000", "--directory", "/srv"]

pytestmark = pytest.mark.skipif(
    not os.access(PYTHON, os.X_OK), reason=f"the service is Python's http.server, and there is no {PYTHON}"
)


@pytest.mark.sandbox(command=SERVER, ready=sb.Http(8000))
def test_a_web_server(sandbox, tell):
    sandbox.write_text("/srv/hello.txt", "Hello from a pod\n")

    with sandbox.connect(8000) as sock:
        connection = http.client.HTTPConnection("pod")
        connection.sock = sock
        connection.request("GET", "/hello.txt")
        assert connection.getresponse().read() == b"Hello from a pod\n"

    url = sandbox.url(8000, "/hello.txt")
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"Hello from a pod\n"

    request = next(line for line in sandbox.logs().splitlines() if "hello.txt" in line)
    tell(f"published as {url}; the server's log: {request}")


def test_the_same_port_twice(sandbox_factory, tell):
    """Each pod has its own network, so there is nothing to clash."""
    pods = [sandbox_factory(command=SERVER, ready=sb.Port(8000)) for _ in range(3)]
    for number, pod in enumerate(pods):
        pod.write_text("/srv/number", str(number))
    answers = []
    for pod in pods:
        with urllib.request.urlopen(pod.url(8000, "/number")) as answer:
            answers.append(answer.read().decode())
    assert answers == ["0", "1", "2"]
    tell("three servers listened on port 8000, each in a pod of its own")


def test_a_service_that_dies(sandbox_factory, tell):
    """Waiting ends when the service does, not when the time is up."""
    start = time.monotonic()
    with pytest.raises(sb.ContainerExited) as caught:
        sandbox_factory(command=[PYTHON, "-m", "http.server", "no-port"], ready=sb.Port(8000), ready_timeout=60)
    assert "invalid int value: 'no-port'" in str(caught.value)
    tell(f"known after {time.monotonic() - start:.1f} s: {str(caught.value).splitlines()[0]}")


def test_a_service_that_listens_elsewhere(sandbox_factory, tell):
    """A time-out says what was seen last."""
    with pytest.raises(sb.ReadinessTimeout) as caught:
        sandbox_factory(command=SERVER, ready=sb.Port(80), ready_timeout=1)
    assert caught.value.last_seen == "nothing listens on port 80, only 0.0.0.0:8000"
    tell(f"{caught.value.last_seen}")
