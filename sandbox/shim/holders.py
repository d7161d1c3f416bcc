"""Processes that do nothing but hold a systemd scope: it needs one to be made of, and goes when the last has left it.

The client has the scope made around a holder and then tells where it is (:mod:`sandbox.cgroups.systemd`).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

from sandbox.linux import syscalls
from sandbox.linux.cgroup import Cgroup, write
from sandbox.runtime.failure import Failure

from .answers import Answers
from .loop import Loop

#: A program that every system has, in place of a copy of the shim: ten times smaller. It outlives every pod.
_PROGRAM = ("sleep", "2147483647")
#: The leaf of the scope that it is in where controllers are handed on: then the scope itself may have no processes
#: (cgroups(7)). Moving a process takes milliseconds, so it is not done without need.
LEAF = "holder"


class Holder:
    """One, and the scope that it holds once it has been placed."""

    def __init__(self, loop: Loop, pid: int) -> None:
        self._loop = loop
        self.pid = pid
        self.pidfd = syscalls.pidfd_open(pid)
        self._leaf: Cgroup | None = None
        #: Called with the signal that ended it, when it was not us.
        self.when_killed: Callable[[int], None] = lambda _signal: None
        loop.watch(self.pidfd, self._ended)

    def _ended(self, _events: int) -> None:
        status = self._reap()
        self.when_killed(-status)

    def _reap(self) -> int:
        self._loop.forget(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def move_to(self, leaf: Cgroup) -> None:
        """Out of the scope's own cgroup into one that goes with it."""
        self._leaf = leaf
        leaf.create()
        write(f"{leaf.v2}/cgroup.procs", str(self.pid))

    def end(self) -> None:
        """Let it end, without waiting."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                syscalls.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def release(self) -> None:
        """End it; the scope is empty then, but for what else is in there."""
        if self.pidfd >= 0:
            self.end()
            self._reap()
        if self._leaf is not None and not self._leaf.remove_empty():
            self._leaf.remove()


class Holders:
    """All that are there without belonging to a pod yet."""

    def __init__(self, loop: Loop, placed: Callable[[str], None]) -> None:
        self._loop, self._on_placed = loop, placed
        self._waiting: dict[int, Holder] = {}
        self._placed: dict[str, Holder] = {}

    def hold(self, _message: dict[str, Any], _fds: list[int], answers: Answers) -> None:
        """``{}`` → ``{"holder": id}`` and its pidfd."""
        holder = Holder(self._loop, _spawn())
        self._waiting[holder.pid] = holder
        answers.finish({"event": "holds", "holder": holder.pid}, [holder.pidfd])

    def place(self, message: dict[str, Any], _fds: list[int], answers: Answers) -> None:
        """``{"holder", "v2": its scope's directory, "controllers"}``: prepare the scope for a pod."""
        holder = self._waiting.pop(int(message["holder"]))
        scope = str(message["v2"])
        try:
            if message["controllers"]:
                holder.move_to(Cgroup(f"{scope}/{LEAF}"))
                Cgroup(scope).enable(set(message["controllers"]))
        except OSError:
            holder.release()
            raise
        self._placed[scope] = holder
        answers.finish({"event": "placed"})
        self._on_placed(scope)

    def drop(self, message: dict[str, Any], _fds: list[int], answers: Answers) -> None:
        """``{"holder"}``: there was no scope to be had."""
        self._waiting.pop(int(message["holder"])).release()
        answers.finish({"event": "dropped"})

    def take(self, scope: str | None) -> Holder | None:
        """The holder of a scope that becomes a pod's; None where scopes are not held."""
        if scope is None:
            return None
        holder = self._placed.pop(scope, None)
        if holder is not None and holder.pidfd < 0:
            holder.release()
            raise Failure("PodStateError", operation="use the scope", object=os.path.basename(scope),
                          detail="it was stopped from outside before the pod had started",
                          hint="start the pod again")  # fmt: skip
        return holder

    def waits_in(self, scope: Any) -> bool:
        """True if this scope is ready and no pod has taken it."""
        return scope in self._placed

    def refuse(self, scope: Any) -> None:
        """No pod will take it."""
        self._placed.pop(scope).release()

    def close(self) -> None:
        """No more pods are wanted."""
        for holder in (*self._waiting.values(), *self._placed.values()):
            holder.release()
        self._waiting.clear()
        self._placed.clear()


def _spawn() -> int:
    """Start the program. Raises :class:`Failure` if there is none."""
    null = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0)
    more = [(os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
    try:
        return os.posix_spawnp(_PROGRAM[0], _PROGRAM, {"PATH": "/usr/bin:/bin"}, file_actions=[null, *more], setsid=True)
    except FileNotFoundError:
        raise Failure("SetupError", operation="execute", object=_PROGRAM[0], detail="there is no such program",
                      hint="install coreutils, or do without systemd (--sandbox-systemd=off)") from None  # fmt: skip


def reason_of(number: int) -> str:
    """Why a pod has lost its holder."""
    if number == signal.SIGTERM:
        return "its scope was stopped from outside (systemctl stop, or the scope's RuntimeMaxSec=)"
    name = signal.Signals(number).name if number in signal.valid_signals() else str(number)
    return f"the process that holds its scope was killed from outside ({name})"


__all__ = ["LEAF", "Holder", "Holders", "reason_of"]
