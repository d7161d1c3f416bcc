"""What the runtime reports when something cannot be done: facts, ready for JSON."""

from __future__ import annotations

import os
from typing import Any

from sandbox.linux.errors import KernelError


class Failure(Exception):
    """Facts about one failed step; the client rebuilds the public error of class ``type`` from them.

    The names of the facts are those of :class:`sandbox.errors.SandboxError` (operation, object, errno, cause, hint …).
    """

    def __init__(self, type: str = "SetupError", **facts: Any) -> None:
        super().__init__(facts)
        self.facts = {"type": type, **{name: value for name, value in facts.items() if value is not None}}

    def __str__(self) -> str:
        return " ".join(f"{name}={value!r}" for name, value in self.facts.items())


def unsupported(feature: str, detail: str, hint: str | None = None) -> Failure:
    """A member of a spec that this engine does not have, by name."""
    return Failure("UnsupportedFeature", feature=feature, detail=detail, hint=hint)


def invalid(path: str, detail: str) -> Failure:
    """A member of a spec that means nothing; ``path`` is its place in the document."""
    return Failure("SpecError", path=path, detail=detail)


def describe(error: BaseException, operation: str, target: str = "", hint: str | None = None) -> dict[str, Any]:
    """The facts of any exception, for a message; what was tried is ``operation`` unless the error knows better."""
    if isinstance(error, Failure):
        return error.facts
    facts: dict[str, Any] = {"type": "SetupError", "operation": operation}
    if isinstance(error, KernelError):
        facts |= {"operation": error.operation, "object": error.object or target, "errno": error.errno}
        if operation and operation != error.operation:
            facts["step"] = operation
    elif isinstance(error, OSError) and error.errno:
        facts |= {"object": os.fsdecode(error.filename) if error.filename else target, "errno": error.errno}
    else:
        facts |= {"object": target, "detail": f"{type(error).__name__}: {error}"}
    if hint:
        facts["hint"] = hint
    return facts
