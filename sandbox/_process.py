"""Programs run in containers, in the manner of :mod:`subprocess`."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Generic, Self, TypeVar

import attrs

from sandbox.errors import CalledProcessError, PodStateError, TimeoutExpired
from sandbox.shim.client import Conversation

PIPE = -1
STDOUT = -2
DEVNULL = -3
_CHUNK = 65536
Text = TypeVar("Text", str, bytes)
AnyText = str | bytes


@attrs.frozen
class Usage:
    """What a container or process has used; None where the host does not tell.

    >>> Usage(cpu=0.25, memory_peak=8 << 20).cpu
    0.25
    """

    #: CPU time in seconds, of everything together.
    cpu: float = 0.0
    #: CPU time in user mode, in seconds.
    user: float = 0.0
    #: CPU time in the kernel, in seconds.
    system: float = 0.0
    #: Most memory used at one time in bytes: of the whole cgroup, or else of the largest process.
    memory_peak: int | None = None
    #: Most processes and threads at one time.
    pids_peak: int | None = None
    #: Bytes read from and written to block devices.
    io_read: int | None = None
    io_write: int | None = None

    @classmethod
    def from_message(cls, usage: Mapping[str, Any]) -> Usage:
        """From the shim's numbers."""
        user = usage.get("cpu_user_usec", usage.get("user", 0) * 1e6) / 1e6
        system = usage.get("cpu_system_usec", usage.get("system", 0) * 1e6) / 1e6
        return cls(
            cpu=usage["cpu_usec"] / 1e6 if "cpu_usec" in usage else user + system, user=user, system=system,
            memory_peak=usage.get("memory_peak", usage.get("max_rss")), pids_peak=usage.get("pids_peak"),
            io_read=usage.get("io_read_bytes"), io_write=usage.get("io_write_bytes"),
        )  # fmt: skip


@attrs.frozen
class Result(Generic[Text]):
    """How a program ended, like :class:`subprocess.CompletedProcess`.

    >>> Result(["true"], 0, "", "").check_returncode()
    """

    #: The command.
    args: Sequence[str]
    #: Exit status, negative for a signal.
    returncode: int
    #: What it wrote; None if it was not captured.
    stdout: Text
    stderr: Text
    #: Seconds from start to end.
    duration: float = 0.0
    #: What it used.
    usage: Usage = Usage()
    #: A process was killed because of a memory limit.
    oom_killed: bool = False

    def check_returncode(self) -> None:
        """Raise :class:`CalledProcessError` if the exit status is not 0."""
        if self.returncode:
            raise CalledProcessError(
                self.returncode, list(self.args), self.stdout, self.stderr, oom_killed=self.oom_killed
            )  # fmt: skip


def decode(data: bytes, text: bool) -> AnyText:
    """Output as the caller wants it; bytes that are not UTF-8 become escapes instead of an error."""
    return data.decode("utf-8", "backslashreplace") if text else data


class WithStreams:
    """What has our ends of the standard streams of a program."""

    _streams: Streams

    @property
    def stdin(self) -> IO[Any] | None:
        """Its standard input, if that is a pipe."""
        return self._streams.file(0)

    @property
    def stdout(self) -> IO[Any] | None:
        """Its standard output, if that is a pipe."""
        return self._streams.file(1)

    @property
    def stderr(self) -> IO[Any] | None:
        """Its standard error, if that is a pipe."""
        return self._streams.file(2)


