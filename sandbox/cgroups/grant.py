"""What a giver gives."""

from __future__ import annotations

from typing import Any

import attrs


@attrs.frozen
class Grant:
    """A pod's place in the cgroup trees. The directories need not exist yet; the shim makes them."""

    #: Its cgroup2 directory.
    v2: str | None
    #: Its directories in version 1 hierarchies, by controller.
    v1: dict[str, str] = attrs.field(factory=dict)
    #: Version 2 controllers that the pod may hand on.
    controllers: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """For the request to the shim."""
        return {"v2": self.v2, "v1": self.v1, "controllers": sorted(self.controllers)}
