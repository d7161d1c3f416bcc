"""``sandbox run`` for real: streams, exit status, signals, terminal, limits, ports, and that nothing stays."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gate import requires

pytestmark = requires("userns", "overlay")

Wait = Callable[[str], int]
Gone = Callable[[str], None]


class TestStatus:
    @pytest.mark.parametrize(
        ("command", "status"),
        [
            (["true"], 0),
            (["sh", "-c", "exit 7"], 7),
            (["sh", "-c", "kill -9 $$"], 0),  # process 1 cannot be killed from inside
            (["--", "sh", "-c", "exit 3"], 3),
            (["nonesuch"], 127),
            (["/etc/passwd"], 126),
            (["/usr"], 126),
        ],
    )
    def test_is_the_programs(self, cli: Any, command: list[str], status: int) -> None:
        assert cli("run", "host", *command).returncode == status

    def test_of_a_signal(self, cli: Any) -> None:
        assert cli("run", "--init", "host", "sh", "-c", "kill -USR1 $$").returncode == 128 + signal.SIGUSR1

    def test_rm_is_taken_as_podman_takes_it(self, cli: Any) -> None:
        assert cli("run", "--rm", "host", "sh", "-c", "exit 5").returncode == 5

    def test_an_option_behind_the_image_is_told_from_a_program(self, cli: Any) -> None:
        done = cli("run", "host", "--memory", "64M", "id")
        assert done.returncode == 127
        assert "hint: options end at the image, what follows is its command: sandbox run --memory … host …" in done.stderr
        assert "options end" not in cli("run", "host", "nonesuch").stderr

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["no/such:image", "true"], "no/such:image"),
            (["dir:/nonexistent", "true"], "/nonexistent"),
            (["-u", "nosuchuser", "host", "true"], "nosuchuser"),
            (["-v", "/nonexistent:/x", "host", "true"], "/nonexistent"),
            (["--engine", "warp", "host", "true"], "warp"),
            (["--cgroups", "warp", "host", "true"], "warp"),
        ],
    )
    def test_of_a_failure_of_ours(
        self, cli: Any, arguments: list[str], words: str
    ) -> None:
        done = cli("run", *arguments)
        assert done.returncode == 125
        assert done.stdout == ""
        assert done.stderr.startswith(("sandbox: ", "sandbox run: "))
        assert words in done.stderr
        assert "Traceback" not in done.stderr

    def test_of_a_timeout(self, cli: Any, unique: str, gone: Gone) -> None:
        done = cli("run", "--timeout", "0.3", "host", "sleep", unique)
        assert done.returncode == 124
        assert "timed out after 0.3 s" in done.stderr
        gone(unique)


class TestStreams:
    def test_are_ours(self, cli: Any) -> None:
        done = cli("run", "-i", "host", "sh", "-c", "cat; echo err >&2", input="line\n")
        assert (done.stdout, done.stderr) == ("line\n", "err\n")

    def test_are_the_very_descriptors(self, cli: Any, tmp_path: Path) -> None:
        """Nothing is copied: the program's standard output is the file that the shell opened."""
        path = tmp_path / "out"
        with path.open("w") as file:
            cli("run", "host", "stat", "-L", "-c", "%i", "/proc/self/fd/1", capture_output=False, stdout=file)
        assert path.read_text() == f"{path.stat().st_ino}\n"

    def test_input_is_empty_unless_asked_for(self, cli: Any) -> None:
        assert cli("run", "host", "cat", input="secret\n").stdout == ""

    def test_closed_ones_become_dev_null(self) -> None:
        script = f"{sys.executable} -m sandbox.cli run -i host readlink /proc/self/fd/0 /proc/self/fd/2 <&- 2>&-"
        done = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, text=True, check=True)
        assert done.stdout == "/dev/null\n/dev/null\n"

    def test_no_other_descriptor_is_passed_on(self, cli: Any) -> None:
        read_end, write_end = os.pipe()
        try:
            done = cli("run", "host", "ls", "/proc/self/fd", pass_fds=(read_end, write_end))
        finally:
            os.close(read_end)
            os.close(write_end)
        assert done.stdout.split() == ["0", "1", "2", "3"]  # 3 is the directory that ls reads

    def test_a_reader_that_leaves_ends_the_program(self) -> None:
        script = f"{sys.executable} -m sandbox.cli run host yes | head -n 1"
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=30)
        assert done.stdout == "y\n"
        assert "sandbox" not in done.stderr


