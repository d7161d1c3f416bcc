"""A client that uses everything: ``busy.py once`` goes through it all, ``busy.py loop SEED`` until it is killed.

With ``once``, the client's own open files and those of its shim are compared after the first and a later round; what has
grown is printed, and makes the exit status 1.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sandbox
from sandbox import Container, Log, Pod, Port
from sandbox.errors import SandboxError, ShimDied

SERVER = "import http.server as h; h.HTTPServer(('', 8000), h.SimpleHTTPRequestHandler).serve_forever()"


def refused(expected: str, action: Callable[..., Any], *arguments: Any, **fields: Any) -> None:
    """Something that has to fail, and says so in the right words."""
    try:
        action(*arguments, **fields).close()
    except ShimDied:
        raise  # nobody expects that, and who killed it wants to see it
    except SandboxError as error:
        if expected not in str(error):
            raise
        return
    raise AssertionError(f"{action} {arguments} {fields} did not fail")


def run() -> None:
    assert sandbox.run(["cat"], input="x" * 200_000).stdout == "x" * 200_000
    assert sandbox.run(["sh", "-c", "sleep 1000 & exit 3"]).returncode == 3
    refused("timed out", sandbox.run, ["sh", "-c", "sleep 1000 & sleep 1000"], timeout=0.05)


def execs() -> None:
    with sandbox.start(command=["sleep", "inf"]) as pod:
        assert pod.exec(["id", "-u"]).stdout == "0\n"
        refused("timed out", pod.exec, ["sh", "-c", "setsid sleep 1000 & sleep 1000"], timeout=0.05)
        refused("nonesuch", pod.exec, ["nonesuch"])
        assert pod.exec(["tty"], tty=True).returncode == 0
        pod.popen(["sleep", "1000"])
        process = pod.popen(["cat"], stdin=-1, stdout=-1)
        assert process.communicate("hi")[0] == "hi"
        process.close()


def files() -> None:
    with sandbox.start(command=["sh", "-c", "echo log; exec sleep inf"]) as pod, tempfile.TemporaryDirectory() as top:
        pod.write_text("/srv/a/b", "text")
        pod.copy_out("/srv/a", f"{top}/a")
        pod.copy_in(f"{top}/a", "/srv/c")
        assert pod.read_text("/srv/c/b") == "text"
        next(pod.log_records(follow=True))


def many() -> None:
    containers = [
        Container("web", command=["/usr/bin/python3", "-c", SERVER], ready=Port(8000), mounts=["data:/data"]),
        Container("side", command=["sleep", "inf"], mounts=["data:/data"], after=["web"]),
        Container("log", command=["sh", "-c", "echo ready; exec sleep inf"], ready=Log("ready")),
    ]
    with sandbox.start(Pod(containers, volumes=["data"], name="many")) as pod:
        pod["side"].write_text("/data/x", "shared")
        pod.publish(8000)
        pod.connect(8000).close()
        pod["log"].kill()
        pod["log"].wait()


def failures() -> None:
    hook = {"path": "/bin/false"}
    refused("no such", sandbox.start, image="dir:/no such")
    refused("nosuchuser", sandbox.start, command=["true"], user="nosuchuser")
    refused("/no such", sandbox.start, command=["true"], mounts=[("/no such", "/x")])
    refused("nonesuch", sandbox.start, command=["nonesuch"])
    refused("createRuntime", sandbox.start, command=["true"], hooks={"createRuntime": [hook]})
    refused("startContainer", sandbox.start, command=["true"], hooks={"startContainer": [hook]})
    refused("", sandbox.start, command=["sleep", "inf"], ready=Port(1), ready_timeout=0.05)
    refused("", sandbox.start, command=["false"], ready=Port(1))
    refused("nonesuch", sandbox.start, Pod([Container("a", command=["sleep", "inf"]), Container("b", command=["nonesuch"])]))


ROUND = (run, execs, files, many, failures)


def open_files() -> dict[str, list[str]]:
    """What the client and its shim have open (as far as we may look), and the shim's mounts and children."""
    shim = _shim()
    state = {"client": _descriptors(os.getpid())}
    with contextlib.suppress(OSError):
        state["shim"] = _descriptors(shim)
        state["mounts of the shim"] = Path(f"/proc/{shim}/mountinfo").read_text().splitlines()
        children = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
        # Of the scopes that are ready there are now more, now less. Each has a process, of which the shim has a pidfd.
        holders = {child for child in children if _is_holder(child)}
        state["children of the shim"] = [child for child in children if child not in holders]
        for _ in holders:
            state["shim"].remove("anon_inode")
    return state


def _is_holder(pid: str) -> bool:
    with contextlib.suppress(OSError):  # it has just ended
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\0002147483647\0"
    return False


def _shim() -> int:
    """The child of our child, the monitor; beside that there may be the keeper of a private systemd manager."""
    grandchildren = [pid for child in _children(str(os.getpid())) for pid in _children(child)]
    (shim,) = [pid for pid in grandchildren if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sandbox: shim")]
    return int(shim)


def _children(pid: str) -> list[str]:
    children: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended meanwhile
            children += (task / "children").read_text().split()
    return children


def _descriptors(pid: int) -> list[str]:
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}").partition(":[")[0])
    return sorted(found)


def grown(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    return [f"{owner}: {len(before[owner])} → {len(after[owner])}: {after[owner]}" for owner in before
            if len(after[owner]) > len(before[owner])]  # fmt: skip


def calm() -> None:
    """After some pods that are all alike, one that is like them is ready, and nothing else is."""
    for _ in range(8):
        sandbox.run(["true"])
        time.sleep(0.1)


def once() -> int:
    for step in (*ROUND * 2, calm):
        step()
    before = settled()
    for step in (*ROUND * 2, calm):
        step()
    lines = grown(before, settled())
    sys.stdout.write("\n".join(lines))
    return 1 if lines else 0


def settled() -> dict[str, list[str]]:
    """Once nothing changes any more: helpers of pods that are gone are reaped, what the shim keeps ready is ready."""
    last, since = open_files(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.02)
        if (now := open_files()) != last:
            last, since = now, time.monotonic()
    return last


def loop(seed: int) -> None:
    choice = random.Random(seed)
    sandbox.run(["true"])
    os.write(1, b"ready\n")
    while True:
        choice.choice(ROUND)()


if __name__ == "__main__":
    if sys.argv[1] == "once":
        sys.exit(once())
    loop(int(sys.argv[2]))
