"""What the shim does around a container is the same whoever made it: streams, exec, files, signals, failures, no traces."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gate import requires
from programs import NOTIFY, PYTHON, is_holder, program

import sandbox
from sandbox import Container, Mount, Notify, Pod, Port
from sandbox.errors import CommandNotExecutable, CommandNotFound, SandboxError, UnsupportedFeature
from sandbox.pods import Options
from sandbox.shim.client import own_shim

pytestmark = [requires("userns", "overlay", "python")]

SLEEP = ["sleep", "inf"]


@pytest.fixture(params=[pytest.param(name, marks=requires(name)) for name in ("crun", "runc")])
def options(request: pytest.FixtureRequest) -> Options:
    return Options(engine=request.param)


def test_streams_and_exit(options: Options) -> None:
    result = sandbox.run(["sh", "-c", "cat; echo err >&2; exit 7"], input="in", options=options)
    assert (result.returncode, result.stdout, result.stderr) == (7, "in", "err\n")


def test_a_program_that_ends_at_once(options: Options) -> None:
    """Whether it was executed is seen from outside, and this one may be gone before anyone looks."""
    assert [sandbox.run(["true"], options=options).returncode for _ in range(5)] == [0] * 5
    assert sandbox.run(["false"], options=options).returncode == 1


def test_exec_and_files(options: Options) -> None:
    with sandbox.start(Container(command=SLEEP), options=options) as pod:
        pod.write_text("/tmp/greeting", "hello")
        assert pod.exec(["cat", "/tmp/greeting"], check=True).stdout == "hello"
        assert pod.exec(["id", "-u"], user="nobody").stdout == "65534\n"
        status = pod.exec(["cat", "/proc/self/status"]).stdout
        assert {"Seccomp:\t2", "NoNewPrivs:\t1"} <= set(status.splitlines())
        links = pod.exec(["sh", "-c", "readlink /proc/1/ns/* /proc/self/ns/*"]).stdout.splitlines()
        kept = [link for link in links if not link.startswith("cgroup")]
        assert kept[: len(kept) // 2] == kept[len(kept) // 2 :]


def test_signals_and_stop(options: Options) -> None:
    code = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\nprint('up', flush=True)\nsignal.pause()"
    with sandbox.start(Container(command=program(code), ready=sandbox.Log("up")), options=options) as pod:
        assert pod.stop(timeout=5) == 5
    with sandbox.start(Container(command=SLEEP), options=options) as pod:
        pod.kill()
        assert pod.wait(timeout=5) == -9


def test_readiness(options: Options) -> None:
    server = Container("server", command=[PYTHON, "-m", "http.server", "8000"], ready=Port(8000))
    with sandbox.start(Pod([server, Container("other", command=SLEEP, after=["server"])]), options=options) as pod:
        code = "import urllib.request; print(urllib.request.urlopen('http://server:8000/').status)"
        assert pod["other"].exec(program(code), check=True).stdout == "200\n"
        with pod.connect(8000) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert connection.recv(8) == b"HTTP/1.0"


def test_notification(options: Options) -> None:
    command = program(NOTIFY + "notify('READY=1'); time.sleep(60)")
    with sandbox.start(Container(command=command, ready=Notify()), options=options) as pod:
        assert pod.state == "running"


def test_a_restart(options: Options, tmp_path: Path) -> None:
    """In the namespaces that the pod has kept from the first time."""
    tmp_path.chmod(0o777)
    script = "echo x >>/count/runs; test $(wc -l </count/runs) -ge 3 || exit 1; readlink /proc/self/ns/net"
    container = Container(command=["sh", "-c", script], restart="on-failure", mounts=[Mount.bind(tmp_path, "/count")])
    with sandbox.start(container, options=options) as pod:
        assert pod.wait(timeout=10) == 0
    assert (tmp_path / "runs").read_text() == "x\n" * 3


def test_a_volume_and_several_at_once(options: Options) -> None:
    writer = Container("writer", command=["sh", "-c", "echo hello >/data/file; exec sleep inf"], mounts=["data:/data"])
    others = [Container(f"reader{n}", command=SLEEP, mounts=["data:/data"]) for n in range(3)]
    with sandbox.start(Pod([writer, *others], volumes=["data"]), options=options) as pod:
        pod["reader0"].exec(["sh", "-c", "until test -s /data/file; do sleep 0.01; done"], timeout=5, check=True)
        assert [pod[f"reader{n}"].read_text("/data/file") for n in range(3)] == ["hello\n"] * 3


def test_a_terminal(options: Options) -> None:
    with sandbox.start(Container(command=["sh", "-c", "tty; read line; echo got $line"], tty=True), options=options) as pod:
        assert next(pod.log_records(follow=True)).line == "/dev/pts/0"
        assert pod.exec(["readlink", "/proc/1/fd/0"]).stdout == "/dev/pts/0\n"


@pytest.mark.parametrize(
    ("command", "error", "text"),
    [
        (["nonesuch"], CommandNotFound, "nonesuch"),
        (["/nonesuch"], CommandNotFound, "/nonesuch"),
        (["/etc/passwd"], CommandNotExecutable, "/etc/passwd"),
        (["/etc"], CommandNotExecutable, "directory"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_executed(
    command: list[str], error: type[SandboxError], text: str, options: Options
) -> None:  # fmt: skip
    with pytest.raises(error, match=text) as caught:
        sandbox.run(command, options=options)
    assert caught.value.operation == "execute"
    assert any(options.engine in note for note in caught.value.__notes__)


@pytest.mark.parametrize("content", ["echo no first line\n", "#!/nonesuch/interpreter\n"])
def test_a_script_that_the_kernel_refuses(content: str, options: Options, tmp_path: Path) -> None:
    """The engine finds out after it has told that the container is created, and tells nobody."""
    script = tmp_path / "script"
    script.write_text(content)
    script.chmod(0o755)
    with pytest.raises(CommandNotExecutable, match="/srv/script"):
        sandbox.run(["/srv/script"], mounts=[Mount.bind(script, "/srv/script")], options=options)


def test_other_failures_name_the_step(options: Options) -> None:
    with pytest.raises(SandboxError, match="working directory `/etc/passwd`: Not a directory"):
        sandbox.run(["true"], working_dir="/etc/passwd", options=options)
    with pytest.raises(SandboxError, match=r"RLIMIT_NOFILE.*not permitted"):
        sandbox.run(["true"], ulimits={"nofile": (1 << 30, 1 << 30)}, options=options)
    with pytest.raises(SandboxError, match=r"sysctl `net.core.somaxconn=many`: Invalid argument"):
        sandbox.run(["true"], sysctls={"net.core.somaxconn": "many"}, options=options)
    with pytest.raises(SandboxError, match="does not exist on the host"):
        sandbox.run(["true"], mounts=[Mount.bind("/nonesuch", "/in")], options=options)


def test_what_it_has_not_is_refused_by_name(options: Options) -> None:
    with pytest.raises(UnsupportedFeature, match=f"{options.engine} engine has no init") as caught:
        sandbox.run(["true"], init=True, options=options)
    assert caught.value.feature == "init"


def test_after_a_failure_the_next_one_starts(options: Options) -> None:
    for _ in range(3):
        with pytest.raises(CommandNotFound):
            sandbox.run(["nonesuch"], options=options)
    assert sandbox.run(["true"], options=options).returncode == 0


def test_files_as_streams_keep_their_owner(options: Options, tmp_path: Path) -> None:
    """Crun and runc give the streams to the container's user."""
    with (tmp_path / "out").open("w+") as file:
        sandbox.run(["id", "-u"], user="nobody", stdout=file, options=options)
        file.seek(0)
        assert file.read() == "65534\n"
        assert os.fstat(file.fileno()).st_uid == os.getuid()