class TestSignals:
    def test_go_to_the_program(self, cli: Any, started: Wait) -> None:
        script = "trap 'echo got $0; exit 4' USR1; echo ready; while :; do sleep 0.05; done"
        with cli.start("run", "host", "sh", "-c", script) as process:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGUSR1)
            assert process.wait(10) == 4

    def test_the_second_interrupt_kills(self, cli: Any, unique: str, started: Wait, gone: Gone) -> None:
        """The first goes to the program, which as process 1 ignores what it does not handle."""
        with cli.start("run", "host", "sleep", unique) as process:
            started_pid = until_running(process, unique, started)
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)  # for what shall not happen
            assert process.poll() is None
            assert Path(f"/proc/{started_pid}").exists()
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 137
        gone(unique)

    def test_term_kills_once_the_time_is_up(self, cli: Any, unique: str, started: Wait, gone: Gone) -> None:
        with cli.start("run", "--stop-timeout", "0.2", "host", "sleep", unique) as process:
            until_running(process, unique, started)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 137
        gone(unique)

    def test_init_lets_the_program_die_of_them(self, cli: Any, unique: str, started: Wait, gone: Gone) -> None:
        with cli.start("run", "--init", "host", "sleep", unique) as process:
            until_running(process, unique, started)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 143
        gone(unique)

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
    def test_nothing_is_left_when_we_die_of_one(
        self, cli: Any, unique: str, started: Wait, gone: Gone, number: int
    ) -> None:
        with cli.start("run", "host", "sleep", unique) as process:
            until_running(process, unique, started)
            process.send_signal(number)
            assert process.wait(10) == -number
        gone(unique)


def until_running(process: Any, word: str, started: Wait) -> int:
    """The container's process, which is no child of ours: there is a moment when only the command line has the word."""
    deadline = time.monotonic() + 20
    while True:
        pid = [pid for pid in _all_with(word) if pid != process.pid]
        if pid:
            return pid[0]
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def _all_with(word: str) -> Iterator[int]:
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:1] == [b"sleep"] and word.encode() in words:
            yield int(directory.name)


