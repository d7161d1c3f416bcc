"""The fixtures for service sandboxes, and what a report says of them. A thin skin over `sandbox.services`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.state import STATE

if TYPE_CHECKING:
    from sandbox.services import RunningService

__all__ = ["ServiceFactory", "sections", "service_sandbox", "service_sandbox_factory"]

MARKER = (
    "service_sandbox(command, /, **fields): the service of the `service_sandbox` fixture, a transient systemd service; "
    "`fields` are profile=, sockets=, env= … and unit properties (MemoryMax=, PrivateNetwork= …): see sandbox.start_service."
)
_SERVICES = pytest.StashKey["list[RunningService]"]()
#: Colours; everything else that a program may write to do things to a terminal is shown as an escape.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class ServiceFactory:
    """Starts services that are stopped when the test ends."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item

    def __call__(self, command: Any, /, **fields: Any) -> RunningService:
        """Start a service and wait until it is ready; the arguments are those of :func:`sandbox.start_service`."""
        __tracebackhide__ = True
        import sandbox

        state = self._item.config.stash[STATE]
        fields.setdefault("manager", state.settings.systemd)
        service = sandbox.start_service(command, **fields)
        self._item.stash.setdefault(_SERVICES, []).append(service)
        return service


@pytest.fixture
def service_sandbox_factory(request: pytest.FixtureRequest) -> Iterator[ServiceFactory]:
    """Start any number of services: ``service_sandbox_factory(["./daemon"], profile="strict")``; all go with the test."""
    try:
        yield ServiceFactory(request.node)
    finally:
        for service in reversed(request.node.stash.setdefault(_SERVICES, [])):
            service.close()


@pytest.fixture
def service_sandbox(
    request: pytest.FixtureRequest, service_sandbox_factory: ServiceFactory
) -> RunningService:  # fmt: skip
    """Give the test its service, a :class:`sandbox.RunningService`, as ``@pytest.mark.service_sandbox(…)`` describes it.

    Several markers add up, the class's before the function's, and the closest one wins.
    """
    __tracebackhide__ = True
    command, fields = _described(request.node)
    return service_sandbox_factory(command, **fields)


def _described(node: pytest.Item) -> tuple[Any, dict[str, Any]]:
    command: Any = None
    fields: dict[str, Any] = {}
    for mark in node.iter_markers("service_sandbox"):
        if len(mark.args) > 1:
            raise pytest.UsageError(
                f"{node.nodeid}: pytest.mark.service_sandbox takes one command, a list or a string, not {len(mark.args)} "
                "arguments; everything else is named"
            )
        command = command or next(iter(mark.args), None)
        fields = {**mark.kwargs, **fields}
    if command is None:
        raise pytest.UsageError(
            f"{node.nodeid} uses the fixture `service_sandbox`, but no marker says what to run: add "
            '@pytest.mark.service_sandbox(["./daemon"]), or use the fixture `service_sandbox_factory`'
        )
    return command, fields


def sections(item: pytest.Item) -> list[tuple[str, str]]:
    """A section for each service of a failed test."""
    lines = item.config.stash[STATE].settings.log_lines
    return [(f"service {service.args[0].rpartition('/')[2]}", "\n".join(_told(service, lines)))
            for service in item.stash.get(_SERVICES, [])]  # fmt: skip


def _told(service: RunningService, lines: int) -> Iterator[str]:
    from sandbox import SandboxError
    from sandbox.services.words import details

    try:
        yield from details(service)
    except SandboxError as error:  # the test may have killed more than its service
        yield f"nothing can be told: {error}"
    log = service.logs().splitlines()
    if not log or not lines:
        yield "it has written nothing that is kept" if not log else ""
        return
    shown = log[-lines:]
    yield f"the last {len(shown)} of {len(log)} lines:" if len(shown) < len(log) else "what it has written:"
    for line in shown:
        text = _COLOUR.sub("", line).expandtabs()
        yield "  " + (text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text))
