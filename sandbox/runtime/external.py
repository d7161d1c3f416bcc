"""The engines crun and runc: the same document, carried out by a program (:mod:`.driver` calls it).

What differs from the native engine: the program is told neither of cgroups nor of user namespaces, because the shim has
both done by then; hooks before the start are run by the program, as root of the pod's user namespace.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from sandbox.linux import constants as c, syscalls
from sandbox.linux.idmap import IdMap, write_map

from . import bundle, driver, rootfs as roots
from .engine import Driven, Engine
from .init import Order
from .native import POD_NAMESPACES, Launch, Placement
from .plan import Plan
from .tools import Tool, find


def engine(name: str, spec: Mapping[str, Any]) -> Engine:
    """The engine ``name`` for a container with this document. Raises :class:`Failure` where it is not installed."""
    return External(find(name), spec)


class External:
    """Starts one container through a program."""

    def __init__(self, tool: Tool, spec: Mapping[str, Any]) -> None:
        self._tool, self._spec = tool, spec

    def start(
        self, plan: Plan, rootfs: roots.Rootfs, *, idmap: IdMap, userns_fd: int, pod: Mapping[str, int] | None,
        stdio: Sequence[int], placement: Placement, scratch: str, state: Mapping[str, Any], notify: str | None = None,
    ) -> Launch:  # fmt: skip
        """See :class:`.engine.Engine`."""
        bundle.check(plan, self._tool.name)
        clones = roots.prepare(rootfs, userns_fd)
        prepared: dict[str, int] = {}
        try:
            for bind in plan.binds:
                prepared[bind.target] = bind.prepare(userns_fd)
            order = Order(
                plan, rootfs, clones, prepared, tuple(stdio), placement.v1_tasks, scratch, dict(state), notify
            )  # fmt: skip
            join = None if pod is None else {kind: fd for kind, fd in pod.items() if kind in plan.namespaces}
            job = driver.Job(order, self._tool, self._spec, join, str(state["id"]))
            return _launch(job, idmap, placement.cgroup_fd)
        finally:
            for fd in (*clones, *prepared.values()):
                os.close(fd)


def _launch(job: driver.Job, idmap: IdMap, cgroup_fd: int) -> Launch:
    """Start the driver, in the pod's namespaces or, for the first container, in new ones that become the pod's."""
    kinds = [kind for kind in POD_NAMESPACES if kind in job.order.plan.namespaces]
    flags = 0 if job.join is not None else sum(c.NAMESPACES[kind][0] for kind in (*kinds, "mount"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            pid, pidfd = syscalls.clone3(flags, signal.SIGCHLD, cgroup_fd)
            if pid == 0:
                driver.main(job, theirs)
    except BaseException:
        ours.close()
        raise
    try:
        namespaces = _namespaces(job, pid, kinds, idmap)
        ours.send(b"go")
    except BaseException:
        syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)
        ours.close()
        raise
    return Driven(pid, pidfd, ours, namespaces)


def _namespaces(job: driver.Job, pid: int, kinds: Sequence[str], idmap: IdMap) -> dict[str, int]:
    """Descriptors of the namespaces that the container shares with its pod; its own follow with its init."""
    if job.join is not None:
        return {kind: os.dup(fd) for kind, fd in job.join.items()}
    write_map(pid, idmap)
    return {
        kind: os.open(f"/proc/{pid}/ns/{c.NAMESPACES[kind][1]}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds
    }
