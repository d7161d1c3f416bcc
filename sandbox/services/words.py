"""A service in words: for reports of failed tests, and for the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sandbox._text import describe_exit, shorten

if TYPE_CHECKING:
    from sandbox.services.ending import ServiceUsage
    from sandbox.services.running import RunningService

__all__ = ["described_usage", "details", "summary"]

_MIB = 1 << 20


def summary(service: RunningService) -> str:
    """State, how it ended, and what it used, in a line."""
    usage = service.usage if service.returncode is not None else service.stats()
    used = described_usage(usage) if usage is not None else ""
    return ", ".join(part for part in (_state(service), used) if part)


def details(service: RunningService) -> Iterator[str]:
    """The same in lines: which unit, how it ended, what it used."""
    command = " ".join(service.args)
    yield f"{service.unit}: {shorten(command)}"
    if service.returncode is None:
        yield f"state: {_state(service)}{f', says `{service.status}`' if service.status else ''}"
    else:
        limit = service.plan.settings.last("MemoryMax")
        at = f" (MemoryMax={limit})" if service.oom_killed and limit else ""
        yield f"result: {service.result}, {_state(service)}{at}"
    usage = service.usage if service.returncode is not None else service.stats()
    if usage is not None:
        yield f"used: {described_usage(usage)}"


def _state(service: RunningService) -> str:
    if service.returncode is None:
        return f"{service.state} (pid {service.pid})" if service.pid else service.state
    end = describe_exit(service.returncode, service.oom_killed)
    return end if service.result in {"success", "exit-code", "signal", "oom-kill"} else f"{end} (result {service.result})"


def described_usage(usage: ServiceUsage) -> str:
    """What is known of it.

    >>> from sandbox.services.ending import ServiceUsage
    >>> described_usage(ServiceUsage(cpu=0.25, memory_peak=8 << 20, tasks=2))
    'CPU 0.250 s, memory peak 8.0 MiB, 2 tasks'
    """
    sizes = {
        "memory": usage.memory_current, "memory peak": usage.memory_peak, "read": usage.io_read, "written": usage.io_write,
        "received": usage.ip_received, "sent": usage.ip_sent,
    }  # fmt: skip
    parts = [f"CPU {usage.cpu:.3f} s"]
    parts += [f"{name} {size / _MIB:.1f} MiB" for name, size in sizes.items() if size is not None]
    return ", ".join(parts + ([f"{usage.tasks} tasks"] if usage.tasks is not None else []))
