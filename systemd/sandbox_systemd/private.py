"""A private manager: ``systemd --user`` of our own, where systemd is installed but not running (CI containers, small VMs).

It has a cgroup2 subtree of its own and stays in the caller's process namespace, so process ids mean the same to both. It
ends with the process that started it, also after ``kill -9``; see :mod:`.keeper`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import threading

from . import keeper
from .bus import Address, Bus, connect
from .errors import ManagerEnded, NoBus
from .manager import Manager

__all__ = ["private", "shared", "why_not"]

#: Where distributions have it.
_PLACES = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
#: Seconds it may take to be ready; 0.1 are usual.
_START_PATIENCE = 30.0
#: Seconds until somebody who does not end is killed.
_END_PATIENCE = 10.0
#: The manager's own units: targets that others depend on by default, empty, so that nothing of the user's starts.
_TARGETS = ("basic", "shutdown", "exit", "sandbox-manager", "sockets", "timers", "paths", "default", "graphical-session")


def why_not() -> str | None:
    """Why there can be no private manager here; None if it can be tried."""
    if _systemd() is None:
        return "systemd is not installed"
    if (mount := _cgroup2()) is None:
        return "no cgroup2 file system is mounted"
    if not os.access(_base(mount), os.W_OK):
        return f"the cgroup directory {_base(mount)} is not writable for this user"
    return None


_sharing = threading.RLock()
_shared: PrivateManager | None = None


def private() -> Manager:
    """Start one and connect to it. Raises :class:`NoBus` with what kept it from starting."""
    return _connected(_start())


def shared() -> Manager:
    """The same for all in this process that ask, pods and services; the last to be closed ends it."""
    global _shared  # noqa: PLW0603 - one per process is the point
    with _sharing:
        if _shared is None or not _shared.usable:
            _shared = _start()
        return _connected(_shared)


def _connected(there: PrivateManager) -> Manager:
    there.users += 1
    try:
        return Manager(there.connect, "private", there.directory, _Leaving(there).leave)
    except BaseException:
        _Leaving(there).leave()
        raise


def _start() -> PrivateManager:
    if (reason := why_not()) is not None:
        raise NoBus("it cannot be started", operation="start", object="systemd --user", cause=reason,
                    hint="apt install systemd, and run as root or in a cgroup that is delegated to this user")  # fmt: skip
    sweep()
    return PrivateManager()


class _Leaving:
    """One user of a manager, who leaves once."""

    def __init__(self, manager: PrivateManager) -> None:
        self._manager: PrivateManager | None = manager

    def leave(self) -> None:
        """The last one ends it."""
        with _sharing:
            manager, self._manager = self._manager, None
            if manager is None:
                return
            manager.users -= 1
            if manager.users == 0:
                manager.close()


def _after_fork() -> None:
    global _sharing, _shared
    _sharing, _shared = threading.RLock(), None


os.register_at_fork(after_in_child=_after_fork)


class PrivateManager:
    """The manager's process, by its keeper."""

    def __init__(self) -> None:
        #: Connections that were asked for and not given back.
        self.users = 0
        mount = _cgroup2()
        assert mount is not None
        name = os.urandom(6).hex()
        base = _runtime()
        self.directory = f"{base}/{name}"
        cgroup = f"{_base(mount)}/sandbox-manager-{name}"
        lock = self._make_directory(f"{base}/.{name}", cgroup)
        self._pid = os.getpid()
        self._log = os.memfd_create("sandbox-manager-log", os.MFD_CLOEXEC)
        self._control, theirs = socket.socketpair()
        own = os.pidfd_open(os.getpid())
        order = {"directory": self.directory, "cgroup": cgroup, "mount": mount, "client": own,
                 "answer": theirs.fileno(), "systemd": _systemd()}  # fmt: skip
        try:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, json.dumps(order)], stdin=subprocess.DEVNULL,
                stdout=self._log, stderr=self._log, pass_fds=(own, theirs.fileno(), lock), start_new_session=True, cwd="/",
            )  # fmt: skip
        finally:
            theirs.close()
            os.close(own)
            os.close(lock)
        self._await()

    def _make_directory(self, hidden: str, cgroup: str) -> int:
        """Under a name that nobody sweeps until its lock is held."""
        os.mkdir(hidden)
        os.chmod(hidden, _mode())
        with open(f"{hidden}/cgroup", "w") as file:
            file.write(cgroup)
        os.mkdir(f"{hidden}/units")
        for name in _TARGETS:
            with open(f"{hidden}/units/{name}.target", "w") as file:
                file.write("[Unit]\nDefaultDependencies=no\n")
        lock = keeper.locked(hidden)
        os.rename(hidden, self.directory)
        return lock

    def _await(self) -> None:
        ready, _, _ = select.select([self._control], [], [], _START_PATIENCE)
        answer = json.loads(self._control.recv(65536) or b"{}") if ready else {"error": "it is not ready in time"}
        if "ready" not in answer:
            said = self.log()
            self.close()
            last = said.strip().splitlines()[-1:] or ["it said nothing"]
            raise NoBus(
                f"{answer.get('error', 'its keeper ended')}", operation="start", object="systemd --user",
                cause=f"{answer.get('object') or ''}: {last[0]}".strip(": "),
                hint="`sandbox doctor` tells what is missing; --sandbox-systemd=off does without systemd",
            )  # fmt: skip

        if os.geteuid() == 0:
            # Services that run as others report to it too; the manager tells whose a message is by itself.
            os.chmod(f"{self.directory}/systemd/notify", 0o777)

    @property
    def usable(self) -> bool:
        """False once it has ended, and in a forked child: it is the parent's."""
        own = self._pid == os.getpid() and self._log >= 0
        return own and self._keeper.poll() is None and os.path.exists(f"{self.directory}/systemd/private")

    def log_tail(self) -> str | None:
        """The last line that it has written."""
        last = self.log().strip().splitlines()[-1:] if self._log >= 0 else []
        return f"it said last: {last[0]}" if last else None

    def log(self) -> str:
        """What it has written."""
        return os.pread(self._log, 65536, 0).decode(errors="replace")

    def connect(self) -> Bus:
        """A connection to its private socket. Raises :class:`ManagerEnded` when it is over."""
        if self._log < 0 or self._keeper.poll() is not None:
            raise ManagerEnded("it has ended", operation="talk to", object="systemd --user", cause=self.log_tail())
        return connect(Address(f"{self.directory}/systemd/private", message_bus=False))

    def close(self) -> None:
        """End it and everything in it; returns when that is gone. May be called again."""
        self._control.close()
        if self._pid != os.getpid() or self._log < 0:
            return
        try:
            self._keeper.wait(_END_PATIENCE)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        keeper.clean_up(self.directory)
        os.close(self._log)
        self._log = -1


