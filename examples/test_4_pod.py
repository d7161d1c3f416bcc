"""A pod: containers that share localhost and a volume, like in Kubernetes.

A `Pod` is a value: declare it once, use it in many tests. Its containers start at the same time, except where `after=`
says that one needs another to be ready first. They reach each other on localhost, and by name.
"""

from __future__ import annotations

import json
import os

import pytest

import sandbox as sb

PYTHON = "/usr/bin/python3"

pytestmark = pytest.mark.skipif(
    not os.access(PYTHON, os.X_OK), reason=f"both programs are written in Python, and there is no {PYTHON}"
)

#: Answers with the number of letters in what it is sent.
COUNTER = """
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"%d\\n" % len(self.rfile.readline().strip()))
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
Server(("127.0.0.1", 7000), Handler).serve_forever()
"""

#: Asks the counter about each word it is given, and keeps the answers.
CLIENT = """
import json, pathlib, socket
answers = {}
for word in ("one", "three", "thirteen"):
    with socket.create_connection(("counter", 7000)) as sock:
        sock.sendall(word.encode() + b"\\n")
        answers[word] = int(sock.recv(100))
pathlib.Path("/shared/answers.json").write_text(json.dumps(answers))
print("done", flush=True)
"""

shop = sb.Pod(
    containers=[
        sb.Container("counter", command=[PYTHON, "-c", COUNTER], ready=sb.Port(7000)),
        sb.Container(
            "client", command=[PYTHON, "-c", CLIENT], after=["counter"], ready=sb.Log("^done$"), mounts=["results:/shared"]
        ),
        sb.Container("reader", command="sleep inf", mounts=["results:/data:ro"]),
    ],
    volumes=["results"],
)


@pytest.mark.sandbox(shop)
def test_they_work_together(sandbox, tell):
    answers = json.loads(sandbox["reader"].read_text("/data/answers.json"))
    assert answers == {"one": 3, "three": 5, "thirteen": 8}
    tell(f"the client asked the counter and wrote {answers}, the reader has read it")


@pytest.mark.sandbox(shop)
def test_what_they_share_and_what_not(sandbox):
    sandbox["reader"].write_text("/tmp/mine", "x")
    assert not sandbox["counter"].exists("/tmp/mine"), "each has its own file system"

    refused = sandbox["reader"].exec(["touch", "/data/new"])
    assert "Read-only file system" in refused.stderr, "the volume is mounted read-only here"

    assert sandbox["client"].wait(timeout=5) == 0
    assert sandbox["counter"].state == "running"
