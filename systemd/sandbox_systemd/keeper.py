"""The process that keeps a private manager: ``python -I -S keeper.py JSON``. Standard library only, nothing of ours.

It gives systemd what it expects of a booted machine, in a mount namespace of its own: cgroup2 at /sys/fs/cgroup, and
/run/systemd/system. It ends when its client does, by whatever means, and takes the manager and all its units along.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import stat
import sys
import time
from typing import Any, NoReturn

_MS_BIND, _MS_REC, _MS_SLAVE, _MS_NOSUID, _MS_NODEV = 0x1000, 0x4000, 0x80000, 0x2, 0x4
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_CGROUP = "/sys/fs/cgroup"
#: Seconds in which killed processes leave their cgroups.
_PATIENCE = 5.0
_libc = ctypes.CDLL(None, use_errno=True)


def main(order: dict[str, Any]) -> None:
    """``directory``, ``cgroup`` (to be made), ``mount`` (of cgroup2), ``client`` (pidfd), ``answer`` (fd), ``systemd``."""
    _libc.prctl(_PR_SET_NAME, b"sandbox:manager", 0, 0, 0)
    os.umask(0o022)
    try:
        _make_cgroup(order["cgroup"])
        notify = _notify_socket(order["directory"])
        pid = os.fork()
        if pid == 0:
            _become_manager(order)
        _serve(order, pid, os.pidfd_open(pid), notify)
    except OSError as error:
        _answer(order, {"error": f"{error.strerror or error}", "object": str(error.filename or order["cgroup"])})
    finally:
        clean_up(order["directory"])


def _make_cgroup(path: str) -> None:
    os.mkdir(path)
    parent = os.path.dirname(path)
    with open(f"{parent}/cgroup.controllers") as file:
        offered = file.read().split()
    for controller in offered:
        # Those that cannot be handed on (a process is in the parent) are missed by who asks the manager for them.
        with contextlib.suppress(OSError), open(f"{parent}/cgroup.subtree_control", "w") as file:
            file.write(f"+{controller}")


def _notify_socket(directory: str) -> socket.socket:
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    notify.bind(f"{directory}/notify")
    return notify


def _serve(order: dict[str, Any], pid: int, pidfd: int, notify: socket.socket) -> None:
    poller = select.poll()
    for fd in (pidfd, order["client"], order["answer"], notify.fileno()):
        poller.register(fd, select.POLLIN)
    ready = False
    while True:
        events = {fd for fd, _ in poller.poll()}
        if notify.fileno() in events and b"READY=1" in notify.recv(4096).split(b"\n") and not ready:
            ready = True
            _answer(order, {"ready": pid})
        if order["client"] in events or order["answer"] in events:
            return
        if pidfd in events:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            _answer(order, {"error": f"it ended ({status})", "object": order["systemd"]})
            return


def _answer(order: dict[str, Any], message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(order["answer"], json.dumps(message).encode() + b"\n")


# -- the manager's process ----------------------------------------------------------------------------------------


def _become_manager(order: dict[str, Any]) -> NoReturn:
    try:
        os.setsid()
        _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with open(f"{order['cgroup']}/cgroup.procs", "w") as file:
            file.write("0")
        _own_mounts()
        if os.path.realpath(order["mount"]) != _CGROUP:
            _mount(order["mount"], _CGROUP, None, _MS_BIND | _MS_REC)
        _booted_run()
        _inaccessible(os.geteuid())
        for number in range(1, signal.NSIG):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        os.execve(order["systemd"], [order["systemd"], "--user", "--unit=sandbox-manager.target"], _environment(order))
    except OSError as error:
        sys.stderr.write(f"{error.strerror}: {error.filename}\n")
        _answer(order, {"error": str(error.strerror), "object": str(error.filename)})
    finally:
        os._exit(127)


def _own_mounts() -> None:
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _call("unshare", _CLONE_NEWNS)
    else:
        _call("unshare", _CLONE_NEWNS | _CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _mount(None, "/", None, _MS_SLAVE | _MS_REC)


def _booted_run() -> None:
    """/run as it is, and in it what sd_booted(3) looks for."""
    if os.path.isdir("/run/systemd/system"):
        return
    here = os.open("/run", os.O_PATH | os.O_DIRECTORY)
    _mount("tmpfs", "/run", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755")
    for name in os.listdir(f"/proc/self/fd/{here}"):
        old, new = f"/proc/self/fd/{here}/{name}", f"/run/{name}"
        mode = os.lstat(old).st_mode
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(old), new)
        elif name == "systemd":
            os.mkdir(new, 0o755)
        else:
            os.mkdir(new) if stat.S_ISDIR(mode) else os.mknod(new)
            _mount(old, new, None, _MS_BIND | _MS_REC)
    os.makedirs("/run/systemd/system", exist_ok=True)
    os.close(here)


def _inaccessible(uid: int) -> None:
    """Nodes that nobody may use: systemd mounts them over what it hides from services, and makes them at boot only."""
    runtime = f"/run/user/{uid}" if uid else "/run"
    top = f"{runtime}/systemd/inaccessible"
    if os.path.isdir(top):
        return
    # Without them a service that is to have something hidden fails, and says so (226/NAMESPACE); others do not need them.
    with contextlib.suppress(PermissionError):
        if uid:
            _over(f"{runtime}/systemd" if os.path.isdir(runtime) else "/run/user")
        os.makedirs(top, exist_ok=True)
        os.mkdir(f"{top}/dir", 0)
        os.mknod(f"{top}/reg", stat.S_IFREG)
        os.mkfifo(f"{top}/fifo", 0)
        os.mknod(f"{top}/sock", stat.S_IFSOCK)
        # An ordinary user makes no devices; systemd takes others of these instead.
        for name, kind in (("chr", stat.S_IFCHR), ("blk", stat.S_IFBLK)):
            os.mknod(f"{top}/{name}", kind, os.makedev(0, 0))


def _over(place: str) -> None:
    """An empty directory of our own in its place."""
    os.makedirs(place, exist_ok=True)
    _mount("tmpfs", place, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755")


def _environment(order: dict[str, Any]) -> dict[str, str]:
    """Of the client's environment what a login would set. Neither units nor generators of the user's."""
    kept = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TZ", "USER")
    directory = order["directory"]
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "XDG_RUNTIME_DIR": directory, "NOTIFY_SOCKET": f"{directory}/notify",
        "SYSTEMD_UNIT_PATH": f"{directory}/systemd/transient:{directory}/units", "SYSTEMD_LOG_TARGET": "console",
        "SYSTEMD_GENERATOR_PATH": f"{directory}/none", "SYSTEMD_ENVIRONMENT_GENERATOR_PATH": f"{directory}/none",
    }  # fmt: skip


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = [text.encode() if text is not None else None for text in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), data.encode(), about=target)


def _call(name: str, *arguments: Any, about: str | None = None) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), about or name)


# -- the end ------------------------------------------------------------------------------------------------------


def clean_up(directory: str) -> None:
    """Kill what is in the cgroup that ``directory`` names, and remove both. Safe to repeat."""
    try:
        with open(f"{directory}/cgroup") as file:
            cgroup = file.read()
    except FileNotFoundError:
        cgroup = ""
    if cgroup and os.path.isdir(cgroup):
        with contextlib.suppress(OSError), open(f"{cgroup}/cgroup.kill", "w") as file:
            file.write("1")
        if not _removed(cgroup):
            return  # the directory says what there is to remove, so it stays
    _remove_private_directories(directory)
    for top, directories, files in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):
            for name in files:
                os.unlink(f"{top}/{name}")
            for name in directories:
                os.rmdir(f"{top}/{name}")
    with contextlib.suppress(OSError):
        os.rmdir(directory)


def _remove_private_directories(directory: str) -> None:
    """What PrivateTmp= of services made; a manager that was killed could not take it away (systemd.exec(5))."""
    try:
        units = [name for name in os.listdir(f"{directory}/systemd/transient") if name.endswith(".service")]
    except FileNotFoundError:
        return
    import shutil  # rarely needed, and who waits for a manager waits for its keeper's imports

    for base in ("/tmp", "/var/tmp") if units else ():
        with contextlib.suppress(OSError), os.scandir(base) as entries:  # not every machine has both
            ours = [
                entry.path for entry in entries
                if entry.name.startswith("systemd-private-") and any(f"-{unit}-" in entry.name for unit in units)
                and entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
            ]  # fmt: skip
            for path in ours:
                shutil.rmtree(path, ignore_errors=True)


def _removed(cgroup: str) -> bool:
    """A killed process leaves its cgroup when it is reaped, a moment later."""
    deadline = time.monotonic() + _PATIENCE
    while os.path.isdir(cgroup):
        for top, _, _ in os.walk(cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(top)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def locked(path: str) -> int:
    """The lock of a directory; :class:`BlockingIOError` if somebody takes care of it."""
    fd = os.open(f"{path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
