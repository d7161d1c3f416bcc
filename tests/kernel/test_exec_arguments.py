"""What exec is called with: what it takes, and how it tells what it does not."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gate import requires

import sandbox
from sandbox import ModelError, SetupError
from sandbox.pods import RunningPod

pytestmark = requires("userns", "overlay")


@pytest.fixture(scope="module")
def pod() -> Iterator[RunningPod]:
    with sandbox.start(command="sleep inf", env={"OF": "the container"}) as running:
        yield running


def test_paths_are_taken(pod: RunningPod) -> None:
    assert pod.exec(["pwd", Path("-P")], cwd=Path("/tmp"), check=True).stdout == "/tmp\n"
    assert pod.exec(["sh", "-c", "echo $A"], env={"A": Path("/x")}, check=True).stdout == "/x\n"


@pytest.mark.parametrize("fields", [{}, {"user": 0}, {"tty": True}])
def test_a_directory_that_is_missing_is_an_error_and_not_made(pod: RunningPod, fields: dict[str, Any]) -> None:
    """By a copy of the shim and, after a few, by a process that waits in the container (sandbox.runtime.spawner)."""
    for _ in range(4):
        with pytest.raises(SetupError, match="enter the working directory `/nope/sub`: No such file") as caught:
            pod.exec("true", cwd="/nope/sub", **fields)
        assert (caught.value.errno, caught.value.hint) == (errno.ENOENT, "name one that is there, or make it first")
        pod.exec("true", check=True)
        time.sleep(0.05)
    assert not pod.exists("/nope")


def test_that_of_the_container_is_made_and_kept() -> None:
    with sandbox.start(command="sleep inf", working_dir="/made/here") as other:
        assert other.exec("pwd", check=True).stdout == "/made/here\n"


def test_the_environment_is_given_as_to_a_container(pod: RunningPod) -> None:
    script = ["sh", "-c", "echo $A $B $OF"]
    assert pod.exec(script, env=["A=1", "B=2=3"], check=True).stdout == "1 2=3 the container\n"
    assert pod.exec(script, env={"A": 1, "OF": ""}, check=True).stdout == "1\n"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"env": {"A": None}}, r"exec\.env = \{'A': None\}: the value of 'A'"), ({"env": ["A"]}, r"exec\.env = \['A'\]"),
        ({"env": "A=1"}, r"exec\.env = 'A=1'"), ({"env": {"A=": "1"}}, "'A='"), ({"timeout": "5"}, r"exec\.timeout = '5'"),
        ({"timeout": True}, r"exec\.timeout = True"), ({"input": 5}, r"exec\.input = 5: expected text or bytes"),
        ({"cwd": 5}, r"exec\.cwd = 5"), ({"user": 7.5}, r"exec\.user = 7\.5"), ({"user": -5}, r"exec\.user = -5"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(pod: RunningPod, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        pod.exec("true", **fields)


@pytest.mark.parametrize("command", [["a", 5], 5, [b"true"], "a 'b"])
def test_a_command_that_is_none(pod: RunningPod, command: Any) -> None:
    with pytest.raises(ModelError, match=r"exec\.command"):
        pod.exec(command)


def test_so_does_run() -> None:
    for fields, text in (({"timeout": "5"}, r"run\.timeout = '5'"), ({"input": 5}, r"run\.input = 5")):
        with pytest.raises(ModelError, match=text):
            sandbox.run("true", **fields)


def test_bytes_in_any_form_are_input(pod: RunningPod) -> None:
    assert pod.exec("cat", input=bytearray(b"a"), text=False).stdout == b"a"  # type: ignore[arg-type]
