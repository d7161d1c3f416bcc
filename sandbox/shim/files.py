"""The files of a container, served by an agent that lives in its user and mount namespaces.

Whatever links a container makes, the kernel resolves them inside its root, because that is the only root the agent has.
Contents travel as file descriptors. The agent is in the shim's process namespace, so the container neither sees nor
traces it.

Requests (JSON, one answer each unless said otherwise):

``open``    path, flags, mode → a descriptor of a regular file
``stat``    path, follow → type, mode, uid, gid, size, mtime_ns, target
``list``    path → names
``mkdir``   path, mode, parents
``remove``  path, recursive
``user``    user → uid, gid; of a number alone the group is the same number
``own``     path, mode, uid, gid
``tree``    path → many answers, parents first: name, type, mode, …; with a descriptor for a regular file; then ``end``
``put``     path, type, mode, mtime_ns, target, and a descriptor to copy from for a regular file
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from sandbox.linux import constants as c, syscalls
from sandbox.linux.idmap import become_root
from sandbox.linux.users import UserDatabase, UserNotFoundError
from sandbox.runtime import beneath
from sandbox.runtime.failure import Failure, describe

from . import protocol

_TYPES = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
          stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}  # fmt: skip
_COPY = 1 << 20
#: What the kernel tells of owners that are not mapped (user_namespaces(7), overflowuid).
_NOBODY = 65534
#: What a request is called in an error, where it is not its own name.
_WORDS = {"tree": "copy out", "put": "copy in", "own": "set owner and mode of", "mkdir": "make directory"}
#: What is asked of a whole tree.
_BESIDE = frozenset({"tree", "remove"})


def start(namespaces: Mapping[str, int]) -> tuple[int, int, socket.socket]:
    """Start an agent in ``namespaces`` ("user", "mount"); returns (pid, pidfd, the client's end of its socket)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid, pidfd = syscalls.clone3(0, signal.SIGCHLD)
    if pid == 0:
        _main(namespaces, theirs)
    theirs.close()
    return pid, pidfd, ours


def _main(namespaces: Mapping[str, int], sock: socket.socket) -> NoReturn:
    try:
        sys.meta_path.clear()
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        syscalls.setns(namespaces["user"], c.CLONE_NEWUSER)
        syscalls.setns(namespaces["mount"], c.CLONE_NEWNS)
        become_root()
        syscalls.prctl(c.PR_SET_DUMPABLE, 0)
        keep = os.dup2(sock.fileno(), 3)
        syscalls.close_range(4)
        os.umask(0)
        _serve(socket.socket(fileno=keep))
    finally:
        os._exit(0)


def _serve(sock: socket.socket) -> None:
    while True:
        message, fds = protocol.receive(sock)
        if message is None:
            return
        op = str(message.get("op"))
        try:
            for answer, answer_fd in _OPERATIONS[op](message, fds):
                protocol.send(sock, answer, [answer_fd] if answer_fd >= 0 else [])
                if answer_fd >= 0:
                    os.close(answer_fd)
        except Exception as error:  # noqa: BLE001 - whatever is asked, and whatever a container makes of its files
            protocol.send(sock, {"error": _explain(error, op, str(message.get("path")))})
        finally:
            for fd in fds:
                os.close(fd)


def _explain(error: Exception, op: str, path: str) -> dict[str, Any]:
    """The facts of an error. Why root may not do something in its own container, is not easily guessed."""
    facts = describe(error, _WORDS.get(op, op), path)
    if facts.get("errno") == errno.EACCES and _is_strangers(str(facts.get("object"))):
        facts.setdefault("cause", "its owner, or that of a directory above it, has no id in the container, so root in there "
                                  "has no power over it; in the image `host` that is all that belongs to the host")  # fmt: skip
        if op in _BESIDE:
            facts.setdefault("hint", f"{_WORDS.get(op, op)} what lies beside it, path by path")
    return facts


def _is_strangers(path: str) -> bool:
    """True if something on the way belongs to an owner whom the user namespace does not know."""
    with contextlib.suppress(OSError, ValueError):
        while os.stat(path, follow_symlinks=False).st_uid != _NOBODY:
            if path in ("/", ""):
                return False
            path = os.path.dirname(path.rstrip("/"))
        return True
    return False


@contextlib.contextmanager
def _about(path: str) -> Iterator[None]:
    """Calls that take a descriptor and a name tell only the name when they fail: this tells the whole path."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


Answer = Iterator[tuple[dict[str, Any], int]]


def _open(message: Mapping[str, Any], _fds: list[int]) -> Answer:
    path, flags, mode = message["path"], int(message["flags"]), int(message.get("mode", 0o644))
    try:
        fd = _open_regular(path, flags, mode)
    except PermissionError:
        if not flags & os.O_CREAT:
            raise
        fd = _replace(path, flags)
    yield {"event": "open"}, fd


def _open_regular(path: str, flags: int, mode: int) -> int:
    fd = syscalls.openat2(
        path, flags | os.O_NONBLOCK | os.O_NOCTTY, mode if flags & os.O_CREAT else 0, c.RESOLVE_NO_MAGICLINKS
    )  # fmt: skip
    kind = os.fstat(fd).st_mode
    if not stat.S_ISREG(kind):
        os.close(fd)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raise Failure(operation="open", object=path, detail=f"it is a {_TYPES[stat.S_IFMT(kind)]}, not a regular file")
    return fd


def _replace(path: str, flags: int) -> int:
    """A file of the image that even root may not write (it belongs to nobody here) can still be replaced."""
    source = _open_regular(path, os.O_RDONLY, 0)
    try:
        fresh = f"{path}.sandbox-new"
        fd = os.open(fresh, flags & ~os.O_TRUNC | os.O_EXCL | os.O_CLOEXEC, stat.S_IMODE(os.fstat(source).st_mode))
        if not flags & os.O_TRUNC:
            _copy(source, fd)
    finally:
        os.close(source)
    os.rename(fresh, path)
    if not flags & os.O_APPEND:
        os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _describe_entry(state: os.stat_result, target: str | None) -> dict[str, Any]:
    return {
        "type": _TYPES.get(stat.S_IFMT(state.st_mode), "unknown"), "mode": stat.S_IMODE(state.st_mode),
        "uid": state.st_uid, "gid": state.st_gid, "size": state.st_size, "mtime_ns": state.st_mtime_ns, "target": target,
    }  # fmt: skip


def _stat(message: Mapping[str, Any], _fds: list[int]) -> Answer:
    path = message["path"]
    state = os.stat(path, follow_symlinks=bool(message.get("follow", True)))
    yield _describe_entry(state, os.readlink(path) if stat.S_ISLNK(state.st_mode) else None), -1


def _list(message: Mapping[str, Any], _fds: list[int]) -> Answer:
    yield {"names": sorted(os.listdir(message["path"]))}, -1


def _mkdir(message: Mapping[str, Any], _fds: list[int]) -> Answer:
    if message.get("parents"):
        _make_parents(message["path"])
        if os.path.isdir(message["path"]):
            yield {"event": "done"}, -1
            return
    os.mkdir(message["path"], int(message.get("mode", 0o755)))
    yield {"event": "done"}, -1


def _make_parents(path: str) -> None:
    parent = os.path.dirname(path.rstrip("/"))
    if parent and not os.path.isdir(parent):
        os.makedirs(parent, 0o755)


def _remove(message: Mapping[str, Any], _fds: list[int]) -> Answer:
    path = message["path"]
    if os.path.isdir(path) and not os.path.islink(path):
        _remove_tree(path) if message.get("recursive") else os.rmdir(path)
    else:
        os.unlink(path)
    yield {"event": "done"}, -1


def _remove_tree(path: str) -> None:
    """Remove a tree by descriptors: what a container swaps for a link meanwhile is unlinked, not followed."""
    levels: list[tuple[int, str, list[str]]] = []  # from the top down: descriptor, path, names that are left
    try:
        levels.append(_level(path, path.rstrip("/"), None))
        while levels:
            fd, where, names = levels[-1]
            if names:
                name = names.pop()
                with _about(f"{where}/{name}"):
                    if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                        levels.append(_level(name, f"{where}/{name}", fd))
                    else:
                        os.unlink(name, dir_fd=fd)
                continue
            os.close(levels.pop()[0])
            if levels:
                with _about(where):
                    os.rmdir(os.path.basename(where), dir_fd=levels[-1][0])
    finally:
        for fd, _, _ in levels:
            os.close(fd)
    os.rmdir(path)


def _level(name: str, path: str, above: int | None) -> tuple[int, str, list[str]]:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        return fd, path, os.listdir(fd)
    except BaseException:
        os.close(fd)
        raise


def _user(message: Mapping[str, Any], _fds: list[int]) -> Answer:
    """By the container's own files as they are now."""
    root_fd = os.open("/", c.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        texts = [beneath.read_file(root_fd, path).decode("utf-8", "replace") for path in ("/etc/passwd", "/etc/group")]
    finally:
        os.close(root_fd)
    try:
        user = UserDatabase(*texts).lookup(message["user"])
    except UserNotFoundError as error:
        raise Failure("UserNotFound", operation=f"look up the {error.kind}", object=error.name,
                      detail=f"not in the container's /etc/{'passwd' if error.kind == 'user' else 'group'}",
                      hint="add it there, or give a number") from None  # fmt: skip
    yield {"uid": user.uid, "gid": user.uid if message["user"].isdecimal() else user.gid}, -1


def _own(message: Mapping[str, Any], _fds: list[int]) -> Answer:
    if message.get("uid") is not None or message.get("gid") is not None:
        uid, gid = message.get("uid"), message.get("gid")
        try:
            os.chown(message["path"], -1 if uid is None else uid, -1 if gid is None else gid)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise Failure(
                operation=_WORDS["own"], object=message["path"], errno=error.errno,
                cause=f"user {uid} or group {gid} is not mapped into the container's user namespace",
                hint="give the user ranges in /etc/subuid and /etc/subgid, and install newuidmap",
            ) from None  # fmt: skip
    if message.get("mode") is not None:
        os.chmod(message["path"], message["mode"])
    yield {"event": "done"}, -1


def _tree(message: Mapping[str, Any], _fds: list[int]) -> Answer:
    path = message["path"]
    state = os.stat(path)
    if stat.S_ISDIR(state.st_mode):
        yield {"name": "", **_describe_entry(state, None)}, -1
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        yield from _walk(root, "", path.rstrip("/"))
    else:
        yield {"name": "", **_describe_entry(state, None)}, _open_regular(path, os.O_RDONLY, 0)
    yield {"event": "end"}, -1


def _walk(directory: int, prefix: str, top: str) -> Answer:
    """Entries below an open directory, which is closed; by descriptors, so that nothing can be swapped for a link."""
    try:
        with _about(f"{top}/{prefix}"):
            names = sorted(os.listdir(directory))
        for name in names:
            with _about(f"{top}/{prefix}{name}"):
                found = _look(directory, prefix, name)
            if found is None:
                continue  # gone since: the container lives
            entry, fd = found
            if entry["type"] != "directory":
                yield entry, fd
            else:
                yield entry, -1
                yield from _walk(fd, f"{prefix}{name}/", top)
    finally:
        os.close(directory)


def _look(directory: int, prefix: str, name: str) -> tuple[dict[str, Any], int] | None:
    """An entry of a directory; with a descriptor if it is a file or a directory itself."""
    try:
        state = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(state.st_mode) else None
    fd = -1
    if stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags | (os.O_DIRECTORY if stat.S_ISDIR(state.st_mode) else 0), dir_fd=directory)
    return {"name": prefix + name, **_describe_entry(state, target)}, fd


def _put(message: Mapping[str, Any], fds: list[int]) -> Answer:
    path, kind, mode = message["path"], message["type"], int(message["mode"])
    if message.get("parents"):
        _make_parents(path)
    if kind == "directory":
        if not os.path.isdir(path):
            os.mkdir(path, mode)
    elif kind == "symlink":
        if os.path.lexists(path):
            os.unlink(path)
        os.symlink(message["target"], path)
    else:
        fd = _open_for_copy(path, mode)
        _copy(fds[0], fd)
        os.close(fd)
    if kind != "symlink":
        os.chmod(path, mode)
    os.utime(path, ns=(message["mtime_ns"], message["mtime_ns"]), follow_symlinks=kind != "symlink")
    yield {"event": "done"}, -1


def _open_for_copy(path: str, mode: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return _open_regular(path, flags, mode)
    except PermissionError:
        return _replace(path, flags)


def _copy(source: int, target: int) -> None:
    while data := os.read(source, _COPY):
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]


_OPERATIONS: dict[str, Callable[[Mapping[str, Any], list[int]], Answer]] = {
    "open": _open, "stat": _stat, "list": _list, "mkdir": _mkdir, "remove": _remove, "own": _own, "tree": _tree,
    "put": _put, "user": _user,
}  # fmt: skip
