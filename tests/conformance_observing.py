"""Starting a pod with an engine, and what the probe program in each of its containers reports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from programs import PYTHON

import sandbox
from sandbox import Container, Pod
from sandbox.pods import Options

PROBE = [PYTHON, "-I", "-S", "-c", (Path(__file__).parent / "conformance" / "probe.py").read_text("utf-8")]


def observe(pod: Pod, engine: str) -> dict[str, dict[str, Any]]:
    """Run ``pod`` with ``engine``; the report of each container by its name."""
    with sandbox.start(pod, options=Options(engine=engine)) as running:
        return {container.name: _report(container) for container in running}


def _report(container: Any) -> dict[str, Any]:
    for record in container.log_records(follow=True):
        if record.line.startswith("{"):
            report: dict[str, Any] = json.loads(record.line)
            return report
    raise AssertionError(f"{container.name}: no report, but {container.logs()}")


def probing(name: str = "main", **fields: Any) -> Container:
    """A container that runs the probe."""
    return Container(name, command=PROBE, **fields)


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a report as (path, value); a list is a leaf."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where two reports differ: path → (ours, theirs); None where one has nothing there."""
    left, right = dict(flat(ours)), dict(flat(theirs))
    return {
        path: (left.get(path), right.get(path))
        for path in sorted({*left, *right})
        if left.get(path) != right.get(path) and not path.startswith("namespaces.")
    }


def own_environment(reports: dict[str, Any]) -> dict[str, Any]:
    """The address of the notification socket has the pod's id in it."""
    for report in reports.values():
        report["identity"]["env"].pop("NOTIFY_SOCKET", None)
    return reports
