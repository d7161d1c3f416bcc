"""What the plugin keeps while it runs: on the config, and on each test."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.options import Settings
from pytest_sandbox.shared import Shared

if TYPE_CHECKING:
    from sandbox import Pod, RunningPod
    from sandbox.pods import Options

_BEGAN = pytest.StashKey[float]()
_FAILED = pytest.StashKey[bool]()
#: How many fixtures with an end there were when the first pod of a test was started.
_FIXTURES = pytest.StashKey[int]()
#: What there was to say of the pods of a test before they went: titles and texts.
REMEMBERED = pytest.StashKey["list[tuple[str, str]]"]()
_PODS = pytest.StashKey["list[RunningPod]"]()


class State:
    """Of one run."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config = config
        self.settings = settings
        #: Pods of failed tests that outlive them, and the tests.
        self.kept: dict[RunningPod, str] = {}
        self.shared = Shared()
        self._alive: list[RunningPod] = []
        #: Images that a registry was asked for in this run.
        self._asked: set[str] = set()
        self._sources: list[str] | None = None
        #: What our variables were before.
        self._environment: dict[str, str | None] = {}

    @property
    def options(self) -> Options:
        """The settings in the library's terms."""
        import attrs

        from sandbox.pods import Options

        settings = self.settings
        return attrs.evolve(
            Options.from_environment(), engine=settings.engine, cgroups=settings.cgroups, systemd=settings.systemd,
            pull=settings.pull, lock=settings.lock,
        )  # fmt: skip

    def _options_for(self, pod: Pod) -> Options:
        """``always`` asks a registry about an image when the first test wants it, not for every test."""
        import attrs

        images = {container.image for container in pod.containers}
        if self.settings.pull != "always" or not images <= self._asked:
            self._asked |= images
            return self.options
        return attrs.evolve(self.options, pull="missing")

    def start(self, node: pytest.Item | pytest.Session, subject: Any, fields: dict[str, Any]) -> RunningPod:
        """Start a pod for a test, or for the whole session."""
        __tracebackhide__ = True
        import sandbox

        self._register_sources()
        model = self._with_timeout(sandbox.as_pod(subject, **fields))
        model = self._configured(node, model)
        pod = sandbox.start(model, options=self._options_for(model))
        self._alive.append(pod)
        pods_of(node).append(pod)
        if isinstance(node, pytest.Session):
            self.shared.add(pod)
        node.stash[_FIXTURES] = min(self.shared.with_an_end, node.stash.get(_FIXTURES, sys.maxsize))
        node.ihook.pytest_sandbox_pod_started(item=node, pod=pod)
        return pod

    def _configured(self, node: pytest.Item | pytest.Session, pod: Pod) -> Pod:
        from sandbox import Pod

        answer = node.ihook.pytest_sandbox_configure_pod(item=node, pod=pod)
        if answer is None:
            return pod
        if not isinstance(answer, Pod):
            raise pytest.UsageError(
                f"the hook pytest_sandbox_configure_pod has returned {answer!r}: expected a sandbox.Pod or None; "
                "attrs.evolve(pod, …) makes a changed one"
            )
        return answer

    def _with_timeout(self, pod: Pod) -> Pod:
        """Containers that leave the time for becoming ready to the default get the run's."""
        import attrs

        from sandbox import Container

        seconds, default = self.settings.ready_timeout, Container().ready_timeout
        if seconds is None:
            return pod
        containers = [
            attrs.evolve(container, ready_timeout=seconds) if container.ready_timeout == default else container
            for container in pod.containers
        ]
        return attrs.evolve(pod, containers=containers)

    def _register_sources(self) -> None:
        if self._sources is not None:
            return
        from sandbox.images import register_source
        from sandbox.images.distribution.progress import set_slow_writer

        set_slow_writer(self._tell)
        self._export()
        self._sources = []
        for sources in self._config.hook.pytest_sandbox_image_sources(config=self._config):
            for transport, source in (sources or {}).items():
                register_source(transport, source)
                self._sources.append(transport)

    def finish(self, node: pytest.Item | pytest.Session) -> None:
        """The test has ended: its pods go, or stay for somebody to look at."""
        __tracebackhide__ = True
        pods = pods_of(node)
        try:
            if pods and self.settings.keep == "failed" and node.stash.get(_FAILED, False):
                self._keep(node, pods)
        finally:
            errors = self._remove([pod for pod in reversed(pods) if pod not in self.kept])
            pods.clear()
        if errors:
            raise errors[0]

    def _remove(self, pods: list[RunningPod]) -> list[Exception]:
        """Remove all of them, whatever happens to one."""
        from sandbox import SandboxError

        errors: list[Exception] = []
        for pod in pods:
            self._alive.remove(pod)
            try:
                pod.close()
            except SandboxError as error:  # the shim died
                errors.append(error)
        return errors

    def _keep(self, node: pytest.Item | pytest.Session, pods: list[RunningPod]) -> None:
        with self._terminal() as terminal:
            if terminal is None:
                self.kept.update(dict.fromkeys(pods, node.nodeid))
                return
            lines = [
                "", f"{node.nodeid} failed, and its pod is still there. For a shell in it:",
                *(f"  {command}" for command in ways_in(pods)), "Press Enter to remove it and go on. ",
            ]  # fmt: skip
            os.write(terminal, "\n".join(lines).encode())
            os.read(terminal, 1024)

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[int | None]:
        """Our terminal, unless we are a worker of xdist or in the background. pytest has taken the standard streams."""
        try:
            terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            yield None
            return
        try:
            ours = not hasattr(self._config, "workerinput") and os.tcgetpgrp(terminal) == os.getpgrp()
            yield terminal if ours else None
        finally:
            os.close(terminal)

    def _export(self) -> None:
        """What else asks for images (a build, a service, `sandbox` that a test runs) goes by the run's settings too."""
        given = {"SANDBOX_PULL": self.settings.pull, "SANDBOX_LOCK": self.settings.lock or "none"}
        self._environment = {name: os.environ.get(name) for name in given}
        os.environ.update(given)

    def _tell(self, text: str) -> None:
        """A line for whoever waits: to our terminal, else where pytest shows it if the test fails."""
        with self._terminal() as terminal:
            os.write(2 if terminal is None else terminal, f"\n{text}".encode())

    def close(self) -> None:
        """End of the run."""
        if self._alive:
            self._remove(self._alive[::-1])
        self.kept.clear()
        if self._sources is not None:
            from sandbox.images import unregister_source
            from sandbox.images.distribution.progress import set_slow_writer

            set_slow_writer(None)
            for name, value in self._environment.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            for transport in self._sources:
                unregister_source(transport)
        self._sources = None

    def will_keep(self, item: pytest.Item) -> bool:
        """Whether the pods of this test are kept when it ends."""
        return self.settings.keep == "failed" and item.stash.get(_FAILED, False)


