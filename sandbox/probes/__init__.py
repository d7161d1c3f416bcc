"""When is a container ready? Probes to say so declaratively: ``Container(ready=Port(5432))``.

A probe can also be waited for by hand, as often as one likes: ``Http(8000, "/health").wait(pod, timeout=5)``.
Besides the probes here, ``ready`` may be a plain callable, called with the :class:`~sandbox.RunningContainer` until it
returns something true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._base import Probe, as_probe, wait_for
from ._groups import All, Any
from ._messages import Log, Notify
from ._network import Http, Port
from ._programs import Exec, Healthcheck

if TYPE_CHECKING:
    from sandbox._container import RunningContainer

__all__ = ["All", "Any", "Exec", "Healthcheck", "Http", "Log", "Notify", "Port"]


def wants_notify(ready: object) -> bool:
    """True if ``ready`` needs the container to have a NOTIFY_SOCKET."""
    return isinstance(ready, Probe) and ready.wants_notify


def wait_ready(container: RunningContainer, ready: object, timeout: float) -> None:
    """Wait until ``container`` is ``ready``, a probe or a callable.

    :param timeout: seconds
    :raises ReadinessTimeout: it was not; says what was seen last
    :raises ContainerExited: it ended, or was never going to be
    """
    wait_for(as_probe(ready), container, timeout)