def sweep() -> None:
    """Remove what managers left whose keepers were killed as well."""
    base = _runtime()
    for name in os.listdir(base):
        if name.startswith("."):
            continue
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            lock = keeper.locked(f"{base}/{name}")
            keeper.clean_up(f"{base}/{name}")
            os.close(lock)


def _systemd() -> str | None:
    return next((path for path in _PLACES if os.access(path, os.X_OK)), None) or shutil.which("systemd")


def _cgroup2() -> str | None:
    """Where cgroup2 is mounted (proc_pid_mountinfo(5)); the last mount that nothing covers."""
    found = None
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            target = before.split(" ")[4]
            if after.startswith("cgroup2 ") and os.path.exists(f"{target}/cgroup.procs"):
                found = target
    return found


def _base(mount: str) -> str:
    """The cgroup below which we may make ours: the root for root, else our own."""
    if os.geteuid() == 0 and os.access(f"{mount}/cgroup.subtree_control", os.W_OK):
        return mount
    with open("/proc/self/cgroup") as file:
        own = next((line.rstrip("\n").split(":", 2)[2] for line in file if line.startswith("0::")), "/")
    return f"{mount}{own}".rstrip("/")


def _mode() -> int:
    """Of the directories: root's services may run as others, who have to reach the manager's notify socket in there."""
    return 0o711 if os.geteuid() == 0 else 0o700


def _runtime() -> str:
    """The directory of the managers' runtime directories, short, because sockets are in there (unix(7): 108 bytes)."""
    uid = os.geteuid()
    given = os.environ.get("XDG_RUNTIME_DIR")
    if uid == 0 and os.access("/run", os.W_OK):
        base = "/run/sandbox-managers"
    elif given and os.path.isdir(given) and os.stat(given).st_uid == uid:
        base = f"{given}/sandbox-managers"
    else:
        base = f"/tmp/sandbox-managers-{uid}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(base, 0o700)
    state = os.lstat(base)
    if state.st_uid != uid or state.st_mode & 0o066:
        raise NoBus(f"it must be a directory of user {uid} with mode {_mode():04o}", operation="use", object=base,
                    hint=f"remove {base}")  # fmt: skip
    os.chmod(base, _mode())
    return base
