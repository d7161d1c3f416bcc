"""``sandbox up``: a pod from a file, as long as its containers run."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sandbox.cli import console
from sandbox.cli.options import Command, Given, Option, number

if TYPE_CHECKING:
    from sandbox._container import RunningContainer
    from sandbox.cli.attend import Signals
    from sandbox.pods import RunningPod
    from sandbox.shim.client import Conversation

COMMAND = Command(
    "up", "FILE", "Start the pod that a file describes, show what it writes, stay until it has ended.",
    (
        Option("check", "Read the file, start nothing"),
        Option("timeout", "Wait so long when stopping (stop_timeout)", "", "SECONDS"),
    ),
    (
        ("sandbox up shop.toml", "until its containers have ended, or Ctrl-C"),
        ("sandbox up --check shop.json", "is it a pod?"),
    ),
    "SIGTERM and SIGINT stop the containers in turn, a second one kills them. The exit status is 0, or the first of a\n"
    "container that is not. A manager that gave a NOTIFY_SOCKET is told when the pod is ready (sd_notify(3)).",
)  # fmt: skip

_STOPS = (signal.SIGTERM, signal.SIGINT)


def main(given: Given) -> int:
    """Run it and return the exit status."""
    file = given.one_operand("a file with a pod")
    patience = number(given["timeout"], "timeout")
    from sandbox import podfile

    pod = podfile.load(file)
    if given["check"]:
        console.write(f"{file}: a pod of {', '.join(pod.names)}\n")
        return 0
    from sandbox.cli.attend import Signals
    from sandbox.pods import start

    with Signals() as signals, start(pod) as running:
        notify("READY=1", f"STATUS={len(running)} containers run")
        return _Attendance(running, signals, patience).wait()


def notify(*lines: str) -> None:
    """Tell the service manager, if one wants to know (sd_notify(3))."""
    import socket

    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto("\n".join(lines).encode(), f"\0{address[1:]}" if address[0] == "@" else address)


class _Attendance:
    """A running pod, from ready to gone."""

    def __init__(self, pod: RunningPod, signals: Signals, patience: float | None) -> None:
        self._pod = pod
        self._signals = signals
        self._patience = patience
        self._stopping: threading.Thread | None = None
        self._wide = max(map(len, pod.containers)) if len(pod) > 1 else 0

    def wait(self) -> int:
        """Until every container has ended; the exit status."""
        from sandbox.cli.attend import status_of

        writers = [threading.Thread(target=self._show, args=(container,)) for container in self._pod]
        for writer in writers:
            writer.start()
        with self._exits() as waiting:
            while waiting:
                self._round(waiting)
        for thread in (*writers, *filter(None, [self._stopping])):
            thread.join()
        codes = [container.wait() for container in self._pod]
        if self._stopping is not None:  # it was asked to end, and did
            return 0
        return status_of(next((code for code in codes if code), 0))

    @contextlib.contextmanager
    def _exits(self) -> Iterator[dict[int, Conversation]]:
        with contextlib.ExitStack() as stack:
            conversations = [stack.enter_context(container.watch_exit()) for container in self._pod]
            yield {conversation.fileno(): conversation for conversation in conversations}

    def _round(self, waiting: dict[int, Conversation]) -> None:
        poller = select.poll()
        for fd in (self._signals.fileno(), *waiting):
            poller.register(fd, select.POLLIN)
        for fd, _ in poller.poll():
            waiting.pop(fd, None)
        for arrived in self._signals.arrived():
            if arrived in _STOPS:
                self._stop()

    def _stop(self) -> None:
        if self._stopping is not None:
            for container in self._pod:
                container.kill()
            return
        notify("STOPPING=1")
        self._stopping = threading.Thread(target=self._pod.stop_all, args=(self._patience,))
        self._stopping.start()

    def _show(self, container: RunningContainer) -> None:
        """What it writes, line by line, with its name in front if there are several."""
        prefix = f"{container.name:<{self._wide}} | " if self._wide else ""
        for record in container.log_records(follow=True):
            data = f"{prefix}{record.line}\n".encode("utf-8", "surrogateescape")
            with contextlib.suppress(OSError):  # a reader that has gone is no reason to stop a pod
                os.write(1 if record.stream == "stdout" else 2, data)
