"""Service sandboxes: a program under systemd, with the hardening of its unit as the thing that is tested.

No image and no container: the program sees this machine, as far as unit properties let it. `profile="strict"` takes away
network, homes, users and most system calls; keywords are systemd's own properties. The fixture `service_sandbox` runs it for
one test. Without a systemd that runs, a private one is started; where none is installed these tests are skipped.
"""

from __future__ import annotations

import socket

import pytest

import sandbox as sb
from sandbox.services import NoManager, exposure, find

#: Answers one connection on the socket that its manager gave it, and cannot open one itself.
PROGRAM = """
import os, socket
peer, _ = socket.socket(fileno=3).accept()
try: socket.socket(); can = "can"
except OSError: can = "cannot"
peer.sendall(f"user {os.getuid()} {can} open sockets".encode())
"""
DAEMON = ["/usr/bin/python3", "-c", PROGRAM]


@pytest.fixture(autouse=True)
def manager():
    """Skip where there is no systemd to run services."""
    try:
        sb.service(["true"], profile=None)
    except NoManager as error:
        pytest.skip(str(error))


@pytest.mark.service_sandbox(["sh", "-c", "echo hello; exec sleep inf"], profile="strict")
def test_a_service_for_a_test(service_sandbox, tell):
    assert service_sandbox.state == "running"
    tell(f"{service_sandbox.unit} runs as process {service_sandbox.pid}")


def test_what_strict_takes_away(tell):
    result = sb.service(["sh", "-c", "ls /home; touch /etc/x; echo kept > /tmp/x; cat /tmp/x"], profile="strict")
    assert result.stdout == "kept\n", "its own /tmp, and nothing of /home"
    tell(f"strict: {' / '.join(result.stderr.splitlines())}")


def test_a_socket_that_is_passed_in(tell):
    """Socket activation: it listens without being able to open a socket."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with sb.start_service(DAEMON, profile="strict", sockets=[listening]) as service:
            with socket.create_connection(listening.getsockname(), timeout=10) as client:
                said = client.makefile().read()
            assert service.wait(10) == 0
    assert said.endswith("cannot open sockets")
    tell(f"it said: {said}")


def test_how_much_a_program_needs(tmp_path, tell):
    """Found by trying; the answer is a drop-in for its unit."""
    found = find(["/bin/sh", "-c", f"echo x > {tmp_path}/out"])
    assert ("PrivateTmp", "yes") not in found.assignments, "it writes to /tmp"
    before, after = exposure([]), found.exposure
    tell(f"{found.tries} runs: exposure {before.percent / 10} {before.level} → {after.percent / 10} {after.level}")


def test_a_mistake_is_explained(tell):
    with pytest.raises(sb.SandboxError) as caught:
        sb.service(["true"], User="nobody-of-that-name")
    tell(str(caught.value).splitlines()[1].strip())
