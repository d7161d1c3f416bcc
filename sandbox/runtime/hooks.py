"""OCI hooks: programs of the host that a spec wants run at points of a container's life (config.md#posix-platform-hooks)."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
from collections.abc import Iterable, Mapping
from typing import Any

from sandbox.linux import syscalls

from .failure import Failure
from .process import parse_env

#: Seconds a hook may take if it sets no timeout of its own.
DEFAULT_TIMEOUT = 30


def run(hooks: Iterable[Mapping[str, Any]], kind: str, state: Mapping[str, Any]) -> None:
    """Run ``hooks`` one after another with ``state`` (an OCI state document) on standard input.

    Blocks; called in a process of its own or in the container's init. The first failure raises :class:`Failure`.
    """
    document = json.dumps(state).encode()
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a hook need not read its input
    try:
        for hook in hooks:
            _run_one(hook, kind, document)
    finally:
        signal.signal(signal.SIGPIPE, before)


def _run_one(hook: Mapping[str, Any], kind: str, document: bytes) -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        _execute(hook, read_end)
    os.close(read_end)
    try:
        os.write(write_end, document)
    except BrokenPipeError:
        pass
    finally:
        os.close(write_end)
    status = _wait(pid, hook.get("timeout") or DEFAULT_TIMEOUT)
    if status != 0:
        reason = f"timed out after {hook.get('timeout') or DEFAULT_TIMEOUT} s" if status is None else f"status {status}"
        raise Failure(operation=f"run the {kind} hook", object=hook["path"], detail=reason)


def _execute(hook: Mapping[str, Any], stdin: int) -> None:
    try:
        os.dup2(stdin, 0)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        syscalls.close_range(3)
        os.execve(hook["path"], list(hook.get("args") or [hook["path"]]), parse_env(hook.get("env") or ()))
    except BaseException as error:  # noqa: BLE001 - it is told to who waits, and the process ends
        os._exit(127 if getattr(error, "errno", None) == errno.ENOENT else 126)


def _wait(pid: int, timeout: float) -> int | None:
    """The exit code (negative for a signal), or None when the time is up and the hook was killed."""
    pidfd = syscalls.pidfd_open(pid)
    try:
        ready, _, _ = select.select([pidfd], [], [], timeout)
        if not ready:
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return code if ready else None
    finally:
        os.close(pidfd)
