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

from .failure import Failure, invalid
from .process import parse_env

#: Seconds a hook may take if it sets no timeout of its own.
DEFAULT_TIMEOUT = 30


def run(hooks: Iterable[Mapping[str, Any]], kind: str, state: Mapping[str, Any]) -> None:
    """Run ``hooks`` one after another with ``state`` (an OCI state document) on standard input.

    Blocks; called in a process of its own or in the container's init. The first failure raises :class:`Failure`.
    """
    document = json.dumps(state).encode()
    for hook in hooks:
        _run_one(hook, kind, document)


def _run_one(hook: Mapping[str, Any], kind: str, document: bytes) -> None:
    timeout = hook.get("timeout") or DEFAULT_TIMEOUT
    if timeout < 0:
        raise invalid(f"$.hooks.{kind}", f"the timeout {timeout} of the hook {hook['path']} is negative")
    # No pipe: a hook need not read its input, and a state larger than a pipe would keep us from looking at the time.
    with os.fdopen(os.memfd_create("state", os.MFD_CLOEXEC), "r+b") as stdin:
        stdin.write(document)
        stdin.seek(0)
        pid = os.fork()
        if pid == 0:
            _execute(hook, stdin.fileno())
    status = _wait(pid, timeout)
    if status != 0:
        reason = f"timed out after {timeout} s" if status is None else f"status {status}"
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
