"""Becoming the program: the last steps, the same for a container's init and for an exec'd process.

:func:`parse` turns the ``process`` object of an OCI spec into plain values before the fork; :func:`become` spends them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

from sandbox.linux import capabilities, constants as c, syscalls
from sandbox.linux.errors import KernelError

from .failure import Failure, invalid, unsupported

_RLIMITS = {
    f"RLIMIT_{name}": getattr(resource, f"RLIMIT_{name}")
    for name in ("AS", "CORE", "CPU", "DATA", "FSIZE", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC", "RSS",
                 "RTPRIO", "RTTIME", "SIGPENDING", "STACK")
}  # fmt: skip
_RLIMITS["RLIMIT_LOCKS"] = 10
_PERSONALITIES = {"LINUX": c.PER_LINUX, "LINUX32": c.PER_LINUX32}
#: Members of ``process`` that only some runtimes have; refused rather than ignored.
_UNSUPPORTED = ("apparmorProfile", "selinuxLabel", "scheduler", "ioPriority", "execCPUAffinity")
_Started = TypeVar("_Started")
#: (uid_t) -1, in both guises of it (setresuid(2)).
_NO_ID = (1 << 32) - 1
_oom_score_fd = -1
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Capabilities(NamedTuple):
    """The five sets as masks."""

    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int


class Program(NamedTuple):
    """A program and everything it starts with."""

    args: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    umask: int
    capabilities: Capabilities
    rlimits: tuple[tuple[int, str, int, int], ...]
    no_new_privileges: bool
    oom_score_adj: int | None
    terminal: bool
    window: tuple[int, int] | None
    seccomp: bytes
    seccomp_flags: int
    personality: int | None
    may_set_groups: bool


class Surroundings(NamedTuple):
    """What a program meets whoever it is."""

    #: False where the id map was written by an ordinary user, who must give up setgroups(2) for it.
    may_set_groups: bool = True
    #: The caller's own soft limit of open files; the shim has raised its own, which programs need not inherit.
    open_files: int | None = None


PLAIN = Surroundings()


def parse(
    process: Mapping[str, Any], linux: Mapping[str, Any], seccomp: bytes, surroundings: Surroundings = PLAIN
) -> Program:  # fmt: skip
    """Read ``process`` (and what of ``linux`` concerns it); ``seccomp`` is the compiled filter, b"" for none."""
    for name in _UNSUPPORTED:
        if process.get(name):
            raise unsupported(f"process.{name}", "the native engine does not have it", "use the crun or runc engine")
    args = tuple(process.get("args") or ())
    if not args:
        raise invalid("$.process.args", "there is no command to run")
    if any("\0" in text for text in (*args, *(process.get("env") or ()), process.get("cwd") or "")):
        raise invalid("$.process", "a NUL character in args, env or cwd")
    user = process.get("user") or {}
    window = process.get("consoleSize")
    return Program(
        args, parse_env(process.get("env") or ()), _absolute(process.get("cwd")), user.get("uid", 0), user.get("gid", 0),
        tuple(user.get("additionalGids") or ()), user.get("umask", 0o022), _capabilities(process.get("capabilities")),
        _rlimits(process.get("rlimits") or (), surroundings.open_files), bool(process.get("noNewPrivileges")),
        process.get("oomScoreAdj"), bool(process.get("terminal")),
        (window["height"], window["width"]) if window else None, seccomp, _seccomp_flags(linux.get("seccomp")),
        _personality(linux.get("personality")), surroundings.may_set_groups,
    )  # fmt: skip


def parse_env(env: Sequence[str]) -> dict[str, str]:
    """``NAME=value`` strings as a mapping; of several with one name the last counts."""
    result = {}
    for position, assignment in enumerate(env):
        name, separator, value = assignment.partition("=")
        if not name or not separator:
            raise invalid(f"$.process.env[{position}]", f"{assignment!r} is not NAME=value")
        result[name] = value
    return result


def _absolute(cwd: str | None) -> str:
    if not cwd or not cwd.startswith("/"):
        raise invalid("$.process.cwd", f"{cwd!r} is not an absolute path")
    return cwd


def _capabilities(sets: Mapping[str, Any] | None) -> Capabilities:
    if sets is None:
        return Capabilities(0, 0, 0, 0, 0)
    try:
        return Capabilities(*(capabilities.mask(sets.get(name) or ()) for name in Capabilities._fields))
    except ValueError as error:
        raise invalid("$.process.capabilities", str(error)) from None


def _rlimits(rows: Sequence[Mapping[str, Any]], open_files: int | None) -> tuple[tuple[int, str, int, int], ...]:
    limits = tuple(_rlimit(row) for row in rows)
    if open_files is None or any(name == "RLIMIT_NOFILE" for _, name, _, _ in limits):
        return limits
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return (*limits, (resource.RLIMIT_NOFILE, "RLIMIT_NOFILE", open_files, hard))


def _rlimit(row: Mapping[str, Any]) -> tuple[int, str, int, int]:
    if row["type"] not in _RLIMITS:
        raise invalid("$.process.rlimits", f"unknown rlimit {row['type']!r}")
    soft, hard = (value if value < 1 << 63 else resource.RLIM_INFINITY for value in (row["soft"], row["hard"]))
    return _RLIMITS[row["type"]], row["type"], soft, hard


def _personality(value: Mapping[str, Any] | None) -> int | None:
    if value is None:
        return None
    if value.get("flags") or value.get("domain") not in _PERSONALITIES:
        raise unsupported("linux.personality", f"{value!r}: only the domains LINUX and LINUX32 are supported")
    return _PERSONALITIES[value["domain"]]


def _seccomp_flags(profile: Mapping[str, Any] | None) -> int:
    known = {"SECCOMP_FILTER_FLAG_LOG": c.SECCOMP_FILTER_FLAG_LOG,
             "SECCOMP_FILTER_FLAG_SPEC_ALLOW": c.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
             "SECCOMP_FILTER_FLAG_TSYNC": 0}  # one thread only: nothing to synchronise  # fmt: skip
    flags = 0
    for flag in (profile or {}).get("flags") or ():
        if flag not in known:
            raise unsupported(f"linux.seccomp.flags {flag}", "the native engine does not have it")
        flags |= known[flag]
    return flags


def become(program: Program, highest_capability: int, channel: int, *, make_cwd: bool = True) -> NoReturn:
    """Take on the program's identity and execute it. Raises only before the point of no return; ``channel`` is for telling."""
    take_identity(program, highest_capability, channel, make_cwd=make_cwd)
    execute(program, os.execve)
    raise AssertionError("execve returned")


