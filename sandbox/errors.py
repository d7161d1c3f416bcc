"""What can go wrong, as facts.

Every error of this library derives from :class:`SandboxError`. An error keeps its facts as attributes
(``operation``, ``object``, ``errno``, ``hint`` …) and composes its text from them, so that a program can decide on the
facts and a person reads: what was done, to what, why it failed, and one remedy::

    mount `overlay` (/run/sandbox/x/rootfs): Operation not permitted
      cause: the kernel does not allow overlayfs in a user namespace
      hint: load the module with `modprobe overlay permit_mounts_in_userns=1`

Errors survive pickling (pytest-xdist) and a trip through JSON (the shim): see :meth:`SandboxError.to_dict`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from sandbox._text import (
    command_text,
    describe_exit,
    indent,
    lines,
    log_lines,
    output_lines,
    shorten,
    to_json,
)

if TYPE_CHECKING:
    from typing import TypedDict, Unpack

    class Facts(TypedDict, total=False):
        """The facts every error may carry; all are optional."""

        operation: str | None
        object: str | None
        path: str | os.PathLike[str] | None
        errno: int | None
        feature: str | None
        container: str | None
        cause: str | None
        hint: str | None
        logs: str | bytes | Iterable[str] | None


__all__ = [
    "CalledProcessError",
    "CommandNotExecutable",
    "CommandNotFound",
    "ContainerExited",
    "ImageError",
    "ImageNotFound",
    "ImageVerificationError",
    "LimitNotEnforceable",
    "ModelError",
    "NamespaceUnavailable",
    "PodStateError",
    "ReadinessTimeout",
    "SandboxError",
    "SetupError",
    "ShimDied",
    "ShimError",
    "SpecError",
    "TimeoutExpired",
    "UnsupportedFeature",
    "UserNotFound",
]


class SandboxError(Exception):
    """The base of all errors of this library.

    :param detail: what went wrong in words; where there is an ``errno`` as well, its text comes first
    :param operation: what was tried, a verb first: ``"mount"``, ``"start container"``
    :param object: what it was tried on: ``"overlay"``, ``"db"``
    :param path: the file concerned, as seen by whoever made the call
    :param errno: the kernel's number, if the kernel refused; ``strerror`` follows from it
    :param feature: the name of a missing feature, as ``sandbox doctor`` prints it
    :param container: the container concerned
    :param cause: why, as found by a probe
    :param hint: one remedy
    :param logs: the last lines a container wrote (text, bytes or lines)
    """

    #: The names of the facts of this class; what :meth:`to_dict` and pickle carry.
    facts: ClassVar[tuple[str, ...]] = (
        "detail", "operation", "object", "path", "errno", "feature", "container", "cause", "hint", "logs",
    )  # fmt: skip

    detail: str | None
    operation: str | None
    object: str | None
    path: str | None
    errno: int | None
    feature: str | None
    container: str | None
    cause: str | None
    hint: str | None
    logs: tuple[str, ...]

    def __init__(self, detail: str | None = None, **facts: Unpack[Facts]) -> None:
        Exception.__init__(self)  # not super(): OSError and subprocess's classes have signatures of their own
        self._set({"detail": detail, **facts})

    def _set(self, given: Mapping[str, Any]) -> None:
        """Store facts; a name this class does not have is a programming error."""
        for name in given:
            if name not in self.facts:
                raise TypeError(f"{type(self).__name__}() got an unexpected fact {name!r}")
        for name in SandboxError.facts:
            setattr(self, name, _clean(name, given.get(name)))
        for name in self.facts:
            if name in given:
                setattr(self, name, _clean(name, given[name]))

    def _headline(self) -> str:
        """The first line: operation, object, reason."""
        subject = self._subject()
        reason = self._reason()
        owner = f"container `{self.container}`" if self.container and self.container != self.object else ""
        return ": ".join(part for part in (owner, subject, reason) if part) or type(self).__name__

    def _subject(self) -> str:
        words = [self.operation or "", f"`{shorten(self.object)}`" if self.object else ""]
        if self.path and self.path not in (self.object or "") + (self.operation or ""):
            words.append(f"({shorten(self.path)})" if self.object else shorten(self.path))
        return " ".join(word for word in words if word)

    def _reason(self) -> str:
        kernel = os.strerror(self.errno) if self.errno else ""
        detail = self.detail or ""
        return f"{kernel} ({detail})" if kernel and detail else kernel or detail

    def __str__(self) -> str:
        text = [self._headline()]
        if self.feature:
            text.append(f"  missing feature: {self.feature}")
        if self.cause:
            text.append(f"  cause: {indent(self.cause)}")
        if self.hint:
            text.append(f"  hint: {indent(self.hint)}")
        return "\n".join(text + log_lines(self.logs))

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in self._facts().items() if value not in (None, ()))
        return f"{type(self).__name__}({', '.join(shown)})"

    def _facts(self) -> dict[str, Any]:
        return {name: getattr(self, name, None) for name in self.facts}

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON values, with the class name under ``"type"``; absent facts are left out."""
        facts = {name: to_json(value) for name, value in self._facts().items() if value not in (None, ())}
        return {"type": type(self).__name__, **facts}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> SandboxError:
        """The error that :meth:`to_dict` (or the shim) described.

        ``"type"`` selects the class by name; a missing or unknown one gives the class this is called on.
        Facts that the class has no field for become notes (:meth:`BaseException.add_note`): nothing that
        was reported is lost.
        """
        kind = _known_classes().get(str(facts.get("type")), cls)
        given = {name: value for name, value in facts.items() if name in kind.facts}
        error = _rebuild(kind, given)
        for name, value in facts.items():
            if name not in given and name != "type":
                error.add_note(f"{name}: {value}")
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        extra = {name: value for name, value in self.__dict__.items() if name not in self.facts}
        return _rebuild, (type(self), self._facts()), extra or None


