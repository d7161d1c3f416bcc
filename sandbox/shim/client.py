"""The client's side: starts a shim, asks it, and turns what it reports into the public errors."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from sandbox.errors import PodStateError, SandboxError, ShimDied, ShimError
from sandbox.linux.idmap import IdMap, host_map
from sandbox.linux.syscalls import pidfd_open

from . import protocol
from .monitor import clean_up
from .rundir import RuntimeDirectory, abandoned, shims

_BOOT = "import sys; sys.path[:0] = [sys.argv[1]]; from sandbox.shim.monitor import main; main(sys.argv[2:])"
#: Seconds a shim may take to end its pods when its client ends in peace; then it is killed, and they with it.
_CLOSE_PATIENCE = 5.0


class Conversation:
    """One request and its answers."""

    def __init__(self, shim: Shim, sock: socket.socket) -> None:
        self._shim = shim
        self._socket = sock
        self._pid = os.getpid()

    def fileno(self) -> int:
        """For poll(2): readable when an answer is there."""
        self._check_process()
        return self._socket.fileno()

    def _check_process(self) -> None:
        """An answer can be read once: a forked child would take it away from its parent."""
        if self._pid != os.getpid():
            raise _foreign(self._pid)

    def answer(self, timeout: float | None = None) -> tuple[dict[str, Any], list[int]]:
        """The next answer and its descriptors. Raises what it reports, or :class:`TimeoutError`."""
        self._check_process()
        if timeout is not None:
            poller = select.poll()
            poller.register(self._socket, select.POLLIN)
            if not poller.poll(max(timeout, 0) * 1000):
                raise TimeoutError
        message, fds = protocol.receive(self._socket)
        if message is None:
            self.close()
            raise self._shim.death()
        if "error" in message:
            self.close()
            raise SandboxError.from_dict(message["error"])
        return message, fds

    def close(self) -> None:
        """No more answers are wanted; the shim notices."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _foreign(pid: int, pod: object = None) -> PodStateError:
    """The error for a forked child that uses what its parent, process ``pid``, has started."""
    name = pod if isinstance(pod, str) else None
    return PodStateError(
        f"it was made by another process ({pid}), of which this one is a fork", operation="use the pod", object=name,
        hint="start one in this process" + (f", or reach that one with `sandbox exec {name}`" if name else ""),
    )  # fmt: skip


class Shim:
    """A connection to a shim: one that this process started, or another process's."""

    def __init__(self, control: socket.socket, directory: RuntimeDirectory) -> None:
        self._control = control
        self._pid = os.getpid()
        self.directory = directory
        #: Unique on this machine.
        self.id = directory.id
        #: seccomp filters that the shim has been sent, by digest.
        self.known_filters: set[str] = set()

    @classmethod
    def connect(cls, directory: RuntimeDirectory) -> Shim:
        """Reach the shim of another process of this user. Raises :class:`OSError` if it is gone."""
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        directory_fd = os.open(directory.path, os.O_PATH | os.O_DIRECTORY)
        try:
            control.connect(f"/proc/self/fd/{directory_fd}/{os.path.basename(directory.socket)}")
        except OSError:
            control.close()
            raise
        finally:
            os.close(directory_fd)
        return cls(control, directory)

    @property
    def foreign(self) -> bool:
        """True if its pods are another process's, of which this one is a fork. Whoever connected may be forked."""
        return False

    def ask(self, op: str, fields: Mapping[str, Any], fds: Sequence[int] = ()) -> Conversation:
        """Send a request; safe from any thread. In a fork of the process that made the pods: :class:`PodStateError`."""
        if self.foreign:
            raise _foreign(self._pid, fields.get("pod"))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            protocol.send(self._control, {"op": op, **fields}, [theirs.fileno(), *fds])
        except (BrokenPipeError, ConnectionResetError):
            ours.close()
            raise self.death() from None
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        if "seccomp_profile" in fields:
            self.known_filters.add(fields["seccomp"])  # what is sent after this arrives after it
        return Conversation(self, ours)

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """One request, one answer without descriptors."""
        with self.ask(op, fields) as conversation:
            return conversation.answer()[0]

    def fetch(self, op: str, **fields: Any) -> int:
        """One request, answered with one descriptor."""
        with self.ask(op, fields) as conversation:
            return conversation.answer()[1][0]

    def death(self) -> SandboxError:
        """The error for a shim that no longer answers."""
        return ShimDied("the process that holds the pods is gone, and every pod with it", operation="ask the shim")

    def close(self) -> None:
        """End the connection."""
        self._control.close()