def take_identity(program: Program, highest_capability: int, channel: int, *, make_cwd: bool = True) -> None:
    """Everything but execve(2): descriptors, limits, working directory, user, capabilities, seccomp."""
    _set_rlimits(program)
    set_oom_score(program)
    os.umask(program.umask)
    if program.personality is not None:
        syscalls.personality(program.personality)
    close_all_but((channel,))
    syscalls.close_range(channel, channel, c.CLOSE_RANGE_CLOEXEC)
    enter_cwd(program.cwd, make=make_cwd)
    if program.seccomp and not program.no_new_privileges:
        syscalls.seccomp_filter(program.seccomp, program.seccomp_flags)
    _drop_privileges(program, highest_capability)
    if program.no_new_privileges:
        syscalls.prctl(c.PR_SET_NO_NEW_PRIVS, 1)
        if program.seccomp:
            syscalls.seccomp_filter(program.seccomp, program.seccomp_flags)


def close_all_but(kept: Iterable[int]) -> None:
    """Close all descriptors but the standard streams and these.

    It is not left to execve(2), which closes them when it has found the program and its interpreter: an image can name one as
    /proc/self/fd/N/…, or its working directory, and N may be a directory outside of the container's root.
    """
    first = 3
    for fd in sorted(fd for fd in set(kept) if fd >= first):
        if fd > first:
            syscalls.close_range(first, fd - 1)
        first = fd + 1
    syscalls.close_range(first)


def _set_rlimits(program: Program) -> None:
    for number, name, soft, hard in program.rlimits:
        try:
            resource.setrlimit(number, (soft, hard))
        except (OSError, ValueError) as error:
            current = resource.getrlimit(number)[1]
            raise Failure(operation="set", object=name, errno=getattr(error, "errno", None) or errno.EPERM,
                          cause=f"the hard limit here is {current}, and raising it needs CAP_SYS_RESOURCE on the host",
                          hint=f"ask for at most {current}, or raise the limit of the calling process") from None  # fmt: skip


def open_oom_score() -> None:
    """Open the file for :func:`set_oom_score`; once a process is not dumpable, its own files in /proc are another's."""
    global _oom_score_fd  # noqa: PLW0603 - of this process, as the file is
    if _oom_score_fd < 0:
        _oom_score_fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)


def oom_score_fd() -> int:
    """The descriptor of that file."""
    return _oom_score_fd


def set_oom_score(program: Program) -> None:
    """How readily the kernel kills this process, and those it starts from now on."""
    if program.oom_score_adj is None:
        return
    try:
        os.write(_oom_score_fd, str(program.oom_score_adj).encode())
    except OSError as error:
        raise Failure(operation="set oom_score_adj to", object=str(program.oom_score_adj), errno=error.errno,
                      hint="lowering it below the caller's own needs CAP_SYS_RESOURCE on the host") from None  # fmt: skip


def enter_cwd(cwd: str, *, make: bool) -> None:
    """Enter the working directory and make sure that it lies inside the root.

    A missing one is made for a container (``make``), as docker and podman do it; for an exec it is a mistake, to them too.

    A descriptor of the host reached through /proc/self/fd would lie outside: getcwd(2) then tells "(unreachable)", which
    the C library reports as ENOENT.
    """
    try:
        try:
            os.chdir(cwd)
        except FileNotFoundError:
            if not make:
                raise
            os.makedirs(cwd, 0o755, exist_ok=True)
            os.chdir(cwd)
        os.getcwd()
    except OSError as error:
        outside = error.errno == errno.ENOENT and error.filename is None
        missing = error.errno == errno.ENOENT and not outside
        raise Failure(operation="enter the working directory", object=cwd, errno=error.errno,
                      cause="it leads out of the container's root" if outside else None,
                      hint="name one that is there, or make it first" if missing else None) from None  # fmt: skip


