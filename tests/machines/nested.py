"""A nested system manager: a real systemd as process 1, as root, beside the host's and without touching it.

From outside::

    with boot() as machine:
        done = machine.run(["systemctl", "is-system-running"], check=False)
        machine.python("import sandbox_systemd; …")
        (machine.root / "etc/systemd/system/x.service").write_text("[Service]\\nExecStart=/bin/true\\n")

The fixture ``system_manager`` gives a test module such a machine; a test that should itself run inside carries the
mark ``system_manager`` (tests/machines/inside.py). It boots in 0.2 s and has a bus, a network of its own with a
loopback, and the host's root file system below an overlay: what is written there is gone with the machine. The kernel
is the host's: no limits where the host's cgroup2 has no controllers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

CHECKOUT = Path(__file__).parents[2]
SUPERVISOR = Path(__file__).with_name("nested_boot.py")
#: Set in the environment of what runs inside, so that it knows: the manager of this machine is there to be used.
TESTBED = "SANDBOX_TESTBED"
NAMESPACES = ("--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net")
#: Set for programs inside, and handed on to them.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    TESTBED: "nested",
}
HANDED_ON = ("CI",)
#: Covered by the machine's own file systems: what lies there has to be bound to be seen.
COVERED = ("/tmp", "/run", "/dev", "/proc", "/sys")


class MachineFailed(Exception):
    """The machine did not boot, or a program in it failed or took too long. The text has what was printed."""


class Machine:
    """A booted machine, seen from outside."""

    def __init__(self, pid: int, cgroup: Path, console: IO[bytes]) -> None:
        #: The process id that its process 1 has outside.
        self.pid = pid
        #: The file system as it is inside, to read and write from outside. Absolute links in it lead to the host.
        self.root = Path(f"/proc/{pid}/root")
        #: Its cgroup, as it is called outside.
        self.cgroup = cgroup
        self._console = console
        self._numbers = itertools.count(1)

    def console(self) -> str:
        """All that systemd has printed so far."""
        size = os.fstat(self._console.fileno()).st_size
        return os.pread(self._console.fileno(), size, 0).decode(errors="replace").replace("\r\n", "\n")

    def run(
        self,
        command: Sequence[str | Path],
        *,
        timeout: float = 60,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        properties: Sequence[str] = (),
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside, as root, in a scope of its own (``properties`` of which are given like Delegate=yes).

        Raises MachineFailed, with what the program and systemd have printed, when it fails (unless ``check`` is
        off) or takes longer than ``timeout`` seconds, in which case all of its processes are killed.
        """
        scope = f"payload-{next(self._numbers)}.scope"
        process = subprocess.Popen(
            [
                "nsenter", f"--target={self.pid}", *NAMESPACES, "systemd-run", "--scope", "--quiet", "--collect",
                f"--unit={scope}", *(f"--property={text}" for text in properties), "--", *command,
            ],
            env={**ENVIRONMENT, **{name: os.environ[name] for name in HANDED_ON if name in os.environ}, **(env or {})},
            cwd="/", text=True, errors="replace",
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            output, errors = process.communicate(input, timeout)
        except BaseException as error:
            self._kill(scope)
            process.kill()
            output, errors = process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                what = f"took longer than {timeout:g} s"
                raise MachineFailed(self._report(command, what, output, errors)) from None
            raise
        done = subprocess.CompletedProcess(command, process.returncode, output, errors)
        if check and done.returncode:
            raise MachineFailed(self._report(command, f"ended with {done.returncode}", output, errors))
        return done

    def python(self, source: str | Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run Python code, or a file of the checkout, with the interpreter and the packages of this test run."""
        program = [str(source)] if isinstance(source, Path) else ["-c", source]
        return self.run([sys.executable, *program, *arguments], **options)

    def pytest(
        self, *arguments: str, directory: Path = CHECKOUT, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run tests inside: node ids, relative to the directory."""
        command = ["env", f"--chdir={directory}", sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
        # hypothesis's plugin imports all of it at the end of a session.
        return self.run([*command, "-p", "no:xdist", "-p", "no:hypothesispytest", *arguments], **options)

    def _kill(self, scope: str) -> None:
        with contextlib.suppress(OSError):
            (self.cgroup / "system.slice" / scope / "cgroup.kill").write_text("1")

    def _report(self, command: Sequence[str | Path], what: str, output: str, errors: str) -> str:
        name = " ".join(map(str, command))
        parts = (
            ("standard output", output),
            ("standard error", errors),
            ("console of systemd", self.console()),
        )
        return f"{name[:200]} {what}" + "".join(f"\n--- {title}\n{text}" for title, text in parts if text)


@contextlib.contextmanager
def boot(
    *,
    wants: Sequence[str] = ("dbus.socket",),
    units: Mapping[str, str] | None = None,
    shows: Sequence[Path] = (),
    timeout: float = 20,
) -> Iterator[Machine]:
    """Boot a machine; it is gone, whatever ran in it, when the block ends, or this process does.

    :param wants: units to start with it, such as systemd-journald.socket and systemd-journald.service
    :param units: unit files to add, the text of each by its name
    :param shows: directories and files to show at their places, read-only; only what is on the root file system
        and not below /tmp, nor belongs to this test run, is there without
    :param timeout: seconds in which it has to boot; MachineFailed, with what systemd printed, if it does not
    """
    options = {"wants": [*wants], "units": {**(units or {})}, "binds": to_bind(shows), "timeout": timeout}
    with (
        tempfile.TemporaryFile() as console,
        subprocess.Popen(
            [sys.executable, "-I", "-S", SUPERVISOR],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=console,
            start_new_session=True,  # Ctrl-C is for us: the supervisor goes when we do, and takes all away
        ) as supervisor,
    ):
        assert supervisor.stdin is not None
        assert supervisor.stdout is not None
        supervisor.stdin.write(json.dumps(options).encode() + b"\n")
        supervisor.stdin.flush()
        try:
            machine = until_ready(supervisor.stdout, console, timeout)
            yield machine
        finally:
            supervisor.stdin.close()
            supervisor.wait(timeout=20)


def until_ready(events: IO[bytes], console: IO[bytes], timeout: float) -> Machine:
    """Read what the supervisor tells until the machine is there."""
    seen: dict[str, Any] = {}
    buffer = b""
    deadline = time.monotonic() + timeout + 5  # the supervisor's own limit comes first
    with selectors.DefaultSelector() as selector:
        selector.register(events, selectors.EVENT_READ)
        while "ready" not in seen:
            if not selector.select(deadline - time.monotonic()) or not (
                chunk := os.read(events.fileno(), 65536)
            ):
                seen.setdefault("failed", "the supervisor did not answer")
            else:
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    seen |= json.loads(line)
            if "failed" in seen:
                console.seek(0)
                printed = console.read().decode(errors="replace")
                raise MachineFailed(f"nested system manager: {seen['failed']}\n--- console\n{printed}")
    return Machine(seen["pid"], Path(seen["cgroup"]), console)


def to_bind(shows: Sequence[Path]) -> list[str]:
    """These and what a test run consists of, as far as the root file system does not show it at its place."""
    wanted = {str(CHECKOUT), sys.prefix, sys.base_prefix, os.path.realpath(sys.base_prefix), *map(str, shows)}
    device = os.stat("/").st_dev
    return sorted(
        path
        for path in wanted
        if os.stat(path).st_dev != device or any(Path(path).is_relative_to(top) for top in COVERED)
    )
