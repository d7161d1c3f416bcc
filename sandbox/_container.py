"""What can be done with a running container; a pod with a single container can do the same."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shlex
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sandbox import _arguments as arguments, _validators as v
from sandbox._agent import FileAgent
from sandbox._arguments import inside
from sandbox._filecalls import FileCalls
from sandbox._output import LineSplitter, LogRecord, Stats, check_selection
from sandbox._process import DEVNULL, PIPE, AnyText, Process, Result, Streams, Usage, signal_value
from sandbox.errors import CalledProcessError, ContainerExited, PodStateError, SandboxError, TimeoutExpired
from sandbox.oci import stop_signal

if TYPE_CHECKING:
    from sandbox._launch import Prepared
    from sandbox.models import Container
    from sandbox.pods import RunningPod
    from sandbox.shim.client import Conversation

#: How long after SIGKILL a container may take to be gone, in seconds; the kernel needs microseconds.
_KILL_PATIENCE = 10.0


_exec_numbers = itertools.count(1)


def split_command(command: str | Sequence[str | os.PathLike[str]]) -> list[str]:
    """A command as a list; a string is split as shells do, and never given to one."""
    return shlex.split(command) if isinstance(command, str) else [os.fspath(word) for word in command]


class ContainerFace(FileCalls):
    """The operations on one container. Paths are paths in the container."""

    def _one(self) -> RunningContainer:
        raise NotImplementedError  # pragma: no cover - both subclasses have it

    # -- programs -------------------------------------------------------------------------------------------------

    def exec(
        self, command: str | Sequence[str | os.PathLike[str]], *, input: AnyText | None = None,
        timeout: float | None = None, check: bool = False, text: bool = True, user: str | int | None = None,
        env: Mapping[str, Any] | Iterable[str] | None = None, cwd: str | os.PathLike[str] | None = None, tty: bool = False,
    ) -> Result[Any]:  # fmt: skip
        """Run a program in the container and wait for it, like :func:`subprocess.run`.

        :param command: the program and its arguments; a string is split into words (no shell is involved)
        :param input: text or bytes for its standard input, which is empty otherwise
        :param timeout: seconds; then the program and everything it started is killed
        :param check: raise :class:`CalledProcessError` for an exit status other than 0
        :param text: output as ``str`` (bytes that are not UTF-8 become escapes) or as ``bytes``
        :param user: name or number, optionally with a group; looked up in the container as it is now
        :param env: variables on top of the container's, as ``Container.env`` takes them
        :param cwd: where it starts, a directory that is there; the container's working directory otherwise
        :param tty: give it a terminal; what it writes is then all in ``stdout``
        :raises TimeoutExpired: with what it had written
        :raises CommandNotFound: there is no such program in the container
        """
        timeout, data = arguments.seconds("exec", timeout), arguments.data("exec", input)
        stdin = PIPE if data is not None else DEVNULL
        process = self.popen(command, stdin=stdin, stdout=PIPE, stderr=PIPE, text=text, user=user, env=env, cwd=cwd,
                             tty=tty, kill_with_me=True, quiet=not tty)  # fmt: skip
        try:
            out, err = _finish(process, data, timeout)
        finally:
            process.close()
        result = Result(process.args, process.returncode or 0, out, err, process.duration, process.usage,
                        process.oom_killed)  # fmt: skip
        if check and result.returncode:
            raise CalledProcessError(result.returncode, process.args, out, err, oom_killed=process.oom_killed)
        return result

    def popen(
        self, command: str | Sequence[str | os.PathLike[str]], *, stdin: Any = None, stdout: Any = None, stderr: Any = None,
        text: bool = True, user: str | int | None = None, env: Mapping[str, Any] | Iterable[str] | None = None,
        cwd: str | os.PathLike[str] | None = None, tty: bool = False, kill_with_me: bool = False, quiet: bool = False,
    ) -> Process:  # fmt: skip
        """Start a program in the container, like :class:`subprocess.Popen`.

        Streams are ``PIPE``, ``DEVNULL`` (or None), ``STDOUT`` for ``stderr``, a descriptor or a file. With ``tty`` the
        program gets a terminal instead, whose master side is ``process.terminal``. With ``kill_with_me`` it is killed
        when the process object is closed or lost; with ``quiet`` nobody waits until it runs, and that it cannot is only
        told by ``wait``.
        """
        me = self._one()
        args = list(arguments.checked("exec", "command", v.words, command))
        user = arguments.user("exec", user)
        directory = None if cwd is None else inside(cwd, "exec", "cwd")
        variables = None if env is None else arguments.checked("exec", "env", v.environment, env)
        document = me.process_document(args, variables, directory, user, tty=tty)
        streams = Streams(None, None, None, text=text) if tty else Streams(stdin, stdout, stderr, text=text)
        fields = {**me.address, "process": document, "user": user, "lease": kill_with_me}
        number = f"{os.getpid()}-{next(_exec_numbers)}"
        fields = {**fields, "exec": number, "quiet": quiet}
        try:
            conversation = me.shim.ask("container.exec", fields, streams.given)
        finally:
            streams.release()
        try:
            return Process(args, conversation, streams, functools.partial(me.signal_exec, number), started=not quiet)
        except BaseException:
            streams.close()
            conversation.close()
            raise

    # -- output ---------------------------------------------------------------------------------------------------

    def logs(self, *, stream: str | None = None, tail: int | None = None, timestamps: bool = False) -> str:
        """What the container has written so far (as far as it was kept, see ``Container.log_size``).

        :param stream: ``"stdout"`` or ``"stderr"``; both, in the order in which they were read, if not given
        :param tail: only so many last lines
        :param timestamps: each line begins with its time (UTC, ISO 8601)
        """
        check_selection(stream, tail)
        records = [record for record in self.log_records() if stream in (None, record.stream)]
        if tail is not None:
            records = records[-tail:] if tail else []
        return "".join(f"{_stamp(record.time) if timestamps else ''}{record.line}\n" for record in records)

    def log_records(self, *, follow: bool = False) -> Iterator[LogRecord]:
        """The lines it has written, with stream and time; with ``follow`` also those to come, until it ends."""
        me = self._one()
        splitter = LineSplitter()
        with me.shim.ask("container.logs", {**me.address, "follow": follow}) as conversation:
            while True:
                message, _ = conversation.answer()
                if message.get("event") == "end":
                    break
                yield from splitter.feed(message["chunks"])
                if not follow:
                    break
        yield from splitter.rest()

    # -- images ---------------------------------------------------------------------------------------------------

    def commit(
        self, tag: str | None = None, *, pause: bool = True, message: str | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """Make an image of it as it is now: what it was started from, and what it has changed since.

        :param tag: what to call the image
        :param pause: stop its processes meanwhile, where the kernel can (cgroup freezer)
        :param message: what the image's history says
        :param changes: members of the image's ``config`` that are to be different: ``{"Cmd": ["redis-server"]}``
        :returns: a reference for ``image=``: the tag, or the digest

        What lies in mounts and volumes is no part of it.
        """
        from sandbox.build.commits import commit

        return commit(self._one(), tag, pause=pause, message=message, changes=changes)

    # -- life -----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``creating``, ``running`` or ``stopped`` (OCI runtime spec)."""
        return str(self._one().inspect()["state"])

    @property
    def returncode(self) -> int | None:
        """The exit status of its command, negative for a signal; None while it runs."""
        me = self._one()
        document = me.exit or me.inspect()["exit"]
        return document["returncode"] if document else None

    @property
    def usage(self) -> Usage | None:
        """What it used in all, once it has ended."""
        me = self._one()
        document = me.exit or me.inspect()["exit"]
        return Usage.from_message(document["usage"]) if document and "usage" in document else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its command to end (and not be restarted) and return the exit status."""
        me = self._one()
        if me.exit is None:
            with me.shim.ask("container.wait", me.address) as conversation:
                try:
                    me.exit = conversation.answer(timeout)[0]
                except TimeoutError:
                    raise TimeoutExpired(me.args, timeout or 0, operation="wait for", container=me.name) from None
        code = me.exit["returncode"]
        if code is None:
            raise SandboxError.from_dict(me.exit["error"])
        return int(code)

    def kill(self, signal: int | str = "KILL") -> None:
        """Signal its command ("HUP", 1, signal.SIGHUP)."""
        me = self._one()
        me.shim.call("container.signal", **me.address, signal=signal_value(signal))

    def stop(self, timeout: float | None = None) -> int:
        """Ask it to stop (``Container.stop_signal``), kill it if it has not within ``timeout``; its exit status.

        :param timeout: seconds; ``Container.stop_timeout`` if not given
        """
        me = self._one()
        patience = me.model.stop_timeout if timeout is None else timeout
        number = signal_value(stop_signal(me.model, me.image.config))
        me.shim.call("container.signal", **me.address, signal=number, stopping=True)
        try:
            return self.wait(patience)
        except TimeoutExpired:
            me.shim.call("container.signal", **me.address, signal=9, stopping=True)
            return self.wait(_KILL_PATIENCE)

    def freeze(self) -> None:
        """Stop every process of it where it stands (cgroup freezer); returns when they have."""
        me = self._one()
        me.shim.call("container.freeze", **me.address, frozen=True)

    def thaw(self) -> None:
        """Let them go on."""
        me = self._one()
        me.shim.call("container.freeze", **me.address, frozen=False)

    def stats(self) -> Stats:
        """What it uses now."""
        me = self._one()
        return Stats.from_message(me.shim.call("container.stats", **me.address))


class RunningContainer(ContainerFace):
    """A container of a running pod. Made by :func:`sandbox.start`; ``pod["name"]`` gives it."""

    def __init__(self, pod: RunningPod, prepared: Prepared) -> None:
        self.pod = pod
        self.shim = pod.shim
        self.model: Container = prepared.container
        self.image = prepared.image
        self.name = prepared.container.name
        self.spec: dict[str, Any] = prepared.spec
        self.args: list[str] = list(prepared.spec["process"]["args"])
        #: How it ended, once somebody has seen it.
        self.exit: dict[str, Any] | None = None
        #: The master side of its terminal, if it has one and is not logged.
        self.terminal: int | None = None
        #: The socket on which it may say that it is ready (sd_notify(3)).
        self.notify_socket: socket.socket | None = None
        #: The agent for its files; started at the first use.
        self.files = FileAgent(functools.partial(self.shim.fetch, "container.files", **self.address))

    def _one(self) -> RunningContainer:
        return self

    def __repr__(self) -> str:
        return f"<RunningContainer {self.name!r} of pod {self.pod.id!r}>"

    @property
    def address(self) -> dict[str, str]:
        """How the shim finds it."""
        return {"pod": self.pod.id, "container": self.name}

    def started(self, message: Mapping[str, Any], fds: list[int]) -> None:
        """Take what came with the news that it runs."""
        for name, fd in zip(message.get("fds") or (), fds, strict=True):
            if name == "notify":
                self.notify_socket = socket.socket(fileno=fd)
            else:
                self.terminal = fd

    def watch_exit(self) -> Conversation:
        """A conversation that becomes readable when it has ended; the caller closes it."""
        return self.shim.ask("container.wait", self.address)

    def inspect(self) -> dict[str, Any]:
        """Name, state, exit, pid, started, restarts, args; a container that is gone counts as stopped."""
        for pod in self.shim.call("pod.list")["pods"]:
            if pod["id"] == self.pod.id:
                for container in pod["containers"]:
                    if container["name"] == self.name:
                        found: dict[str, Any] = container
                        return found
        return {"name": self.name, "state": "stopped", "exit": self.exit, "pid": None}

    def exited(self, document: Mapping[str, Any], doing: str) -> ContainerExited:
        """The error for somebody who needed it alive."""
        return ContainerExited(
            operation=doing, container=self.name, returncode=document["returncode"],
            oom_killed=bool(document.get("oom_killed")), cause=document.get("cause"),
            logs=self.logs(tail=50),
        )  # fmt: skip

    def process_document(
        self, args: list[str], env: Mapping[str, str] | None, cwd: str | None, user: str | int | None, *, tty: bool
    ) -> dict[str, Any]:  # fmt: skip
        """The ``process`` of an exec: like the container's own, with what is different."""
        base = self.spec["process"]
        merged = dict(line.partition("=")[::2] for line in base["env"])
        merged.pop("NOTIFY_SOCKET", None)
        if user is not None:
            merged.pop("HOME", None)
        if tty:
            merged.setdefault("TERM", os.environ.get("TERM", "xterm"))
        merged.update(env or {})
        return {**base, "args": args, "env": [f"{k}={v}" for k, v in merged.items()], "cwd": cwd or base["cwd"],
                "terminal": tty}  # fmt: skip

    def signal_exec(self, number: str, tree: bool, signal: int) -> bool:
        """Signal a process that was exec'd in it; False if that had ended by itself."""
        fields = {**self.address, "exec": number, "tree": tree, "signal": signal}
        with self.shim.ask("exec.signal", fields) as conversation, contextlib.suppress(PodStateError):
            return bool(conversation.answer()[0]["event"] == "signalled")
        return True

    def release(self) -> None:
        """Close what is open here."""
        self.files.close()
        if self.notify_socket is not None:
            self.notify_socket.close()
            self.notify_socket = None
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None


