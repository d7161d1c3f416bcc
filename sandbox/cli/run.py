"""``sandbox run``: a command in a container of its own, with our standard streams, signals and exit status."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sandbox.cli import console
from sandbox.cli.container import OPTIONS, labels, model, publications
from sandbox.cli.options import Command, Given, Option, UsageError, number
from sandbox.cli.streams import standard_streams

if TYPE_CHECKING:
    from sandbox._launch import Options, Prepared
    from sandbox.models import Pod
    from sandbox.shim.client import Conversation, OwnShim

COMMAND = Command(
    "run", "IMAGE [COMMAND...]", "Run a command in a container of its own; nothing of it is left afterwards.",
    (
        Option("interactive", "Give it our standard input", "i"),
        Option("tty", "Give it a terminal", "t"),
        Option("rm", "Remove it when it ends: always so"),
        Option("publish", "Open a TCP port of it on the host", "p", "[[IP:]PORT:]PORT", many=True),
        Option("timeout", "Kill it after this time, exit with 124", "", "SECONDS"),
        Option("stop-timeout", "Kill it so long after SIGTERM (10)", "", "SECONDS"),
        *OPTIONS,
        Option("engine", "Choose `native`, `crun` or `runc`", "", "NAME"),
        Option("cgroups", "Choose who gives cgroups, or `none`", "", "NAME"),
        Option("systemd", "Choose the manager for scopes, or `off`", "", "NAME"),
    ),
    (
        ("sandbox run host id", "this machine's programs, without its data"),
        ("sandbox run -it dir:./rootfs sh", "a shell in a directory"),
        ("sandbox run -m 64M --cpus 0.5 oci:./image", "an image's own command, with limits"),
        ("sandbox run -v .:/src -w /src host make", "with the current directory"),
        ("sandbox run -p 8080:80 ./image.tar", "its port 80 as 127.0.0.1:8080"),
    ),
    "The exit status is the command's own; 128+n if signal n ended it, 127 if there is no such command, 126 if it\n"
    "cannot be executed, 125 if it was not started for any other reason, 124 if its time was up.",
)  # fmt: skip


_ENGINES = ("native", "crun", "runc")


def main(given: Given) -> int:
    """Run it and return the exit status."""
    image, *command = given.operands or [""]
    if not image:
        raise UsageError("expected an image (`host` for this machine's own programs)")
    if command[:1] == ["--"]:
        command = command[1:]
    return _run(given, image, command)


def _run(given: Given, image: str, command: list[str]) -> int:
    timeout = number(given["timeout"], "timeout")
    patience = number(given["stop-timeout"], "stop-timeout")
    ports = publications(given)
    _start_shim_early()
    from sandbox.errors import CommandNotFound, TimeoutExpired
    from sandbox.models import Pod

    warnings.showwarning = _warn
    container = model(given, image, command)
    pod = Pod([container], name=given["name"], labels=labels(given),
              resources={"best_effort": bool(given["best-effort"])})  # fmt: skip
    run = _Run(pod, _options(given))
    try:
        document = run.attend(ports, given, timeout, container.stop_timeout if patience is None else patience)
    except TimeoutError:
        raise TimeoutExpired(run.args, timeout or 0) from None
    except CommandNotFound as error:
        if command[:1] and error.object == command[0] and command[0].startswith("-"):
            error.hint = f"options end at the image, what follows is its command: sandbox run {command[0]} … {image} …"
        raise
    return _outcome(document)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    console.complain(f"sandbox: {message}")


def _start_shim_early() -> None:
    """Let it start while we import the rest; what goes wrong is met again by who needs it."""
    import threading

    from sandbox.shim.client import own_shim

    def start() -> None:
        with contextlib.suppress(Exception):
            own_shim()

    threading.Thread(target=start, daemon=True).start()


def _options(given: Given) -> Options:
    import attrs

    from sandbox._launch import Options

    if given["engine"] not in {None, *_ENGINES}:
        raise UsageError(f"--engine={given['engine']}: expected {', '.join(_ENGINES)}")
    changes = {name: given[name] for name in ("engine", "cgroups", "systemd") if given[name]}
    return attrs.evolve(Options.from_environment(), **changes)


def _outcome(document: dict[str, Any]) -> int:
    from sandbox.cli.attend import status_of

    if document.get("oom_killed"):
        console.complain("sandbox: out of memory: the kernel killed a process of it because of the memory limit")
    return status_of(document["returncode"])


class _Run:
    """A pod of one container, from its start to its end."""

    def __init__(self, pod: Pod, options: Options) -> None:
        from sandbox._launch import Preparation
        from sandbox.shim.client import own_shim

        self._shim: OwnShim = own_shim()
        self._preparation = Preparation(self._shim, pod, options)
        self._prepared: Prepared = self._preparation.container(pod.containers[0])
        self.args: list[str] = list(self._prepared.spec["process"]["args"])

    def attend(
        self, ports: list[tuple[str, int, int]], given: Given, timeout: float | None, patience: float
    ) -> dict[str, Any]:  # fmt: skip
        """Start it and stay until it has ended. Raises :class:`TimeoutError`."""
        from sandbox.cli.attend import Attendant, Program, Signals, started

        with Signals() as signals, self._start(given) as conversation, contextlib.ExitStack() as stack:
            _, fds = started(conversation, signals)
            terminal = None
            if fds:
                from sandbox.cli.terminal import Terminal

                terminal = stack.enter_context(Terminal(fds[0], interactive=bool(given["interactive"])))
            self._publish(ports)
            program = Program(conversation, self._signal, self._kill)
            with self._preparation.declared():
                return Attendant(program, signals, terminal, timeout=timeout, patience=patience).wait()

    def _start(self, given: Given) -> Conversation:
        if given["tty"]:
            from sandbox.cli.terminal import set_window

            set_window(self._prepared.spec["process"])
        message = {**self._prepared.message, "pod": self._preparation.pod_document(), "stdio": "fds", "wait": True,
                   "remove": True}  # fmt: skip
        with standard_streams(interactive=bool(given["interactive"])) as streams:
            return self._shim.ask("container.start", message, streams)

    def _publish(self, ports: list[tuple[str, int, int]]) -> None:
        for host, host_port, port in ports:
            answer = self._shim.call(
                "pod.publish", pod=self._preparation.id, port=port, host=host, host_port=host_port
            )  # fmt: skip
            console.complain(f"sandbox: {answer['host']}:{answer['port']} leads to port {port}")

    def _signal(self, signal: int) -> None:
        with _gone_is_fine():
            self._shim.call("container.signal", pod=self._preparation.id, container=self._prepared.container.name,
                            signal=signal)  # fmt: skip

    def _kill(self) -> None:
        self._signal(9)


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    """A signal to what has ended in the meantime has no effect."""
    from sandbox.errors import PodStateError

    with contextlib.suppress(PodStateError):
        yield


