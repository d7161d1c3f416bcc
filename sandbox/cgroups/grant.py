"""What a giver gives, and what it needs for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import attrs

if TYPE_CHECKING:
    from sandbox.shim.client import Conversation


class ShimClient(Protocol):
    """The shim that a cgroup is for: :class:`sandbox.shim.client.OwnShim`."""

    @property
    def id(self) -> str:
        """Unique on this machine."""
        ...

    def ask(self, op: str, fields: Mapping[str, Any], fds: Sequence[int] = ()) -> Conversation:
        """Send a request."""
        ...

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """One request, one answer."""
        ...


@attrs.frozen
class Grant:
    """A pod's place in the cgroup trees. The directories need not exist yet; the shim makes them."""

    #: Its cgroup2 directory.
    v2: str | None
    #: Its directories in version 1 hierarchies, by controller.
    v1: dict[str, str] = attrs.field(factory=dict)
    #: Version 2 controllers that the pod may hand on.
    controllers: frozenset[str] = frozenset()
    #: The systemd unit that it is.
    unit: str | None = None
    #: Processes of ours in the version 2 directory, which a limit on processes counts as well.
    processes: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the request to the shim."""
        return {"v2": self.v2, "v1": self.v1, "controllers": sorted(self.controllers)}


class Declaration:
    """What is said of a pod to who keeps its cgroup. This one is to nobody.

    The shim enforces the limits at once, so nothing depends on when it is said.
    """

    def wait(self) -> None:
        """Until it is known there. Raises what was refused."""

    def over(self) -> None:
        """The pod has ended: what was not said by now need not be said. Raises what was refused."""
