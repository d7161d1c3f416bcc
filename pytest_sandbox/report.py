"""What a report says of sandboxes: the header, and a section for each container of a failed test."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pytest_sandbox.options import Settings
from pytest_sandbox.state import REMEMBERED, STATE, began, others_depend_on_it, pods_of, ways_in

if TYPE_CHECKING:
    import pytest

    from sandbox import LogRecord, RunningContainer, RunningPod, Stats
    from sandbox.pods import Usage

Section = tuple[str, str]
#: Colours; what else a container may write to do things to a terminal is shown as an escape.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def header(settings: Settings) -> str:
    """One line, from the options alone: nothing is loaded or probed for it."""
    from sandbox import __version__

    return f"sandbox: {__version__}, engine {settings.engine}, cgroups {settings.cgroups}"


def found(settings: Settings) -> list[str]:
    """What that means on this machine."""
    from sandbox.cgroups import choose
    from sandbox.errors import SandboxError
    from sandbox.images import Store

    try:
        giver = choose(settings.cgroups, settings.systemd)
        limits = ", ".join(sorted(giver.controllers())) or "no limits"
        return [f"sandbox: cgroups from {giver.name} ({limits}), images in {Store.default().root}"]
    except SandboxError as error:
        return [f"sandbox: {error}"]


def sections(item: pytest.Item) -> list[Section]:
    """A section for each container of the pods that a failed test, or its fixtures, can have used."""
    state = item.config.stash[STATE]
    own, shared = pods_of(item), state.shared.used_by(item)
    result = [section for pod in own for section in _pod(item, pod, 0.0)] or item.stash[REMEMBERED]
    result = [*result, *(section for pod in shared for section in _pod(item, pod, began(item)))]
    if own and state.will_keep(item):
        result.append(("sandbox kept", "\n".join(ways_in(own))))
    return result


def remember(item: pytest.Item) -> None:
    """The pods of a test are about to go; that a fixture failed, which was torn down before them, is told after it."""
    if others_depend_on_it(item):
        item.stash[REMEMBERED] = [section for pod in pods_of(item) for section in _pod(item, pod, 0.0)]


def _pod(item: pytest.Item, pod: RunningPod, since: float) -> Iterator[Section]:
    from sandbox import PodStateError, SandboxError

    state = item.config.stash[STATE]
    lines = state.settings.log_lines
    several = len(pods_of(item)) + len(state.shared.used_by(item)) > 1
    for container in pod:
        try:
            text = "\n".join(_container(pod, container, lines, since))
        except PodStateError:
            text = "it was removed before the test failed"
        except (SandboxError, OSError) as error:  # the test may have killed more than containers
            text = f"nothing can be told: {error}"
        yield f"sandbox {f'{pod.id}/' if several else ''}{container.name}", text


def _container(pod: RunningPod, container: RunningContainer, lines: int, since: float) -> Iterator[str]:
    document = container.inspect()
    stats = _stats(container)
    restarts = f", restarted {document['restarts']} times" if document.get("restarts") else ""
    yield f"{pod.id}/{container.name}, image {container.model.image}: {document['state']}{restarts}"
    if document["exit"]:
        yield f"exit: {_exit(pod, container, document['exit'])}"
    elif stats is not None and stats.memory.oom_kills:
        kills = f"{stats.memory.oom_kills} process{'es' if stats.memory.oom_kills > 1 else ''}"
        yield f"out of memory: the kernel killed {kills}{_limit(pod, container)}"
    yield f"used: {_used(stats, container.usage)}"
    if lines:
        yield from _log(container, lines, since)


def _stats(container: RunningContainer) -> Stats | None:
    from sandbox import SandboxError

    try:
        return container.stats()
    except SandboxError:  # it has no cgroup
        return None


def _exit(pod: RunningPod, container: RunningContainer, document: dict[str, Any]) -> str:
    from sandbox import ContainerExited, SandboxError

    if document["returncode"] is None:
        return str(SandboxError.from_dict(document["error"]))
    oom = bool(document.get("oom_killed"))
    words = str(ContainerExited(returncode=document["returncode"], oom_killed=oom))
    cause = f"; {document['cause']}" if document.get("cause") else ""
    return words + (_limit(pod, container) if oom else "") + cause


def _limit(pod: RunningPod, container: RunningContainer) -> str:
    """The limits that a container can have met."""
    own, all_together = container.model.resources.memory, pod.model.resources.memory
    limits = [f"memory={_size(own)}"] if own else []
    limits += [f"memory={_size(all_together)} of the pod"] if all_together else []
    return f" ({', '.join(limits)})" if limits else ""


def _used(stats: Stats | None, usage: Usage | None) -> str:
    if usage is not None:
        parts = [f"CPU {usage.cpu:.2f} s", _peak("memory", _size(usage.memory_peak)),
                 _peak("processes", usage.pids_peak)]  # fmt: skip
    elif stats is not None:
        memory, pids = stats.memory, stats.pids
        parts = [f"CPU {stats.cpu.usage:.2f} s", _now("memory", _size(memory.current), _size(memory.peak)),
                 _now("processes", pids.current, pids.peak)]  # fmt: skip
    else:
        return "not known, the container has no cgroup of its own"
    return ", ".join(filter(None, parts))


def _peak(name: str, value: object) -> str:
    return "" if value is None else f"{name} {value} at most"


def _now(name: str, current: object, peak: object) -> str:
    return "" if current is None else f"{name} {current}" + ("" if peak is None else f", {peak} at most")


def _size(value: Any) -> str | None:
    """Bytes for people; a share of the host's memory says so itself."""
    if not isinstance(value, (int, float)):
        return None if value is None else str(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.4g} {unit}"


def _log(container: RunningContainer, lines: int, since: float) -> Iterator[str]:
    records = [record for record in container.log_records() if record.time >= since]
    which = " since the test began" if since else ""
    if not records:
        yield f"it has written nothing{which}"
        return
    shown = records[-lines:]
    count = f"the last {len(shown)} of {len(records)} lines" if len(shown) < len(records) else "what it has written"
    yield f"{count}{which}:"
    yield from map(_line, shown)


def _line(record: LogRecord) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(record.time))
    text = _COLOUR.sub("", record.line).expandtabs()
    safe = text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return f"  {clock}.{int(record.time % 1 * 1000):03} {record.stream}: {safe}"
