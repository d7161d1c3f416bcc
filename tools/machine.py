"""A whole machine in a process: Debian 12 on User-mode Linux, with systemd as PID 1 and cgroup v2 alone.

Usage: machine.py [build]
       machine.py run [--user root|tester] [--timeout SECONDS] [--] COMMAND…
       machine.py shell [--user root|tester]

It needs no KVM and opens no network. The checkout is copied to /checkout in the machine, `python`, `pytest` and
`sandbox` are those of /opt/venv there; `tester` is an ordinary user with sub-ids and a `systemd --user` of its own.
Each machine starts from the same disk, which docs/tests.md tells about, and nothing that it writes is kept.

`run` passes the output on and ends with the command's exit code (124 after a time-out, 125 if there is no machine).
The machine ends with this process, also with kill -9: it lives in a PID namespace whose first process has a
parent-death signal, and all its files lie on a tmpfs in a mount namespace of its own. Not being root it needs
unprivileged user namespaces, and for `build` sub-ids (mmdebstrap's mode `unshare`). Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine_image
from machine_image import CHECKOUT, USER, Unavailable

#: What the machine may use, as a kernel parameter. It takes of the host what it touches of it.
MEMORY = "2G"
#: Seconds from nothing to the agent's first word; 15 on an idle host.
BOOT = 180.0
TIMED_OUT, NO_MACHINE = 124, 125
#: Told to everything that runs inside: tests/gate.py expects other things of this kind of machine, and tests of
#: systemd take its own manager instead of making one.
KIND = {"SANDBOX_TESTBED": "uml"}
#: Passed on from here.
PASSED_ON = ("CI", "COLORTERM", "LANG", "TERM")

Output = Callable[[bytes], None]


class Machine:
    """A running machine. `run` runs a command in it; `kill` ends it, whatever it does."""

    def __init__(self, files: Path, *, terminal: int | None = None) -> None:
        """Start one from the disk in `files`. With `terminal`, a descriptor, that is where commands read and write."""
        self._console: deque[str] = deque(maxlen=40)
        self._selector = selectors.DefaultSelector()
        self._control, control = socket.socketpair()
        console, console_end = os.pipe()
        self._output, output_end = os.pipe() if terminal is None else (-1, terminal)
        self._process = self._start(files, control.fileno(), console_end, output_end)
        for end in (console_end, *(() if terminal is not None else (output_end,))):
            os.close(end)
        control.close()
        self._console_fd = console
        for descriptor in (console, self._control.fileno(), *((self._output,) if terminal is None else ())):
            os.set_blocking(descriptor, False)
            self._selector.register(descriptor, selectors.EVENT_READ)
        self._answers = b""

    def boot(self) -> None:
        """Wait until it takes commands. Raises Unavailable."""
        try:
            self._await(time.monotonic() + BOOT, lambda _: None, "ready")
        except TimeoutError:
            raise Unavailable(f"the machine did not start within {BOOT:.0f} s; its console:\n{self.console}") from None

    @staticmethod
    def _start(files: Path, control: int, console: int, output: int) -> subprocess.Popen[bytes]:
        # An empty directory for each disk, over which each machine mounts a tmpfs that nobody else sees.
        work = files / "work"
        work.mkdir(exist_ok=True)
        serial = f"fd:{output}" if os.isatty(output) else f"null,fd:{output}"
        kernel = (
            machine_image.KERNEL, f"mem={MEMORY}", f"ubd0={work}/written,{files}/disk", "root=/dev/ubda", "rw", "quiet",
            f"hostfs={CHECKOUT}", f"uml_dir={work}", "umid=machine", "con=null", f"con0=null,fd:{console}",
            f"ssl0={serial}", f"ssl1=fd:{control}", "systemd.show_status=no", "net.ifnames=0",
        )  # fmt: skip
        who = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        isolated = ("unshare", *who, "--mount", "--pid", "--mount-proc", "--fork", "--kill-child=KILL", "--")
        script = 'mount -t tmpfs -o mode=0700,size=75% machine "$TMPDIR" && exec "$@"'
        return subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", *isolated, "sh", "-c", script, "sh", *kernel),
            env={"PATH": f"{os.defpath}:/usr/sbin:/sbin", "TMPDIR": f"{work}", "LD_PRELOAD": f"{files}/registers.so"},
            pass_fds=(control, console, output),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )

    def run(
        self, command: list[str], *, user: str = "root", timeout: float | None = None, output: Output | None = None,
        size: tuple[int, int] | None = None,
    ) -> int:  # fmt: skip
        """Run to the end and return the exit code; `output` gets what is written. TimeoutError leaves it running."""
        environment = KIND | {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        request = {"user": user, "command": command, "environment": environment, "size": size}
        self._control.setblocking(True)
        self._control.sendall(json.dumps(request).encode() + b"\n")
        self._control.setblocking(False)
        deadline = None if timeout is None else time.monotonic() + timeout
        return int(self._await(deadline, output or to_stdout, "exited"))

    def _await(self, deadline: float | None, output: Output, key: str) -> Any:
        """Pass output on until the agent's answer has `key`."""
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            for chosen, _ in self._selector.select(left):
                self._read(chosen.fd, output)
            *lines, self._answers = self._answers.split(b"\n")
            for line in lines:
                answer = json.loads(line)
                if key in answer:
                    # The agent waited until its terminal had passed everything on.
                    while self._output >= 0 and self._read(self._output, output):
                        pass
                    return answer[key]

    def _read(self, descriptor: int, output: Output) -> bool:
        """Read what there is; False if nothing. Raises Unavailable when the machine is gone."""
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return False
        if descriptor == self._console_fd:
            self._console.extend(data.decode(errors="replace").splitlines())
        if not data:
            raise Unavailable(f"the machine ended; the last lines of its console:\n{self.console}")
        if descriptor == self._control.fileno():
            self._answers += data
        elif descriptor == self._output:
            output(data)
        return True

    @property
    def console(self) -> str:
        """The last lines of its console, indented."""
        return "\n".join(f"  {line}" for line in self._console)

    def kill(self) -> None:
        """End it; returns when all of its processes are gone."""
        # The process is `unshare`, whose child gets its parent-death signal; that child's end takes the rest along.
        self._process.kill()
        self._process.wait()
        self._selector.close()
        self._control.close()
        with open(self._console_fd, "rb") as console:
            os.set_blocking(console.fileno(), True)
            while console.read(1 << 16):  # until the last of them has closed it
                pass
        if self._output >= 0:
            os.close(self._output)


