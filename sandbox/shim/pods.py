"""The operations of the shim, on pods and their containers. Requests are documented at each method."""

from __future__ import annotations

import binascii
import contextlib
import os
import select
from collections.abc import Callable, Iterator
from typing import Any

from sandbox.linux.cgroup import read_event
from sandbox.runtime import plan as plans
from sandbox.runtime.failure import Failure

from . import files, forward
from .answers import Answers
from .container import Container
from .execs import Execs
from .launch import Launcher
from .pod import Pod, World, check_name

Message = dict[str, Any]
Operation = Callable[[Message, list[int], Answers], None]


class Pods:
    """All pods of a shim."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop = world.loop
        self._pods: dict[str, Pod] = {}
        self._filters: dict[str, bytes] = {}
        self._profiles: dict[str, dict[str, Any]] = {}
        self._launcher = Launcher(world)
        self._execs = Execs(world)

    def operations(self) -> dict[str, Operation]:
        """The requests that are understood."""
        return {
            "pod.create": self._create,
            "pod.remove": self._remove,
            "pod.list": self._list,
            "pod.socket": self._socket,
            "pod.publish": self._publish,
            "container.start": self._start,
            "container.wait": self._wait,
            "container.signal": self._signal,
            "container.freeze": self._freeze,
            "container.stats": self._stats,
            "container.logs": self._logs,
            "container.files": self._files,
            "container.changes": self._changes,
            "container.spec": self._spec,
            "container.exec": self._exec,
            "exec.signal": self._exec_signal,
            "scope.hold": self._world.holders.hold,
            "scope.place": self._world.holders.place,
            "scope.drop": self._world.holders.drop,
            "scope.give_back": self._give_back,
        }

    def close_all(self, done: Callable[[], None]) -> None:
        """Remove every pod, then call ``done``."""
        self._world.spares.close()
        self._world.holders.close()
        for pod in list(self._pods.values()):
            self._take_down(pod, lambda: None if self._pods else done())
        if not self._pods:
            done()

    # -- pods -----------------------------------------------------------------------------------------------------

    def _create(self, message: Message, _fds: list[int], answers: Answers) -> None:
        """``{"pod": {"id", "cgroup", "resources", "volumes", "meta", "best_effort"}}`` → created."""
        pod = self._make_pod(message["pod"])
        answers.finish({"event": "created", "unenforced": pod.unenforced})

    def _give_back(self, message: Message, _fds: list[int], answers: Answers) -> None:
        """``{"v2"}``: the client has a scope that it was given, and nothing to ask for in there."""
        self._world.refuse(message)
        answers.finish({"event": "given back"})

    def _make_pod(self, document: Message) -> Pod:
        try:
            self._check_new(document["id"])
            pod = Pod(self._world, document)
        except BaseException:
            self._world.refuse(document.get("cgroup") or {})
            raise
        self._pods[pod.id] = pod
        return pod

    def _check_new(self, pod_id: str) -> None:
        if pod_id in self._pods:
            raise Failure("PodStateError", operation="create pod", object=pod_id, detail="it exists already")

    def _pod(self, message: Message) -> Pod:
        pod = self._pods.get(message["pod"])
        if pod is None:
            raise Failure("PodStateError", operation="find pod", object=str(message["pod"]), detail="there is no such pod")
        return pod

    def _container(self, message: Message) -> Container:
        container = self._pod(message).containers.get(message["container"])
        if container is None:
            raise Failure("PodStateError", operation="find container", object=str(message["container"]),
                          detail=f"there is none of this name in pod {message['pod']}")  # fmt: skip
        return container

    def _running(self, message: Message) -> Container:
        container = self._container(message)
        if container.state != "running":
            raise Failure("PodStateError", operation=str(message["op"]), object=container.name, state=container.state,
                          cause=self._pod(message).revoked)  # fmt: skip
        return container

    def _remove(self, message: Message, _fds: list[int], answers: Answers) -> None:
        """``{"pod"}``: kill everything in the pod; answers when all of it is gone, with how those had ended that had by now."""
        pod = self._pod(message)
        exits = {name: container.exit for name, container in pod.containers.items() if container.exit is not None}
        self._take_down(pod, lambda: answers.finish({"event": "removed", "exits": exits}))

    def _take_down(self, pod: Pod, done: Callable[[], None]) -> None:
        """Kill everything in ``pod``; ``done`` is called when all of it is gone, whoever else wanted that too."""
        if pod.id not in self._pods:
            done()
            return
        pod.when_gone.append(done)
        if pod.removing:
            return
        pod.removing = True
        for container in pod.containers.values():
            container.stopping = True
            container.kill()

        def look() -> None:
            if any(not self._launcher.is_over(container) for container in pod.containers.values()):
                return
            if self._pods.pop(pod.id, None) is not None:
                for container in pod.containers.values():
                    self._launcher.discard(container)
                pod.release()
                for callback in pod.when_gone:
                    callback()

        for container in pod.containers.values():
            self._launcher.when_over(container, look)
        look()

    def _list(self, _message: Message, _fds: list[int], answers: Answers) -> None:
        """``{}`` → every pod with its containers and their states."""
        answers.finish({"pods": [
            {"id": pod.id, "created": pod.created, "meta": pod.meta,
             "containers": [_summary(container) for container in pod.containers.values()]}
            for pod in self._pods.values()
        ]})  # fmt: skip

    def _socket(self, message: Message, _fds: list[int], answers: Answers) -> None:
        """``{"pod", "family", "type", "protocol", "bind"}`` → a socket made in the pod's network."""
        with self._pod(message).socket(message["family"], message["type"], message["protocol"]) as sock:
            if message.get("bind") is not None:
                sock.bind(message["bind"].encode("latin-1"))
            answers.finish({"event": "socket"}, [sock.fileno()])

    def _publish(self, message: Message, _fds: list[int], answers: Answers) -> None:
        """``{"pod", "port", "host", "host_port"}`` → the address on the host that leads to the pod's port."""
        pod = self._pod(message)
        pid, pidfd, address = forward.start(
            message["host"], message["host_port"], message["port"], pod.netns_fd
        )  # fmt: skip
        pod.helpers.append((pid, pidfd))
        answers.finish({"event": "published", "host": address[0], "port": address[1]})

    # -- containers -----------------------------------------------------------------------------------------------

    def _start(self, message: Message, fds: list[int], answers: Answers) -> None:
        """``{"pod": id or pod document, "name", "spec", "rootfs", "seccomp", "stdio": "log" | "fds", …}``.

        Answers ``started`` when the program was executed, with the terminal's master side if it has one. With
        ``"wait"`` a second answer ``exited`` follows (it is the only one if that says ``"end"``), and with ``"remove"`` the pod
        is gone by then.
        """
        inline = isinstance(message["pod"], dict)
        pod = self._make_pod(message["pod"]) if inline else self._pod(message)
        try:
            container = self._make_container(pod, message, fds, answers)
        except BaseException:
            if inline and not pod.containers:
                self._take_down(pod, lambda: None)
            raise
        if message.get("remove"):
            answers.on_gone(lambda: self._take_down(pod, answers.close))
        container.drop_pod = (lambda: self._take_down(pod, lambda: None)) if inline else None

    def _make_container(self, pod: Pod, message: Message, fds: list[int], answers: Answers) -> Container:
        name = message["name"]
        check_name(name)
        if pod.removing or name in pod.containers:
            raise Failure("PodStateError", operation="start container", object=name,
                          detail="the pod is being removed" if pod.removing else "it exists already")  # fmt: skip
        program = self._filter(message)
        plan = plans.build(
            message["spec"], program, init=bool(message.get("init")), surroundings=self._world.surroundings
        )  # fmt: skip
        container = Container(pod.id, message, plan, self._world.rootfs(message["rootfs"]))
        container.log_terminal = message.get("stdio") != "fds"

        def over() -> None:
            if message.get("wait"):
                if message.get("remove"):
                    self._take_down(pod, lambda: answers.finish(container.exit or {}))
                else:
                    answers.finish(container.exit or {})

        self._launcher.start(pod, container, fds if message.get("stdio") == "fds" else None, answers,
                             wait=message.get("wait") or False)  # fmt: skip
        if message.get("wait"):
            self._launcher.when_over(container, over)
        return container

    def _filter(self, message: Message) -> bytes:
        """The compiled seccomp filter. It and the profile in the document are sent once, then only their digest."""
        digest = message.get("seccomp")
        if not digest:
            return b""
        if message.get("seccomp_program"):
            self._filters[digest] = binascii.a2b_base64(message["seccomp_program"])
            self._profiles[digest] = message["seccomp_profile"]
        if digest not in self._filters:
            raise Failure("ShimError", operation="start container", detail="seccomp filter unknown", digest=digest)
        message["spec"].setdefault("linux", {})["seccomp"] = self._profiles[digest]
        return self._filters[digest]

    def _spec(self, message: Message, _fds: list[int], answers: Answers) -> None:
        """``{"pod", "container"}`` → the OCI document it was started from."""
        answers.finish({"spec": self._container(message).spec, "state": self._container(message).oci_state()})

    def _wait(self, message: Message, _fds: list[int], answers: Answers) -> None:
        """``{"pod", "container"}`` → exited, when it has."""
        container = self._container(message)
        if self._launcher.is_over(container):
            answers.finish(container.exit or {})
            return

        def over() -> None:
            answers.finish(container.exit or {})

        self._launcher.when_over(container, over)

        def gone() -> None:
            self._launcher.not_when_over(container, over)
            answers.close()

        answers.on_gone(gone)

    def _signal(self, message: Message, _fds: list[int], answers: Answers) -> None:
        """``{"pod", "container", "signal", "stopping"}``: signal the container's init."""
        container = self._container(message)
        if message.get("stopping"):
            container.stopping = True
        if container.state == "running":
            container.kill(int(message["signal"]))
        elif not message.get("stopping"):
            raise Failure("PodStateError", operation="signal", object=container.name, state=container.state)
        answers.finish({"event": "signalled"})

    def _freeze(self, message: Message, _fds: list[int], answers: Answers) -> None:
        """``{"pod", "container", "frozen": bool}``; answers when every process has stopped, or goes on."""
        container, wanted = self._running(message), bool(message["frozen"])
        cgroup = container.cgroup
        if cgroup is None or cgroup.v2 is None:
            raise Failure("UnsupportedFeature", operation="freeze", object=container.name, feature="cgroup2 freezer",
                          cause="the container is in no cgroup of its own",
                          hint="run as root or with a delegated cgroup (see `sandbox doctor`)")  # fmt: skip
        cgroup.freeze(wanted)
        events = os.open(f"{cgroup.v2}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)

        def look(_events: int = 0) -> None:
            if read_event(events, "frozen") in (int(wanted), None) or container.state != "running":
                self._loop.forget(events)
                os.close(events)
                answers.finish({"event": "frozen" if wanted else "thawed"})

        self._loop.watch(events, look, select.EPOLLPRI)
        look()

    def _stats(self, message: Message, _fds: list[int], answers: Answers) -> None:
        """``{"pod", "container"}`` → usage numbers of the container's cgroup."""
        container = self._container(message)
        if container.cgroup is None:
            raise Failure("UnsupportedFeature", operation="read statistics of", object=container.name,
                          feature="cgroup", cause="the container is in no cgroup of its own",
                          hint="run as root or with a delegated cgroup (see `sandbox doctor`)")  # fmt: skip
        pressure = {name: container.cgroup.pressure(name) for name in ("cpu", "memory", "io")}
        answers.finish({"stats": container.cgroup.statistics(), "pressure": pressure,
                        "oom_kills": container.cgroup.oom_kills()})  # fmt: skip

    def _logs(self, message: Message, _fds: list[int], answers: Answers) -> None:
        """``{"pod", "container", "follow", "since"}`` → chunks ``[number, time, stream, latin-1 text]``, then the end."""
        store = self._container(message).logs
        position = int(message.get("since") or 0)
        if not message.get("follow"):
            answers.finish({"chunks": _chunks(store.since(position)), "dropped": store.dropped, "next": store.next_number})
            return

        def stop() -> None:
            with contextlib.suppress(ValueError):
                store.unlisten(advance)
            answers.close()

        def advance() -> None:
            nonlocal position
            fresh = store.since(position)
            if fresh and not answers.send({"chunks": _chunks(fresh), "dropped": store.dropped}):
                answers.when_writable(advance, stop)
                return
            position = store.next_number
            if store.finished:
                answers.send({"event": "end"})
                stop()

        store.listen(advance)
        answers.on_gone(stop)
        advance()

    def _files(self, message: Message, _fds: list[int], answers: Answers) -> None:
        """``{"pod", "container"}`` → a socket to an agent that has the container's files (:mod:`.files`)."""
        container = self._container(message)
        if "mount" not in container.namespaces:
            raise Failure("PodStateError", operation="reach the files of", object=container.name, state=container.state)
        pod = self._pod(message)
        pid, pidfd, sock = files.start(container.namespaces)
        pod.helpers.append((pid, pidfd))
        self._loop.watch(pidfd, lambda _events: pod.bury(pid, pidfd))
        with sock:
            answers.finish({"event": "files"}, [sock.fileno()])

    def _changes(self, message: Message, _fds: list[int], answers: Answers) -> None:
        """``{"pod", "container"}`` → the file system that has what it changed of its image, and its user namespace."""
        container = self._container(message)
        fd = container.child.changes if container.child else -1
        if fd < 0:
            raise Failure("UnsupportedFeature", operation="read the changes of", object=container.name, feature="commit",
                          cause=f"the engine {container.engine} keeps them to itself", hint="use the native engine")
        answers.finish({"event": "changes"}, [fd, container.namespaces["user"]])

    # -- processes in containers: see :mod:`.execs` -----------------------------------------------------------------

    def _exec(self, message: Message, fds: list[int], answers: Answers) -> None:
        self._execs.start(self._running(message), message, fds, answers)

    def _exec_signal(self, message: Message, _fds: list[int], answers: Answers) -> None:
        self._execs.signal(self._container(message), message, answers)


def _chunks(chunks: Iterator[Any] | list[Any]) -> list[list[Any]]:
    return [[x.number, x.time, x.stream, x.data.decode("latin-1")] for x in chunks]


def _summary(container: Container) -> dict[str, Any]:
    child = container.child
    return {
        "name": container.name, "state": container.state, "exit": container.exit, "restarts": container.restarts,
        "args": container.spec["process"]["args"], "pid": child.pid if child else None,
        "started": child.started if child else None,
    }  # fmt: skip


__all__ = ["Pods", "World"]
