"""``sandbox exec``: a command in a container that runs, whoever started it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from sandbox.cli import find
from sandbox.cli.container import variables
from sandbox.cli.options import Command, Given, Option, UsageError, number
from sandbox.cli.streams import standard_streams

if TYPE_CHECKING:
    from sandbox._container import RunningContainer
    from sandbox.cli.attend import Program
    from sandbox.shim.client import Conversation

COMMAND = Command(
    "exec", "POD[/CONTAINER] COMMAND...", "Run a command in a running container; it ends when this command does.",
    (
        Option("interactive", "Give it our standard input", "i"),
        Option("tty", "Give it a terminal", "t"),
        Option("env", "Set a variable, or pass it on", "e", "KEY[=VALUE]", many=True),
        Option("workdir", "Start in this directory", "w", "PATH"),
        Option("user", "Run as this user, by name or number", "u", "USER[:GROUP]"),
        Option("timeout", "Kill it after this time, exit with 124", "", "SECONDS"),
    ),
    (
        ("sandbox exec shop/db psql -c 'select 1'", "in the container `db` of the pod `shop`"),
        ("sandbox exec -it -u 0 pod-1f2e sh", "a shell as root"),
    ),
    "A pod is named by its name, its id, or the beginning of it. The exit status is as with `sandbox run`.",
)  # fmt: skip

#: Seconds from SIGTERM until it is killed.
_PATIENCE = 10.0


def main(given: Given) -> int:
    """Run it and return the exit status."""
    if len(given.operands) < 2:
        raise UsageError("expected a pod and a command")
    pod, *command = given.operands
    if command[0] == "--":
        command = command[1:]
    timeout = number(given["timeout"], "timeout")
    with find.container(pod) as container:
        try:
            return _attend(container, command, given, timeout)
        except TimeoutError:
            from sandbox.errors import TimeoutExpired

            raise TimeoutExpired(command, timeout or 0) from None


def _attend(container: RunningContainer, command: list[str], given: Given, timeout: float | None) -> int:
    from sandbox.cli.attend import Attendant, Signals, started, status_of

    with Signals() as signals, _start(container, command, given) as conversation, contextlib.ExitStack() as stack:
        _, fds = started(conversation, signals)
        terminal = None
        if fds:
            from sandbox.cli.terminal import Terminal

            terminal = stack.enter_context(Terminal(fds[0], interactive=bool(given["interactive"])))
        program = _program(container, conversation)
        document = Attendant(program, signals, terminal, timeout=timeout, patience=_PATIENCE).wait()
    return status_of(document["returncode"])


def _start(container: RunningContainer, command: list[str], given: Given) -> Conversation:
    document = container.process_document(
        command, dict(variables(given["env"])), given["workdir"], given["user"], tty=bool(given["tty"])
    )  # fmt: skip
    if given["tty"]:
        from sandbox.cli.terminal import set_window

        set_window(document)
    fields: dict[str, Any] = {**container.address, "process": document, "user": given["user"], "lease": True,
                              "exec": _exec_id()}  # fmt: skip
    with standard_streams(interactive=bool(given["interactive"])) as streams:
        return container.shim.ask("container.exec", fields, streams)


def _exec_id() -> str:
    """One process of the command line runs one program; its own number tells it from others'."""
    return f"cli-{os.getpid()}"


def _program(container: RunningContainer, conversation: Conversation) -> Program:
    from sandbox.cli.attend import Program

    return Program(
        conversation,
        lambda signal: container.signal_exec(_exec_id(), False, signal),
        lambda: container.signal_exec(_exec_id(), True, 9),
    )
