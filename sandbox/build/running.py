"""RUN: a command in a pod on top of the layers so far; what it changed becomes the next layer."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sandbox._launch import Options, Preparation, Prepared
from sandbox.build.errors import BuildError
from sandbox.errors import SandboxError
from sandbox.models import Container, Mount, Pod, Security
from sandbox.pods import RunningPod, start_prepared
from sandbox.shim.client import own_shim

if TYPE_CHECKING:
    from sandbox._container import RunningContainer
    from sandbox.build.draft import LayerRef
    from sandbox.build.workshop import Workshop
    from sandbox.images.image import Image  # noqa: TC004 - attrs does not evaluate annotations

__all__ = ["Fixed", "Job", "layer_of", "run", "started"]

#: Of the output of a command that failed, in the error.
_LINES = 50


@attrs.frozen
class Fixed:
    """An image that is known already, where a model wants a reference."""

    image: Image = attrs.field(eq=False, hash=False)

    def resolve_image(self, _options: Any) -> Image:
        """The image itself."""
        return self.image

    def __str__(self) -> str:
        return self.image.reference


@attrs.frozen
class Job:
    """One command of a build."""

    image: Image
    argv: tuple[str, ...]
    env: Mapping[str, str] = attrs.field(factory=dict)
    user: str | None = None
    working_dir: str = "/"
    #: ``host`` or ``none``.
    network: str = "host"
    mounts: Sequence[Mount] = ()
    #: What errors call the command.
    text: str = ""

    def pod(self) -> Pod:
        """The pod that it runs in. Package managers and ``sudo`` need what set-user-id programs give."""
        container = Container(
            "build", image=Fixed(self.image), entrypoint=[], command=self.argv, env=self.env, user=self.user or "0",
            working_dir=self.working_dir, mounts=self.mounts, security=Security(no_new_privileges=False),
        )  # fmt: skip
        return Pod([container], network="host" if self.network == "host" else "private")


def run(job: Job, workshop: Workshop, tell: Callable[[str], None]) -> LayerRef | None:
    """Run a command to its end and make a layer of what it changed; None if that is nothing.

    :param tell: gets every line of output
    :raises BuildError: it failed, with its last lines
    """
    try:
        with started(job.pod(), workshop.options) as pod:
            lines: list[str] = []
            for record in pod.log_records(follow=True):
                tell(record.line)
                lines = [*lines[1 - _LINES :], record.line]
            if status := pod.wait():
                oom = "it was killed, for there was no memory left" if _out_of_memory(pod) else None
                raise BuildError(f"exit status {status}", operation="run", object=job.text, cause=oom, logs=lines)
            return layer_of(pod["build"], workshop)
    except SandboxError as error:
        if isinstance(error, BuildError):
            raise
        raise BuildError(str(error), operation="run", object=job.text) from error


def _out_of_memory(pod: RunningPod) -> bool:
    return any((container.exit or {}).get("oom_killed") for container in pod)


@contextlib.contextmanager
def started(model: Pod, options: Options) -> Iterator[RunningPod]:
    """A pod whose /etc/resolv.conf and /etc/hosts are the host's where its network is the host's."""
    preparation = Preparation(own_shim(), model, options)
    prepared = [_with_names(preparation.container(container), model) for container in model.containers]
    with start_prepared(preparation, prepared) as pod:
        yield pod


def _with_names(prepared: Prepared, model: Pod) -> Prepared:
    if (prepared.container.network or model.network) != "host":
        return prepared
    files = {}
    for path in ("/etc/resolv.conf", "/etc/hosts"):
        with contextlib.suppress(OSError):
            files[path] = Path(path).read_text("utf-8", "surrogateescape")
    if "/etc/hosts" in files and (own := prepared.spec.get("hostname")):
        files["/etc/hosts"] = f"{files['/etc/hosts'].rstrip()}\n127.0.0.1 {own}\n"
    rootfs = {**prepared.message["rootfs"], "files": files}
    return attrs.evolve(prepared, message={**prepared.message, "rootfs": rootfs})


def layer_of(container: RunningContainer, workshop: Workshop) -> LayerRef | None:
    """What a container has changed of its image, whether it still runs or not."""
    with container.shim.ask("container.changes", container.address) as conversation:
        _, fds = conversation.answer()
    try:
        return workshop.changes(*fds)
    finally:
        for fd in fds:
            os.close(fd)
