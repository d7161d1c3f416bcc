"""The public face against the real kernel: programs in containers, their output, their life and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gate import requires
from programs import PRELUDE, patient, program

import sandbox
from sandbox import CalledProcessError, CommandNotFound, Container, PodStateError, TimeoutExpired
from sandbox.pods import DEVNULL, PIPE, STDOUT, Options, RunningPod
from sandbox.shim.client import own_shim

pytestmark = requires("userns", "overlay")


@pytest.fixture(scope="module")
def sleeper() -> Iterator[RunningPod]:
    with sandbox.start(command="sleep inf") as pod:
        yield pod


@pytest.fixture(params=["auto", "none"])
def anyhow(request: pytest.FixtureRequest) -> Options:
    """With the cgroups of this machine and without any: every promise about processes holds both ways."""
    return Options(cgroups=request.param)


def pods_left() -> list[str]:
    return [pod["id"] for pod in own_shim().call("pod.list")["pods"]]


def sleeps(pod: RunningPod, seconds: int) -> int:
    """How many processes of the pod sleep for so long."""
    lines: list[str] = pod.exec(["ps", "-e", "-o", "args"], check=True).stdout.splitlines()
    return lines.count(f"sleep {seconds}")


# --- run ----------------------------------------------------------------------------------------------------------


def test_run_is_like_subprocess_run() -> None:
    before = pods_left()
    result = sandbox.run(["sh", "-c", "cat; echo problem >&2; exit 3"], input="héllo", timeout=20)
    assert (result.returncode, result.stdout, result.stderr) == (3, "héllo", "problem\n")
    assert result.duration > 0
    assert result.usage.cpu > 0
    assert not result.oom_killed
    assert pods_left() == before


def test_run_splits_a_string_and_involves_no_shell() -> None:
    assert sandbox.run("printf %s|%s 'a b' $HOME").stdout == "a b|$HOME"


def test_run_with_bytes() -> None:
    result = sandbox.run(["cat"], input=b"\xff\0x", text=False)
    assert result.stdout == b"\xff\0x"
    assert sandbox.run(["printf", r"\377"]).stdout == "\\xff"


def test_run_passes_large_data_both_ways() -> None:
    data = os.urandom(1 << 20).hex()
    assert sandbox.run(["cat"], input=data).stdout == data


def test_run_with_streams_of_the_caller(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from a file")
    with (tmp_path / "in").open() as source, (tmp_path / "out").open("w") as sink:
        result = sandbox.run(["sh", "-c", "cat; echo also >&2"], stdin=source, stdout=sink, stderr=STDOUT)
    assert result.returncode == 0
    assert (tmp_path / "out").read_text() == "from a filealso\n"


def test_run_checked() -> None:
    with pytest.raises(CalledProcessError, match="exit status 7") as failed:
        sandbox.run(["sh", "-c", "echo why >&2; exit 7"], check=True)
    assert (failed.value.returncode, failed.value.stderr) == (7, "why\n")
    assert "why" in str(failed.value)


def test_death_by_a_signal(sleeper: RunningPod) -> None:
    """Process 1 is deaf to its own signals (pid_namespaces(7)); any other process is not."""
    assert sandbox.run(["sh", "-c", "kill -SEGV $$; exit 3"]).returncode == 3
    assert sleeper.exec(["sh", "-c", "kill -SEGV $$"]).returncode == -signal.SIGSEGV


def test_run_timeout_removes_the_pod(anyhow: Options) -> None:
    before = pods_left()
    began = time.monotonic()
    with pytest.raises(TimeoutExpired) as expired:
        sandbox.run(["sh", "-c", "echo started; setsid sleep 1234 & sleep 1234"], timeout=patient(0.3), options=anyhow)
    assert time.monotonic() - began < 10
    assert str(expired.value.stdout) == "started\n"
    assert pods_left() == before


def test_run_does_not_wait_for_what_holds_the_output(anyhow: Options) -> None:
    began = time.monotonic()
    assert sandbox.run(["sh", "-c", "sleep 1234 & echo done"], options=anyhow).stdout == "done\n"
    assert time.monotonic() - began < 10


# --- exec ---------------------------------------------------------------------------------------------------------


def test_exec_is_like_subprocess_run(sleeper: RunningPod) -> None:
    result = sleeper.exec(["sh", "-c", "cat; echo problem >&2; exit 3"], input="hi")
    assert (result.returncode, result.stdout, result.stderr) == (3, "hi", "problem\n")
    assert sleeper.exec("printf %s 'a b'").stdout == "a b"
    with pytest.raises(CalledProcessError):
        sleeper.exec("false", check=True)


def test_exec_without_input_reads_nothing(sleeper: RunningPod) -> None:
    assert sleeper.exec(["cat"], timeout=20).stdout == ""


def test_exec_environment_and_directory(sleeper: RunningPod) -> None:
    result = sleeper.exec(["sh", "-c", "echo $A:$HOME; pwd"], env={"A": "1"}, cwd="/usr")
    assert result.stdout == "1:/root\n/usr\n"


@pytest.mark.parametrize(("user", "seen"), [("nobody", "65534:65534"), (7, "7:7"), ("7:8", "7:8"), ("0", "0:0")])
@requires("subuid")
def test_exec_as_somebody(sleeper: RunningPod, user: str | int, seen: str) -> None:
    assert sleeper.exec(["sh", "-c", "echo $(id -u):$(id -g)"], user=user, check=True).stdout.strip() == seen


def test_exec_finds_users_as_they_are_now(sleeper: RunningPod) -> None:
    passwd = sleeper.read_text("/etc/passwd")
    sleeper.write_text("/etc/passwd", passwd + "fresh:x:0:0::/srv/fresh:/bin/sh\n")
    assert sleeper.exec(["sh", "-c", "echo $HOME"], user="fresh").stdout == "/srv/fresh\n"


def test_exec_of_what_is_not_there(sleeper: RunningPod) -> None:
    with pytest.raises(CommandNotFound, match="nonsense"):
        sleeper.exec(["nonsense"])


def test_exec_timeout_kills_the_whole_tree(anyhow: Options) -> None:
    with sandbox.start(command="sleep inf", options=anyhow) as pod:
        tree = "setsid sh -c 'sleep 4321 & sleep 4321' & echo started; sleep 4321"
        with pytest.raises(TimeoutExpired) as expired:
            pod.exec(["sh", "-c", tree], timeout=patient(0.5))
        assert str(expired.value.stdout) == "started\n"
        assert sleeps(pod, 4321) == 0
        assert pod.exec("echo alive").stdout == "alive\n"


def test_exec_does_not_kill_what_it_left_running(anyhow: Options) -> None:
    """A daemon that was started by exec stays, as with docker exec."""
    with sandbox.start(command="sleep inf", options=anyhow) as pod:
        pod.exec(["sh", "-c", "setsid sleep 999 >/dev/null 2>&1 </dev/null &"], check=True)
        deadline = time.monotonic() + 10
        while sleeps(pod, 999) == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sleeps(pod, 999) == 1


def test_exec_with_a_terminal(sleeper: RunningPod) -> None:
    result = sleeper.exec(["sh", "-c", "test -t 0 && test -t 1 && test -t 2 && tty; echo $TERM >&2"], tty=True, timeout=20)
    assert result.returncode == 0
    assert result.stdout.startswith("/dev/pts/")
    assert result.stderr == ""


def test_exec_from_many_threads(sleeper: RunningPod) -> None:
    seen: dict[int, str] = {}

    def work(number: int) -> None:
        seen[number] = sleeper.exec(["echo", str(number)], timeout=60).stdout

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {number: f"{number}\n" for number in range(12)}


# --- popen --------------------------------------------------------------------------------------------------------


def test_popen_talks_back_and_forth(sleeper: RunningPod) -> None:
    with sleeper.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for word in ("one", "two"):
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{word}\n"
        assert process.poll() is None
    assert process.returncode == 0


def test_popen_merges_streams(sleeper: RunningPod) -> None:
    with sleeper.popen(["sh", "-c", "echo a; echo b >&2"], stdout=PIPE, stderr=STDOUT, text=False) as process:
        assert process.communicate() == (b"a\nb\n", b"")


def test_popen_discards_by_default(sleeper: RunningPod) -> None:
    with sleeper.popen(["sh", "-c", "echo unseen"], stderr=DEVNULL) as process:
        assert process.stdout is None
        assert process.wait(20) == 0


def test_popen_waits_with_a_limit(sleeper: RunningPod) -> None:
    with sleeper.popen(["sleep", "1000"]) as process:
        with pytest.raises(TimeoutExpired):
            process.wait(0.05)
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM


def test_popen_signals_the_process_alone_and_kills_the_tree(sleeper: RunningPod) -> None:
    code = "trap 'echo got it' HUP; sleep 777 & echo ready; while :; do wait; done"
    with sleeper.popen(["sh", "-c", code], stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal("HUP")
        assert process.stdout.readline() == "got it\n"
        process.kill()
        assert process.wait(20) == -signal.SIGKILL
    deadline = time.monotonic() + 5  # its relatives were killed with it, and die beside it
    while sleeps(sleeper, 777) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sleeps(sleeper, 777) == 0


def test_popen_kills_on_the_way_out_of_an_error(sleeper: RunningPod) -> None:
    with pytest.raises(RuntimeError), sleeper.popen(["sleep", "555"]):
        raise RuntimeError
    assert sleeps(sleeper, 555) == 0


def test_popen_with_a_terminal(sleeper: RunningPod) -> None:
    process = sleeper.popen(["sh", "-c", "read word; echo got $word"], tty=True)
    with process:
        assert process.terminal is not None
        os.write(process.terminal, b"this\n")
        seen = b""
        while b"got this" not in seen:
            seen += os.read(process.terminal, 100)
    assert process.returncode == 0


# --- output -------------------------------------------------------------------------------------------------------

TALKS = "echo one; echo two >&2; sleep 0.05; echo three; printf rest; sleep 0.05; echo four >&2"


def test_logs_keep_streams_apart_and_in_order() -> None:
    with sandbox.start(command=["sh", "-c", TALKS]) as pod:
        assert pod.wait(20) == 0
        assert pod.logs(stream="stdout") == "one\nthree\nrest\n"
        assert pod.logs(stream="stderr") == "two\nfour\n"
        assert set(pod.logs().split()[:2]) == {"one", "two"}
        assert pod.logs(stream="stdout", tail=1) == "rest\n"
        assert pod.logs(tail=0) == ""
        stamps = [line.split()[0] for line in pod.logs(stream="stdout", timestamps=True).splitlines()]
        assert stamps == sorted(stamps)
        assert all(stamp.endswith("+00:00") for stamp in stamps)


def test_logs_can_be_followed_to_the_end() -> None:
    with sandbox.start(command=["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.05; done"]) as pod:
        records = list(pod.log_records(follow=True))
    assert [record.line for record in records] == ["1", "2", "3"]
    assert all(abs(record.time - time.time()) < 60 for record in records)


def test_logs_are_bounded() -> None:
    """What comes last is kept, and the writer is not held up."""
    command = ["sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x; echo; echo the end; echo quiet >&2"]
    with sandbox.start(command=command, log_size="64K") as pod:
        assert pod.wait(60) == 0
        assert len(pod.logs(stream="stdout")) < 200_000
        assert pod.logs(stream="stdout").endswith("\nthe end\n")
        assert pod.logs(stream="stderr") == "quiet\n"


def test_logs_of_a_container_with_a_terminal() -> None:
    with sandbox.start(command=["sh", "-c", "tty; echo problem >&2"], tty=True) as pod:
        assert pod.wait(20) == 0
        first, second = pod.logs().splitlines()
        assert first.startswith("/dev/pts/") or first == "/dev/console"
        assert second == "problem"


# --- life ---------------------------------------------------------------------------------------------------------


def test_states(anyhow: Options) -> None:
    with sandbox.start(command=["sh", "-c", "read line; exit 5"], options=anyhow) as pod:
        assert pod.wait(20) == 5  # its input is /dev/null, which ends at once
    with sandbox.start(command="sleep inf", name="box", options=anyhow) as pod:
        assert (pod.state, pod.returncode) == ("running", None)
        assert "box" in repr(pod)
        pod.kill()
        assert pod.wait(20) == -signal.SIGKILL
        assert (pod.state, pod.returncode) == ("stopped", -signal.SIGKILL)
        with pytest.raises(PodStateError, match="stopped"):
            pod.exec("true")
        with pytest.raises(PodStateError):
            pod.kill("HUP")
    assert pod.state == "stopped"
    pod.close()


def test_a_closed_pod_is_gone() -> None:
    with sandbox.start(command=["sh", "-c", "echo words; sleep inf"]) as pod:
        pass
    assert pod.id not in pods_left()
    assert pod.state == "stopped"
    for use in (lambda: pod.exec("true"), lambda: pod.wait(1), pod.logs, lambda: pod.publish(80), pod.stats):
        with pytest.raises(PodStateError, match="no such pod"):
            use()


def test_wait_with_a_limit(sleeper: RunningPod) -> None:
    with pytest.raises(TimeoutExpired, match="wait for"):
        sleeper.wait(0.05)


def test_stop_asks_first() -> None:
    polite = "trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.01; done"
    with sandbox.start(command=["sh", "-c", polite], ready=sandbox.Log("ready")) as pod:
        assert pod.stop(20) == 4
        assert pod.logs() == "ready\nbye\n"
        assert pod.stop() == 4


def test_stop_sends_the_signal_that_was_asked_for() -> None:
    command = ["sh", "-c", "trap 'exit 6' USR1; echo ready; while :; do sleep 0.01; done"]
    with sandbox.start(command=command, stop_signal="USR1", ready=sandbox.Log("ready")) as pod:
        assert pod.stop(20) == 6


def test_stop_kills_in_the_end() -> None:
    with sandbox.start(command=["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done"],
                       ready=sandbox.Log("ready"), stop_timeout=0.1) as pod:  # fmt: skip
        assert pod.stop() == -signal.SIGKILL


@requires("cgroup2")
def test_freeze_and_thaw() -> None:
    count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.005; done"
    with sandbox.start(command=["sh", "-c", count], ready=sandbox.Log("3")) as pod:
        pod.freeze()
        before = pod.logs()
        time.sleep(0.1)
        assert pod.logs() == before
        pod.thaw()
        deadline = time.monotonic() + 10
        while pod.logs() == before and time.monotonic() < deadline:
            time.sleep(0.005)
        assert pod.logs() != before
        pod.freeze()
        pod.kill()
        assert pod.wait(20) == -signal.SIGKILL


@requires("cgroup2")
def test_a_frozen_pod_can_be_closed() -> None:
    with sandbox.start(command="sleep inf") as pod:
        pod.freeze()
    assert pod.id not in pods_left()


def test_stats(anyhow: Options) -> None:
    with sandbox.start(command="sleep inf", options=anyhow) as pod:
        if pod.shim.call("pod.list")["pods"][-1]["meta"]["cgroups"] == "none":
            with pytest.raises(sandbox.UnsupportedFeature, match="no cgroup of its own"):
                pod.stats()
            return
        first = pod.stats()
        pod.exec(["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"], check=True)
        then = pod.stats()
    assert then.cpu.usage > first.cpu.usage > 0


@requires("pids.limit", "memory.limit")
def test_stats_of_limits() -> None:
    with sandbox.start(command="sleep inf", memory="64M", pids=20) as pod:
        stats = pod.stats()
    assert (stats.memory.limit, stats.pids.limit, stats.pids.current) == (64 << 20, 20, 1)
    assert stats.memory.peak is not None
    assert 0 < stats.memory.peak < 64 << 20


@requires("memory.limit", "python")
def test_out_of_memory_is_told() -> None:
    eats = program(PRELUDE + "data = bytearray(200 << 20)")
    result = sandbox.run(eats, memory="32M", swap=0 if Path("/proc/swaps").read_text().count("\n") > 1 else None)
    assert (result.returncode, result.oom_killed) == (-signal.SIGKILL, True)


@requires("pids.limit")
def test_a_fork_bomb_is_held() -> None:
    result = sandbox.run(["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; wait"], pids=8, timeout=60)
    assert result.returncode != 0
    assert "fork" in result.stderr.lower()


# --- restart and init ---------------------------------------------------------------------------------------------


def test_restart_on_failure() -> None:
    with sandbox.start(command=["sh", "-c", "echo again; exit 3"], restart="on-failure:2") as pod:
        assert pod.wait(30) == 3
        assert pod.logs() == "again\n" * 3


def test_restart_not_after_success() -> None:
    with sandbox.start(command="echo once", restart="on-failure") as pod:
        assert pod.wait(20) == 0
        assert pod.logs() == "once\n"


def test_restart_always_until_stopped() -> None:
    with sandbox.start(command="echo on", restart="always") as pod:
        deadline = time.monotonic() + 20
        while pod.logs().count("on") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pod.logs().count("on") >= 3
        pod.stop(5)
        assert pod.state == "stopped"


@requires("python")
def test_init_reaps_orphans_and_passes_signals_on() -> None:
    code = PRELUDE + """