class ModelError(SandboxError, ValueError):
    """A model (Pod, Container, Mount …) or a method was given a value that cannot mean anything.

    :ivar class_name: the model, ``"Resources"``, or the method, ``"exec"``
    :ivar field: the field, ``"memory"``, or the argument, ``"timeout"``
    :ivar value: the value as it was given
    """

    facts = (*SandboxError.facts, "class_name", "field", "value")

    def __init__(self, detail: str, *, class_name: str, field: str, value: Any = None, **facts: Unpack[Facts]) -> None:
        super().__init__(detail, **facts)
        self.class_name = class_name
        self.field = field
        self.value = value

    def _subject(self) -> str:
        return f"{self.class_name}.{self.field} = {shorten(repr(self.value))}"


class SpecError(SandboxError, ValueError):
    """An OCI document is not what the specification says; ``path`` is where, like ``$.process.args[0]``."""


class ImageError(SandboxError):
    """An image cannot be used. ``object`` is the reference as the user wrote it."""


class ImageNotFound(ImageError):
    """There is no such image where the reference points to."""


class ImageVerificationError(ImageError):
    """A blob is not what its descriptor promised.

    :ivar digest: the blob, ``"sha256:…"``
    :ivar expected: the digest or size that was promised
    :ivar actual: what was found
    """

    facts = (*ImageError.facts, "digest", "expected", "actual")

    def __init__(
        self,
        detail: str | None = None,
        *,
        digest: str | None = None,
        expected: str | int | None = None,
        actual: str | int | None = None,
        **facts: Unpack[Facts],
    ) -> None:
        super().__init__(detail, **facts)
        self.digest = digest
        self.expected = expected
        self.actual = actual

    def _reason(self) -> str:
        promise = f"expected {self.expected}, found {self.actual}" if self.expected is not None else ""
        about = f"blob {self.digest}" if self.digest and self.digest != self.object else ""
        return ": ".join(part for part in (about, super()._reason(), promise) if part)


class UnsupportedFeature(SandboxError):
    """Something was asked for that this engine, kernel or version does not have; ``feature`` names it."""


