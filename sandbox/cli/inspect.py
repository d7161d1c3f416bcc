"""``sandbox inspect``: everything about a pod or an image, as JSON."""

from __future__ import annotations

from typing import Any

from sandbox.cli import console
from sandbox.cli.options import Command, Given, Option, UsageError

COMMAND = Command(
    "inspect", "POD[/CONTAINER]|IMAGE", "Print what there is to know of a running pod or an image, as JSON.",
    (Option("type", "Look for a `pod` or an `image` only", "", "KIND"),),
    (
        ("sandbox inspect shop", "the pod and its containers"),
        ("sandbox inspect shop/db | jq .spec.mounts", "where the files of one come from"),
        ("sandbox inspect debian:12 | jq .config.Env", "an image of the store"),
        ("sandbox inspect oci:build/app:1", "an image from somewhere else, unpacked for this"),
    ),
    "A container's `spec` is the config.json that crun and runc would be given, its `oci_state` what `crun state`\n"
    "would say. Where a pod and an image have the same name, the pod is meant.",
    mixed=True,
)  # fmt: skip


def main(given: Given) -> int:
    """Print the document."""
    operand, kind = given.one_operand("a pod or an image"), given["type"]
    if kind not in {None, "pod", "image"}:
        raise UsageError(f"--type={kind}: expected pod or image")
    name, slash, which = operand.partition("/")
    looks_like_pod = bool(name) and (not slash or bool(which))
    if kind == "pod" and not looks_like_pod:
        raise UsageError("expected POD or POD/CONTAINER")
    if kind == "pod" or (kind is None and looks_like_pod and _is_pod(name)):
        document = _document(name)
        console.document(_one(document, name, which) if which else document)
    else:
        console.document(_image(operand, only=kind == "image"))
    return 0


def _is_pod(name: str) -> bool:
    from sandbox._running import all_pods

    return any(name == pod["meta"].get("name") or pod["id"].startswith(name) for pod in all_pods())


def _image(operand: str, *, only: bool) -> dict[str, Any]:
    """An image of the store, or one that has to be resolved."""
    from sandbox.cli import store
    from sandbox.images import parse, registered_transports

    if parse(operand, registered_transports()).transport != "docker":
        return _resolved(operand)
    found = store.images()
    image = found.look_up(operand)
    if image is None:
        raise _nothing(operand, only=only)
    from sandbox import oci

    config = oci.to_dict(store.config_of(found, image))
    return {**store.row(found, image), "config": config.get("config") or {}, "history": config.get("history") or []}


def _resolved(operand: str) -> dict[str, Any]:
    from sandbox import oci
    from sandbox.cli import store

    image, _ = store.resolved(operand)
    config = oci.to_dict(image.config)
    return {
        "names": [operand], "kind": image.kind, "manifest": image.digest,
        "platform": "/".join(filter(None, (image.config.os, image.config.architecture, image.config.variant))),
        "created": image.config.created, "unpacked_layers": [str(layer) for layer in image.layers],
        "config": config.get("config") or {}, "history": config.get("history") or [],
    }  # fmt: skip


def _nothing(operand: str, *, only: bool) -> Exception:
    from sandbox.cli import store
    from sandbox.errors import ImageNotFound

    there = ", ".join(sorted(name.name for name in store.images().names.items())) or "none"
    return ImageNotFound(
        "the store has no such image" if only else "there is neither a running pod nor an image of that name",
        operation="inspect", object=operand, hint=f"images are: {there}; running pods are listed by `sandbox ps`",
    )  # fmt: skip


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
