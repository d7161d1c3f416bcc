"""The monitor: parent of the shim, outside of its namespaces; it cleans up after whichever of client and shim dies.

It does nothing but wait. When the client is gone it kills the shim, and with it the kernel kills every process of every
pod; when the shim is gone it removes what the kernel does not: cgroup directories and the shim's runtime directory.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys

from sandbox.linux import cgroup, constants as c, syscalls
from sandbox.linux.idmap import IdMap, is_privileged, write_map

from . import server
from .rundir import RuntimeDirectory


def main(arguments: list[str]) -> None:
    """``RUNTIME_DIRECTORY CLIENT_PIDFD CONTROL_FD IDMAP_JSON``: run a shim until it ends."""
    directory, client_pidfd, control_fd = RuntimeDirectory(arguments[0]), int(arguments[1]), int(arguments[2])
    idmap = server.parse_idmap(arguments[3])
    _reset_signals()
    os.chdir("/")
    os.umask(0o022)
    pid, pidfd, go = _spawn_shim(directory, control_fd, idmap)
    os.close(control_fd)
    try:
        if not is_privileged():
            write_map(pid, idmap)
        os.write(go, b"x")
    except OSError as error:
        sys.stderr.write(f"map the ids of the sandbox: {error}\n")
        syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(go)
    status = _wait(pid, pidfd, client_pidfd)
    clean_up(directory)
    os._exit(min(abs(status), 255))


def _reset_signals() -> None:
    """Neither what the client ignores nor what it blocks is for the programs in the pods."""
    for number in signal.valid_signals():
        if number not in (signal.SIGPIPE, signal.SIGXFSZ) and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _spawn_shim(directory: RuntimeDirectory, control_fd: int, idmap: IdMap) -> tuple[int, int, int]:
    wait_fd, go = os.pipe()
    own = 0 if is_privileged() else c.CLONE_NEWUSER
    pid, pidfd = syscalls.clone3(own | c.CLONE_NEWPID | c.CLONE_NEWNS, signal.SIGCHLD)
    if pid == 0:
        os.close(go)
        server.main(directory, control_fd, wait_fd, idmap, privileged=not own)
    os.close(wait_fd)
    return pid, pidfd, go


def _wait(pid: int, pidfd: int, client_pidfd: int) -> int:
    """Until the shim has ended, by itself or because the client has; its exit code."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.register(client_pidfd, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poller.poll()}
        if client_pidfd in ready:
            poller.unregister(client_pidfd)
            with contextlib.suppress(ProcessLookupError):
                syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
        if pidfd in ready:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def clean_up(directory: RuntimeDirectory) -> None:
    """Remove what a dead shim left: its cgroups, its runtime directory. Safe to repeat."""
    for path in directory.traces():
        with contextlib.suppress(OSError):
            cgroup.Cgroup(path).remove()
    directory.remove()