class SetupError(SandboxError):
    """A step of making a container failed. Comes from the process that becomes the container's init.

    :ivar step: the step, ``"mount"``, ``"pivot_root"``; also the ``operation`` unless that is given
    """

    facts = (*SandboxError.facts, "step")

    def __init__(self, detail: str | None = None, *, step: str | None = None, **facts: Unpack[Facts]) -> None:
        super().__init__(detail, **facts)
        self.step = step
        self.operation = self.operation or step


class CommandNotFound(SetupError, FileNotFoundError):
    """The command does not exist in the container (``object`` is the command). Shells would exit with 127."""


class CommandNotExecutable(SetupError, PermissionError):
    """The command exists but cannot be executed (``object`` is the command). Shells would exit with 126."""


class UserNotFound(SetupError, LookupError):
    """A user or group (``object``) is in neither the image's ``/etc/passwd`` nor its ``/etc/group``."""

    def _reason(self) -> str:
        return super()._reason() or "no such user or group in the image"


class LimitNotEnforceable(SandboxError):
    """A limit was asked for that this host cannot enforce.

    :ivar controller: the cgroup controller that is missing, ``"memory"``
    :ivar limit: the limit as it was asked for, ``"memory=64M"``
    """

    facts = (*SandboxError.facts, "controller", "limit")

    def __init__(
        self,
        detail: str | None = None,
        *,
        controller: str | None = None,
        limit: str | None = None,
        **facts: Unpack[Facts],
    ) -> None:
        super().__init__(detail, **facts)
        self.controller = controller
        self.limit = limit

    def _subject(self) -> str:
        return super()._subject() or f"limit `{self.limit or self.controller}`"

    def _reason(self) -> str:
        if reason := super()._reason():
            return reason
        return f"the cgroup controller `{self.controller}` is not available here" if self.controller else ""


class NamespaceUnavailable(SandboxError):
    """The kernel or its configuration does not let us make the namespace that ``object`` names."""


class ShimError(SandboxError):
    """The helper process that holds the pods did not do what was asked."""


class ShimDied(ShimError):
    """The helper process is gone, and with it every pod it held.

    :ivar exit_status: how it ended, negative for a signal; ``None`` if nobody saw it
    """

    facts = (*ShimError.facts, "exit_status")

    def __init__(self, detail: str | None = None, *, exit_status: int | None = None, **facts: Unpack[Facts]) -> None:
        super().__init__(detail, **facts)
        self.exit_status = exit_status

    def _reason(self) -> str:
        end = describe_exit(self.exit_status) if self.exit_status is not None else ""
        return ": ".join(part for part in (super()._reason(), end) if part)


class PodStateError(SandboxError):
    """The pod or container does not exist or is in a state in which this cannot be done.

    :ivar state: the state it is in, in the OCI runtime spec's words: creating, created, running, stopped
    """

    facts = (*SandboxError.facts, "state")

    def __init__(self, detail: str | None = None, *, state: str | None = None, **facts: Unpack[Facts]) -> None:
        super().__init__(detail, **facts)
        self.state = state

    def _reason(self) -> str:
        return super()._reason() or (f"it is {self.state}" if self.state else "")


class ContainerExited(SandboxError):
    """A container ended while something was waiting for it; ``logs`` has its last lines.

    :ivar returncode: the exit status, negative for a signal
    :ivar oom_killed: the kernel killed it because of a memory limit
    """

    facts = (*SandboxError.facts, "returncode", "oom_killed")

    def __init__(
        self,
        detail: str | None = None,
        *,
        returncode: int | None = None,
        oom_killed: bool = False,
        **facts: Unpack[Facts],
    ) -> None:
        super().__init__(detail, **facts)
        self.returncode = returncode
        self.oom_killed = oom_killed

    def _reason(self) -> str:
        end = describe_exit(self.returncode, self.oom_killed) if self.returncode is not None else "it ended"
        return ": ".join(part for part in (super()._reason(), end) if part)


