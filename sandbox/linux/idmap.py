"""User namespaces and the ids mapped into them (user_namespaces(7), subuid(5), newuidmap(1))."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from . import syscalls
from .capabilities import CAP_SYS_ADMIN, effective
from .constants import CLONE_NEWUSER
from .errors import KernelError

if TYPE_CHECKING:
    import subprocess

#: Ids that neither distributions nor systemd hand out (systemd's UIDS-GIDS.md: 1879048192…2147483647 is unused).
_UNASSIGNED_BASE = 0x70000000
_COUNT = 65536


class IdRange(NamedTuple):
    """One line of uid_map: ``count`` ids from ``inside`` on are ``outside`` and following in the parent namespace."""

    inside: int
    outside: int
    count: int  # type: ignore[assignment]  # uid_map's own word, though tuples have a method of that name


class IdMap(NamedTuple):
    """How the ids of a user namespace map to its parent's."""

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]

    @property
    def single(self) -> bool:
        """True if only one user exists inside; every other owner shows as nobody and chown fails."""
        return sum(r.count for r in self.uids) == 1

    @property
    def root(self) -> tuple[int, int]:
        """What user 0 and group 0 of the namespace are outside."""
        return _outside(self.uids, 0), _outside(self.gids, 0)

    def to_json(self) -> dict[str, list[list[int]]]:
        """Plain lists, for messages."""
        return {"uids": [list(r) for r in self.uids], "gids": [list(r) for r in self.gids]}

    @classmethod
    def from_json(cls, value: dict[str, list[list[int]]]) -> IdMap:
        """The reverse of :meth:`to_json`."""
        return cls(tuple(IdRange(*r) for r in value["uids"]), tuple(IdRange(*r) for r in value["gids"]))


def _outside(ranges: tuple[IdRange, ...], inside: int) -> int:
    for r in ranges:
        if r.inside <= inside < r.inside + r.count:
            return r.outside + inside - r.inside
    raise ValueError(f"id {inside} is not mapped")


def in_initial_user_namespace() -> bool:
    """True where the caller's ids are the machine's own."""
    return _read_map("uid_map") == (IdRange(0, 0, 4294967295),)


@cache
def is_privileged() -> bool:
    """True for root with CAP_SYS_ADMIN over the whole machine: cgroups and idmapped mounts are ours to make."""
    return os.geteuid() == 0 and in_initial_user_namespace() and bool(effective() & CAP_SYS_ADMIN)


def outside_uid() -> int:
    """The caller's user id in the parent user namespace."""
    return _outside(_read_map("uid_map"), os.geteuid())


def _read_map(name: str) -> tuple[IdRange, ...]:
    with open(f"/proc/self/{name}") as file:
        return tuple(IdRange(*map(int, line.split())) for line in file)


def subordinate_ranges(path: str, uid: int) -> list[tuple[int, int]]:
    """(first id, count) of each range that ``path`` (/etc/subuid or /etc/subgid) gives the user ``uid``."""
    names = {str(uid)}
    try:
        names.add(pwd.getpwuid(uid).pw_name)
    except KeyError:
        pass
    try:
        with open(path) as file:
            rows = [line.strip().split(":") for line in file]
    except FileNotFoundError:
        return []
    return [(int(r[1]), int(r[2])) for r in rows if len(r) == 3 and r[0] in names and r[1].isdecimal()]


