"""Pods of other processes of the same user, found through the directory of running shims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox._container import RunningContainer
from sandbox._launch import Prepared
from sandbox._running import pods_by_shim
from sandbox.errors import PodStateError
from sandbox.images import Image
from sandbox.images.config import empty_config
from sandbox.models import Container, Pod
from sandbox.pods import RunningPod
from sandbox.shim.client import Shim
from sandbox.shim.rundir import RuntimeDirectory


class AttachedPod(RunningPod):
    """A pod that another process started. Leaving it (or closing it) ends the connection, not the pod."""

    def close(self) -> None:
        """Close the connection; the pod goes on."""
        for container in self.containers.values():
            container.release()
        self.shim.close()


def attach(name: str) -> AttachedPod:
    """The running pod with this id or name, or whose id begins so.

    Its containers' models have what can be told from outside: name, image and command. Raises :class:`PodStateError` if
    there is none, or more than one.
    """
    found = [(directory, document) for directory, document in pods_by_shim() if _is_meant(document, name)]
    exact = [(directory, document) for directory, document in found if document["id"] == name]
    found = exact or found
    if len(found) != 1:
        ids = ", ".join(document["id"] for _, document in found)
        raise PodStateError(
            f"there are {len(found)}: {ids}" if found else "there is no such pod", operation="find pod", object=name,
            hint="use its whole id" if found else "`sandbox ps` lists the running pods of this user",
        )  # fmt: skip
    directory, document = found[0]
    return _attached(directory, document)


def _is_meant(document: Mapping[str, Any], name: str) -> bool:
    return bool(document["meta"].get("name") == name or document["id"].startswith(name))


def _attached(directory: RuntimeDirectory, document: Mapping[str, Any]) -> AttachedPod:
    images = document["meta"].get("images") or {}
    rows = {row["name"]: row for row in document["containers"]}
    containers = [
        Container(name, image=images.get(name, "host"), command=row["args"]) for name, row in rows.items()
    ]
    if not containers:
        raise PodStateError("none of its containers has started yet", operation="attach to pod", object=document["id"])
    pod = AttachedPod(Shim.connect(directory), document["id"], Pod(containers, name=document["meta"].get("name")))
    try:
        for model in containers:
            pod.containers[model.name] = _container(pod, model)
    except BaseException:
        pod.close()
        raise
    return pod


def _container(pod: AttachedPod, model: Container) -> RunningContainer:
    spec = pod.shim.call("container.spec", pod=pod.id, container=model.name)["spec"]
    # Of its image only the name is known; what it says went into the spec, but for its stop signal.
    image = Image(model.image, "layers", (), empty_config())
    container = RunningContainer(pod, Prepared(model, image, spec, {}))
    container.exit = container.inspect()["exit"]
    return container


__all__ = ["AttachedPod", "attach"]
