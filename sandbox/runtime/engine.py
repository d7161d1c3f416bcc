"""What an engine is: something that starts a container from a plan. There are :mod:`.native` and :mod:`.external`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sandbox.linux.idmap import IdMap

from .native import Launch, Placement
from .plan import Plan
from .rootfs import Rootfs


class Driven(Launch):
    """A launch whose process is not the container's init yet, but a driver that has another program make it.

    On its channel the driver hands the init over, ``{"init": pid}`` with descriptors of the process and of its process
    and mount namespaces, and reports what any launch does. ``stop``, sent to it, makes it give up and kill all it made.
    End of file without an init is a failure.
    """

    __slots__ = ()


class Engine(Protocol):
    """Starts containers. Called in the shim, so it must not block; it reports through :class:`Launch`."""

    def start(
        self, plan: Plan, rootfs: Rootfs, *, idmap: IdMap, userns_fd: int, pod: Mapping[str, int] | None,
        stdio: Sequence[int], placement: Placement, scratch: str, state: Mapping[str, Any], notify: str | None = None,
    ) -> Launch:  # fmt: skip
        """Start the container; the arguments are those of :func:`.native.start`.

        Raises :class:`Failure` for what can be told before a process exists.
        """
        ...