class Process(WithStreams):
    """A program running in a container, like :class:`subprocess.Popen`.

    ``stdin``, ``stdout`` and ``stderr`` are file objects for the streams that are pipes (text unless ``text=False``);
    ``terminal`` is the descriptor of a terminal's master side, for ``tty=True``.
    """

    def __init__(
        self, args: Sequence[str], conversation: Conversation, streams: Streams, signal_it: Callable[[bool, int], bool],
        *, started: bool = True,
    ) -> None:  # fmt: skip
        self.args = list(args)
        self.returncode: int | None = None
        self.usage = Usage()
        self.oom_killed = False
        self._conversation = conversation
        self._signal_it = signal_it
        self._streams = streams
        self._began = time.monotonic()
        self.duration = 0.0
        message, fds = conversation.answer() if started else ({}, [])
        if message.get("event") == "exited":  # killed before anybody could tell that it runs
            self._ended(message)
        #: Process id as the shim sees it, not the container's own number for it; None if nobody waited to hear of it.
        self.pid: int | None = message.get("pid")
        self.terminal: int | None = fds[0] if fds else None

    def fileno(self) -> int:
        """For poll(2): readable when it has ended and nobody has waited for it yet."""
        return self._conversation.fileno()

    def poll(self) -> int | None:
        """The exit status if it has ended, else None."""
        try:
            return self.wait(0)
        except TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raises :class:`TimeoutExpired`, and leaves it running."""
        if self.returncode is None:
            try:
                message, _ = self._conversation.answer(timeout)
            except TimeoutError:
                raise TimeoutExpired(self.args, timeout or 0) from None
            self._ended(message)
        assert self.returncode is not None
        return self.returncode

    def _ended(self, message: Mapping[str, Any]) -> None:
        self.returncode = message["returncode"]
        self.usage = Usage.from_message(message["usage"])
        self.oom_killed = message["oom_killed"]
        self.duration = message["finished"] - message["started"]
        self._conversation.close()

    def send_signal(self, number: int | str) -> None:
        """Signal the process itself ("HUP", signal.SIGHUP, 1); nothing happens if it has ended."""
        if self.returncode is None:
            self._signal_it(False, signal_value(number))

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> bool:
        """SIGKILL, to the process and everything it has started. False if it had ended by itself: nothing is killed then."""
        return self.returncode is None and self._signal_it(True, signal.SIGKILL)

    def text(self, data: bytes) -> AnyText:
        """Output as the caller wants it."""
        return self._streams.text(data)

    def communicate(self, input: AnyText | None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write ``input``, read to the end, wait. On a timeout nothing is killed, and what was read is in the error."""
        deadline = None if timeout is None else time.monotonic() + timeout
        data = input.encode() if isinstance(input, str) else input or b""
        out, err = self._streams.exchange(self._conversation.fileno(), data, deadline)
        if (
            self.returncode is None and deadline is not None and time.monotonic() >= deadline
            and not _readable(self._conversation.fileno())
        ):  # fmt: skip
            raise TimeoutExpired(self.args, timeout or 0, self._streams.text(out), self._streams.text(err))
        self.wait(None if deadline is None else max(deadline - time.monotonic(), 1.0))
        return self._streams.text(out), self._streams.text(err)

    def close(self) -> None:
        """Close the streams."""
        self._streams.close()
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.stdin.close()
        if kind is not None:
            self.kill()
        self.wait()
        self.close()


