"""Starting containers and seeing them end: what happens between a request and its answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import Callable
from typing import Any

from sandbox.linux import syscalls
from sandbox.linux.cgroup import Cgroup
from sandbox.runtime import external, hooks, limits, native
from sandbox.runtime.failure import Failure, describe
from sandbox.runtime.init import Order, encode_error

from .answers import Answers
from .container import Child, Container
from .pod import Pod, World
from .spares import Reserve

#: A container that keeps failing is restarted after 50 ms, then after twice as long each time, up to this many seconds.
_LONGEST_BACKOFF = 5.0


class Launcher:
    """Starts containers, restarts them by their policy, and tells who wants to know when they are over."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop = world.loop

    def start(
        self, pod: Pod, container: Container, fds: list[int] | None, answers: Answers, *, wait: bool | str
    ) -> None:  # fmt: skip
        """Start ``container`` of ``pod`` with the given standard streams, or with pipes into its log."""
        self._settle_reserve(pod, container)
        container.cgroup = pod.container_cgroup(container.name, container.resources)
        pod.containers[container.name] = container
        try:
            self._launch(pod, container, fds, _Starter(answers, keep=bool(wait), quiet=wait == "end"))
        except BaseException:
            del pod.containers[container.name]
            self.discard(container)
            raise

    def is_over(self, container: Container) -> bool:
        """True once it has ended and will not be restarted."""
        return container.state == "stopped"

    def when_over(self, container: Container, callback: Callable[[], Any]) -> None:
        """Call back once it is over; not called if it is already."""
        container.over_callbacks.append(callback)

    def not_when_over(self, container: Container, callback: Callable[[], Any]) -> None:
        """Take that back."""
        with contextlib.suppress(ValueError):
            container.over_callbacks.remove(callback)

    def discard(self, container: Container) -> None:
        """Forget a container that is over."""
        container.remove_cgroup()
        # With the last descriptor of its mount namespace the kernel waits until no processor looks at its mounts any more.
        self._loop.when_idle(container.close)
        if container.terminal >= 0 and not container.logging_terminal:
            os.close(container.terminal)
            container.terminal = -1

    # -- launch ---------------------------------------------------------------------------------------------------

    def _launch(self, pod: Pod, container: Container, fds: list[int] | None, starter: _Starter) -> None:
        with contextlib.ExitStack() as stack:
            stdio = fds[:3] if fds is not None else self._log_streams(container, stack)
            launch, where = self._finished(pod, container, stdio) or self._begin(pod, container, stdio, stack)
        child = Child(self._loop, launch, where)
        container.child = child
        container.namespaces = launch.namespaces
        first = container.engine == "native" and pod.namespaces is None
        pod.adopt_namespaces(launch.namespaces)
        for read_end, stream in container.pending_logs:
            container.drains.append(container.logs.attach(self._loop, read_end, stream))
        container.pending_logs = []
        child.follow(
            lambda: self._running(pod, container, starter, first=first),
            lambda: self._exited(pod, container, starter),
            lambda request, channel: self._run_hooks(container, request, channel),
            lambda streams: self._anew(pod, container, streams, starter),
        )

    def _anew(self, pod: Pod, container: Container, streams: list[int], starter: _Starter) -> None:
        """What was finished ahead could not execute the program. Begin again: at the end of that is who explains it."""
        container.close()
        with contextlib.ExitStack() as stack:
            for fd in streams:
                stack.callback(os.close, fd)
            if container.stopping:
                self._exited(pod, container, starter)
                return
            try:
                self._launch(pod, container, streams, starter)
            except (Failure, OSError) as error:
                self._failed(pod, container, starter, Failure(**describe(error, "start the process")))

    def _finished(self, pod: Pod, container: Container, stdio: list[int]) -> tuple[native.Launch, Cgroup | None] | None:
        """Start the program in the container that was finished ahead, if there is one and it can; else it is gone."""
        reserve = pod.reserve
        if reserve is None or not reserve.finished:
            return None
        pod.reserve = None
        cgroup, entered = container.cgroup, reserve.cgroup.v1 if reserve.cgroup else {}
        if cgroup is None or cgroup.v1 == entered:
            notify = container.notify if container.restarts == 0 else None
            order = Order(container.plan, container.rootfs, [], {}, tuple(stdio), (), "", container.oci_state(), notify)
            if _handed_over(reserve, order):
                return reserve.spare.launch, cgroup.child("main").v2_only() if cgroup else None
        reserve.spare.discard()
        return None

    def _begin(
        self, pod: Pod, container: Container, stdio: list[int], stack: contextlib.ExitStack
    ) -> tuple[native.Launch, Cgroup | None]:
        """Start an engine, or have the container that was begun ahead go on."""
        main = container.cgroup.child("main").v2_only() if container.cgroup else None
        reserve = pod.reserve
        entered = reserve.cgroup.v1 if reserve and reserve.cgroup else {}
        if main is not None and reserve is None:
            main.create()
        v1 = {k: path for k, path in container.cgroup.v1.items() if k not in entered} if container.cgroup else {}
        where = Cgroup(main.v2, v1) if main else None
        return self._engine_start(pod, container, stdio, where, stack, reserve), where

    @staticmethod
    def _settle_reserve(pod: Pod, container: Container) -> None:
        """Keep the spare that came with the pod if it is what this container needs; else it has to go."""
        reserve = pod.reserve
        if reserve is None:
            return
        fits = container.engine == "native" and pod.namespaces is None and reserve.container == container.name
        roomy = not limits.tight(container.resources)  # the spare's memory counts already
        if not (fits and roomy and reserve.fits(container.plan, container.rootfs)):
            pod.drop_reserve()

    def _engine_start(
        self, pod: Pod, container: Container, stdio: list[int], where: Cgroup | None, stack: contextlib.ExitStack,
        reserve: Reserve | None,
    ) -> native.Launch:  # fmt: skip
        directory = where.open_directory() if where else -1
        tasks = where.open_v1_tasks() if where else ()
        for fd in (*tasks, *((directory,) if directory >= 0 else ())):
            stack.callback(os.close, fd)

        def hand_over(order: Order) -> native.Launch | Order:
            assert reserve is not None
            pod.reserve = None
            if reserve.hand_over(order):
                return reserve.spare.launch
            # The spare is of no use, but its cgroups are the container's; a new process has to enter them all.
            reserve.spare.discard()
            rest = Cgroup(None, reserve.cgroup.v1 if reserve.cgroup else {}).open_v1_tasks()
            for fd in rest:
                stack.callback(os.close, fd)
            return order._replace(v1_tasks=(*order.v1_tasks, *rest))

        request: dict[str, Any] = {
            "idmap": self._world.idmap, "userns_fd": self._world.userns_fd, "pod": pod.namespaces, "stdio": stdio,
            "placement": native.Placement(directory, tasks), "scratch": f"{self._world.space}/scratch",
            "state": container.oci_state(), "notify": container.notify if container.restarts == 0 else None,
        }  # fmt: skip
        if container.engine != "native":
            return external.engine(container.engine, container.spec).start(container.plan, container.rootfs, **request)
        launch = native.start(container.plan, container.rootfs, **request, hand_over=hand_over if reserve else None)
        pod.drop_reserve()
        return launch

    @staticmethod
    def _log_streams(container: Container, stack: contextlib.ExitStack) -> list[int]:
        """/dev/null, and two pipes whose other ends go into the log."""
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        if container.plan.program.terminal:
            return [null, null, null]
        streams = [null]
        for stream in ("stdout", "stderr"):
            read_end, write_end = os.pipe()
            stack.callback(os.close, write_end)
            # A program may open /dev/stdout by name, as whatever user it runs.
            os.fchmod(write_end, 0o666)
            container.pending_logs.append((read_end, stream))
            streams.append(write_end)
        return streams

    # -- life -----------------------------------------------------------------------------------------------------

    def _running(self, pod: Pod, container: Container, starter: _Starter, *, first: bool) -> None:
        child = container.child
        assert child is not None
        container.state = "running"
        if first:
            scope = pod.cgroup.v2 if pod.cgroup else None
            self._world.spares.learn(container, scope, pod.controllers, pod.plain_v1, held=pod.held)
        if child.terminal >= 0:
            if container.log_terminal:
                container.drains.append(container.logs.attach(self._loop, child.terminal, "stdout"))
                container.logging_terminal = True
            else:
                container.terminal = child.terminal
        if "poststart" in container.plan.hooks:
            container.poststart_runs = True
            self._spawn_hooks(container, "poststart", lambda _failure: self._poststart_is_over(container))
        starter.started(child.pid, {"terminal": container.terminal, "notify": child.notify})
        if child.notify >= 0:
            os.close(child.notify)

    def _exited(self, pod: Pod, container: Container, starter: _Starter) -> None:
        child = container.child
        assert child is not None
        container.end_spawner()
        for drain in container.drains:
            drain()
        container.drains = []
        if child.failure is not None or (container.state == "creating" and not container.restarts):
            self._failed(pod, container, starter, child.failure or _vanished(child))
            return
        self._collect(pod, container, child)
        if self._may_restart(container, child.returncode or 0):
            container.state = "creating"
            container.restarts += 1
            delay = min(0.05 * 2 ** (container.restarts - 1), _LONGEST_BACKOFF)
            self._loop.later(delay, lambda: self._restart(pod, container))
            return
        self._over(container)

    def _failed(self, pod: Pod, container: Container, starter: _Starter, failure: Failure) -> None:
        container.exit = {"event": "exited", "returncode": None, "error": failure.facts}
        self._over(container)
        starter.failed(failure)
        if pod.containers.get(container.name) is container and not pod.removing:
            del pod.containers[container.name]
            self.discard(container)
            if container.drop_pod is not None:
                container.drop_pod()

    def _over(self, container: Container) -> None:
        if not container.poststart_runs:
            self._poststop(container)
        container.state = "stopped"
        container.logs.seal()
        callbacks, container.over_callbacks = container.over_callbacks, []
        for callback in callbacks:
            callback()

    def _poststart_is_over(self, container: Container) -> None:
        container.poststart_runs = False
        if container.state == "stopped":
            self._poststop(container)

    def _poststop(self, container: Container) -> None:
        """One kind after the other, also if the program was faster than the hooks for its start."""
        if "poststop" in container.plan.hooks:
            self._spawn_hooks(container, "poststop", lambda _failure: None)

    @staticmethod
    def _collect(pod: Pod, container: Container, child: Child) -> None:
        usage: dict[str, float] = dict(child.usage)
        kills = 0
        if container.cgroup is not None:
            usage |= container.cgroup.totals()
            kills = container.cgroup.oom_kills()
        container.exit = {
            "event": "exited", "returncode": child.returncode, "started": child.started, "finished": child.finished,
            "usage": usage, "oom_killed": kills > 0, "oom_kills": kills, "restarts": container.restarts, "cause": pod.revoked,
        }  # fmt: skip

    @staticmethod
    def _may_restart(container: Container, returncode: int) -> bool:
        policy, _, most = container.restart_policy.partition(":")
        if container.stopping or policy == "no":
            return False
        if policy == "on-failure":
            return returncode != 0 and (not most or container.restarts < int(most))
        return True

    def _restart(self, pod: Pod, container: Container) -> None:
        if container.stopping:
            self._over(container)
            return
        container.close()
        try:
            self._launch(pod, container, None, _Starter(None))
        except (Failure, OSError) as error:
            container.exit = {"event": "exited", "returncode": None, "error": describe(error, "restart")}
            self._over(container)

    # -- hooks ----------------------------------------------------------------------------------------------------

    def _run_hooks(self, container: Container, request: str, channel: socket.socket) -> None:
        kind = json.loads(request)["hooks"]

        def done(outcome: bytes) -> None:
            with contextlib.suppress(OSError):
                channel.send(outcome)

        self._spawn_hooks(container, kind, done)

    def _spawn_hooks(self, container: Container, kind: str, done: Callable[[bytes], None]) -> None:
        """Hooks may take their time, so a process of their own runs them, outside the container.

        ``done`` gets ``b"ok"`` or what went wrong; silence, because the process was killed, is not success.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        state = container.oci_state()
        pid, pidfd = syscalls.clone3(0, signal.SIGCHLD)
        if pid == 0:
            _hooks_process(container.plan.hooks[kind], kind, state, theirs)
        theirs.close()

        def heard(_events: int) -> None:
            outcome = ours.recv(65536) or _hooks_failure(kind, _killed_hooks(kind))
            self._loop.forget(ours.fileno())
            ours.close()
            os.waitpid(pid, 0)
            os.close(pidfd)
            done(outcome)

        self._loop.watch(ours.fileno(), heard)


def _handed_over(reserve: Reserve, order: Order) -> bool:
    """What is wrong with the order, if it cannot even be written down, is explained by who makes the container anew."""
    try:
        return reserve.hand_over(order)
    except (TypeError, ValueError, struct.error):
        return False


def _hooks_process(rows: list[dict[str, Any]], kind: str, state: dict[str, Any], answer: socket.socket) -> None:
    try:
        hooks.run(rows, kind, state)
        answer.send(b"ok")
    except BaseException as error:  # noqa: BLE001 - it is told to who waits, and the process ends
        answer.send(_hooks_failure(kind, error))
    finally:
        os._exit(0)


def _killed_hooks(kind: str) -> Failure:
    return Failure(operation=f"run the {kind} hooks", detail="the process that runs them was killed")


def _hooks_failure(kind: str, error: BaseException) -> bytes:
    return encode_error(error, f"run the {kind} hooks")


def _vanished(child: Child) -> Failure:
    return Failure(operation="start the process", detail=f"it ended before its program was executed ({child.returncode})")


class _Starter:
    """The request that started a container, answered once it runs or cannot; ``quiet``: only if it cannot."""

    def __init__(self, answers: Answers | None, *, keep: bool = False, quiet: bool = False) -> None:
        self._answers, self._keep, self._quiet = answers, keep, quiet

    def started(self, pid: int, descriptors: dict[str, int]) -> None:
        """The program was executed; ``fds`` of the answer names the descriptors that come with it."""
        if self._answers is None or self._quiet:
            return
        given = {name: fd for name, fd in descriptors.items() if fd >= 0}
        send = self._answers.send if self._keep else self._answers.finish
        send({"event": "started", "pid": pid, "fds": list(given)}, list(given.values()))

    def failed(self, failure: Failure) -> None:
        """It was not."""
        if self._answers is not None:
            self._answers.finish({"error": failure.facts})
