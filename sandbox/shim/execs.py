"""Processes that are started in running containers."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Any

from sandbox.linux.cgroup import Cgroup, read
from sandbox.runtime import native, process, spawner
from sandbox.runtime.failure import Failure, describe

from .answers import Answers
from .container import Child, Container, Exec
from .pod import World
from .spawners import SpawnedChild, Spawner

Message = dict[str, Any]
#: A spawner counts as a process and takes some memory in the container's cgroup; tighter containers do without.
_LEAST_PIDS = 64
#: Where ``flags`` is behind the name in /proc/PID/stat (proc_pid_stat(5)), and a bit of it.
_FLAGS_FIELD, _PF_EXITING = 7, 0x4
_LEAST_MEMORY = 64 << 20
#: Seconds until one looks again whether all that was killed is dead.
_LOOK_AGAIN = 0.0005


class Execs:
    """Starts them, and tells how they end."""

    def __init__(self, world: World) -> None:
        self._world = world

    def start(self, container: Container, message: Message, fds: list[int], answers: Answers) -> None:
        """``{"process", "user", "exec": id, "quiet", "lease"}`` and three descriptors.

        Answers ``started`` (unless quiet), then ``exited``. With ``"lease"`` the process and all it started is killed when
        the asker closes its end.
        """
        program = process.parse(
            message["process"], container.spec.get("linux") or {}, container.plan.program.seccomp, self._world.surroundings
        )  # fmt: skip
        ordinary = message.get("user") is None and not program.terminal
        running = self._start_quickly(container, program, message, fds, answers) if ordinary else None
        if running is None:
            running = self._start_slowly(container, program, message, fds, answers)
            if ordinary:
                self._world.loop.later(0, lambda: self._make_spawner(container, program))
        container.execs[running.id] = running
        if message.get("lease"):
            answers.on_gone(lambda: _kill(container, message))

    # -- by a copy of the shim ------------------------------------------------------------------------------------

    def _start_slowly(
        self, container: Container, program: process.Program, message: Message, fds: list[int], answers: Answers
    ) -> Exec:  # fmt: skip
        leaf = container.exec_leaf()
        mark = leaf is None
        used_before = leaf.cpu() if leaf else {}
        launch = self._launch(container, program, message.get("user"), leaf, fds, mark=mark)
        child = Child(self._world.loop, launch, leaf)
        running = Exec(str(message["exec"]), container, child, mark)
        quiet = bool(message.get("quiet"))

        def told() -> None:
            _tell(running, used_before, answers)
            if leaf is not None:
                container.give_back(leaf)

        def over() -> None:
            self._when_dead(running, told)

        child.follow(lambda: None if quiet else _started(answers, child), over)
        return running

    def _launch(
        self, container: Container, program: process.Program, user: str | None, leaf: Cgroup | None, fds: list[int],
        *, mark: bool,
    ) -> native.Launch:  # fmt: skip
        assert container.child is not None
        directory = leaf.open_directory() if leaf is not None else -1
        try:
            return native.execute(
                program, user, pidns_fd=container.namespaces["pid"], own_pidns_fd=self._world.own_pidns_fd,
                init_pidfd=container.child.entrance, namespaces=list(container.plan.namespaces), stdio=fds[:3],
                placement=native.Placement(directory, container.v1_tasks()), mark=mark,
            )  # fmt: skip
        except OSError as error:
            if error.errno == errno.ENOMEM and _is_ending(container):
                raise _ended(container) from None
            raise
        finally:
            if directory >= 0:
                os.close(directory)

    def _when_dead(self, running: Exec, callback: Callable[[], None]) -> None:
        """Who has had something killed wants to know that all of it is dead, not only the process that it began with."""
        if running.dying:
            self._world.loop.later(_LOOK_AGAIN, lambda: self._when_dead(running, callback))
        else:
            callback()

    # -- by a spawner ---------------------------------------------------------------------------------------------

    def _make_spawner(self, container: Container, program: process.Program) -> None:
        """Programs of this kind will be wanted again: have something ready for them."""
        if container.spawner is not None or container.state != "running" or not _roomy(container):
            return
        leaf = container.exec_leaf()
        if leaf is None or container.child is None:
            return  # without a cgroup there would be no telling one program's processes from the next one's
        directory = leaf.open_directory()
        try:
            launch, theirs = spawner.start(
                program, pidns_fd=container.namespaces["pid"], init_pidfd=container.child.entrance,
                namespaces=list(container.plan.namespaces),
                placement=native.Placement(directory, container.v1_tasks()),
            )  # fmt: skip
        except OSError:
            container.give_back(leaf)  # the next exec will say what is the matter, if it still is
            return
        finally:
            os.close(directory)
        made = container.spawner = Spawner(self._world.loop, launch, theirs, leaf, spawner.identity(program))
        made.on_death = lambda: container.forget_spawner(made)
        made.let_go_when_idle()

    def _start_quickly(
        self, container: Container, program: process.Program, message: Message, fds: list[int], answers: Answers
    ) -> Exec | None:  # fmt: skip
        made = container.spawner
        if made is None or not made.can_take(program):
            return None
        used_before = made.leaf.cpu()

        def told() -> None:
            _tell(running, used_before, answers)
            if running.killed:
                made.leaf.remove_empty()
            elif made.alive and not made.alone():
                made.let_go()

        def over() -> None:
            self._when_dead(running, told)

        def lost(child: SpawnedChild, streams: list[int] | None) -> None:
            if streams is None or running.killed:
                running.kill_tree()  # the program may have outlived its spawner, and nobody could tell how it ends
                child.ended(-signal.SIGKILL, {})
            else:
                self._start_anew(container, program, message, streams, answers)
            for fd in streams or ():
                os.close(fd)

        quiet = bool(message.get("quiet"))
        child = made.take(
            program, fds[:3], announce=not quiet, on_running=lambda child: _started(answers, child), on_exit=over,
            on_lost=lost,
        )  # fmt: skip
        if child is None:
            container.forget_spawner(made)
            return None
        running = Exec(str(message["exec"]), container, child, mark=False)
        return running

    def _start_anew(
        self, container: Container, program: process.Program, message: Message, fds: list[int], answers: Answers
    ) -> None:  # fmt: skip
        """Its spawner has died, of something else, without having read what to start."""
        number = str(message["exec"])
        container.execs.pop(number)
        if container.child is None or container.child.returncode is not None:
            answers.finish({"error": _ended(container).facts})
            return
        try:
            container.execs[number] = self._start_slowly(container, program, message, fds, answers)
        except (Failure, OSError) as error:
            answers.finish({"error": describe(error, str(message["op"]))})

    # -- signals --------------------------------------------------------------------------------------------------

    @staticmethod
    def signal(container: Container, message: Message, answers: Answers) -> None:
        """``{"exec", "signal", "tree"}``: signal an exec'd process, or kill all it started.

        Answers ``gone`` if it had ended by itself: then nothing was done.
        """
        running = container.execs.get(str(message["exec"]))
        if running is not None and not message.get("tree"):
            running.child.signal(int(message["signal"]))
        reached = _kill(container, message) if message.get("tree") else running is not None
        answers.finish({"event": "signalled" if reached else "gone"})


def _kill(container: Container, message: Message) -> bool:
    """Kill the tree of an exec, if it is not over."""
    running = container.execs.get(str(message["exec"]))
    return running is not None and running.kill_tree()


def _tell(running: Exec, used_before: dict[str, int], answers: Answers) -> None:
    """The last answer: how it ended, and what it used."""
    container, child = running.container, running.child
    container.execs.pop(running.id, None)
    if child.failure is not None:
        ended = child.failure.facts.get("errno") == errno.ENOMEM and _is_ending(container)
        answers.finish({"error": (_ended(container) if ended else child.failure).facts})
        return
    used = child.cgroup.cpu() if child.cgroup else {}
    usage = child.usage | {name: value - used_before.get(name, 0) for name, value in used.items()}
    kills = container.cgroup.oom_kills() if container.cgroup else 0
    answers.finish({"event": "exited", "returncode": child.returncode, "usage": usage, "started": child.started,
                    "finished": child.finished, "oom_killed": kills > container.oom_seen})  # fmt: skip
    container.oom_seen = kills


def _ended(container: Container) -> Failure:
    return Failure("PodStateError", operation="use the container", object=container.name, detail="it has ended")


def _is_ending(container: Container) -> bool:
    """Whether its init is gone, or is about to: from then on the kernel makes no process there (ENOMEM, pid_namespaces(7))."""
    if container.child is None or container.child.returncode is not None:
        return True
    fields = (read(f"/proc/{container.child.pid}/stat") or "").rpartition(")")[2].split()
    return len(fields) < _FLAGS_FIELD or bool(int(fields[_FLAGS_FIELD - 1]) & _PF_EXITING)


def _roomy(container: Container) -> bool:
    pids = (container.resources.get("pids") or {}).get("limit") or _LEAST_PIDS
    memory = (container.resources.get("memory") or {}).get("limit") or _LEAST_MEMORY
    return (pids >= _LEAST_PIDS or pids < 0) and (memory >= _LEAST_MEMORY or memory < 0)


def _started(answers: Answers, child: Child | SpawnedChild) -> None:
    fds = [child.terminal] if child.terminal >= 0 else []
    answers.send({"event": "started", "pid": child.pid, "fds": ["terminal"] if fds else []}, fds)
    for fd in fds:
        os.close(fd)