class Streams:
    """The three standard streams of a program to be started: what it gets, and what stays here."""

    def __init__(self, stdin: Any, stdout: Any, stderr: Any, *, text: bool) -> None:
        self._text = text
        self._theirs: list[int] = []
        self._to_close: list[int] = []
        self._ours: list[int] = [-1, -1, -1]
        self._files: list[IO[Any] | None] = [None, None, None]
        self._got: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        try:
            self._theirs.append(self._input(stdin))
            self._theirs.append(self._output(1, stdout))
            self._theirs.append(self._theirs[1] if stderr == STDOUT else self._output(2, stderr))
        except BaseException:
            self.release()
            self.close()
            raise

    @property
    def given(self) -> list[int]:
        """Descriptors for the program."""
        return self._theirs

    def release(self) -> None:
        """The program has them now; ours are no longer needed."""
        for fd in self._to_close:
            os.close(fd)
        self._to_close = []

    def _input(self, stdin: Any) -> int:
        if stdin == PIPE:
            read_end, self._ours[0] = os.pipe()
            self._to_close.append(read_end)
            os.fchmod(read_end, 0o666)
            return read_end
        return self._given(stdin, os.O_RDONLY)

    def _output(self, number: int, stream: Any) -> int:
        if stream == PIPE:
            self._ours[number], write_end = os.pipe()
            self._to_close.append(write_end)
            # A program may open /dev/stdout by name, as whatever user it runs.
            os.fchmod(write_end, 0o666)
            return write_end
        return self._given(stream, os.O_WRONLY)

    def _given(self, stream: Any, flags: int) -> int:
        if stream is None or stream == DEVNULL:
            fd = os.open("/dev/null", flags | os.O_CLOEXEC)
            self._to_close.append(fd)
            return fd
        return stream if isinstance(stream, int) else int(stream.fileno())

    def file(self, number: int) -> IO[Any] | None:
        """A file object for our end of a pipe; made when somebody wants one, for it takes longer than to read a little."""
        fd = self._ours[number]
        if fd >= 0 and self._files[number] is None:
            mode = ("w" if number == 0 else "r") + ("" if self._text else "b")
            options: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"} if self._text else {}
            if number == 0:
                options["buffering"] = 1 if self._text else 0
            self._files[number] = os.fdopen(fd, mode, **options)
        return self._files[number]

    def text(self, data: bytes) -> AnyText:
        """As the caller wants it."""
        return decode(data, self._text)

    def exchange(self, done_fd: int, data: bytes, deadline: float | None) -> tuple[bytes, bytes]:
        """Write ``data``, read everything until the end of the program (``done_fd`` readable) or the deadline.

        Streams that outlive the program, because something in the background holds them, are not waited for.
        """
        poller = select.poll()
        pending = memoryview(data)
        open_fds = {fd: number for number, fd in enumerate(self._ours) if fd >= 0}
        for fd, number in open_fds.items():
            os.set_blocking(fd, False)
            poller.register(fd, select.POLLIN if number else select.POLLOUT)
        open_fds.pop(self._ours[0], None)
        done = done_fd < 0  # somebody has seen the end already
        if not done:
            poller.register(done_fd, select.POLLIN)
        while not done:
            wait = None if deadline is None else max(deadline - time.monotonic(), 0) * 1000
            ready = poller.poll(wait)
            if not ready:
                break
            for fd, _ in ready:
                if fd == done_fd:
                    done = True
                elif fd == self._ours[0]:
                    pending = self._feed(poller, pending)
                elif fd in open_fds and not self._drain(fd, open_fds[fd], once=True):
                    poller.unregister(fd)
                    del open_fds[fd]
        for fd, number in open_fds.items():
            self._drain(fd, number, once=False)
        return bytes(self._got[1]), bytes(self._got[2])

    def _feed(self, poller: select.poll, pending: memoryview) -> memoryview:
        try:
            pending = pending[os.write(self._ours[0], pending) :] if pending else pending
        except BlockingIOError:
            return pending
        except BrokenPipeError:
            pending = pending[:0]
        if not pending:
            poller.unregister(self._ours[0])
            self._close_one(0)
        return pending

    def _drain(self, fd: int, number: int, *, once: bool) -> bool:
        """Read what is there; False at the end of the stream."""
        while True:
            try:
                data = os.read(fd, _CHUNK)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._got[number] += data
            if once:
                return True

    def _close_one(self, number: int) -> None:
        fd, file = self._ours[number], self._files[number]
        self._ours[number] = -1
        if file is not None:
            with contextlib.suppress(BrokenPipeError):
                file.close()
        elif fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Close our ends."""
        for number in range(3):
            self._close_one(number)


def _readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def signal_value(number: int | str) -> int:
    """9, "KILL", "SIGKILL" or signal.SIGKILL as a number."""
    if isinstance(number, str) and not number.isdecimal():
        name = number.upper()
        try:
            return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value
        except KeyError:
            raise PodStateError(f"there is no signal {number!r}", operation="signal") from None
    return int(number)
