"""The native engine: one clone3(2) into new namespaces, the plan, execve(2).

The parent's half. It runs in the shim, which is single-threaded, so the child may go on in the same interpreter until it
executes the program (see :mod:`.init` for its half). Nothing here blocks: the child reports over a socket.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from sandbox.linux import constants as c, syscalls
from sandbox.linux.idmap import IdMap, write_map

from . import init, rootfs as roots
from .failure import Failure, invalid
from .plan import Plan
from .process import Program

#: Namespaces that the containers of a pod share.
POD_NAMESPACES = ("user", "network", "ipc", "uts")


class Placement(NamedTuple):
    """Where a process is born: a cgroup2 directory (or -1), and ``tasks`` files of version 1 controllers to enter."""

    cgroup_fd: int
    v1_tasks: tuple[int, ...]


class Launch(NamedTuple):
    """A process that is on its way; ``channel`` tells how it fares (end of file: the program runs).

    ``namespaces``: descriptors of a container's namespaces, for whoever keeps it.
    """

    pid: int
    pidfd: int
    channel: socket.socket
    namespaces: dict[str, int]


def user_namespace(idmap: IdMap) -> int:
    """A descriptor of a user namespace with ``idmap``, kept for idmapped mounts."""
    read_end, write_end = os.pipe()
    pid, pidfd = syscalls.clone3(c.CLONE_NEWUSER, signal.SIGCHLD)
    if pid == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    try:
        write_map(pid, idmap)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(read_end)
        os.close(write_end)
        os.waitpid(pid, 0)
        os.close(pidfd)


def start(
    plan: Plan, rootfs: roots.Rootfs, *, idmap: IdMap, userns_fd: int, pod: Mapping[str, int] | None,
    stdio: Sequence[int], placement: Placement, scratch: str, state: Mapping[str, object], notify: str | None = None,
    hand_over: Callable[[init.Order], Launch | init.Order] | None = None,
) -> Launch:  # fmt: skip
    """Start a container.

    ``pod`` has the descriptors of the pod's namespaces, None to make them; ``userns_fd`` (or -1) is the namespace whose
    ids idmapped mounts take; ``scratch`` is an empty directory to mount on; ``hand_over`` gives the order to a process
    that was made ahead, or returns an order for a new one (:mod:`.spare`). Raises :class:`Failure` for what can be told
    before the child exists.
    """
    clones = roots.prepare(rootfs, userns_fd)
    prepared: dict[str, int] = {}
    try:
        for bind in plan.binds:
            if bind.target in prepared:
                raise invalid("$.mounts", f"two bind mounts at {bind.target}")
            prepared[bind.target] = bind.prepare(userns_fd)
        order = init.Order(
            plan, rootfs, clones, prepared, tuple(stdio), placement.v1_tasks, scratch, dict(state), notify
        )  # fmt: skip
        launch = hand_over(order) if hand_over else order
        return _start_anew(launch, idmap, pod, placement.cgroup_fd) if isinstance(launch, init.Order) else launch
    finally:
        for fd in (*clones, *prepared.values()):
            os.close(fd)


def _start_anew(order: init.Order, idmap: IdMap, pod: Mapping[str, int] | None, cgroup_fd: int) -> Launch:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            pid, pidfd = _clone(order, theirs, pod, cgroup_fd)
    except BaseException:
        ours.close()
        raise
    try:
        if pod is None:
            write_map(pid, idmap)
        # Before the child goes on: it makes itself uninspectable, and these links with it.
        namespaces = open_namespaces(pid, order.plan.namespaces)
        ours.send(b"go")
    except BaseException as error:
        dead = isinstance(error, FileNotFoundError | ProcessLookupError | BrokenPipeError)
        syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(pidfd)
        ours.close()
        if dead:
            raise Failure(operation="start the process", detail=f"it died before it had begun ({status})",
                          hint="if its memory is limited, give it more: what starts it needs a megabyte") from None  # fmt: skip
        raise
    return Launch(pid, pidfd, ours, namespaces)


def open_namespaces(pid: int, kinds: Iterable[str]) -> dict[str, int]:
    """Descriptors of the namespaces of a process that others will join: the pod's, and its own process and mount ones."""
    opened: dict[str, int] = {}
    try:
        for kind in kinds:
            if kind in (*POD_NAMESPACES, "pid", "mount"):
                opened[kind] = os.open(f"/proc/{pid}/ns/{c.NAMESPACES[kind][1]}", os.O_RDONLY | os.O_CLOEXEC)
    except BaseException:
        for fd in opened.values():
            os.close(fd)
        raise
    return opened


def _clone(order: init.Order, channel: socket.socket, pod: Mapping[str, int] | None, cgroup_fd: int) -> tuple[int, int]:
    wanted = {kind: path for kind, path in order.plan.namespaces.items() if kind not in ("cgroup", "time")}
    if pod is not None:
        join = {kind: pod[kind] for kind in POD_NAMESPACES if kind in pod and kind in wanted}
        return _clone_into(order, channel, join, cgroup_fd)
    by_path = {kind: os.open(path, os.O_RDONLY | os.O_CLOEXEC) for kind, path in wanted.items() if path}
    try:
        if by_path or "time" in order.plan.namespaces:
            return _clone_into(order, channel, by_path, cgroup_fd)
        flags = sum(c.NAMESPACES[kind][0] for kind in wanted)
        pid, pidfd = syscalls.clone3(flags, signal.SIGCHLD, cgroup_fd)
        if pid == 0:
            init.main(order, channel)
        return pid, pidfd
    finally:
        for fd in by_path.values():
            os.close(fd)


def _clone_into(
    order: init.Order, channel: socket.socket, join: Mapping[str, int], cgroup_fd: int
) -> tuple[int, int]:
    """Start in existing namespaces.

    Process and mount namespaces belong to the user namespace they are made in, so an intermediate process joins that
    one first and makes them from there; CLONE_PARENT gives the container's init to the shim all the same.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    middle, middle_fd = syscalls.clone3(0, signal.SIGCHLD)
    if middle == 0:
        init.intermediate(order, channel, join, cgroup_fd, theirs)
    theirs.close()
    try:
        answer = ours.recv(65536)
    finally:
        ours.close()
        os.waitpid(middle, 0)
        os.close(middle_fd)
    if not answer.isdigit():
        raise init.failure_of(answer)
    pid = int(answer)
    return pid, syscalls.pidfd_open(pid)


def execute(
    program: Program, user: str | None, *, pidns_fd: int, own_pidns_fd: int, init_pidfd: int, namespaces: Sequence[str],
    stdio: Sequence[int], placement: Placement, mark: bool,
) -> Launch:  # fmt: skip
    """Start a program in a running container.

    One fork: the shim points its children at the container's process namespace while it clones, then back. ``mark``
    gives the process and its descendants a cgroup namespace of their own, by which they can be found where there is
    no cgroup to kill.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        syscalls.setns(pidns_fd, c.CLONE_NEWPID)
        try:
            pid, pidfd = syscalls.clone3(0, signal.SIGCHLD, placement.cgroup_fd)
            if pid == 0:
                flags = sum(c.NAMESPACES[kind][0] for kind in namespaces if kind != "pid")
                order = init.Entry(program, user, init_pidfd, flags, tuple(stdio), placement.v1_tasks, mark)
                init.enter(order, theirs)
        finally:
            syscalls.setns(own_pidns_fd, c.CLONE_NEWPID)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Launch(pid, pidfd, ours, {})