def host_map() -> IdMap:
    """The map of the user namespaces that this process may make.

    Root gets 65536 subordinate ids (its own in /etc/subuid, else from the unassigned range). Root inside a user
    namespace keeps the ids it has. Anyone else is root inside and has its subordinate ids above, or, without
    /etc/subuid or newuidmap, is the only user inside.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and not in_initial_user_namespace():
        return IdMap(_identity("uid_map"), _identity("gid_map"))
    subuids, subgids = subordinate_ranges("/etc/subuid", uid), subordinate_ranges("/etc/subgid", uid)
    if uid == 0:
        large_u = [r for r in subuids if r[1] >= _COUNT] or [(_UNASSIGNED_BASE, _COUNT)]
        large_g = [r for r in subgids if r[1] >= _COUNT] or [(_UNASSIGNED_BASE, _COUNT)]
        return IdMap((IdRange(0, large_u[0][0], _COUNT),), (IdRange(0, large_g[0][0], _COUNT),))
    if subuids and subgids and have_helpers():
        return IdMap(_stacked(uid, subuids), _stacked(gid, subgids))
    return IdMap((IdRange(0, uid, 1),), (IdRange(0, gid, 1),))


def have_helpers() -> bool:
    """Whether newuidmap(1) and newgidmap(1) are installed."""
    return all(any(os.access(f"{d}/{name}", os.X_OK) for d in os.get_exec_path()) for name in ("newuidmap", "newgidmap"))


def _identity(name: str) -> tuple[IdRange, ...]:
    return tuple(IdRange(r.inside, r.inside, r.count) for r in _read_map(name))


def _stacked(own: int, ranges: list[tuple[int, int]]) -> tuple[IdRange, ...]:
    rows, inside = [IdRange(0, own, 1)], 1
    for first, count in ranges:
        rows.append(IdRange(inside, first, count))
        inside += count
    return tuple(rows)


def nested(idmap: IdMap) -> IdMap:
    """The identity over the ids that exist inside ``idmap``: the map of a namespace within that namespace."""
    return IdMap(*(tuple(IdRange(r.inside, r.inside, r.count) for r in ranges) for ranges in idmap))


def write_map(pid: int, idmap: IdMap) -> None:
    """Give the new user namespace of process ``pid`` its ids. Direct where the kernel lets us, else by newuidmap(1)."""
    if idmap.single and os.geteuid() != 0:
        _write(f"/proc/{pid}/setgroups", "deny")
    elif os.geteuid() != 0:
        _run_helper("newuidmap", pid, idmap.uids)
        _run_helper("newgidmap", pid, idmap.gids)
        return
    _write(f"/proc/{pid}/uid_map", _rows(idmap.uids))
    _write(f"/proc/{pid}/gid_map", _rows(idmap.gids))


def _rows(ranges: tuple[IdRange, ...]) -> str:
    return "".join(f"{r.inside} {r.outside} {r.count}\n" for r in ranges)


def _write(path: str, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError(error.errno or 0, "write the id map", path) from None


def _run_helper(program: str, pid: int, ranges: tuple[IdRange, ...]) -> None:
    import subprocess  # not at the top: the shim would carry it along, and never uses it

    arguments = [str(number) for r in ranges for number in r]
    done = subprocess.run([program, str(pid), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{program} {pid} {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")


_BOOT = "import sys; sys.path[:0] = [sys.argv[1]]; from sandbox.linux.idmap import _enter; _enter(sys.argv[2:])"


def run_in_mapped_namespace(argv: Sequence[str], idmap: IdMap | None = None, **options: Any) -> subprocess.Popen[bytes]:
    """Start ``argv`` as root of a new user namespace with ``idmap`` (:func:`host_map` by default).

    ``options`` go to :class:`subprocess.Popen`. The program starts only once its ids are mapped.
    """
    import subprocess

    library = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    with os.fdopen(ready_read, "rb") as ready, os.fdopen(go_write, "wb", 0) as go:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOOT, library, str(ready_write), str(go_read), *argv],
                **{**options, "pass_fds": (*options.get("pass_fds", ()), ready_write, go_read)},
            )
        finally:
            os.close(ready_write)
            os.close(go_read)
        try:
            if ready.read(1):
                write_map(process.pid, idmap or host_map())
                go.write(b"x")
        except OSError:
            process.kill()
            process.wait()
            raise
    return process


def _enter(arguments: list[str]) -> None:
    """The child's side of :func:`run_in_mapped_namespace`."""
    ready, go, argv = int(arguments[0]), int(arguments[1]), arguments[2:]
    syscalls.unshare(CLONE_NEWUSER)
    os.write(ready, b"x")
    os.close(ready)
    if not os.read(go, 1):
        os._exit(125)
    os.close(go)
    become_root()
    os.execvp(argv[0], argv)


def become_root() -> None:
    """Switch to user 0 and group 0 of a namespace that was just mapped."""
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    is_privileged.cache_clear()
