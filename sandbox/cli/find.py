"""Operands that name a pod, or one of its containers: ``POD[/CONTAINER]``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sandbox.cli.options import UsageError

if TYPE_CHECKING:
    from sandbox._container import RunningContainer


@contextlib.contextmanager
def container(operand: str) -> Iterator[RunningContainer]:
    """The container that is meant: the pod's only one, unless one is named. Raises ``PodStateError``."""
    from sandbox._attach import attach
    from sandbox.errors import PodStateError

    name, slash, which = operand.partition("/")
    if not name or (slash and not which):
        raise UsageError(f"`{operand}`: expected POD or POD/CONTAINER")
    with attach(name) as pod:
        if not which and len(pod) == 1:
            yield next(iter(pod))
            return
        if which not in pod.containers:
            raise PodStateError(
                f"the pod has no container `{which}`" if which else "the pod has several containers",
                operation="find container", object=operand,
                hint=f"name one: {', '.join(f'{name}/{one}' for one in pod.containers)}",
            )  # fmt: skip
        yield pod[which]