def test_devices_of_the_host_keep_their_owner(options: Options) -> None:
    before = os.stat("/dev/null")
    with sandbox.start(Container(command=["true"], user="nobody"), options=options) as pod:
        pod.wait(timeout=5)
    after = os.stat("/dev/null")
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)


@requires("busybox")
def test_a_root_file_system_of_its_own(options: Options, tmp_path: Path) -> None:
    """Owners are the container's, and what it writes stays out of the image."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    for directory in (tmp_path.parent, tmp_path, root):
        directory.chmod(0o755)
    command = ["/bin/busybox", "sh", "-c", "busybox stat -c '%u %g %a' / /bin; busybox touch /new; busybox ls /"]
    seen = {
        engine: sandbox.run(command, image=f"dir:{root}", options=Options(engine=engine)).stdout
        for engine in ("native", options.engine)
    }
    assert seen["native"].startswith("0 0 755\n0 0 755\n")
    assert "new\n" in seen["native"]
    assert seen[options.engine] == seen["native"]
    assert sorted(os.listdir(root)) == ["bin"]


@requires("memory.limit")
def test_a_memory_limit(options: Options) -> None:
    result = sandbox.run(program("x = bytearray(200 << 20)"), memory="64M", options=options)
    assert (result.returncode, result.oom_killed) == (-9, True)


@requires("pids.limit")
def test_a_limit_on_processes(options: Options) -> None:
    code = "import os, time\nfor n in range(100):\n    if os.fork() == 0: time.sleep(60)"
    result = sandbox.run(program(code), pids=30, options=options)
    assert result.returncode == 1
    assert "BlockingIOError" in result.stderr


def _until(condition: Callable[[], Any], seconds: float = 3.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _processes(mark: str) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if mark in text:
            found.append(text)
    return found


def test_a_pod_that_is_removed_while_it_starts(options: Options) -> None:
    """The engine waits for a hook; removing the pod ends both, and nothing is left of either."""
    mark = f"sandbox-test-{os.getpid()}-{options.engine}"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f": {mark}; sleep 600; :"], "timeout": 600}
    container = Container(command=["sleep", "600"], hooks={"createRuntime": [hook]})
    with ThreadPoolExecutor(1) as pool:
        start = pool.submit(sandbox.start, container, options=options)
        assert _until(lambda: _processes(mark))
        shim = own_shim()
        (pod,) = [x for x in shim.call("pod.list")["pods"] if x["containers"] and x["containers"][0]["state"] == "creating"]
        shim.call("pod.remove", pod=pod["id"])
        with pytest.raises(SandboxError, match=r"before it (had started|could tell)"):
            start.result(10)
    assert _until(lambda: not _processes(mark)), _processes(mark)
    assert sandbox.run(["true"], options=options).returncode == 0


def test_the_engine_cannot_write_to_the_host(options: Options, tmp_path: Path) -> None:
    """A link that takes the place of a directory while the engine makes mount points leads it out; a hook is where it is."""
    places = [tmp_path / "victim", Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]
    places[0].mkdir()
    places[0].chmod(0o777)
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and directory.name.startswith(("pytest-", "popen-", "test_")):
            directory.chmod(directory.stat().st_mode | 0o011)
    name = f"sandbox-test-{os.getpid()}-{options.engine}"
    tries = "; ".join(f"mkdir {place}/{name} && exit 1" for place in places)
    others = f"for root in /proc/[0-9]*/root; do mkdir $root{places[0]}/{name} && exit 3; done"
    driver = "read pid comm state parent rest </proc/$PPID/stat; ls /proc/$parent/root/ && exit 4"
    script = f"test -d {places[0]} || exit 2; {tries}; {others}; {driver}; echo >/proc/self/comm"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}
    container = Container("main", command=SLEEP, hooks={"createRuntime": [hook]}, mounts=["data:/data"])
    try:
        with sandbox.start(Pod([container], volumes=["data"]), options=options) as pod:
            assert pod.exec(["sh", "-c", "touch /data/file /tmp/file /file"], check=True).returncode == 0
        assert not any((place / name).exists() for place in places)
    finally:
        for place in places:
            with contextlib.suppress(FileNotFoundError):
                (place / name).rmdir()


def _descendants(pid: int) -> dict[int, tuple[str, str]]:
    """Process id → (name, state letter)."""
    found = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        for child in (Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")).split():
            stat = re.search(r"\((.*)\) (\w)", Path(f"/proc/{child}/stat").read_text("ascii"))
            assert stat is not None
            found[int(child)] = (stat[1], stat[2])
            found |= _descendants(int(child))
    return found


def test_nothing_is_left(options: Options) -> None:
    with sandbox.start(Container(command=SLEEP), options=options) as pod:
        assert "scratch" not in pod.exec(["cat", "/proc/self/mountinfo"]).stdout
        assert "sleep" in {name for name, _ in _descendants(os.getpid()).values()}
    assert _until(lambda: not _left()), _left()  # the process that held its scope goes a moment later
    monitor = own_shim()._monitor.pid
    (shim,) = Path(f"/proc/{monitor}/task/{monitor}/children").read_text("ascii").split()
    assert "/scratch " not in Path(f"/proc/{shim}/mountinfo").read_text("utf-8")


def _left() -> list[tuple[str, str]]:
    left = {pid: what for pid, what in _descendants(os.getpid()).items() if not is_holder(pid)}
    return [(name, state) for name, state in left.values() if state == "Z" or name in {"sleep", "crun", "runc"}]


@requires("crun")
def test_an_init_that_dies_before_its_engine_starts_it() -> None:
    """crun would wait for it for ever."""
    with tempfile.TemporaryDirectory() as directory:  # pytest's own are closed to the users of containers
        os.chmod(directory, 0o755)
        said = _run_with_deadly_crun(Path(directory))
    assert "init has died before its program was executed" in said


def _run_with_deadly_crun(directory: Path) -> str:
    engine = directory / "crun"
    engine.write_text(
        f'#!/bin/sh\ncase " $* " in *" start "*) kill -9 $(cat pid); exec sleep 1000;; esac\nexec {shutil.which("crun")} "$@"\n'
    )
    engine.chmod(0o755)
    code = "import sandbox; from sandbox.pods import Options; sandbox.run(['true'], options=Options(engine='crun'))"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PATH": f"{directory}:{os.environ['PATH']}"}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    return ran.stderr
