"""One container as the shim sees it: its processes, its streams, its state."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from sandbox.linux import syscalls
from sandbox.linux.cgroup import Cgroup
from sandbox.runtime import init as engine_init, stub
from sandbox.runtime.engine import Driven
from sandbox.runtime.failure import Failure
from sandbox.runtime.native import Launch, Placement
from sandbox.runtime.plan import Plan
from sandbox.runtime.rootfs import Rootfs

from .logs import DEFAULT_LIMIT, LogStore
from .loop import Loop
from .spawners import SpawnedChild, Spawner

#: A fork bomb needs several rounds: what is born while the process list is read is found in the next.
_KILL_ROUNDS = 1000

#: Seconds until one looks again for a process that has ended in the hands of a tracer.
_TRACED_AGAIN = 0.02


class Child:
    """A process that the shim started: a container's init, or an exec'd one. Reports launch and exit."""

    def __init__(self, loop: Loop, launch: Launch, cgroup: Cgroup | None) -> None:
        self.pid = launch.pid
        self.pidfd = launch.pidfd
        self.cgroup = cgroup
        self.returncode: int | None = None
        self.usage: dict[str, float] = {}
        self.started = time.time()
        self.finished: float | None = None
        self.failure: Failure | None = None
        self.terminal = -1
        self.notify = -1
        #: The file system that has what it changes of its image (:func:`sandbox.runtime.rootfs.note_made`).
        self.changes = -1
        #: A pidfd by which others may join its namespaces: its own, or that of the program below a reaping init.
        self.entrance = launch.pidfd
        self._loop = loop
        self._channel: socket.socket | None = launch.channel
        #: Until an external engine's driver has handed over the init, `pid` is the driver's.
        self._driven = isinstance(launch, Driven)
        self._driver: tuple[int, int] | None = None
        self._namespaces = launch.namespaces
        self._on_running: Callable[[], None] = lambda: None
        self._on_exit: Callable[[], None] = lambda: None
        self._on_hooks: Callable[[str, socket.socket], None] = lambda _kind, _channel: None
        self._on_refusal: Callable[[list[int]], None] = lambda _streams: None
        #: The standard streams, if a stub has given up.
        self._returned: list[int] | None = None

    def follow(
        self,
        on_running: Callable[[], None],
        on_exit: Callable[[], None],
        on_hooks: Callable[[str, socket.socket], None] = lambda _kind, _channel: None,
        on_refusal: Callable[[list[int]], None] = lambda _streams: None,
    ) -> None:
        """Call ``on_running`` when the program was executed, ``on_exit`` when the process has ended (in this order).

        Neither is called if it was a stub and could not execute it: then ``on_refusal`` gets the standard streams back.
        """
        self._on_running, self._on_exit, self._on_hooks, self._on_refusal = on_running, on_exit, on_hooks, on_refusal
        assert self._channel is not None
        self._loop.watch(self._channel.fileno(), self._heard)
        self._loop.watch(self.pidfd, self._driver_exited if self._driven else self._exited)

    @property
    def launching(self) -> bool:
        """True until the program was executed or failed to be."""
        return self._channel is not None

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens if it has ended. A driver takes back what it has made, whatever the signal."""
        if self._driven:
            if self._channel is not None:
                with contextlib.suppress(OSError):
                    self._channel.send(b"stop")
            return
        if self.returncode is None:  # afterwards the descriptor's number is another's
            with contextlib.suppress(ProcessLookupError):
                syscalls.pidfd_send_signal(self.pidfd, number)

    def _heard(self, _events: int) -> None:
        assert self._channel is not None
        try:
            data, fds, _, _ = socket.recv_fds(self._channel, 65536, 3)
        except ConnectionResetError:
            return  # it has ended without reading what we sent; what it said itself comes next
        if not data:
            self._close_channel()
            if self._driven and self.failure is None:
                self.failure = engine_init.failure_of(b"")
            if self.failure is None and self._returned is None:
                self._on_running()
        elif len(fds) == 3 and stub.refusal(data) is not None:
            self._returned = fds
        elif len(fds) == 3 and data.startswith(b'{"init"'):
            self._adopt(json.loads(data)["init"], *fds)
        elif fds and (attribute := engine_init.GIFTS.get(data)):
            setattr(self, attribute, fds[0])
        elif data.startswith(b'{"init"') or stub.refusal(data) is not None or data in engine_init.GIFTS:
            self._starved(fds)
        elif data.startswith(b'{"hooks"'):
            self._on_hooks(data.decode(), self._channel)
        else:
            self.failure = engine_init.failure_of(data)

    def _starved(self, fds: list[int]) -> None:
        """A message without (all of) its descriptors: the kernel had no more for us."""
        for fd in fds:
            os.close(fd)
        self.failure = Failure(operation="take a descriptor from", object="the new process", errno=errno.EMFILE,
                               hint="raise the limit of open files of the calling process (ulimit -n)")  # fmt: skip
        self.signal(signal.SIGKILL)

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._loop.forget(self._channel.fileno())
            self._channel.close()
            self._channel = None

    def _adopt(self, pid: int, pidfd: int, pid_namespace: int, mount_namespace: int) -> None:
        """The init that a driver had made; the shim's child as soon as the driver has ended."""
        self._driver = self.pid, self.pidfd
        self._driven = False
        self._loop.forget(self.pidfd)
        self._loop.watch(self.pidfd, lambda _events: self._reap_driver())
        self.pid, self.pidfd, self.entrance = pid, pidfd, pidfd
        self._namespaces |= {"pid": pid_namespace, "mount": mount_namespace}
        self._loop.watch(pidfd, self._exited)

    def _driver_exited(self, _events: int) -> None:
        while self._channel is not None:
            self._heard(0)
        if self._driven:
            self._driver = self.pid, self.pidfd
            self._reap_driver()
            self.returncode, self.finished = -1, time.time()
            self._drop_gifts()
            self._on_exit()

    def _reap_driver(self) -> None:
        if self._driver is not None:
            pid, pidfd = self._driver
            self._driver = None
            self._loop.forget(pidfd)
            os.close(pidfd)
            os.waitpid(pid, 0)

    def _exited(self, _events: int) -> None:
        while self._channel is not None:
            self._heard(0)
        self._reap_driver()
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        self._loop.forget(self.pidfd)
        if pid == 0:
            # A program of the container traces it, and gets to see its end first (ptrace(2)); it must not stop us.
            self._loop.later(_TRACED_AGAIN, lambda: self._loop.watch(self.pidfd, self._exited))
            return
        if self.entrance != self.pidfd:
            os.close(self.entrance)
        os.close(self.pidfd)
        self.returncode = os.waitstatus_to_exitcode(status)
        self.finished = time.time()
        self.usage = {"user": usage.ru_utime, "system": usage.ru_stime, "max_rss": usage.ru_maxrss * 1024}
        if self._returned is not None:
            self._on_refusal(self._returned)
        else:
            self._drop_gifts()
            self._on_exit()

    def _drop_gifts(self) -> None:
        """Of a program that was never executed nobody wants the terminal and the notification socket.

        They would also keep the keyring of who opened it, of which an ordinary user has 200.
        """
        if self.failure is not None:
            for fd in (self.terminal, self.notify):
                if fd >= 0:
                    os.close(fd)
            self.terminal = self.notify = -1


