"""``sandbox ps``: the running pods of this user, whichever process started them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from sandbox.cli import console
from sandbox.cli.options import Command, Given, Option

COMMAND = Command(
    "ps", "", "List running pods and their containers, whichever process of this user started them.",
    (
        Option("json", "Print JSON instead of a table"),
        Option("quiet", "Print only the ids of the pods", "q"),
    ),
    (
        ("sandbox ps", "what runs, since when, for which test"),
        ("sandbox ps --json | jq '.[].pod'", "for programs"),
    ),
)  # fmt: skip

_HEADER = ("POD", "CONTAINER", "IMAGE", "STATE", "AGE", "TEST OR COMMAND")
#: Longer commands are cut.
_WIDTH = 60


def main(given: Given) -> int:
    """Print the list."""
    given.no_operands()
    from sandbox._running import all_pods

    pods = all_pods()
    if given["json"]:
        import json

        console.write(json.dumps([row for pod in pods for row in _rows(pod)], indent=2) + "\n")
    elif given["quiet"]:
        console.write("".join(f"{pod['id']}\n" for pod in pods))
    else:
        console.write(console.table(_HEADER, [_cells(row) for pod in pods for row in _rows(pod)]))
    return 0


def _rows(pod: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    meta = pod["meta"]
    for container in pod["containers"]:
        end = container["exit"] or {}
        yield {
            "pod": pod["id"], "name": meta.get("name"), "container": container["name"],
            "image": (meta.get("images") or {}).get(container["name"]), "state": container["state"],
            "returncode": end.get("returncode"), "restarts": container["restarts"], "created": pod["created"],
            "started": container["started"], "command": container["args"], "test": meta.get("test"),
            "client": meta.get("client"), "labels": meta.get("labels") or {}, "cgroups": meta.get("cgroups"),
            "unit": meta.get("unit"),
            "engine": meta.get("engine"),
        }  # fmt: skip


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    import shlex

    state = row["state"] if row["returncode"] is None else f"{row['state']} ({row['returncode']})"
    what = row["test"] or shlex.join(row["command"])
    what = "".join(char if char.isprintable() else "?" for char in what)
    return (row["pod"], row["container"], row["image"] or "", state, age(time.time() - row["created"]),
            what if len(what) <= _WIDTH else f"{what[: _WIDTH - 1]}…")  # fmt: skip


def age(seconds: float) -> str:
    """A time span in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
