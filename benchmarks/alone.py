"""What is measured of us alone: many pods, memory, readiness, clean-up, the cost of a sandboxed test."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path

import sandbox
from sandbox.cgroups import choose
from sandbox.pods import RunningPod
from sandbox.shim.rundir import base_directory

from .cases import Subject
from .measure import Effort, Row, alone, percentiles, timed
from .peers import FOREVER

_MIB = 1 << 20
#: Seconds until what ended before has given its memory back: network namespaces go last.
_SETTLE = 0.5
#: The name of the processes in the pods.
_PAYLOAD = f"{os.path.basename(FOREVER[0])}\n"
_HOST_PYTHON = "/usr/bin/python3"
#: Seconds after which something that was to be gone is given up on.
_GONE_PATIENCE = 5.0

#: Each says on standard output when it became ready, on the clock that containers share with the host.
_SAYS_READY = "import time; time.sleep(0.05); print('ready', time.monotonic(), flush=True); time.sleep(100)"
_LISTENS = (
    "import socket, time; s = socket.socket(); s.bind(('127.0.0.1', 8000)); time.sleep(0.05); "
    "t = time.monotonic(); s.listen(); print('ready', t, flush=True); time.sleep(100)"
)
_NOTIFIES = (
    "import os, socket, time; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); time.sleep(0.05); "
    "t = time.monotonic(); s.sendto(b'READY=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:]); "
    "print('ready', t, flush=True); time.sleep(100)"
)


def sequence(subject: Subject, effort: Effort) -> list[Row]:
    """Pods one after another: the last quarter against the first."""
    subject.run()
    times = [subject.run() * 1e3 for _ in range(effort.sequence)]
    quarter = effort.sequence // 4
    first, last = statistics.median(times[:quarter]), statistics.median(times[-quarter:])
    name = f"{effort.sequence} pods, one after another"
    return [
        Row(name, last, "ms", "ours, first quarter", first, last / first, 1.1, quarter, percentiles(times[-quarter:]),
            "median of the last quarter against that of the first"),
    ]  # fmt: skip


def at_once(subject: Subject, effort: Effort) -> list[Row]:
    """Pods that all run at the same time, asked for by as many threads as there are CPUs."""
    threads = os.cpu_count() or 1
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(threads) as pool:
        pods: list[RunningPod] = []

        def start() -> None:
            pods.extend(pool.map(lambda _: subject.pod(), range(effort.at_once)))

        stack.callback(_close_all, pods)
        started = timed(start)
        alive = sum(pod.state == "running" for pod in pods)
        closed = timed(lambda: list(pool.map(lambda pod: pod.close(), pods)))
    name = f"{effort.at_once} pods at once"
    note = f"{alive} of {effort.at_once} ran together; started by {threads} threads; time for each pod"
    return [
        Row(f"{name}: start", started / effort.at_once * 1e3, count=effort.at_once, note=note),
        Row(f"{name}: close", closed / effort.at_once * 1e3, count=effort.at_once),
    ]


def _close_all(pods: list[RunningPod]) -> None:
    for pod in pods:
        pod.close()


# --- memory -------------------------------------------------------------------------------------------------------


def memory(subject: Subject, effort: Effort) -> list[Row]:
    """What an idle pod costs beyond the processes in it: growth of shim, monitor and client, and of the kernel."""
    with contextlib.ExitStack() as stack:
        for _ in range(4):  # what only the first ones cost is not each pod's
            stack.enter_context(subject.pod())
        before = _memory()
        for _ in range(effort.idle):
            stack.enter_context(subject.pod())
        after = _memory()
    processes, kernel = ((b - a) / effort.idle / _MIB for a, b in zip(before, after, strict=True))
    return [
        Row("memory of an idle pod: processes", processes, "MiB", count=effort.idle,
            note="growth of the proportional set size of client, monitor and all the shim's own processes, per pod"),
        Row("memory of an idle pod: kernel", kernel, "MiB", count=effort.idle,
            note="growth of the memory that no process owns, on the whole machine, whoever caused it"),
        Row("memory of an idle pod: both", processes + kernel, "MiB", target=1.5, count=effort.idle),
    ]  # fmt: skip


def _memory() -> tuple[int, int]:
    """Bytes of this process and its helpers, and of the kernel."""
    time.sleep(_SETTLE)
    own = [pid for pid in _descendants(os.getpid()) if Path(f"/proc/{pid}/comm").read_text("ascii") != _PAYLOAD]
    return sum(map(_proportional, (os.getpid(), *own))), _kernel()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]


def _proportional(pid: int) -> int:
    """Bytes; of a page that several processes share, each has its part.

    Only root can look into the spare pod, which is there before and after and so makes no difference.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except PermissionError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))


