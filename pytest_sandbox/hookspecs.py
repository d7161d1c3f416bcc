"""The hooks of this plugin. Implement them in a ``conftest.py`` or a plugin of your own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sandbox import Pod, RunningPod
    from sandbox.images import Source


@pytest.hookspec
def pytest_sandbox_image_sources(config: pytest.Config) -> Mapping[str, Source] | None:
    """Add sources of images: ``{"mine": source}`` makes references like ``mine:anything`` work in this run.

    Called once, before the first sandbox is started.

    :param config: the pytest config object
    :return: a mapping of transport (lower-case letters, digits, ``-``) to an object or module with a function
        ``resolve(reference, store) -> Image``, see :class:`sandbox.images.Source`; or None

    Use in conftest: any conftest file that is loaded before the first sandbox is started can implement it. All
    implementations are called and all their sources added; two for the same transport are an error.
    """


@pytest.hookspec(firstresult=True)
def pytest_sandbox_configure_pod(item: pytest.Item, pod: Pod) -> Pod | None:
    """Change the pod of a test before it is started: limits for a whole suite, a mount, a label.

    Called for every pod, after the marker was read.

    :param item: the test; the session for pods of ``sandbox_session_factory``
    :param pod: what the marker or the call of the factory says; frozen, so make another with :func:`attrs.evolve`
    :return: the pod to start instead; or None for no change. Anything else is an error. Stops at the first answer that is
        not None; an implementation with ``@pytest.hookimpl(wrapper=True)`` can add to what another one has answered.

    Use in conftest: a conftest file's implementation is called for the tests in its folder and below.
    """


@pytest.hookspec
def pytest_sandbox_pod_started(item: pytest.Item, pod: RunningPod) -> None:
    """A pod of a test is ready: load data, take a note of its address.

    Called before the test gets it. If this raises, the pod is removed and the test's set-up has failed.

    :param item: the test; the session for pods of ``sandbox_session_factory``
    :param pod: the running pod

    Use in conftest: a conftest file's implementation is called for the tests in its folder and below.
    """
