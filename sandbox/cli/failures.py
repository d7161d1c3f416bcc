"""Exceptions as exit statuses and as text on standard error."""

from __future__ import annotations

from sandbox.cli import console
from sandbox.cli.options import UsageError

#: What `podman run` and `podman exec` end with when they, and not the program, have failed.
OWN_FAILURE = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127
#: As timeout(1) ends.
TIMED_OUT = 124
_USAGE = 2


def report(error: Exception, command: str) -> int | None:
    """Tell about ``error`` and return the exit status; None if it is a bug of ours."""
    from sandbox.errors import CommandNotExecutable, CommandNotFound, SandboxError, TimeoutExpired

    runs_program = command in {"run", "exec", "service run"}
    if isinstance(error, UsageError):
        console.complain(f"sandbox {command}: {error}\nTry `sandbox {command} --help`.")
        return OWN_FAILURE if runs_program else _USAGE
    if not isinstance(error, SandboxError | OSError):
        return None
    console.complain(f"sandbox: {error}")
    if not runs_program:
        return 1
    special = {CommandNotFound: NOT_FOUND, CommandNotExecutable: NOT_EXECUTABLE, TimeoutExpired: TIMED_OUT}
    return next((status for kind, status in special.items() if isinstance(error, kind)), OWN_FAILURE)
