"""Running pods: :func:`start` one, :func:`run` a command in one, and talk to it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from socket import AF_INET, AF_INET6, SOCK_STREAM, socket as Socket  # noqa: N812 - `socket` is a method here
from types import TracebackType
from typing import Any, Self

from sandbox import _arguments as arguments, cgroups
from sandbox._container import ContainerFace, RunningContainer, finish_terminal, split_command
from sandbox._launch import Options, Preparation, Prepared, start_error
from sandbox._network import checked_port, listening_address
from sandbox._output import LogRecord, Stats
from sandbox._process import DEVNULL, PIPE, STDOUT, AnyText, Process, Result, Streams, Usage
from sandbox._start import start_all
from sandbox.errors import CalledProcessError, PodStateError, SandboxError, TimeoutExpired
from sandbox.models import Container, Pod, as_pod
from sandbox.shim.client import Shim, own_shim

__all__ = [
    "DEVNULL", "PIPE", "STDOUT", "LogRecord", "Options", "Process", "Result", "RunningContainer", "RunningPod", "Stats",
    "Usage", "run", "start",
]  # fmt: skip


class RunningPod(ContainerFace):
    """A pod that was started. ``pod["name"]`` is one of its containers; if it has only one, the pod acts as it.

    A context manager: leaving it removes the pod, whatever its containers are doing.
    """

    def __init__(self, shim: Shim, pod_id: str, model: Pod, *, when_closed: Callable[[], None] = lambda: None) -> None:
        self.shim = shim
        self._id = pod_id
        self.model = model
        self.containers: dict[str, RunningContainer] = {}
        self._published: dict[tuple[int, str, int], tuple[str, int]] = {}
        self._when_closed = when_closed
        self._removed = False

    def __repr__(self) -> str:
        return f"<RunningPod {self.id!r}: {', '.join(self.containers)}>"

    def __getitem__(self, name: str) -> RunningContainer:
        """The container called ``name``; :class:`KeyError` names those there are."""
        try:
            return self.containers[name]
        except KeyError:
            raise KeyError(f"{name!r}: the containers of this pod are {', '.join(self.containers)}") from None

    def __iter__(self) -> Iterator[RunningContainer]:
        return iter(self.containers.values())

    def __len__(self) -> int:
        return len(self.containers)

    def __contains__(self, item: object) -> bool:
        """A container, or the name of one: as the keys that ``pod[…]`` takes."""
        return any(item in (container.name, container) for container in self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.close()

    def _one(self) -> RunningContainer:
        if len(self.containers) != 1:
            raise PodStateError(
                f"it has {len(self.containers)} containers", operation="use as one container the pod", object=self.id,
                hint=f"say which: pod[{next(iter(self.containers), 'name')!r}]",
            )  # fmt: skip
        return next(iter(self.containers.values()))

    @property
    def id(self) -> str:
        """Its id, unique on this machine; what ``sandbox exec`` and ``sandbox logs`` take, as ``ID/CONTAINER`` too."""
        return self._id

    @property
    def name(self) -> str | None:
        """The name it was given."""
        return self.model.name

    @property
    def closed(self) -> bool:
        """True once it has been removed by :meth:`close`."""
        return self._removed

    # -- network --------------------------------------------------------------------------------------------------

    def socket(self, family: int = AF_INET, type: int = SOCK_STREAM, proto: int = 0) -> Socket:
        """A socket in the pod's network: connect it, or bind it and let the pod connect to it."""
        return Socket(fileno=self.shim.fetch(
            "pod.socket", pod=self.id, family=int(family), type=int(type), protocol=int(proto)
        ))  # fmt: skip

    def connect(self, port: int, host: str = "127.0.0.1", *, timeout: float | None = 10.0) -> Socket:
        """A TCP connection to a port of the pod, without any port of the host. Raises :class:`ConnectionError`.

        ``host`` is an address in the pod's network, or what its containers call one another there.
        """
        address = (self._inside(host), checked_port(port, "connect"))
        sock = self.socket(AF_INET6 if ":" in address[0] else AF_INET)
        try:
            sock.settimeout(timeout)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock

    def _inside(self, host: str) -> str:
        """The names that are in the containers' /etc/hosts are not in that of this process."""
        own = {"localhost", self.model.hostname or self.model.name or self.id, *self.model.names}
        own |= {container.hostname for container in self.model.containers if container.hostname}
        others = self.model.extra_hosts | {n: a for c in self.model.containers for n, a in c.extra_hosts.items()}
        return "127.0.0.1" if host in own else others.get(host, host)

    def publish(self, port: int, *, host: str = "127.0.0.1", host_port: int = 0) -> tuple[str, int]:
        """An address on the host that leads to ``port`` of the pod: (host, port), open as long as the pod is there.

        A free port is chosen and held at once, so nobody else can get it in between. Raises :class:`ModelError` for what is
        no port, :class:`SetupError` if ``host`` is not ours or the port is taken.
        """
        key = (checked_port(port, "publish"), host, checked_port(host_port, "publish", field="host_port", low=0))
        if key not in self._published:
            answer = self.shim.call(
                "pod.publish", pod=self.id, port=port, host=listening_address(host), host_port=host_port
            )  # fmt: skip
            self._published[key] = (answer["host"], answer["port"])
        return self._published[key]

    def url(self, port: int, path: str = "/", *, scheme: str = "http") -> str:
        """A URL for the published ``port``."""
        host, host_port = self.publish(port)
        return f"{scheme}://{host}:{host_port}{path if path.startswith('/') else f'/{path}'}"

    def get_container_host_ip(self) -> str:
        """The address at which published ports are found (testcontainers' name for it)."""
        return "127.0.0.1"

    def get_exposed_port(self, port: int) -> int:
        """The host's port that leads to ``port`` of the pod (testcontainers' name for it)."""
        return self.publish(port)[1]

    # -- end ------------------------------------------------------------------------------------------------------

    def stop_all(self, timeout: float | None = None) -> dict[str, int]:
        """Ask every container to stop, those first that others do not need; their exit statuses."""
        order = sorted(self.containers.values(), key=lambda c: len(_needed_by(self.model, c.name)))
        return {container.name: container.stop(timeout) for container in order}

    def close(self) -> None:
        """Remove the pod: kill what runs, give everything back. Returns when it is gone; may be called again.

        In a fork of the process that started it, only what is open there is closed: the pod is the parent's.
        """
        if self._removed:
            return
        self._removed = True
        self._published.clear()  # who asks for an address now is to hear that it leads nowhere
        for container in self.containers.values():
            container.release()
        if self.shim.foreign:
            return
        with contextlib.suppress(SandboxError):  # what it refuses to note down of a pod that goes is of no importance
            self._when_closed()
        with contextlib.suppress(PodStateError):
            exits = self.shim.call("pod.remove", pod=self.id)["exits"]
            for name, container in self.containers.items():
                container.exit = container.exit or exits.get(name)


