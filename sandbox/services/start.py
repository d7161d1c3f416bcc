"""Starting services: :func:`service` runs a command as one, :func:`start_service` keeps it running."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sandbox._process import PIPE, AnyText, Streams
from sandbox.errors import CalledProcessError, ReadinessTimeout, SandboxError, TimeoutExpired
from sandbox.services import causes, enforcement
from sandbox.services.ending import ServiceResult
from sandbox.services.errors import ServiceExited
from sandbox.services.managers import Home, errors_of_systemd, home
from sandbox.services.plan import Plan, plan
from sandbox.services.running import LOG, RunningService, Watched, log_file
from sandbox.services.sockets import Giver, named_sockets

if TYPE_CHECKING:
    from sandbox_systemd.manager import Property

__all__ = ["service", "start_service"]

_Command = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
#: Seconds that systemd may take for what does not depend on the command.
_PATIENCE = 30.0
_SETUP = range(200, 246)
#: Arguments are passed on as they are: systemd would put variables into them.
_LITERAL = "no-env-expand"


def service(
    command: _Command, *, profile: str | None = "default", image: str | None = None, input: AnyText | None = None,
    timeout: float | None = None, check: bool = False, text: bool = True, stdin: Any = None, stdout: Any = PIPE,
    stderr: Any = PIPE, env: Mapping[str, str] | None = None, cwd: str | os.PathLike[str] | None = None,
    lines: Sequence[str] = (), manager: str | None = None, best_effort: bool = False, **properties: Any,
) -> ServiceResult[Any]:  # fmt: skip
    """Run a command as a transient systemd service, shut in by ``profile``, and wait for it; like :func:`subprocess.run`.

    :param command: a list, or a string that is split into words; a program is looked up as a shell would
    :param profile: the name of a set of properties (``sandbox.services.PROFILES``), None for none
    :param image: its root directory is this image's, read-only
    :param input: for its standard input, which is empty otherwise
    :param timeout: seconds; then everything in it is killed
    :param env: variables; nothing of our own environment is passed on
    :param cwd: where it starts; ``/`` if not given
    :param lines: properties as in a unit file, ``["MemoryMax=64M"]``; they override the profile's
    :param manager: ``system``, ``user``, ``private``; the first there is if not given (or ``$SANDBOX_SYSTEMD``)
    :param best_effort: go without what the manager cannot enforce, instead of refusing
    :param properties: as keywords: ``MemoryMax="64M", PrivateNetwork=True``; they override both
    :raises CommandNotFound: there is no such program where the service looks
    :raises PropertyError: a property that services do not have, or that cannot have this value
    :raises NotEnforced: one that this manager would take and not keep; LimitNotEnforceable for limits
    :raises ServiceSetupError: systemd could not make its surroundings
    :raises TimeoutExpired: with what it had written
    :raises NoManager: there is no systemd that would run it
    """
    running = _start(
        command, Streams, {"stdin": PIPE if input is not None else stdin, "stdout": stdout, "stderr": stderr, "text": text},
        manager, best_effort, None, {"profile": profile, "image": image, "env": env, "cwd": cwd, "lines": lines,
                                     "properties": properties},
    )  # fmt: skip
    with running:
        try:
            out, err = running.communicate(input, timeout)
        except TimeoutExpired as expired:
            running.kill()
            out, err = running.communicate()
            raise TimeoutExpired(running.args, timeout or 0, out, err, operation="service") from expired
        result = running.completed(out, err)
    if check and result.returncode:
        raise CalledProcessError(result.returncode, result.args, out, err, oom_killed=result.oom_killed)
    return result


def start_service(
    command: _Command, *, profile: str | None = "default", image: str | None = None, stdin: Any = None,
    stdout: Any = LOG, stderr: Any = LOG, text: bool = True, env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None, lines: Sequence[str] = (),
    sockets: Mapping[str, Any] | Iterable[Any] | None = None, manager: str | None = None, ready_timeout: float = 60.0,
    best_effort: bool = False, **properties: Any,
) -> RunningService:  # fmt: skip
    """Start a command as a transient systemd service and return when it is ready.

    Ready is when it is executed, or with ``Type="notify"`` when it says READY=1 (sd_notify(3)). Streams are ``PIPE``,
    ``DEVNULL``, a descriptor or a file, or kept for ``.logs()`` (the default). Everything else is as for
    :func:`service`, which also lists the errors.

    :param sockets: listening sockets, or name → socket, that the service finds as LISTEN_FDS (sd_listen_fds(3))
    :param ready_timeout: seconds it may take to become ready
    :raises ServiceExited: it ended before it was ready
    :raises ReadinessTimeout: it was not ready in time
    """
    streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr, "text": text}
    return _start(
        command, _LoggedStreams, streams, manager, best_effort, sockets,
        {"profile": profile, "image": image, "env": env, "cwd": cwd, "lines": lines, "properties": properties},
        ready_timeout,
    )  # fmt: skip


class _LoggedStreams(Streams):
    """Streams of which some go to a file of ours."""

    def __init__(self, stdin: Any, stdout: Any, stderr: Any, *, text: bool) -> None:
        self.log: IO[bytes] | None = log_file() if LOG in (stdout, stderr) else None
        given = [self.log if stream == LOG else stream for stream in (stdout, stderr)]
        super().__init__(stdin, *given, text=text)

    def close(self) -> None:
        """The file too."""
        super().close()
        if self.log is not None:
            self.log.close()


def _start(
    command: _Command, kind: type[Streams], streams: Mapping[str, Any], manager: str | None, best_effort: bool,
    sockets: Any, fields: Mapping[str, Any], ready_timeout: float | None = None,
) -> RunningService:  # fmt: skip
    given = named_sockets(sockets)
    place = home(manager)
    what = plan(command, root=place.root, **fields)
    typed = _typed(what)
    with errors_of_systemd("start service", what.args[0]), contextlib.ExitStack() as undo:
        if not best_effort:
            enforcement.check(what.settings, place, lambda: has_firewall(place))
        root = None
        if what.image is not None:
            from sandbox.services.roots import Root

            root = undo.enter_context(contextlib.closing(Root(what.image, place)))
        giver = undo.enter_context(contextlib.closing(Giver(given))) if given else None
        pipes = kind(**streams)
        undo.callback(pipes.close)
        undo.callback(pipes.release)
        path = root.path if root else None
        properties = [*typed, *_of_unit(what, place, pipes.given, path, giver, ready_timeout)]
        running = _launch(what, place, pipes, properties, path, ready_timeout)
        running.when_closed(undo.pop_all().close)
    return running


def _launch(
    what: Plan, place: Home, streams: Streams, properties: Sequence[Property], root: Path | None,
    ready_timeout: float | None,
) -> RunningService:  # fmt: skip
    from sandbox_systemd.errors import JobFailed

    unit = place.new_name()
    try:
        watched = Watched(place, unit, what.settings.last("Slice"))
        try:
            with contextlib.suppress(JobFailed):
                place.manager.start_transient(unit, properties, timeout=_PATIENCE + (ready_timeout or 0))
        except BaseException as problem:
            watched.close()
            _abandon(place, unit, problem)
            raise
    finally:
        streams.release()
    running = RunningService(what, watched, streams)
    if watched.ended and (error := _failure(running, root, ready_timeout)) is not None:
        running.close()
        raise error
    return running


def _abandon(place: Home, unit: str, error: BaseException) -> None:
    """It may be starting still, after a time-out or Ctrl-C; a unit that was refused is not ours to stop."""
    from sandbox_systemd.errors import BusTimeout, SystemdError

    if isinstance(error, SystemdError) and not isinstance(error, BusTimeout):
        return
    with contextlib.suppress(SystemdError):
        place.manager.stop(unit, timeout=_PATIENCE)
    with contextlib.suppress(SystemdError):
        place.manager.reset_failed(unit)


def _failure(running: RunningService, root: Path | None, ready_timeout: float | None) -> SandboxError | None:
    """It has ended already: the error, unless its command was executed and is not waited for to become ready."""
    code = running.wait(_PATIENCE)
    args, settings, logs = running.args, running.plan.settings, running.logs(tail=50)
    if code in _SETUP and not running.has_written:
        error = causes.setup_error(code, args, settings, root)
        if error is not None:
            return error
    if settings.last("Type", "exec") in {"exec", "simple"} and running.result != "resources":
        return None
    if running.result == "timeout":
        return ReadinessTimeout(operation="start service", object=args[0], timeout=ready_timeout, logs=logs,
                                last_seen=running.status or "it has not said READY=1")  # fmt: skip
    return ServiceExited(
        _RESULTS.get(running.result or ""), operation="start service", object=args[0], result=running.result,
        returncode=code, oom_killed=running.oom_killed, logs=logs,
    )  # fmt: skip


_RESULTS = {
    "protocol": "it ended without having said READY=1",
    "resources": "systemd ran out of something it needs for it",
    "start-limit-hit": "it was started too often",
}


def _typed(what: Plan) -> list[Property]:
    """What it is set to, as the bus has it."""
    from sandbox_systemd.properties import from_python, parse

    with errors_of_systemd("start service", what.args[0]):
        added = [f"{name}={value}" for name, value in what.added]
        return [*parse(_for_the_bus(what.texts)), *from_python(what.keywords), *parse(added)]


def _of_unit(
    what: Plan, place: Home, fds: Sequence[int], root: Path | None, giver: Giver | None, ready_timeout: float | None
) -> list[Property]:  # fmt: skip
    """What makes it the unit of a service of ours."""
    from sandbox_systemd.bus import Variant

    found: list[Property] = [
        ("Description", Variant("s", f"sandbox: {' '.join(what.args)}"[:200])),
        # It stays until somebody has asked how it ended, whether well or not.
        ("RemainAfterExit", Variant("b", True)),
        *((f"Standard{name}FileDescriptor", Variant("h", fd))
          for name, fd in zip(("Input", "Output", "Error"), fds, strict=True)),
        ("ExecStartEx", Variant("a(sasas)", [(what.args[0], list(what.args), [_LITERAL])])),
    ]  # fmt: skip
    if (client := place.client) is not None:
        found += [("BindsTo", Variant("as", [client])), ("After", Variant("as", [client]))]
    if root is not None:
        found.append(("RootDirectory", Variant("s", str(root))))
    if ready_timeout is not None and "TimeoutStartSec" not in what.settings.names:
        found.append(("TimeoutStartUSec", Variant("t", max(int(ready_timeout * 1e6), 1))))
    if giver is not None:
        found += [
            ("FileDescriptorStoreMax", Variant("u", 512)),
            ("ExecStartPreEx", Variant("a(sasas)", [(giver.command[0], giver.command, ["privileged", _LITERAL])])),
            ("RootDirectoryStartOnly", Variant("b", True)),
        ]  # fmt: skip
        if "NotifyAccess" not in what.settings.names:
            found.append(("NotifyAccess", Variant("s", "exec")))
    if (sock := _hidden_notify_socket(what, place)) is not None:
        found.append(("BindPaths", Variant("a(ssbt)", [(sock, sock, False, 0)])))
        if what.settings.protect_home == "yes" and sock.startswith("/run/user/"):
            # Nobody may enter what stands for a hidden directory; an empty one hides as much.
            found.append(("ProtectHome", Variant("s", "tmpfs")))
    return found


def _hidden_notify_socket(what: Plan, place: Home) -> str | None:
    """Managers of users have it below /run/user or /tmp, which are not for every service to see."""
    settings = what.settings
    hides = settings.on("PrivateTmp") or settings.protect_home in {"yes", "tmpfs"}
    notifies = settings.last("Type") == "notify" or settings.last("NotifyAccess", "none") != "none"
    if not hides or not notifies or place.manager.kind == "system":
        return None
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return f"{place.manager.name if place.manager.kind == 'private' else runtime}/systemd/notify"


def _for_the_bus(lines: Iterable[str]) -> Iterator[str]:
    """As unit files say it → as the bus takes it: there, a list that allows nothing is one that everything was taken from."""
    for line in lines:
        if line == "RestrictAddressFamilies=none":
            yield from ("RestrictAddressFamilies=AF_UNIX", "RestrictAddressFamilies=~AF_UNIX")
        else:
            yield line


def has_firewall(place: Home) -> bool:
    """Whether packets of services are filtered: one that is to be counted has counters."""
    if place.firewall is None:
        plain = {"profile": None, "properties": {"IPAccounting": True}}
        streams = {"stdin": None, "stdout": None, "stderr": None, "text": False}
        with _start("true", Streams, streams, place.kind, True, None, plain) as running:
            running.wait(_PATIENCE)
            place.firewall = running.usage is not None and running.usage.ip_sent is not None
    return place.firewall
