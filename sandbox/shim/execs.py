"""Processes that are started in running containers."""

from __future__ import annotations

import os
from typing import Any

from sandbox.linux.cgroup import Cgroup
from sandbox.runtime import native, process

from .answers import Answers
from .container import Child, Container, Exec
from .pod import World

Message = dict[str, Any]


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
            message["process"], container.spec.get("linux") or {}, container.plan.program.seccomp,
            self._world.may_set_groups,
        )  # fmt: skip
        leaf = container.exec_leaf()
        mark = leaf is None or leaf.v2 is None
        used_before = leaf.statistics() if leaf else {}
        launch = self._launch(container, program, message.get("user"), leaf, fds, mark=mark)
        child = Child(self._world.loop, launch, leaf)
        running = Exec(str(message["exec"]), container, child, mark)
        container.execs[running.id] = running
        quiet = bool(message.get("quiet"))
        child.follow(
            lambda: None if quiet else _started(answers, child),
            lambda: self._over(running, used_before, answers),
        )
        if message.get("lease"):
            answers.on_gone(running.kill_tree)

    def _launch(
        self, container: Container, program: process.Program, user: str | None, leaf: Cgroup | None, fds: list[int],
        *, mark: bool,
    ) -> native.Launch:  # fmt: skip
        assert container.child is not None
        directory = leaf.open_directory() if leaf is not None else -1
        try:
            return native.execute(
                program, user, pidns_fd=container.namespaces["pid"], own_pidns_fd=self._world.own_pidns_fd,
                init_pidfd=container.child.pidfd, namespaces=list(container.plan.namespaces), stdio=fds[:3],
                placement=native.Placement(directory, container.v1_tasks()), mark=mark,
            )  # fmt: skip
        finally:
            if directory >= 0:
                os.close(directory)

    @staticmethod
    def _over(running: Exec, used_before: dict[str, int], answers: Answers) -> None:
        container, child = running.container, running.child
        container.execs.pop(running.id, None)
        if child.failure is not None:
            answers.finish({"error": child.failure.facts})
        else:
            used = child.cgroup.statistics() if child.cgroup else {}
            usage = child.usage | {name: value - used_before.get(name, 0) for name, value in used.items()}
            kills = container.cgroup.oom_kills() if container.cgroup else 0
            answers.finish({"event": "exited", "returncode": child.returncode, "usage": usage, "started": child.started,
                            "finished": child.finished, "oom_killed": kills > container.oom_seen})  # fmt: skip
            container.oom_seen = kills
        if child.cgroup is not None:
            container.give_back(child.cgroup)

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


def _started(answers: Answers, child: Child) -> None:
    fds = [child.terminal] if child.terminal >= 0 else []
    answers.send({"event": "started", "pid": child.pid, "fds": ["terminal"] if fds else []}, fds)
    for fd in fds:
        os.close(fd)
