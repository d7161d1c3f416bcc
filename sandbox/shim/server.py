"""The shim's main program: takes requests, keeps the pods (:mod:`.pods`), ends with its client."""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from sandbox.linux import constants as c, syscalls
from sandbox.linux.errors import KernelError
from sandbox.linux.idmap import IdMap, become_root, nested
from sandbox.runtime import native
from sandbox.runtime.failure import Failure, describe

from . import interpreter, protocol
from .answers import Answers
from .loop import Loop
from .pods import Pods, World
from .rundir import RuntimeDirectory

#: Seconds until a connection is accepted for which there was no descriptor.
_ACCEPT_AGAIN = 0.1
#: Errors of a request that go to the asker; anything else is a bug and ends up in the shim's error output too.
_EXPECTED = (Failure, OSError)


def parse_idmap(text: str) -> IdMap:
    """The id map from the monitor's command line."""
    return IdMap.from_json(json.loads(text))


def main(directory: RuntimeDirectory, control_fd: int, wait_fd: int, idmap: IdMap, *, privileged: bool) -> NoReturn:
    """The child's side of the monitor's clone3: process 1 of its own process namespace."""
    status = 1
    try:
        syscalls.prctl(c.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.read(wait_fd, 1):  # the end of file if the monitor was gone before that
            os.close(wait_fd)
            if not privileged:
                become_root()
                syscalls.prctl(c.PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of credentials clears it
            start = _prepare(directory, control_fd, idmap if privileged else nested(idmap), privileged=privileged)
            if interpreter.is_exposed(start.idmap):
                interpreter.protect()
                interpreter.execute_again(start.to_arguments(), (start.control_fd, start.listener_fd))
            status = _serve(start)
    except BaseException:  # noqa: BLE001 - it is told to the client, and the process ends
        sys.excepthook(*sys.exc_info())
        tell_start_failure(control_fd, sys.exc_info()[1])
    finally:
        os._exit(status)


class _Start(NamedTuple):
    """What the first half of a start leaves to the second, in the same process."""

    directory: RuntimeDirectory
    control_fd: int
    listener_fd: int
    soft_files: int
    #: The map of the pods.
    idmap: IdMap
    privileged: bool

    def to_arguments(self) -> list[str]:
        """For a command line."""
        numbers = (self.control_fd, self.listener_fd, self.soft_files, int(self.privileged))
        return [self.directory.path, *map(str, numbers), json.dumps(self.idmap.to_json())]

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> _Start:
        """The reverse."""
        path, *numbers, idmap = arguments
        control_fd, listener_fd, soft_files, privileged = map(int, numbers)
        return cls(RuntimeDirectory(path), control_fd, listener_fd, soft_files, parse_idmap(idmap), bool(privileged))


def resume(arguments: list[str]) -> NoReturn:
    """The second half, after the interpreter was executed again (:mod:`.interpreter`)."""
    status, start = 1, _Start.from_arguments(arguments)
    try:
        for fd in (start.control_fd, start.listener_fd):
            os.set_inheritable(fd, False)
        interpreter.check(start.idmap)
        status = _serve(start)
    except BaseException:  # noqa: BLE001 - it is told to the client, and the process ends
        sys.excepthook(*sys.exc_info())
        tell_start_failure(start.control_fd, sys.exc_info()[1])
    finally:
        os._exit(status)


def tell_start_failure(control_fd: int, error: BaseException | None) -> None:
    """Send the client what kept the shim from starting; it is what the first request is answered with."""
    try:
        control = socket.socket(fileno=os.dup(control_fd))
        protocol.send(control, {"error": describe(error or RuntimeError(), "start the shim")})
    except OSError:
        pass


def _prepare(directory: RuntimeDirectory, control_fd: int, idmap: IdMap, *, privileged: bool) -> _Start:
    os.setsid()
    syscalls.join_session_keyring()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    listener = _listen(directory)
    _enter_own_mounts(directory)
    return _Start(directory, control_fd, listener.detach(), limits[0], idmap, privileged)


def _serve(start: _Start) -> int:
    default_signals()
    syscalls.set_title("sandbox: shim")
    world = World(
        loop=Loop(), space=start.directory.space, idmap=start.idmap, soft_files=start.soft_files, privileged=start.privileged,
        userns_fd=native.user_namespace(start.idmap) if start.privileged else -1,
        own_pidns_fd=os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC),
        own_netns_fd=os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC),
    )  # fmt: skip
    server = Server(world, socket.socket(fileno=start.control_fd), socket.socket(fileno=start.listener_fd))
    gc.collect()
    gc.freeze()  # children share these pages; collecting would copy them
    gc.disable()
    server.run()
    return 0


