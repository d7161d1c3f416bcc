"""Starting the containers of a pod: in the order that ``after`` demands, the rest at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from sandbox._container import RunningContainer
from sandbox._launch import Preparation, Prepared, start_error
from sandbox.errors import SandboxError
from sandbox.probes import wait_ready

if TYPE_CHECKING:
    from sandbox.pods import RunningPod

#: Of each container, in an error about another one.
_LOG_LINES = 20


def start_all(pod: RunningPod, preparation: Preparation, prepared: Sequence[Prepared]) -> None:
    """Make the pod, start every container and wait until it is ready; the first error ends it all."""
    document = preparation.pod_document()
    if len(prepared) == 1:  # the shim can make both at once
        _start_one(pod, prepared[0], document, preparation.declare)
        return
    pod.shim.call("pod.create", pod=document)
    preparation.declare()
    ready = {item.container.name: threading.Event() for item in prepared}
    failed = threading.Event()
    with ThreadPoolExecutor(len(prepared), thread_name_prefix="sandbox-start") as pool:
        futures = [pool.submit(_in_turn, pod, item, ready, failed) for item in prepared]
        _first_error(futures, pod, ready, failed)
    # They were entered as they came up; from now on they are in the order in which they were declared.
    pod.containers = {name: pod.containers[name] for name in pod.model.names}


def _first_error(
    futures: Sequence[Future[None]], pod: RunningPod, ready: dict[str, threading.Event], failed: threading.Event
) -> None:  # fmt: skip
    try:
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    except BaseException as error:
        _tell_of_the_others(error, pod)
        failed.set()
        for event in ready.values():
            event.set()
        pod.close()  # wakes those that wait for a container to become ready
        raise


def _tell_of_the_others(error: BaseException, pod: RunningPod) -> None:
    """What the other containers had written is about to go, and may be the reason."""
    for container in list(pod.containers.values()):
        if container.name != getattr(error, "container", None):
            with contextlib.suppress(SandboxError):
                if logs := container.logs(tail=_LOG_LINES):
                    error.add_note("\n".join([f"  last log lines of container `{container.name}`:",
                                              *(f"    {line}" for line in logs.splitlines())]))  # fmt: skip


def _in_turn(
    pod: RunningPod, item: Prepared, ready: dict[str, threading.Event], failed: threading.Event
) -> None:  # fmt: skip
    for name in item.container.after:
        ready[name].wait()
    if not failed.is_set():
        _start_one(pod, item, pod.id)
        ready[item.container.name].set()


def _start_one(
    pod: RunningPod, item: Prepared, place: str | dict[str, Any], meanwhile: Callable[[], None] = lambda: None
) -> None:  # fmt: skip
    """Start a container in its pod (``place``: the id, or the document of one that is not there yet)."""
    container = RunningContainer(pod, item)
    try:
        with pod.shim.ask("container.start", {**item.message, "pod": place, "stdio": "log"}) as conversation:
            meanwhile()
            container.started(*conversation.answer())
    except SandboxError as error:
        raise start_error(error, container.name) from None
    pod.containers[container.name] = container
    if item.container.ready is not None:
        wait_ready(container, item.container.ready, item.container.ready_timeout)
