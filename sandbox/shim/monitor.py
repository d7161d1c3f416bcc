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
from sandbox.linux.errors import KernelError
from sandbox.linux.idmap import IdMap, is_privileged, write_map
from sandbox.runtime.failure import Failure

from . import server
from .rundir import RuntimeDirectory

#: What can forbid user namespaces, the value by which it does, and the remedy.
_SWITCHES = {
    "/proc/sys/user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces=15000"),
    "/proc/sys/kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone=1"),
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
        "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that allows it",
    ),
}  # fmt: skip


def main(arguments: list[str]) -> None:
    """``RUNTIME_DIRECTORY CLIENT_PIDFD CONTROL_FD IDMAP_JSON``: run a shim until it ends."""
    directory, client_pidfd, control_fd = RuntimeDirectory(arguments[0]), int(arguments[1]), int(arguments[2])
    idmap = server.parse_idmap(arguments[3])
    _reset_signals()
    os.chdir("/")
    os.umask(0o022)
    try:
        pid, pidfd, go = _spawn_shim(directory, control_fd, idmap)
    except KernelError as error:
        server.tell_start_failure(control_fd, _no_namespaces(error))
        clean_up(directory)
        os._exit(1)
    try:
        if not is_privileged():
            write_map(pid, idmap)
        os.write(go, b"x")
    except OSError as error:
        server.tell_start_failure(control_fd, _no_map(error))
        syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(control_fd)
    os.close(go)
    status = _wait(pid, pidfd, client_pidfd)
    clean_up(directory)
    os._exit(status if status >= 0 else 128 - status)  # as a shell would tell


def _no_namespaces(error: KernelError) -> Failure:
    """Why the kernel makes no namespaces for us, as far as its switches tell (user_namespaces(7))."""
    cause, hint = "it may be forbidden from outside: by a container we are in, or by a security module", None
    for path, (forbids, remedy) in _SWITCHES.items():
        if (cgroup.read(path) or "").strip() == forbids:
            cause, hint = f"{path} is {forbids}", remedy
            break
    kinds = "process and mount namespaces" if is_privileged() else "user namespace"
    return Failure(
        "NamespaceUnavailable", operation="make", object=kinds, errno=error.errno, cause=cause,
        hint=hint or "allow it there (podman and docker: --privileged, or a seccomp profile that allows it)",
    )  # fmt: skip


def _no_map(error: OSError) -> Failure:
    return Failure(
        "NamespaceUnavailable", operation="map ids into", object="user namespace", errno=error.errno,
        detail=None if error.errno else str(error),
        hint="check this user's lines in /etc/subuid and /etc/subgid, and that newuidmap is set-user-ID",
    )  # fmt: skip


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
    """Remove what a dead shim left: its cgroups, its runtime directory. Safe to repeat.

    The directory says what there is to remove, so it stays until all of that is gone: the next shim tries again.
    """
    left = [path for path in directory.traces() if not _removed(path)]
    if not left:
        directory.remove()


def _removed(path: str) -> bool:
    try:
        cgroup.Cgroup(path).remove()
    except OSError as error:
        sys.stderr.write(f"remove {path}: {error}\n")
        return False
    return True