def _needed_by(pod: Pod, name: str) -> set[str]:
    """The containers that come after ``name``, also by way of others."""
    direct = {c.name for c in pod.containers if name in c.after}
    return direct | {further for d in direct for further in _needed_by(pod, d)}


def start(
    subject: Pod | Container | Iterable[Container] | None = None, /, *, options: Options | None = None, **fields: Any
) -> RunningPod:  # fmt: skip
    """Start a pod and wait until it is ready.

    ``subject`` and ``fields`` describe it (:func:`sandbox.as_pod`): ``start(image="redis:7", ready=Port(6379))``.

    :raises ImageError: the image is unknown or broken
    :raises SetupError: a step of making a container failed; CommandNotFound, UserNotFound … are kinds of it
    :raises ReadinessTimeout: it did not become ready in time
    :raises ContainerExited: it ended before it was ready
    """
    preparation = _preparation(as_pod(subject, **fields), options)
    return start_prepared(preparation, [_prepare(preparation, container) for container in preparation.pod.containers])


def start_prepared(preparation: Preparation, prepared: Sequence[Prepared]) -> RunningPod:
    """Start what was translated already. Raises as :func:`start`; then nothing of it is left."""
    pod = RunningPod(
        preparation.shim, preparation.id, preparation.pod, when_closed=lambda: preparation.settle(over=True)
    )  # fmt: skip
    try:
        start_all(pod, preparation, prepared)
        preparation.settle()
    except BaseException:
        pod.close()  # if there is one yet; and if the shim has died meanwhile, that is what is to be told
        preparation.give_back()
        raise
    return pod