class ReadinessTimeout(SandboxError, TimeoutError):
    """A container ran but did not become ready in time.

    :ivar timeout: how long was waited, in seconds
    :ivar last_seen: what the probe saw last: ``"nothing listens on port 5432"``
    """

    facts = (*SandboxError.facts, "timeout", "last_seen")

    def __init__(
        self,
        detail: str | None = None,
        *,
        timeout: float | None = None,
        last_seen: str | None = None,
        **facts: Unpack[Facts],
    ) -> None:
        super().__init__(detail, **facts)
        self.timeout = timeout
        self.last_seen = last_seen

    def _reason(self) -> str:
        late = f"not ready after {self.timeout:g} s" if self.timeout is not None else "not ready in time"
        seen = f"last seen: {self.last_seen}" if self.last_seen else ""
        return "; ".join(part for part in (super()._reason() or late, seen) if part)


class TimeoutExpired(SandboxError, subprocess.TimeoutExpired):
    """A command took longer than its ``timeout`` and was killed with all its children.

    Also a :class:`subprocess.TimeoutExpired`: ``cmd``, ``timeout``, ``output`` (= ``stdout``) and
    ``stderr`` have what the command had written by then.
    """

    facts = (*SandboxError.facts, "cmd", "timeout", "output", "stderr")

    def __init__(
        self,
        cmd: str | Sequence[str],
        timeout: float,
        output: str | bytes | None = None,
        stderr: str | bytes | None = None,
        **facts: Unpack[Facts],
    ) -> None:
        SandboxError.__init__(self, **facts)
        self.cmd = cmd
        self.timeout = timeout
        self.output = output
        self.stderr = stderr  # type: ignore[assignment]  # typeshed: bytes only; subprocess: either

    def _subject(self) -> str:
        return f"{self.operation or 'exec'} `{shorten(command_text(self.cmd))}`"

    def _reason(self) -> str:
        return super()._reason() or f"timed out after {self.timeout:g} s"

    def __str__(self) -> str:
        return _with_output(self)


class CalledProcessError(SandboxError, subprocess.CalledProcessError):
    """A command run with ``check=True`` failed.

    Also a :class:`subprocess.CalledProcessError`: ``returncode`` (negative for a signal), ``cmd``, ``output``
    (= ``stdout``) and ``stderr``. ``oom_killed`` says that a memory limit ended it.
    """

    facts = (*SandboxError.facts, "returncode", "cmd", "output", "stderr", "oom_killed")

    def __init__(
        self,
        returncode: int,
        cmd: str | Sequence[str],
        output: str | bytes | None = None,
        stderr: str | bytes | None = None,
        oom_killed: bool = False,
        **facts: Unpack[Facts],
    ) -> None:
        SandboxError.__init__(self, **facts)
        self.returncode = returncode
        self.cmd = cmd
        self.output = output
        self.stderr = stderr
        self.oom_killed = oom_killed

    def _subject(self) -> str:
        return f"{self.operation or 'exec'} `{shorten(command_text(self.cmd))}`"

    def _reason(self) -> str:
        return super()._reason() or describe_exit(self.returncode, self.oom_killed)

    def __str__(self) -> str:
        return _with_output(self)


def _with_output(error: TimeoutExpired | CalledProcessError) -> str:
    """Its text, and how what the program wrote ends: the reason mostly is in there."""
    output = [] if error.logs else output_lines(error.output, "stdout") + output_lines(error.stderr, "stderr")
    return "\n".join([SandboxError.__str__(error), *output])


def _clean(name: str, value: Any) -> Any:
    if name == "logs":
        return lines(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def _known_classes() -> dict[str, type[SandboxError]]:
    """All error classes by name, those of other modules included."""
    found: dict[str, type[SandboxError]] = {}
    waiting: list[type[SandboxError]] = [SandboxError]
    while waiting:
        kind = waiting.pop()
        found.setdefault(kind.__name__, kind)
        waiting.extend(kind.__subclasses__())
    return found


def _rebuild(kind: type[SandboxError], facts: Mapping[str, Any]) -> SandboxError:
    """An error with these facts, made without its ``__init__``: classes differ in what that demands."""
    error = kind.__new__(kind)
    for name in kind.facts:
        setattr(error, name, None)
    error._set(facts)  # noqa: SLF001 - our own class
    return error
