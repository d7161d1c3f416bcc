"""``sandbox inspect``: everything about a pod, as JSON."""

from __future__ import annotations

import json
from typing import Any

from sandbox.cli import console
from sandbox.cli.options import Command, UsageError

COMMAND = Command(
    "inspect", "POD[/CONTAINER]", "Print a pod's containers with their states and OCI runtime specs, as JSON.",
    (),
    (
        ("sandbox inspect shop", "the pod and its containers"),
        ("sandbox inspect shop/db | jq .spec.mounts", "where the files of one come from"),
    ),
    "A container's `spec` is the config.json that crun and runc would be given, its `oci_state` what `crun state`\n"
    "would say.",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Print the document."""
    given = COMMAND.parse(arguments)
    if given is None:
        return 0
    name, slash, which = given.one_operand("a pod").partition("/")
    if not name or (slash and not which):
        raise UsageError("expected POD or POD/CONTAINER")
    document = _document(name)
    if which:
        document = _one(document, name, which)
    console.write(json.dumps(document, indent=2) + "\n")
    return 0


def _document(name: str) -> dict[str, Any]:
    from sandbox._attach import attach
    from sandbox._running import all_pods

    with attach(name) as pod:
        found = next(document for document in all_pods() if document["id"] == pod.id)
        for container in found["containers"]:
            answer = pod.shim.call("container.spec", pod=pod.id, container=container["name"])
            container |= {"spec": answer["spec"], "oci_state": answer["state"]}
    return {"pod": found["id"], **{key: value for key, value in found.items() if key != "id"}}


def _one(document: dict[str, Any], name: str, which: str) -> dict[str, Any]:
    from sandbox.errors import PodStateError

    containers: dict[str, dict[str, Any]] = {row["name"]: row for row in document["containers"]}
    if which not in containers:
        raise PodStateError(f"the pod has no container `{which}`", operation="find container", object=f"{name}/{which}",
                            hint=f"there are {', '.join(containers)}")  # fmt: skip
    return containers[which]