def _preparation(pod: Pod, options: Options | None) -> Preparation:
    options = options or Options.from_environment()
    cgroups.ahead(options.cgroups, options.systemd)
    return Preparation(own_shim(), pod, options)


def _prepare(preparation: Preparation, container: Container) -> Prepared:
    try:
        return preparation.container(container)
    except SandboxError as error:
        raise start_error(error, container.name) from error.__cause__


def run(
    command: str | Sequence[str | os.PathLike[str]] | None = None, *, input: AnyText | None = None,
    timeout: float | None = None, check: bool = False, text: bool = True, options: Options | None = None,
    stdin: Any = None, stdout: Any = PIPE, stderr: Any = PIPE, **fields: Any,
) -> Result[Any]:  # fmt: skip
    """Run a command in a container of its own and wait for it; nothing of it is left afterwards.

    ``fields`` describe the container (:func:`sandbox.as_pod`): ``run(["make"], image="debian:12", memory="1G")``. Without
    a command the image's own is run. ``input``, ``timeout``, ``check``, ``text`` and the streams are as in
    :func:`subprocess.run`; a timeout kills everything. With ``tty=True`` what the terminal shows is all in ``stdout``.
    """
    timeout, data = arguments.seconds("run", timeout), arguments.data("run", input)
    if command is not None:
        fields["command"] = split_command(command)
    preparation = _preparation(as_pod(**fields), options)
    shim = preparation.shim
    prepared = _prepare(preparation, preparation.pod.containers[0])
    tty = bool(prepared.spec["process"].get("terminal"))
    streams = _streams(data, stdin, stdout, stderr, text=text, tty=tty)
    try:
        message = {**prepared.message, "pod": preparation.pod_document(), "stdio": "fds", "wait": True if tty else "end",
                   "remove": True}  # fmt: skip
        conversation = shim.ask("container.start", message, streams.given)
    except BaseException:
        streams.close()
        preparation.give_back()
        raise
    finally:
        streams.release()
    args = prepared.spec["process"]["args"]

    def remove(_tree: bool = True, _signal: int = 9) -> bool:
        """A pod that is removed as a whole needs no signals to its processes."""
        with contextlib.suppress(PodStateError):
            shim.call("pod.remove", pod=preparation.id)
        return True

    with conversation, contextlib.closing(streams):
        try:
            with preparation.declared():
                process = Process(args, conversation, streams, remove, started=tty)
                with contextlib.closing(process):
                    out, err = finish_terminal(process, timeout) if tty else process.communicate(data, timeout)
        except TimeoutExpired:
            remove()
            raise
        except SandboxError as error:
            raise start_error(error, prepared.container.name) from None
    result = Result(args, process.returncode or 0, out, err, process.duration, process.usage, process.oom_killed)
    if check and result.returncode:
        raise CalledProcessError(result.returncode, args, out, err, oom_killed=process.oom_killed)
    return result


def _streams(input: AnyText | None, stdin: Any, stdout: Any, stderr: Any, *, text: bool, tty: bool) -> Streams:
    """Those of :func:`run`; a terminal takes the place of all three."""
    if not tty:
        return Streams(PIPE if input is not None else stdin, stdout, stderr, text=text)
    if input is not None:
        raise PodStateError(
            "a terminal has no end of input", operation="give input= to a program with tty=True",
            hint="without tty=True its input is a pipe; or start a pod, and write to `popen(…, tty=True).terminal`",
        )  # fmt: skip
    return Streams(None, None, None, text=text)
