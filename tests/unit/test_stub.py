"""The program in which finished containers wait: its instructions, and what it does with a list of system calls."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from gate import requires

from sandbox.runtime import stub
from sandbox.runtime.stub import ANY_ERROR, CHANNEL, Full, Machine, Script, errors

ASSEMBLERS = {"x86_64": "as", "aarch64": "aarch64-linux-gnu-as"}
HERE = os.uname().machine
#: Machines, and how their programs are run on this one.
RUNNERS = {name: () if name == HERE else (f"qemu-{name}-static",) for name in stub.MACHINES}


@pytest.mark.parametrize("name", [pytest.param(name, marks=requires(program)) for name, program in ASSEMBLERS.items()])
def test_the_instructions_are_what_is_written_beside_them(name: str, tmp_path: Path) -> None:
    code = stub.MACHINES[name].code
    source = "".join(f"{line}\n" for _, line in code)
    prefix = ASSEMBLERS[name].removesuffix("as")
    subprocess.run([ASSEMBLERS[name], "-o", tmp_path / "stub.o"], input=source, text=True, check=True)
    subprocess.run([f"{prefix}objcopy", "-O", "binary", "-j", ".text", tmp_path / "stub.o", tmp_path / "stub"], check=True)
    assert (tmp_path / "stub").read_bytes() == b"".join(bytes.fromhex(instruction) for instruction, _ in code)


class Waiting:
    """A stub that waits."""

    def __init__(self, machine: Machine, runner: Sequence[str], file: Path) -> None:
        file.write_bytes(stub.program(machine))
        file.chmod(0o755)
        command = [*(str(shutil.which(word)) for word in runner), str(file)]
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            high = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 100)
            streams = [(os.POSIX_SPAWN_CLOSE, number) for number in range(3)]
            self.pid = os.posix_spawn(
                command[0], command, {}, file_actions=[(os.POSIX_SPAWN_DUP2, high, CHANNEL), *streams]
            )  # fmt: skip
            os.close(high)
        self._channel.settimeout(20)
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.output, self._theirs = os.pipe()

    def send(self, script: Script) -> None:
        """Have it do this, with /dev/null and twice a pipe as its streams."""
        socket.send_fds(self._channel, [script.message()], [self.null, self._theirs, self._theirs])
        os.close(self._theirs)
        self._theirs = -1

    def answer(self) -> tuple[int | None, list[int]]:
        """The error that it tells of, None when it executes something; and what it gives back."""
        message, fds, _, _ = socket.recv_fds(self._channel, 64, 4)
        return (stub.refusal(message) if message else None), fds

    def hang_up(self) -> None:
        """Nothing will come."""
        self._channel.close()

    def close(self) -> None:
        """Forget it."""
        for fd in (self.null, self.output, self._theirs):
            if fd >= 0:
                os.close(fd)
        self._channel.close()


@pytest.fixture(
    params=[pytest.param(name, marks=requires(*runner) if runner else ()) for name, runner in RUNNERS.items()]
)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def waiting(machine: str, tmp_path: Path) -> Iterator[Waiting]:
    made = Waiting(stub.MACHINES[machine], RUNNERS[machine], tmp_path / "stub")
    yield made
    made.close()


@pytest.fixture
def script(machine: str) -> Script:
    return Script(stub.MACHINES[machine], 20)


def execute(script: Script, *command: str, may: int = 0) -> None:
    script.call("execve", script.text(command[0]), script.texts(command), script.texts(["A=b"]), may=may)


def test_it_does_one_call_after_the_other(waiting: Waiting, script: Script) -> None:
    words = b"from the script\n"
    script.call("write", 1, script.put(words), len(words))
    execute(script, "/bin/sh", "-c", "echo $A; echo oops >&2")
    waiting.send(script)
    assert os.waitpid(waiting.pid, 0)[1] == 0
    said = os.read(waiting.output, 4096).decode().split("\n")
    assert said[:3] == ["from the script", "b", "oops"]


def test_the_channel_is_closed_when_its_program_runs(waiting: Waiting, script: Script) -> None:
    script.call("close_range", CHANNEL, 0xFFFFFFFF, 4)  # CLOSE_RANGE_CLOEXEC
    execute(script, "/bin/cat")
    waiting.send(script)
    assert waiting.answer() == (None, [])
    os.waitpid(waiting.pid, 0)


def test_errors_that_may_happen_do_not_stop_it(waiting: Waiting, script: Script) -> None:
    script.call("chdir", script.text("/not/there"), may=ANY_ERROR)
    script.call("chdir", script.text("/not/there"), may=errors(errno.EACCES, errno.ENOENT))
    execute(script, "/not/there", may=errors(errno.ENOENT))
    execute(script, "/bin/echo", "here")
    waiting.send(script)
    os.waitpid(waiting.pid, 0)
    assert os.read(waiting.output, 100) == b"here\n"


@pytest.mark.parametrize("may", [0, errors(errno.EACCES)])
def test_others_end_it_and_it_gives_back_what_it_got(waiting: Waiting, script: Script, may: int) -> None:
    script.call("chdir", script.text("/not/there"), may=may)
    execute(script, "/bin/echo", "here")
    waiting.send(script)
    error, streams = waiting.answer()
    assert error == errno.ENOENT
    assert [os.fstat(fd).st_ino for fd in streams[:1]] == [os.stat("/dev/null").st_ino]
    os.write(streams[2], b"mine again")
    for fd in streams:
        os.close(fd)
    assert os.read(waiting.output, 100) == b"mine again"
    assert os.waitstatus_to_exitcode(os.waitpid(waiting.pid, 0)[1]) == 1


def test_nothing_to_execute_is_an_error(waiting: Waiting, script: Script) -> None:
    script.call("umask", 0)
    waiting.send(script)
    error, streams = waiting.answer()
    assert error is not None
    for fd in streams:
        os.close(fd)
    os.waitpid(waiting.pid, 0)


def test_it_ends_with_who_would_have_sent_the_script(waiting: Waiting) -> None:
    waiting.hang_up()
    assert os.waitstatus_to_exitcode(os.waitpid(waiting.pid, 0)[1]) == 1


def test_a_script_has_room_for_so_many_calls(script: Script) -> None:
    for _ in range(20):
        script.call("umask", 0)
    with pytest.raises(Full):
        script.call("umask", 0)


@pytest.mark.parametrize("message", [b"", b'{"notify": true}', b'{"changes": true}', b'{"error": {}}'])
def test_other_messages_are_no_refusals(message: bytes) -> None:
    assert stub.refusal(message) is None