def _kernel() -> int:
    kinds = {"Slab:", "KernelStack:", "PageTables:", "Percpu:", "Shmem:", "VmallocUsed:"}
    lines = (line.split() for line in Path("/proc/meminfo").read_text("ascii").splitlines())
    return sum(int(words[1]) * 1024 for words in lines if words[0] in kinds)


# --- readiness ----------------------------------------------------------------------------------------------------


def readiness(effort: Effort) -> Iterator[Row]:
    """From the moment the program is ready to the moment ``start`` returns."""
    kinds = {
        "Log": (_SAYS_READY, sandbox.Log("ready")),
        "Port": (_LISTENS, sandbox.Port(8000)),
        "Notify": (_NOTIFIES, sandbox.Notify()),
    }
    for name, (code, probe) in kinds.items():
        times = [_latency(code, probe) * 1e3 for _ in range(effort.rounds)]
        yield alone(f"readiness seen: {name}", times, target=5.0)


def _latency(code: str, probe: object) -> float:
    command = [_HOST_PYTHON, "-I", "-S", "-c", code]
    with sandbox.start(image="host", command=command, ready=probe) as pod:
        seen = time.monotonic()
        while "ready" not in (logs := pod.logs()):
            time.sleep(0.001)
        return seen - float(logs.split()[1])


# --- clean-up -----------------------------------------------------------------------------------------------------

_VICTIM = """
import os, sys, sandbox, signal
pods = [sandbox.start(image=sys.argv[1], command=["/bin/sleep", "1000"]) for _ in range(int(sys.argv[2]))]
from sandbox.shim.client import own_shim
print(own_shim().directory.id, flush=True)
signal.pause()
"""


def clean_up(subject: Subject, effort: Effort) -> list[Row]:
    """A client with running pods is killed with SIGKILL: time until nothing of it is left."""
    times = [_kill(subject.image, 5) * 1e3 for _ in range(effort.rounds)]
    note = "5 running pods; no process, cgroup or runtime directory left; the slowest round"
    return [Row("gone after kill -9", max(times), target=200.0, count=len(times), spread=percentiles(times), note=note)]


def _kill(image: str, pods: int) -> float:
    command = [sys.executable, "-c", _VICTIM, image, str(pods)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as victim:
        assert victim.stdout is not None
        shim = victim.stdout.readline().strip()
        if not shim:
            raise OSError("the client that was to be killed did not start")
        pidfds = [os.pidfd_open(pid) for pid in _descendants(victim.pid)]
        places = [*choose().traces(shim), f"{base_directory()}/{shim}"]
        try:
            began = time.perf_counter()
            victim.send_signal(signal.SIGKILL)
            deadline = time.monotonic() + _GONE_PATIENCE
            while any(map(_alive, pidfds)) or any(map(os.path.exists, places)):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.001)
            return time.perf_counter() - began
        finally:
            for pidfd in pidfds:
                os.close(pidfd)


def _descendants(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield child
        yield from _descendants(child)


def _alive(pidfd: int) -> bool:
    return not select.select([pidfd], [], [], 0)[0]


# --- pytest -------------------------------------------------------------------------------------------------------

_SANDBOXED = """
import pytest

@pytest.mark.sandbox(image={image!r}, command=["/bin/sleep", "1000"])
@pytest.mark.parametrize("number", range({count}))
def test_it(sandbox, number):
    pass
"""
_PLAIN = """
import pytest

@pytest.fixture
def nothing():
    return None

@pytest.mark.parametrize("number", range({count}))
def test_it(nothing, number):
    pass
"""


def pytest_overhead(subject: Subject, work: Path, effort: Effort) -> list[Row]:
    """Sessions of sandboxed tests against sessions of empty tests: for each test, and once for the session."""
    if not any(plugin.value == "pytest_sandbox.plugin" for plugin in entry_points(group="pytest11")):
        raise OSError("the plugin is not installed here")
    few, many = effort.tests // 4, effort.tests
    for count in (few, many):
        for kind, text in (("sandboxed", _SANDBOXED), ("plain", _PLAIN)):
            (work / f"test_{kind}_{count}.py").write_text(text.format(image=subject.image, count=count), "utf-8")
    each, once = [], []
    for _ in range(max(effort.rounds // 5, 1)):
        cost = {count: _session(work, f"sandboxed_{count}") - _session(work, f"plain_{count}") for count in (few, many)}
        each.append((cost[many] - cost[few]) / (many - few) * 1e3)
        once.append(cost[few] * 1e3 - each[-1] * few)
    note = f"a pod for each test, against an empty test; from sessions of {few} and {many} tests"
    return [
        alone("a sandboxed test in pytest", each, note=note),
        alone("a session with sandboxed tests", once, note="once: imports, the shim, the first pod"),
    ]


def _session(work: Path, name: str) -> float:
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest",
        f"--rootdir={work}", "-c", os.devnull, str(work / f"test_{name}.py"),
    ]  # fmt: skip
    return timed(lambda: subprocess.run(command, cwd=work, check=True, capture_output=True))