STATE = pytest.StashKey[State]()


def pods_of(node: pytest.Item | pytest.Session) -> list[RunningPod]:
    """The pods that were started for a test, or for the session, and are still there."""
    return node.stash.setdefault(_PODS, [])


def others_depend_on_it(item: pytest.Item) -> bool:
    """Whether fixtures were set up after the first pod of a test that may use it until they are torn down, and fail then."""
    return item.config.stash[STATE].shared.with_an_end > item.stash.get(_FIXTURES, sys.maxsize)


def note_start(item: pytest.Item) -> None:
    """The set-up of a test begins."""
    item.config.stash[STATE].shared.test_begins()
    item.stash[_BEGAN] = time.time()
    item.stash[_FAILED] = False
    item.stash[_FIXTURES] = sys.maxsize
    item.stash[REMEMBERED] = []  # it may be run again


def began(item: pytest.Item) -> float:
    """When that was, in seconds since the epoch."""
    return item.stash.get(_BEGAN, 0.0)


def note_failure(item: pytest.Item) -> None:
    """A phase of a test has failed."""
    item.stash[_FAILED] = True


def ways_in(pods: list[RunningPod]) -> list[str]:
    """Commands that give a shell in each container."""
    return [f"sandbox exec -it {pod.id}/{container.name} sh" for pod in pods for container in pod]