def to_stdout(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def machine(*, terminal: int | None = None) -> Iterator[Machine]:
    """A machine for the length of a block. Raises Unavailable."""
    with machine_image.image(python_with_pip()) as files:
        started = Machine(files, terminal=terminal)
        try:
            started.boot()
            yield started
        finally:
            started.kill()


def python_with_pip() -> str:
    own = Path(os.environ.get("VENV", ".venv")).absolute() / "bin/python"
    return str(own) if own.exists() else sys.executable


# --- the command line ---------------------------------------------------------------


def build(_options: argparse.Namespace) -> int:
    with machine_image.image(python_with_pip()) as files:
        print(files)
    return 0


def run(options: argparse.Namespace) -> int:
    with machine() as booted:
        try:
            return booted.run(options.command, user=options.user, timeout=options.timeout)
        except TimeoutError:
            print(f"machine.py: not done after {options.timeout:.0f} s; the machine is gone", file=sys.stderr)
            return TIMED_OUT


def shell(options: argparse.Namespace) -> int:
    if not os.isatty(0):
        raise Unavailable("a shell needs a terminal as its standard input (`machine.py run` runs a command)")
    before = termios.tcgetattr(0)
    columns, rows = shutil.get_terminal_size()
    print("starting the machine …", file=sys.stderr)
    try:
        with machine(terminal=0) as booted:
            return booted.run(["bash", "-i"], user=options.user, size=(rows, columns))
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n")
    top = argparse.ArgumentParser(
        "machine.py", description=summary, epilog=rest.partition("COMMAND…")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.set_defaults(action=build)
    actions = top.add_subparsers(metavar="build|run|shell")
    actions.add_parser("build", help="make the disk, if there is none yet").set_defaults(action=build)
    for name, action, text in (("run", run, "run a command"), ("shell", shell, "work in it by hand")):
        one = actions.add_parser(name, help=text)
        one.set_defaults(action=action)
        one.add_argument("--user", choices=("root", USER), default="root")
        if action is run:
            one.add_argument("--timeout", type=float, help="seconds, without those that the machine takes to start")
            one.add_argument("command", nargs="+")
    return top


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = parser().parse_args()
    try:
        code: int = options.action(options)
    except Unavailable as reason:
        print(f"machine.py: {reason}", file=sys.stderr)
        return NO_MACHINE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return code


if __name__ == "__main__":
    sys.exit(main())