class Typist:
    """A person at a terminal in which ``sandbox`` runs."""

    def __init__(self, master: int, pid: int) -> None:
        self.master = master
        self.pid = pid
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def sees(self, text: str, seconds: float = 20) -> str:
        """Wait until ``text`` is on the screen; returns all since the last time."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"only saw {self.seen!r}"
            try:
                data = os.read(self.master, 65536)
            except OSError:
                data = b""
            assert data, f"the end; only saw {self.seen!r}"
            self.seen += data.decode()
        end = self.seen.index(text) + len(text)  # what came in the same moment is for the next look
        seen, self.seen = self.seen[:end], self.seen[end:]
        return seen

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


#: Makes its standard input the controlling terminal of a new session.
_LOGIN = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from sandbox.cli import main
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def typist(*arguments: str) -> Iterator[Typist]:
    master, slave = os.openpty()
    termios.tcsetwinsize(master, (33, 77))
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        [sys.executable, "-c", _LOGIN, *arguments], stdin=slave, stdout=slave, stderr=slave
    )
    try:
        yield Typist(master, process.pid)
        assert termios.tcgetattr(slave) == before, "the terminal was not restored"
    finally:
        process.kill()
        process.wait()
        os.close(slave)
        os.close(master)


class TestTerminal:
    def test_a_shell(self) -> None:
        with typist("run", "-it", "-e", "PS1=$ ", "host", "sh") as person:
            person.sees("$ ")
            person.type("tty; stty size; echo $TE\"\"RM\r")
            seen = person.sees("33 77\r\n")
            assert "/dev/pts/0\r\n" in seen
            person.sees("$ ")
            person.type("exit 5\r")
            assert person.status() == 5

    def test_control_c_interrupts_the_program_in_it(self) -> None:
        script = "trap 'echo got it; exit 3' INT; echo on; while :; do sleep 0.05; done"
        with typist("run", "-it", "host", "sh", "-c", script) as person:
            person.sees("on\r\n")
            person.type("\x03")
            person.sees("got it\r\n")
            assert person.status() == 3

    def test_follows_the_size_of_ours(self) -> None:
        script = "trap 'stty size; exit' WINCH; echo on; while :; do sleep 0.05; done"
        with typist("run", "-it", "host", "sh", "-c", script) as person:
            person.sees("on\r\n")
            termios.tcsetwinsize(person.master, (40, 100))
            person.sees("40 100\r\n")
            assert person.status() == 0

    def test_all_output_arrives_before_the_end(self) -> None:
        with typist("run", "-t", "host", "seq", "20000") as person:
            seen = person.sees("20000")
            assert seen.split() == [str(n) for n in range(1, 20001)]
            assert person.status() == 0

    def test_a_pipe_as_input_ends_it(self, cli: Any) -> None:
        assert cli("run", "-it", "host", "cat", input="typed\n").stdout == "typed\ntyped\n"

    def test_is_restored_when_it_is_killed(self) -> None:
        with typist("run", "-it", "--timeout", "0.5", "host", "sleep", "1000") as person:
            person.sees("timed out")
            assert person.status() == 124

    def test_the_hint_after_a_first_control_c(self) -> None:
        with typist("run", "host", "sh", "-c", "trap : INT; echo on; while :; do sleep 0.05; done") as person:
            person.sees("on\r\n")
            person.type("\x03")
            person.sees("Ctrl-C once more kills it")
            person.type("\x03")
            assert person.status() == 137


class TestContainer:
    @requires("subuid")
    def test_is_as_the_options_say(self, cli: Any, tmp_path: Path) -> None:
        (tmp_path / "env").write_text("FROM_FILE=1\n")
        tmp_path.chmod(0o755)  # the program is another user
        script = "echo $A $FROM_FILE; id -u; id -g; pwd; hostname; ulimit -n; cat /in/env; touch /etc/x || touch /t/x"
        done = cli(
            "run", "-e", "A=a b", "--env-file", str(tmp_path / "env"), "-u", "5:6", "-w", "/t", "--hostname", "box",
            "--ulimit", "nofile=64:99", "-v", f"{tmp_path}:/in:ro", "--tmpfs", "/t", "--read-only", "host",
            "sh", "-c", script,
        )  # fmt: skip
        assert done.stdout.splitlines() == ["a b 1", "5", "6", "/t", "box", "64", "FROM_FILE=1"], done.stderr
        assert done.returncode == 0

    @requires("memory.limit")
    def test_out_of_memory_is_told(self, cli: Any) -> None:
        done = cli("run", "-m", "16M", "host", "tail", "/dev/zero")
        assert done.returncode == 137
        assert "out of memory" in done.stderr

    def test_a_limit_that_nobody_keeps_is_refused_or_told(self, cli: Any) -> None:
        done = cli("run", "--cgroups", "none", "-m", "64M", "host", "true")
        assert done.returncode == 125
        assert "sandbox doctor" in done.stderr
        done = cli("run", "--cgroups", "none", "-m", "64M", "--best-effort", "host", "true")
        assert done.returncode == 0
        assert "memory=67108864 is not enforced" in done.stderr

    def test_publishes_ports(self, cli: Any) -> None:
        server = (
            "import socket; s = socket.create_server(('', 80)); print('on', flush=True); c = s.accept()[0]; "
            "c.sendall(b'hello'); c.close()"
        )
        with cli.start("run", "-p", "80", "host", "/usr/bin/python3", "-c", server) as process:
            line = process.stderr.readline()
            assert line.startswith("sandbox: 127.0.0.1:")
            assert line.endswith(" leads to port 80\n")
            assert process.stdout.readline() == "on\n"
            port = int(line.removeprefix("sandbox: 127.0.0.1:").split()[0])
            with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                assert sock.recv(16) == b"hello"
            assert process.wait(10) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)

    def test_a_port_in_use_is_refused_and_nothing_left(self, cli: Any, unique: str, gone: Gone) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            done = cli("run", "-p", f"{taken.getsockname()[1]}:80", "host", "sleep", unique)
        assert done.returncode == 125
        assert "Address already in use" in done.stderr
        gone(unique)