class Container:
    """A container of a pod. The namespaces' descriptors stay open until it is removed, so its files stay readable."""

    def __init__(self, pod_id: str, message: Mapping[str, Any], plan: Plan, rootfs: Rootfs) -> None:
        self.pod_id = pod_id
        self.name: str = message["name"]
        self.plan = plan
        self.spec: dict[str, Any] = message["spec"]
        self.rootfs = rootfs
        self.engine: str = message.get("engine") or "native"
        self.restart_policy: str = message.get("restart") or "no"
        self.notify: str | None = message.get("notify")
        self.logs = LogStore(message.get("log_size") or DEFAULT_LIMIT)
        self.state = "creating"
        self.child: Child | None = None
        self.cgroup: Cgroup | None = None
        self.execs: dict[str, Exec] = {}
        self.spawner: Spawner | None = None
        self._exec_leaves = 0
        self._idle_leaves: list[Cgroup] = []
        self._spoilt: set[str | None] = set()
        self.restarts = 0
        #: Its poststart hooks are running; those of poststop come after them.
        self.poststart_runs = False
        self.namespaces: dict[str, int] = {}
        self.exit: dict[str, Any] | None = None
        self.oom_seen = 0
        self.stopping = False
        self.drains: list[Callable[[], None]] = []
        self.pending_logs: list[tuple[int, str]] = []
        self.over_callbacks: list[Callable[[], Any]] = []
        self.terminal = -1
        self.log_terminal = False
        self.logging_terminal = False
        self._v1_tasks: tuple[int, ...] | None = None
        self.drop_pod: Callable[[], None] | None = None

    @property
    def resources(self) -> dict[str, Any]:
        """The limits of its spec."""
        return (self.spec.get("linux") or {}).get("resources") or {}

    def v1_tasks(self) -> tuple[int, ...]:
        """Descriptors to enter its version 1 cgroups with; opened once, for every exec needs them."""
        if self._v1_tasks is None:
            self._v1_tasks = self.cgroup.open_v1_tasks() if self.cgroup is not None else ()
        return self._v1_tasks

    def exec_leaf(self) -> Cgroup | None:
        """A cgroup ``exec-N`` for one process and what it starts.

        The kernel takes a quarter of a millisecond longer to start a process in a cgroup that never had one, so they are
        used again.
        """
        if self.cgroup is None or self.cgroup.v2 is None:
            return None
        if self._idle_leaves:
            return self._idle_leaves.pop()
        self._exec_leaves += 1
        leaf = Cgroup(f"{self.cgroup.v2}/exec-{self._exec_leaves}")
        leaf.create()
        return leaf

    def give_back(self, leaf: Cgroup) -> None:
        """A leaf is free again, unless the program has left something running in it."""
        if leaf.v2 in self._spoilt:
            leaf.remove_empty()
        elif self.cgroup is not None and not leaf.populated():
            self._idle_leaves.append(leaf)

    def spoil(self, leaf: Cgroup) -> None:
        """A leaf that was killed is not used again: the kernel also kills whatever clone3(2) starts in there later."""
        self._spoilt.add(leaf.v2)

    def forget_spawner(self, spawner: Spawner) -> None:
        """It is gone; its cgroup may serve again."""
        if self.spawner is spawner:
            self.spawner = None
            self.give_back(spawner.leaf)

    def end_spawner(self) -> None:
        """The container has ended: a spawner is outside of its process namespace and does not end with it."""
        if self.spawner is not None:
            self.spawner.end()

    def remove_cgroup(self) -> None:
        """Remove its cgroup with all leaves; nothing is in them any more, as a rule."""
        if self.cgroup is None:
            return
        leaves = [*self._idle_leaves, self.cgroup.child("main").v2_only(), self.cgroup]
        if not all(leaf.remove_empty() for leaf in leaves):
            self.cgroup.remove()
        self.cgroup = None

    def close(self) -> None:
        """Close its descriptors."""
        for fd in (*self.namespaces.values(), *(self._v1_tasks or ()), *(fd for fd, _ in self.pending_logs)):
            os.close(fd)
        if self.child is not None and self.child.changes >= 0:
            os.close(self.child.changes)
            self.child.changes = -1
        self.namespaces, self._v1_tasks, self.pending_logs = {}, None, []

    def oci_state(self) -> dict[str, Any]:
        """The state document of the OCI runtime spec (runtime.md#state)."""
        pid = self.child.pid if self.child and self.state == "running" else 0
        return {
            "ociVersion": self.spec.get("ociVersion", "1.2.0"), "id": f"{self.pod_id}-{self.name}",
            "status": self.state, "pid": pid, "bundle": "/", "annotations": self.plan.annotations,
        }  # fmt: skip

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal the container's init; SIGKILL takes everything in its process namespace along."""
        if self.child is not None and self.child.returncode is None:
            self.child.signal(number)