def _check_ids(*numbers: int) -> None:
    """-1 would mean "leave it as it is": root would stay root."""
    if not all(0 <= number < _NO_ID for number in numbers):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _drop_privileges(program: Program, highest: int) -> None:
    sets = program.capabilities
    capabilities.drop_bounding(sets.bounding, highest)
    syscalls.prctl(c.PR_SET_KEEPCAPS, 1)
    try:
        _check_ids(program.uid, program.gid, *program.groups)
        if program.may_set_groups:
            os.setgroups(program.groups)
        elif program.groups:
            raise Failure(operation="set the supplementary groups", object=str(program.groups), errno=errno.EPERM,
                          cause="only one group id is mapped into the user namespace",
                          hint="give the user ranges in /etc/subuid and /etc/subgid, and install newuidmap")  # fmt: skip
        os.setresgid(program.gid, program.gid, program.gid)
        os.setresuid(program.uid, program.uid, program.uid)
    except OSError as error:
        raise Failure(operation="become user", object=f"{program.uid}:{program.gid}", errno=error.errno,
                      cause="this id is not mapped into the user namespace",
                      hint="give the user ranges in /etc/subuid and /etc/subgid, and install newuidmap") from None  # fmt: skip
    syscalls.prctl(c.PR_SET_KEEPCAPS, 0)
    existing = (1 << highest + 1) - 1
    permitted = sets.permitted & existing
    syscalls.capset(sets.effective & permitted, permitted, sets.inheritable & existing)
    if sets.ambient:
        capabilities.set_ambient(sets.ambient & permitted & sets.inheritable, highest)


def execute(program: Program, start: Callable[[str, tuple[str, ...], dict[str, str]], _Started]) -> _Started:
    """Call ``start`` (execve(2), posix_spawn(3)) along the program's own PATH; what cannot be executed is explained."""
    command = program.args[0]
    refused: tuple[str, OSError] | None = None
    for path in candidates(program):
        try:
            return start(path, program.args, program.env)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                raise explain_exec(path, error) from None
            if refused is None and (error.errno == errno.EACCES or os.path.exists(path)):
                refused = path, error
    if refused is not None:
        raise explain_exec(*refused) from None
    where = "" if "/" in command else f"it is in none of {program.env.get('PATH', DEFAULT_PATH)}"
    raise Failure("CommandNotFound", operation="execute", object=command, errno=errno.ENOENT, cause=where or None,
                  hint="install it in the image, or give the path it has there")  # fmt: skip


def candidates(program: Program) -> list[str]:
    """The files that its first word may mean, by its own PATH (execvp(3)): one after the other is tried."""
    command = program.args[0]
    if "/" in command:
        return [command]
    return [f"{directory or '.'}/{command}" for directory in program.env.get("PATH", DEFAULT_PATH).split(":")]


def explain_exec(path: str, error: OSError) -> Failure:
    """Why the kernel would not execute a file that exists."""
    kind, cause, hint = "CommandNotExecutable", None, None
    if error.errno == errno.ENOENT:
        kind = "CommandNotFound"
        cause, hint = _missing_interpreter(path), "install the interpreter or loader in the image"
    elif error.errno == errno.ENOEXEC:
        cause, hint = "neither a program of this machine's architecture nor a script with a #! line", "add a #! line"
    elif error.errno == errno.EACCES:
        if stat.S_ISDIR(os.stat(path).st_mode):
            cause, hint = "it is a directory", "give the path of a program"
        else:
            cause, hint = "no permission to execute it as this user, or its mount is noexec", f"chmod +x {path}"
    elif error.errno == errno.E2BIG:
        cause, hint = "arguments and environment together are too long", "pass large data through a file or stdin"
    return Failure(kind, operation="execute", object=path, errno=error.errno, cause=cause, hint=hint)


def _missing_interpreter(path: str) -> str:
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except OSError:
        return "the interpreter that it names does not exist"
    if head.startswith(b"#!"):
        return f"its interpreter {head[2:].split(None, 1)[0].decode(errors='replace')} does not exist"
    return "the dynamic loader that it names does not exist"


def open_terminal(program: Program) -> int:
    """Make a pseudo-terminal of the container's own devpts the standard streams; returns the master side."""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, 0x40045431, b"\0\0\0\0")  # TIOCSPTLCK: unlock
    slave = fcntl.ioctl(master, c.TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
    if program.window:
        rows, columns = program.window
        fcntl.ioctl(slave, c.TIOCSWINSZ, rows.to_bytes(2, "little") + columns.to_bytes(2, "little") + bytes(4))
    os.fchown(slave, program.uid, -1)
    fcntl.ioctl(slave, c.TIOCSCTTY, 0)
    for number in (0, 1, 2):
        os.dup2(slave, number)
    os.close(slave)
    return master


__all__ = ["Capabilities", "KernelError", "Program", "become", "execute", "explain_exec", "open_terminal", "parse"]