def default_signals() -> None:
    """Undo what Python ignores for itself, once, for all programs: they inherit it.

    The shim itself is process 1 of its namespace, which signals that it does not handle cannot kill.
    """
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


def _listen(directory: RuntimeDirectory) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here = os.getcwd()
    os.chdir(directory.path)  # a socket's path has 108 bytes; ours may be longer
    listener.bind(os.path.basename(directory.socket))
    os.chdir(here)
    listener.listen(16)
    return listener


def _enter_own_mounts(directory: RuntimeDirectory) -> None:
    """Mounts of the host still come and go here, but none of ours is seen there."""
    syscalls.mount(None, "/", None, c.MS_SLAVE | c.MS_REC)
    try:
        syscalls.mount("proc", "/proc", "proc", c.MS_NOSUID | c.MS_NODEV | c.MS_NOEXEC)
    except KernelError as error:
        raise Failure("NamespaceUnavailable", operation="mount proc on", object="/proc", errno=error.errno,
                      cause="parts of /proc are covered here, so the kernel allows no fresh one (an outer container?)",
                      hint="run the outer container with unmasked /proc (podman: --security-opt unmask=ALL, docker: "
                           "--security-opt systempaths=unconfined)") from None  # fmt: skip
    syscalls.mount("sandbox", directory.space, "tmpfs", c.MS_NOSUID | c.MS_NODEV, "mode=0711")
    os.mkdir(f"{directory.space}/scratch")


class Server:
    """Connections and their requests."""

    def __init__(self, world: World, control: socket.socket, listener: socket.socket) -> None:
        self._world = world
        self._loop = world.loop
        self._pods = Pods(world)
        self._control = control
        self._listener = listener
        self._operations: dict[str, Callable[[dict[str, Any], list[int], Answers], None]] = self._pods.operations()
        self._operations["ping"] = self._ping

    def run(self) -> None:
        """Until the client closes its connection."""
        self._loop.watch(self._control.fileno(), lambda _events: self._request(self._control), select.EPOLLIN)
        self._loop.watch(self._listener.fileno(), self._accept)
        self._loop.run()

    def _ping(self, _message: dict[str, Any], _fds: list[int], answers: Answers) -> None:
        answers.finish({"event": "pong", "version": protocol.VERSION, "pid": os.getpid()})

    def _accept(self, _events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            # No descriptor left for it. It stays in the queue until there may be one.
            sys.stderr.write(f"shim: accept a connection: {error}\n")
            self._loop.forget(self._listener.fileno())
            self._loop.later(_ACCEPT_AGAIN, lambda: self._loop.watch(self._listener.fileno(), self._accept))
            return
        _, uid, _ = _peer(connection)
        if uid != 0 and uid != os.geteuid():
            connection.close()
            return
        self._loop.watch(connection.fileno(), lambda _events: self._request(connection), select.EPOLLIN)

    def _request(self, connection: socket.socket) -> None:
        try:
            message, fds = protocol.receive(connection)
        except (OSError, ValueError) as error:
            sys.stderr.write(f"shim: {error}\n")
            return
        if message is None:
            self._disconnected(connection)
            return
        if not fds:
            sys.stderr.write("shim: a request without a socket for its answers\n")
            return
        answers = Answers(self._loop, fds.pop(0))
        try:
            self._operations[message["op"]](message, fds, answers)
        except _EXPECTED as error:
            answers.finish({"error": describe(error, str(message["op"]))})
        except Exception as error:  # noqa: BLE001 - a bug in one request must not take all pods along
            sys.excepthook(*sys.exc_info())
            answers.finish({"error": {"type": "ShimError", "operation": str(message.get("op")),
                                      "detail": f"internal error: {type(error).__name__}: {error}"}})  # fmt: skip
        finally:
            for fd in fds:
                os.close(fd)

    def _disconnected(self, connection: socket.socket) -> None:
        self._loop.forget(connection.fileno())
        connection.close()
        if connection is self._control:
            self._pods.close_all(self._stop)

    def _stop(self) -> None:
        self._loop.running = False


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return (
        int.from_bytes(credentials[0:4], sys.byteorder, signed=True),
        int.from_bytes(credentials[4:8], sys.byteorder),
        int.from_bytes(credentials[8:12], sys.byteorder),
    )
