"""The shim's side of a spawner (:mod:`sandbox.runtime.spawner`): one for a container that is exec'd in again and again."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sandbox.linux import syscalls
from sandbox.linux.cgroup import Cgroup, read
from sandbox.runtime import spawner
from sandbox.runtime.failure import Failure
from sandbox.runtime.native import Launch
from sandbox.runtime.process import Program

from .loop import Loop

#: Seconds without work after which a spawner is let go, with the little memory it takes.
_PATIENCE = 2.0
#: Seconds until one looks again for a process that has ended in the hands of a tracer.
_TRACED_AGAIN = 0.02


class SpawnedChild:
    """A program that a spawner runs; the counterpart of :class:`sandbox.shim.container.Child`."""

    def __init__(
        self, owner: Spawner, on_running: Callable[[], None], on_exit: Callable[[], None],
        on_lost: Callable[[list[int] | None], None],
    ) -> None:  # fmt: skip
        self.owner = owner
        self.cgroup: Cgroup | None = owner.leaf
        self.pid = 0
        self.returncode: int | None = None
        self.usage: dict[str, float] = {}
        self.started = time.time()
        self.finished: float | None = None
        self.failure: Failure | None = None
        self.terminal = -1
        self._pidfd = -1
        self.on_running, self.on_exit, self.on_lost = on_running, on_exit, on_lost

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens if it has ended."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                syscalls.pidfd_send_signal(self._pidfd, number)

    def runs(self, pid: int) -> None:
        """It was executed; from now on it can be signalled."""
        self.pid = pid
        with contextlib.suppress(OSError):
            self._pidfd = syscalls.pidfd_open(pid)
        self.on_running()

    def ended(self, returncode: int | None, usage: dict[str, float], failure: Failure | None = None) -> None:
        """It has ended, or could not be executed."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self.returncode, self.usage, self.failure, self.finished = returncode, usage, failure, time.time()
        self.on_exit()


class Spawner:
    """One spawner: idle, or running one program."""

    def __init__(self, loop: Loop, launch: Launch, theirs: socket.socket, leaf: Cgroup, identity: Program) -> None:
        self.leaf = leaf
        self.identity = identity
        self.alive = True
        self.on_death: Callable[[], None] = lambda: None
        self._loop, self._launch, self._theirs = loop, launch, theirs
        self._ready = False
        self._leaving = False
        self._child: SpawnedChild | None = None
        self._last_used = time.monotonic()
        loop.watch(launch.channel.fileno(), lambda _events: self._listen())
        # As its end of the channel is open here too, only this tells of its death.
        loop.watch(launch.pidfd, lambda _events: self.end())

    def can_take(self, program: Program) -> bool:
        """Whether it is free for a program of this identity."""
        free = self.alive and self._ready and not self._leaving and self._child is None
        return free and spawner.identity(program) == self.identity

    def take(
        self, program: Program, stdio: Sequence[int], *, announce: bool,
        on_running: Callable[[SpawnedChild], None], on_exit: Callable[[], None],
        on_lost: Callable[[SpawnedChild, list[int] | None], None],
    ) -> SpawnedChild | None:  # fmt: skip
        """Run a program; None if it cannot be asked.

        ``on_lost``: the spawner died under it; with the program's standard streams if it has certainly not been started.
        """
        request = spawner.Request(program.args, program.env, program.cwd, announce)
        if not spawner.ask(self._launch.channel, request, stdio):
            self.retire()
            return None
        child = SpawnedChild(self, lambda: on_running(child), on_exit, lambda streams: on_lost(child, streams))
        self._child = child
        return child

    def alone(self) -> bool:
        """Whether nothing but the spawner itself is in its cgroup: no program has left something running."""
        return (read(f"{self.leaf.v2}/cgroup.procs") or "").split() == [str(self._launch.pid)]

    def let_go_when_idle(self) -> None:
        """Look from time to time whether it is still wanted."""
        if not self.alive:
            return
        if self._child is None and time.monotonic() - self._last_used >= _PATIENCE:
            self.let_go()
            return
        self._loop.later(_PATIENCE, self.let_go_when_idle)

    def let_go(self) -> None:
        """Kill it, and go on. It needs the processor to die, and may have to wait for its busy container's share."""
        if self.alive and not self._leaving:
            self.leave()
            with contextlib.suppress(ProcessLookupError):
                syscalls.pidfd_send_signal(self._launch.pidfd, signal.SIGKILL)

    def leave(self) -> None:
        """It has been killed, or is just about to be. That takes a moment, in which it must be given nothing to do."""
        self._leaving = True

    def retire(self) -> list[int] | None:
        """Kill it; returns when it is gone, with the streams of a program of which it knew nothing yet."""
        self.alive = False
        self._loop.forget(self._launch.channel.fileno())
        self._loop.forget(self._launch.pidfd)
        with contextlib.suppress(ProcessLookupError):
            syscalls.pidfd_send_signal(self._launch.pidfd, signal.SIGKILL)
        os.waitpid(self._launch.pid, 0)
        os.close(self._launch.pidfd)
        self._listen()
        with self._launch.channel, self._theirs:
            return spawner.unread(self._theirs)

    def _listen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                message = self._launch.channel.recv(65536, socket.MSG_DONTWAIT)
                self._understand(json.loads(message), self._child)

    def end(self) -> None:
        """It was killed with the tree of the program that it was running, or has to go as its container has ended."""
        if not self.alive:
            return
        streams = self.retire()
        child, self._child = self._child, None
        self._adopt_strays()
        if child is not None:
            child.on_lost(streams)
        self.on_death()

    def _adopt_strays(self) -> None:
        """The spawner's program is the shim's child now; unless it is reaped, the container's init cannot end."""
        for pid in _children_in(self.leaf):
            with contextlib.suppress(OSError):
                pidfd = syscalls.pidfd_open(pid)
                self._loop.watch(pidfd, functools.partial(self._reap, pid, pidfd))

    def _reap(self, pid: int, pidfd: int, _events: int) -> None:
        self._loop.forget(pidfd)
        try:
            reaped, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            reaped = pid
        if reaped == 0:  # traced by a program of the container, which sees its end first (ptrace(2))
            self._loop.later(_TRACED_AGAIN, lambda: self._loop.watch(pidfd, functools.partial(self._reap, pid, pidfd)))
            return
        os.close(pidfd)

    def _understand(self, answer: dict[str, Any], child: SpawnedChild | None) -> None:
        if "ready" in answer:
            self._ready = True
        elif child is None:
            return  # it could not become what it should; the end of its channel follows
        elif "pid" in answer:
            child.runs(answer["pid"])
        else:
            self._child = None
            self._last_used = time.monotonic()
            if "error" in answer:
                facts = dict(answer["error"])
                child.ended(None, {}, Failure(facts.pop("type"), **facts))
            else:
                child.ended(answer["returncode"], answer["usage"])


def _children_in(leaf: Cgroup) -> Iterator[int]:
    """Children of this process, zombies too, that belong to the cgroup ``leaf``."""
    name = "/" + "/".join((leaf.v2 or "").split("/")[-3:])
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                fields = (read(f"/proc/{entry}/stat") or "").rpartition(")")[2].split()
                if fields[1:2] == [str(os.getpid())] and f"{name}\n" in (read(f"/proc/{entry}/cgroup") or ""):
                    yield int(entry)