def orphan():
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.05)
        os._exit(0)
    os.wait()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
orphan()
print("pid", os.getpid(), flush=True)
signal.pause()
"""
    with sandbox.start(command=program(code), init=True, ready=sandbox.Log("pid")) as pod:
        assert pod.logs().split()[1] != "1"
        deadline = time.monotonic() + 10
        while pod.exec(["ps", "-e", "-o", "stat"]).stdout.count("Z") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "Z" not in pod.exec(["ps", "-e", "-o", "stat"]).stdout
        assert pod.stop(20) == 9


def test_init_tells_a_signal_as_shells_do() -> None:
    assert sandbox.run(["sh", "-c", "kill -TERM $$"], init=True).returncode == 128 + signal.SIGTERM


# --- the client's own life ------------------------------------------------------------------------------------------


def test_a_forked_child_has_pods_of_its_own(sleeper: RunningPod) -> None:
    script = """
import os, sandbox
with sandbox.start(command="sleep inf") as pod:
    child = os.fork()
    if child == 0:
        code = sandbox.run(["sh", "-c", "exit 5"]).returncode
        import sandbox.shim.client as client
        client.shutdown()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    assert pod.exec("echo still here").stdout == "still here\\n"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_containers_by_name() -> None:
    pod = sandbox.start([Container("a", command="sleep inf"), Container("b", command="sleep inf")])
    with pod:
        assert [container.name for container in pod] == ["a", "b"]
        assert len(pod) == 2
        with pytest.raises(KeyError, match="a, b"):
            pod["c"]
        with pytest.raises(PodStateError, match=r"pod\['a'\]"):
            pod.exec("true")
        assert pod.stop_all(0.1).keys() == {"a", "b"}
