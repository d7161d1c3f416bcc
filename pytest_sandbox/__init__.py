"""The pytest plugin: a pod for each test that asks for one. A thin skin over :mod:`sandbox`.

For annotations: the fixture ``sandbox`` is a :class:`sandbox.RunningPod`, the two factories are a
:class:`SandboxFactory`.
"""

from __future__ import annotations

from pytest_sandbox.fixtures import SandboxFactory

__all__ = ["SandboxFactory"]
