"""Errors keep their facts, compose their text, and survive pickle and JSON."""

from __future__ import annotations

import errno
import json
import pickle
import subprocess

import pytest

from sandbox import errors
from sandbox.errors import SandboxError

EXAMPLES: list[tuple[SandboxError, str]] = [
    (
        SandboxError(operation="mount", object="overlay", path="/run/x/rootfs", errno=errno.EPERM),
        "mount `overlay` (/run/x/rootfs): Operation not permitted",
    ),
    (
        SandboxError(
            "took no image", operation="start", cause="none given", hint="image='host'", logs=b"a\nb"
        ),
        "start: took no image\n  cause: none given\n  hint: image='host'\n  last log lines:\n    a\n    b",
    ),
    (
        SandboxError("why", errno=errno.ENOENT, operation="open", path="/x", container="db"),
        "container `db`: open /x: No such file or directory (why)",
    ),
    (
        errors.ModelError("must not be negative", class_name="Resources", field="memory", value=-5),
        "Resources.memory = -5: must not be negative",
    ),
    (
        errors.SpecError("expected a string, got 1", object="runtime configuration", path="$.hostname"),
        "`runtime configuration` ($.hostname): expected a string, got 1",
    ),
    (
        errors.ImageNotFound("no such file", operation="open image", object="oci:x"),
        "open image `oci:x`: no such file",
    ),
    (
        errors.ImageVerificationError(
            object="oci:x", digest="sha256:aa", expected="sha256:aa", actual="sha256:bb"
        ),
        "`oci:x`: blob sha256:aa: expected sha256:aa, found sha256:bb",
    ),
    (
        errors.CommandNotFound(step="exec", object="nope", errno=errno.ENOENT),
        "exec `nope`: No such file or directory",
    ),
    (
        errors.CommandNotExecutable(step="exec", object="/etc", errno=errno.EACCES),
        "exec `/etc`: Permission denied",
    ),
    (
        errors.UserNotFound(step="look up user", object="bob"),
        "look up user `bob`: no such user or group in the image",
    ),
    (
        errors.LimitNotEnforceable(controller="memory", limit="memory=64M"),
        "limit `memory=64M`: the cgroup controller `memory` is not available here",
    ),
    (
        errors.UnsupportedFeature(operation="mount", object="/a", feature="idmapped mounts"),
        "mount `/a`\n  missing feature: idmapped mounts",
    ),
    (errors.ShimDied(operation="start", exit_status=-9), "start: killed by SIGKILL"),
    (errors.PodStateError(operation="exec in", object="p", state="stopped"), "exec in `p`: it is stopped"),
    (
        errors.ContainerExited(operation="wait for", object="db", returncode=3, logs="boom\n"),
        "wait for `db`: exit status 3\n  last log lines:\n    boom",
    ),
    (
        errors.ContainerExited(object="db", returncode=-9, oom_killed=True),
        "`db`: killed by the kernel: out of memory at its limit",
    ),
    (
        errors.ReadinessTimeout(operation="wait for", object="db", timeout=2.5, last_seen="nothing listens"),
        "wait for `db`: not ready after 2.5 s; last seen: nothing listens",
    ),
    (
        errors.TimeoutExpired(["sleep", "9"], 0.5, output="x", stderr=b"\xff\n"),
        "exec `sleep 9`: timed out after 0.5 s\n  stdout:\n    x\n  stderr:\n    \\xff",
    ),
    (
        errors.CalledProcessError(1, ["make"], "cc\r\nld\r\n", "no rule\n"),
        "exec `make`: exit status 1\n  stdout:\n    cc\n    ld\n  stderr:\n    no rule",
    ),
    (errors.CalledProcessError(-40, "x"), "exec `x`: killed by signal 40"),
    (SandboxError(), "SandboxError"),
]


@pytest.mark.parametrize(("error", "text"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_text_is_composed_of_the_facts(error: SandboxError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize("error", [error for error, _ in EXAMPLES], ids=lambda error: type(error).__name__)
def test_errors_survive_pickle_and_json(error: SandboxError) -> None:
    error.add_note("seen in a test")
    pickled = pickle.loads(pickle.dumps(error))
    assert type(pickled) is type(error)
    assert (str(pickled), pickled.to_dict()) == (str(error), error.to_dict())
    assert pickled.__notes__ == ["seen in a test"]

    carried = SandboxError.from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(carried) is type(error)
    assert str(carried) == str(error)


def test_they_are_what_their_neighbours_raise_too() -> None:
    assert issubclass(errors.ModelError, ValueError)
    assert issubclass(errors.CommandNotFound, FileNotFoundError)
    assert issubclass(errors.CommandNotExecutable, PermissionError)
    assert issubclass(errors.ReadinessTimeout, TimeoutError)
    assert issubclass(errors.UserNotFound, LookupError)
    expired = errors.TimeoutExpired(["x"], 1.0, output="out", stderr="err")
    assert isinstance(expired, subprocess.TimeoutExpired)
    seen: tuple[object, ...] = (expired.cmd, expired.timeout, expired.stdout, expired.stderr)
    assert seen == (["x"], 1.0, "out", "err")
    failed = errors.CalledProcessError(2, ["x"], output="out")
    assert isinstance(failed, subprocess.CalledProcessError)
    assert (failed.returncode, failed.stdout) == (2, "out")
    assert errors.CommandNotFound(errno=2).errno == 2


def test_every_public_error_is_in_the_examples_or_only_a_base() -> None:
    shown = {type(error).__name__ for error, _ in EXAMPLES}
    bases = {"ImageError", "SetupError", "ShimError", "NamespaceUnavailable"}
    assert shown | bases == set(errors.__all__)
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), SandboxError)


def test_facts_a_class_does_not_have_become_notes() -> None:
    error = SandboxError.from_dict({"type": "NoSuchError", "operation": "mount", "step": 3})
    assert type(error) is SandboxError
    assert error.operation == "mount"
    assert error.__notes__ == ["step: 3"]
    assert type(errors.ShimError.from_dict({"detail": "x"})) is errors.ShimError


def test_a_fact_that_does_not_exist_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match="unexpected fact 'colour'"):
        SandboxError(colour="red")  # type: ignore[call-arg]


def test_long_and_unprintable_objects_do_not_bury_the_message() -> None:
    text = str(SandboxError("too long", operation="set the host name", object="\x1b[31m" + "x" * 4096))
    assert len(text) < 300
    assert "\x1b" not in text
    assert text.endswith("too long")


def test_output_is_bounded_and_leaves_the_terminal_alone() -> None:
    output = "".join(f"{number}\n" for number in range(100_000)) + "\x1b]0;title\x07\tend\n" + "x" * 2000
    text = str(errors.CalledProcessError(1, ["make"], output, "\x1b[2J"))
    head, title, *shown = text.splitlines()
    assert (head, title) == ("exec `make`: exit status 1", "  stdout (its last 20 lines):")
    assert [line.strip() for line in (shown[0], shown[17])] == ["99982", "99999"]
    assert shown[18].split() == ["\\x1b]0;title\\x07", "end"]
    assert shown[19] == "    " + "x" * 400 + "… (2000 characters)"
    assert shown[20:] == ["  stderr:", "    \\x1b[2J"]
    assert len(text) < 2000


def test_only_the_last_log_lines_are_shown() -> None:
    error = SandboxError("x", logs="\n".join(str(number) for number in range(100)))
    assert len(error.logs) == 100
    assert str(error).splitlines()[2].strip() == "80"