class OwnShim(Shim):
    """The shim of this process."""

    def __init__(self) -> None:
        directory, lock = RuntimeDirectory.create()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(ours, directory)
        self._errors = os.memfd_create("sandbox-shim-stderr", os.MFD_CLOEXEC)
        self.idmap = host_map()
        try:
            self._monitor = self._start_monitor(theirs, lock, self.idmap)
        except OSError as error:
            os.rmdir(directory.path)
            raise ShimError("the helper process cannot be started", operation="start the shim", errno=error.errno) from error
        finally:
            theirs.close()
            os.close(lock)
        self.call("ping")

    def _start_monitor(self, control: socket.socket, lock: int, idmap: IdMap) -> subprocess.Popen[bytes]:
        library = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        own_pidfd = pidfd_open(os.getpid())
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOOT, library, self.directory.path, str(own_pidfd),
                 str(control.fileno()), json.dumps(idmap.to_json())],
                stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors,
                pass_fds=(control.fileno(), own_pidfd, lock), start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(own_pidfd)

    @property
    def foreign(self) -> bool:
        """True in a forked child: its parent ends the shim, and a connection of the child's would keep it alive."""
        return self._pid != os.getpid()

    @property
    def usable(self) -> bool:
        """False in a forked child, and when the shim is gone."""
        return not self.foreign and self._monitor.poll() is None

    def death(self) -> SandboxError:
        """With what it had to say: its error output is kept."""
        status = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._end_of_shim(1.0)
        said = os.pread(self._errors, 65536, 0).decode(errors="replace").strip()
        if (reported := self._first_words()) is not None:
            reported.logs = tuple(said.splitlines())
            return reported
        if status is None:
            return ShimError("it did not answer", operation="ask the shim", logs=said or None)
        return ShimDied(
            "the process that holds the pods is gone, and every pod with it", operation="ask the shim",
            exit_status=status, logs=said or None,
        )  # fmt: skip

    def _end_of_shim(self, timeout: float) -> int:
        """Wait for the monitor, which tells how the shim has ended; was it killed itself, its work is done here."""
        status = self._monitor.wait(timeout)
        if status < 0:
            clean_up(self.directory)
            return status
        return 128 - status if status > 128 else status

    def _first_words(self) -> SandboxError | None:
        """What a shim says that cannot even start."""
        self._control.setblocking(False)
        for _ in range(2):
            try:
                message, _fds = protocol.receive(self._control)
                break
            except ConnectionResetError:  # it has not read our request; what it sent itself comes next
                continue
            except OSError:
                return None
        else:
            return None
        return SandboxError.from_dict(message["error"]) if message and "error" in message else None

    def close(self) -> None:
        """End the shim and every pod; returns when they are gone."""
        self._control.close()
        if self.foreign:
            return
        try:
            self._end_of_shim(_CLOSE_PATIENCE)
        except subprocess.TimeoutExpired:
            self._monitor.kill()
            self._monitor.wait()
            clean_up(self.directory)
        self._forget()

    def _forget(self) -> None:
        self._control.close()
        errors, self._errors = self._errors, -1
        if errors >= 0:
            os.close(errors)

    def __del__(self) -> None:
        """One that died was replaced, and goes with the last of its pods that somebody still holds."""
        if getattr(self, "_errors", -1) >= 0 and not self.foreign:
            self._forget()


_lock = threading.Lock()
_own: OwnShim | None = None


def own_shim() -> OwnShim:
    """The shim of this process; started at the first use, and anew after a fork or if it died."""
    global _own  # noqa: PLW0603 - one per process is the point
    with _lock:
        if _own is None or not _own.usable:
            try:
                sweep()
                _own = OwnShim()
            except SandboxError:
                raise
            except OSError as error:
                raise ShimError(
                    str(error), operation="start the shim", hint="XDG_RUNTIME_DIR can name another place for its directory"
                ) from error  # fmt: skip
        return _own


def sweep() -> None:
    """Remove what shims left behind that were killed together with everyone who would have cleaned up."""
    for directory, lock in abandoned():
        clean_up(directory)
        os.close(lock)


def running_shims() -> Iterator[Shim]:
    """Connections to all shims of this user that answer."""
    for directory in shims():
        try:
            shim = Shim.connect(directory)
        except OSError:
            continue
        try:
            yield shim
        finally:
            shim.close()


def shutdown() -> None:
    """End the shim of this process, if there is one."""
    global _own  # noqa: PLW0603
    with _lock:
        if _own is not None:
            _own.close()
            _own = None


def _after_fork() -> None:
    global _lock, _own  # noqa: PLW0603
    _lock = threading.Lock()
    if _own is not None:
        _own._control.close()  # noqa: SLF001 - our own: a child must not keep its parent's shim alive
        _own = None


atexit.register(shutdown)
os.register_at_fork(after_in_child=_after_fork)
__all__ = ["Conversation", "OwnShim", "Shim", "own_shim", "running_shims", "shutdown", "sweep", "time"]