class Exec:
    """A process that was started in a running container."""

    def __init__(self, id: str, container: Container, child: Child | SpawnedChild, mark: bool) -> None:
        self.id = id
        self.container = container
        self.child = child
        self.mark = mark
        #: Its tree was killed.
        self.killed = False

    def kill_tree(self) -> bool:
        """SIGKILL the process and everything it started, also what has detached itself.

        False if it had ended by itself and what it has left behind cannot be told from others any more: nothing is killed.
        """
        init = self.container.child.pid if self.container.child else 0
        if self.mark and not kill_marked(self.child.pid, unmarked=(os.getpid(), init)):
            return self.killed
        self.killed = True
        if isinstance(self.child, SpawnedChild):
            self.child.owner.leave()
        if self.child.cgroup is not None and self.child.cgroup.kill():
            self.container.spoil(self.child.cgroup)
        else:
            self.child.signal(signal.SIGKILL)
        return True

    @property
    def dying(self) -> bool:
        """True while something of a tree that was killed is still there: death takes a moment."""
        return self.killed and self.child.cgroup is not None and self.child.cgroup.populated()


def placement(cgroup: Cgroup | None, stack: contextlib.ExitStack) -> Placement:
    """Descriptors of a cgroup, closed when ``stack`` is left."""
    if cgroup is None:
        return Placement(-1, ())
    directory, tasks = cgroup.open_directory(), cgroup.open_v1_tasks()
    for fd in (*tasks, *((directory,) if directory >= 0 else ())):
        stack.callback(os.close, fd)
    return Placement(directory, tasks)


def kill_marked(pid: int, unmarked: tuple[int, ...]) -> bool:
    """Kill every process in the cgroup namespace of ``pid`` until there is none left; False if ``pid`` has ended before.

    Not if it is still in that of one of ``unmarked``, on its way to its own: it has started nothing yet.
    """
    try:
        pinned = os.open(f"/proc/{pid}/ns/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ESRCH)
    try:
        mark = os.fstat(pinned).st_ino
        if mark in map(_inode, unmarked):
            return True
        for _ in range(_KILL_ROUNDS):
            found = [int(name) for name in os.listdir("/proc") if name.isdigit() and _inode(int(name)) == mark]
            for other in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
            if not found:
                break
    finally:
        os.close(pinned)
    return True


def _inode(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/cgroup").st_ino
    except OSError:
        return -1
