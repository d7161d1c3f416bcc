"""Steps are told from one another, whatever is in their fields."""

from __future__ import annotations

import itertools

from sandbox.linux.mounts import parse_options
from sandbox.runtime.steps import Bind, Device, Mask, MountFilesystem, ReadOnly, Symlink, Sysctl

OPTIONS = parse_options(())
STEPS = (
    Bind("x", "x", OPTIONS), Device("x"), Mask("x"), MountFilesystem("x", "x", "x", OPTIONS), ReadOnly("x"),
    Symlink("x", "x"), Sysctl("x", "x"),
)  # fmt: skip


def test_no_step_is_another() -> None:
    """A container with a hidden path would take over what was made for one in which it can only not be written."""
    for one, other in itertools.combinations(STEPS, 2):
        assert one != other
        assert len({one, other}) == 2


def test_the_same_step_is_the_same() -> None:
    assert Mask("x") == Mask("x")
    assert hash(Mask("x")) == hash(Mask("x"))
