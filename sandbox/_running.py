"""What runs: the pods of all shims of this user. Light to import, for those who only want to look."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sandbox.errors import SandboxError
from sandbox.shim.client import Shim
from sandbox.shim.rundir import RuntimeDirectory, shims

#: Seconds a shim may take to answer; one that takes longer is stopped (SIGSTOP, a debugger), and left out.
_PATIENCE = 2.0


def pods_by_shim() -> Iterator[tuple[RuntimeDirectory, dict[str, Any]]]:
    """Every running pod as its shim's ``pod.list`` describes it, with the shim's directory."""
    for directory in shims():
        try:
            shim = Shim.connect(directory)
        except OSError:
            continue  # it has just ended
        with contextlib.closing(shim), contextlib.suppress(TimeoutError, SandboxError):
            with shim.ask("pod.list", {}) as conversation:
                answer, _ = conversation.answer(_PATIENCE)
            for document in answer["pods"]:
                yield directory, document


def all_pods() -> list[dict[str, Any]]:
    """The documents of all running pods, the oldest first."""
    return sorted((document for _, document in pods_by_shim()), key=lambda document: document["created"])