def _finish(process: Process, input: AnyText | None, timeout: float | None) -> tuple[Any, Any]:
    if process.terminal is not None:
        return finish_terminal(process, timeout)
    try:
        return process.communicate(input, timeout)
    except TimeoutExpired as expired:
        killed = process.kill()
        out, err = process.communicate(timeout=_KILL_PATIENCE)
        if not killed:  # it ended in that very moment
            return out, err
        raise TimeoutExpired(process.args, timeout or 0, out, err) from expired
    except BaseException:
        process.kill()
        raise


def finish_terminal(process: Process, timeout: float | None) -> tuple[Any, Any]:
    """Read a terminal until the last process has left it (EIO)."""
    assert process.terminal is not None
    deadline = None if timeout is None else time.monotonic() + timeout
    got = bytearray()
    import select

    poller = select.poll()
    poller.register(process.terminal, select.POLLIN)
    while True:
        if not poller.poll(None if deadline is None else max(deadline - time.monotonic(), 0) * 1000):
            if not process.kill():
                break
            process.wait(_KILL_PATIENCE)
            raise TimeoutExpired(process.args, timeout or 0, process.text(bytes(got)))
        try:
            data = os.read(process.terminal, 65536)
        except OSError:
            break
        if not data:
            break
        got += data
    process.wait(_KILL_PATIENCE)
    return process.text(bytes(got)), process.text(b"")


def _stamp(seconds: float) -> str:
    import datetime as dt

    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec='milliseconds')} "
