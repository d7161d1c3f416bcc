"""Processes that are started in running containers."""

from __future__ import annotations

import os
from typing import Any

from sandbox.linux.cgroup import Cgroup
from sandbox.runtime import native, process, spawner

from .answers import Answers
from .container import Child, Container, Exec
from .pod import World
from .spawners import SpawnedChild, Spawner

Message = dict[str, Any]
#: A spawner counts as a process and takes some memory in the container's cgroup; tighter containers do without.
_LEAST_PIDS = 64
_LEAST_MEMORY = 64 << 20


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
            answers.on_gone(running.kill_tree)

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

        def over() -> None:
            _tell(running, used_before, answers)
            if leaf is not None:
                container.give_back(leaf)

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
        finally:
            if directory >= 0:
                os.close(directory)

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
            launch = spawner.start(
                program, pidns_fd=container.namespaces["pid"], init_pidfd=container.child.entrance,
                namespaces=list(container.plan.namespaces),
                placement=native.Placement(directory, container.v1_tasks()),
            )  # fmt: skip
        except OSError:
            container.give_back(leaf)  # the next exec will say what is the matter, if it still is
            return
        finally:
            os.close(directory)
        made = container.spawner = Spawner(self._world.loop, launch, leaf, spawner.identity(program))
        made.on_death = lambda: container.forget_spawner(made)
        made.let_go_when_idle()

    def _start_quickly(
        self, container: Container, program: process.Program, message: Message, fds: list[int], answers: Answers
    ) -> Exec | None:  # fmt: skip
        made = container.spawner
        if made is None or not made.can_take(program):
            return None
        used_before = made.leaf.cpu()

        def over() -> None:
            _tell(running, used_before, answers)
            if made.alive and not made.alone():
                made.let_go()

        quiet = bool(message.get("quiet"))
        child = made.take(
            program, fds[:3], announce=not quiet, on_running=lambda child: _started(answers, child), on_exit=over
        )  # fmt: skip
        if child is None:
            container.forget_spawner(made)
            return None
        running = Exec(str(message["exec"]), container, child, mark=False)
        return running

    # -- signals --------------------------------------------------------------------------------------------------

    @staticmethod
    def signal(container: Container, message: Message, answers: Answers) -> None:
        """``{"exec", "signal", "tree"}``: signal an exec'd process, or kill all it started."""
        running = container.execs.get(str(message["exec"]))
        if running is None:
            answers.finish({"event": "gone"})
            return
        if message.get("tree"):
            running.kill_tree()
        else:
            running.child.signal(int(message["signal"]))
        answers.finish({"event": "signalled"})


def _tell(running: Exec, used_before: dict[str, int], answers: Answers) -> None:
    """The last answer: how it ended, and what it used."""
    container, child = running.container, running.child
    container.execs.pop(running.id, None)
    if child.failure is not None:
        answers.finish({"error": child.failure.facts})
        return
    used = child.cgroup.cpu() if child.cgroup else {}
    usage = child.usage | {name: value - used_before.get(name, 0) for name, value in used.items()}
    kills = container.cgroup.oom_kills() if container.cgroup else 0
    answers.finish({"event": "exited", "returncode": child.returncode, "usage": usage, "started": child.started,
                    "finished": child.finished, "oom_killed": kills > container.oom_seen})  # fmt: skip
    container.oom_seen = kills


def _roomy(container: Container) -> bool:
    pids = (container.resources.get("pids") or {}).get("limit") or _LEAST_PIDS
    memory = (container.resources.get("memory") or {}).get("limit") or _LEAST_MEMORY
    return (pids >= _LEAST_PIDS or pids < 0) and (memory >= _LEAST_MEMORY or memory < 0)


def _started(answers: Answers, child: Child | SpawnedChild) -> None:
    fds = [child.terminal] if child.terminal >= 0 else []
    answers.send({"event": "started", "pid": child.pid, "fds": ["terminal"] if fds else []}, fds)
    for fd in fds:
        os.close(fd)
