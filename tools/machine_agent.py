"""Inside of the User-mode Linux machine: runs what the host asks for, one command after another.

Requests are JSON lines on /dev/ttyS1: {"user", "command", "environment", "size"}. The command runs in a login
session of the user (pam_systemd registers it with logind, as a login does), its output goes to /dev/ttyS0, and
{"exited": code} is answered when all of it has gone out. With a "size" (rows, columns) /dev/ttyS0 is the command's
terminal. tools/machine.py is the other end. Standard library only: this is the machine's own Python.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import tomllib
import tty
from pathlib import Path
from typing import Any

USER = "tester"
HOST = Path("/mnt/host")
CHECKOUT = Path("/checkout")
SITE = Path("/opt/venv/lib/python3.11/site-packages")
SKIPPED = shutil.ignore_patterns(".git", ".venv*", ".tox", ".*_cache", "__pycache__", ".hypothesis", "*.egg-info")
TERMINAL = "/dev/ttyS0"
CONTROL = "/dev/ttyS1"


def copy_checkout() -> None:
    """The checkout, with an owner who may write there; and what pip would note of an editable install.

    Whoever is somebody else in a user namespace may read it, though it may be in a private directory out there.
    """
    shutil.copytree(HOST, CHECKOUT, symlinks=True, ignore=SKIPPED, dirs_exist_ok=True)
    owner = pwd.getpwnam(USER)
    for folder, folders, files in os.walk(CHECKOUT):
        for name in (".", *folders, *files):
            path = Path(folder, name)
            os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    information = SITE / f"{project['name'].replace('-', '_')}-0.dist-info"
    information.mkdir(exist_ok=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0\n", "ascii")
    groups = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
    lines = [line for group, rows in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in rows.items()))]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n", "ascii")


def run(request: dict[str, Any], terminal: int) -> int:
    """Run a command to its end; its exit code, or 128 and the number of the signal that ended it (like a shell's)."""
    size = request.get("size")
    variables = {"PATH": f"/opt/venv/bin:{os.defpath}:/usr/sbin:/sbin:/usr/bin", **request["environment"]}
    assignments = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    script = f"cd {CHECKOUT} && exec env {assignments} {shlex.join(request['command'])}"
    login = ["runuser", "--login", request["user"], "--command", script]
    if size:
        code = subprocess.call(login, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
                               preexec_fn=lambda: take_terminal(terminal, size))  # fmt: skip
    else:
        code = call(login, terminal)
    termios.tcdrain(terminal)
    return code if code >= 0 else 128 - code


def call(command: list[str], terminal: int) -> int:
    """Run a command whose output is no terminal; what outlives it and holds the pipe open is not waited for."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        assert process.stdout is not None
        output, pidfd = process.stdout.fileno(), os.pidfd_open(process.pid)
        while output in select.select([output, pidfd], [], [])[0]:
            if not (data := os.read(output, 1 << 14)):
                break
            os.write(terminal, data)
        os.close(pidfd)
        return process.wait()


def take_terminal(terminal: int, size: list[int]) -> None:
    """Make it the session's controlling terminal, as wide as the host's is."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", *size, 0, 0))
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 1)


def sane(terminal: int) -> None:
    """What a shell expects: the host's side passes every key on as it is."""
    subprocess.run(["stty", "sane"], stdin=terminal, check=False)


def main() -> int:
    copy_checkout()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    terminal = os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY)
    control = os.open(CONTROL, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(control)
    with open(control, "rb", buffering=0) as requests:
        os.write(control, b'{"ready": true}\n')
        while line := requests.readline():
            request = json.loads(line)
            if request.get("size"):
                sane(terminal)
            else:
                tty.setraw(terminal)
            answer = {"exited": run(request, terminal)}
            os.write(control, json.dumps(answer).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
