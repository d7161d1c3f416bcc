"""Why a service did not start: what systemd's exit statuses mean, and probes for what lies behind them."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sandbox.errors import CommandNotExecutable, CommandNotFound, SandboxError
from sandbox.services.errors import ServiceSetupError
from sandbox.services.settings import Settings

__all__ = ["STATUSES", "Cause", "setup_error"]


class _Status(NamedTuple):
    name: str
    #: What systemd was doing.
    doing: str
    hint: str


#: Exit statuses that systemd gives a service whose command it could not execute (systemd.exec(5)).
STATUSES: dict[int, _Status] = {
    200: _Status("CHDIR", "entering the working directory", "set cwd= to a directory that the service can enter"),
    201: _Status("NICE", "setting its priority", "leave Nice= out, or use the system's manager"),
    202: _Status("FDS", "closing or passing on descriptors", "pass open descriptors only"),
    203: _Status("EXEC", "executing the command", "give the path of a program that the service can see"),
    204: _Status("MEMORY", "getting memory", "free some memory"),
    205: _Status("LIMITS", "setting resource limits", "ask for no more than the manager may have itself (Limit…=)"),
    206: _Status("OOM_ADJUST", "setting its OOM score", "only root may lower OOMScoreAdjust="),
    207: _Status("SIGNAL_MASK", "setting the signal mask", "report this"),
    208: _Status("STDIN", "setting up its standard input", "give it a file or pipe that is open"),
    209: _Status("STDOUT", "setting up its standard output", "give it a file or pipe that is open"),
    210: _Status("CHROOT", "changing the root directory", "give a directory that holds a root file system"),
    211: _Status("IOPRIO", "setting its I/O priority", "leave IOSchedulingClass= out"),
    212: _Status("TIMERSLACK", "setting the timer slack", "leave TimerSlackNSec= out"),
    213: _Status("SECUREBITS", "setting secure bits", "leave SecureBits= out, or use the system's manager"),
    214: _Status("SETSCHEDULER", "setting the CPU scheduler", "leave CPUSchedulingPolicy= out"),
    215: _Status("CPUAFFINITY", "setting CPU affinity", "name CPUs that there are"),
    216: _Status("GROUP", "becoming its groups", "name groups that exist; only root's managers can change them"),
    217: _Status("USER", "becoming its user", "name a user that exists; only root's managers can run others"),
    218: _Status("CAPABILITIES", "setting capabilities", "use root's manager, or PrivateUsers=True with it"),
    219: _Status("CGROUP", "setting up its control group", "`sandbox doctor` tells what is wrong with cgroups here"),
    220: _Status("SETSID", "making a session", "report this"),
    221: _Status("CONFIRM", "asking whether to start it", "do not confirm services"),
    222: _Status("STDERR", "setting up its standard error", "give it a file or pipe that is open"),
    224: _Status("PAM", "setting up its PAM session", "leave PAMName= out"),
    225: _Status("NETWORK", "making its network", "leave PrivateNetwork= out, or load what the kernel lacks"),
    226: _Status("NAMESPACE", "making its view of the file system", "name paths that exist, or put - in front of them"),
    227: _Status("NO_NEW_PRIVILEGES", "setting no_new_privs", "report this"),
    228: _Status("SECCOMP", "installing the system call filter", "name system calls that this kernel knows"),
    229: _Status("SELINUX_CONTEXT", "setting its SELinux context", "leave SELinuxContext= out"),
    230: _Status("PERSONALITY", "setting its personality", "leave Personality= out"),
    231: _Status("APPARMOR_PROFILE", "changing to its AppArmor profile", "load the profile first"),
    232: _Status("ADDRESS_FAMILIES", "restricting address families", "name families that there are"),
    233: _Status("RUNTIME_DIRECTORY", "making its runtime directory", "use a name without directories that are links"),
    235: _Status("CHOWN", "giving a socket to its user", "name users and groups that exist"),
    236: _Status("SMACK_PROCESS_LABEL", "setting its SMACK label", "leave SmackProcessLabel= out"),
    237: _Status("KEYRING", "setting up its keyring", "leave KeyringMode= out; key quotas may be used up"),
    238: _Status("STATE_DIRECTORY", "making its state directory", "see that /var/lib can be written to"),
    239: _Status("CACHE_DIRECTORY", "making its cache directory", "see that /var/cache can be written to"),
    240: _Status("LOGS_DIRECTORY", "making its log directory", "see that /var/log can be written to"),
    241: _Status("CONFIGURATION_DIRECTORY", "making its configuration directory", "see that /etc can be written to"),
    242: _Status("NUMA_POLICY", "setting its NUMA policy", "leave NUMAPolicy= out"),
    243: _Status("CREDENTIALS", "setting up its credentials", "name credentials that exist"),
    245: _Status("BPF", "restricting it by BPF", "leave RestrictFileSystems= out"),
}  # fmt: skip


class Cause(NamedTuple):
    """What a probe found, and what to do about it."""

    text: str
    hint: str


def setup_error(status: int, args: Sequence[str], settings: Settings, root: Path | None) -> SandboxError | None:
    """The error for a service that systemd could not execute; None if its command must have ended so by itself.

    :param status: 200 to 245
    :param root: the service's root directory, if it is not the host's
    """
    known = STATUSES.get(status, _Status(str(status), "starting it", "see systemd.exec(5), Process Exit Codes"))
    cause = next(_probes(status, args, settings, root), None)
    if status == 203:
        return _not_executed(args, cause) if cause is not None or root is not None else None
    return ServiceSetupError(
        f"systemd failed at {known.doing} (status {status}/{known.name})", operation="start service", object=args[0],
        step=known.name, status=status, cause=cause and cause.text, hint=cause.hint if cause else known.hint,
    )  # fmt: skip


def _not_executed(args: Sequence[str], cause: Cause | None) -> SandboxError:
    missing = cause is None or any(words in cause.text for words in ("no such file", "hides"))
    kind = CommandNotFound if missing else CommandNotExecutable
    return kind(
        "systemd could not execute it (status 203/EXEC)", operation="start service", object=args[0],
        cause=cause and cause.text, hint=cause.hint if cause else STATUSES[203].hint,
    )  # fmt: skip


def _probes(status: int, args: Sequence[str], settings: Settings, root: Path | None) -> Iterator[Cause]:
    if status == 203:
        yield from _why_hidden(args[0], settings, root)
        yield from _why_not_executable(args[0], settings, root)
    elif status == 200:
        directory = settings.last("WorkingDirectory", "/").removeprefix("-")
        yield from _why_hidden(directory, settings, root)
        yield from _why_not_reached(directory, settings, root)
    elif status == 226:
        yield from _missing_paths(settings, root)
        yield from _not_inaccessible()
    elif status in {216, 217}:
        yield from _unknown_user(settings)


_PATH_LISTS = ("ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths", "BindPaths",
               "BindReadOnlyPaths", "RootDirectory", "RootImage")  # fmt: skip


def _why_hidden(path: str, settings: Settings, root: Path | None) -> Iterator[Cause]:
    """Settings that take a path out of sight."""
    if root is not None:
        return
    hidden = [(place, "ProtectHome", settings.protect_home) for place in ("/home", "/root", "/run/user")
              if settings.protect_home in {"yes", "tmpfs"}]  # fmt: skip
    hidden += [(place, "PrivateTmp", "yes") for place in ("/tmp", "/var/tmp") if settings.on("PrivateTmp")]
    hidden += [(place.lstrip("-+"), "InaccessiblePaths", place) for place in settings.words("InaccessiblePaths")]
    hidden += [(place.split(":")[0], "TemporaryFileSystem", place) for place in settings.words("TemporaryFileSystem")]
    shown = {word.split(":")[-1].lstrip("-") for name in ("BindPaths", "BindReadOnlyPaths")
             for word in settings.words(name)}  # fmt: skip
    for candidate in dict.fromkeys((path, os.path.realpath(path))):
        for place, name, value in hidden:
            if _within(candidate, place) and not any(_within(candidate, bound) for bound in shown):
                yield Cause(f"{name}={value} hides {candidate}",
                            f"show it with BindReadOnlyPaths={_parent(candidate)!r}, or loosen {name}=")  # fmt: skip


def _why_not_executable(path: str, settings: Settings, root: Path | None) -> Iterator[Cause]:
    yield from _why_not_reached(path, settings, root)
    file = _on_host(path, root)
    if not file.is_file():
        yield Cause(f"{path} is no regular file", "give the path of a program")
        return
    if not file.stat().st_mode & 0o111:
        yield Cause(f"{path} is not marked executable", f"chmod +x {path}")
        return
    with file.open("rb") as stream:
        start = stream.read(256)
    if start.startswith(b"#!"):
        words = start[2:].split(b"\n")[0].split()
        interpreter = os.fsdecode(words[0]) if words else ""
        if not _on_host(interpreter, root).exists():
            yield Cause(f"its interpreter {interpreter}: no such file", "install the interpreter, or correct the first line")
        yield from _why_hidden(interpreter, settings, root)
        yield from _why_not_reached(interpreter, settings, root)
    elif not start.startswith(b"\x7fELF"):
        yield Cause(f"{path} is neither a program nor a script with #!", "add the line #! of its interpreter")


def _why_not_reached(path: str, settings: Settings, root: Path | None) -> Iterator[Cause]:
    """Something on the way is missing, or closed to its user."""
    file = _on_host(path, root)
    for place in (*reversed(file.parents), file):
        try:
            mode = place.stat()
        except FileNotFoundError:
            yield Cause(f"{place}: no such file or directory", "give a path that exists")
            return
        except PermissionError:
            return
        stranger = settings.dynamic_user or settings.user != "root"
        if stranger and os.geteuid() == 0 and stat.S_ISDIR(mode.st_mode) and not mode.st_mode & 0o001:
            who = "its dynamic user" if settings.dynamic_user else f"user {settings.user}"
            yield Cause(f"{who} may not enter {place} (mode {stat.S_IMODE(mode.st_mode):04o})",
                        "put it where every user can reach it, or set DynamicUser=False")  # fmt: skip
            return


def _missing_paths(settings: Settings, root: Path | None) -> Iterator[Cause]:
    for name in _PATH_LISTS:
        for word in settings.words(name):
            path = word.split(":")[0]
            if path.startswith("-"):
                continue
            bound = name.startswith(("Bind", "Root"))
            if not _on_host(path.lstrip("+"), None if bound else root).exists():
                yield Cause(f"{name}= names {path}, and there is no such file or directory",
                            f"make it, or say {name}=-{path} to go without")  # fmt: skip


def _not_inaccessible() -> Iterator[Cause]:
    """What stands for hidden files is made by whoever boots the machine (file-hierarchy of systemd)."""
    runtime = "/run" if os.geteuid() == 0 else f"/run/user/{os.getuid()}"
    if os.path.isdir("/run/systemd/system") and not os.path.isdir(f"{runtime}/systemd/inaccessible"):
        yield Cause(f"{runtime}/systemd/inaccessible is missing, which systemd puts in place of what it hides",
                    "use a manager that has booted there: --sandbox-systemd=private")  # fmt: skip


def _unknown_user(settings: Settings) -> Iterator[Cause]:
    for name, look_up in (("User", pwd.getpwnam), ("Group", grp.getgrnam)):
        value = settings.last(name)
        if value and not value.isdigit():
            try:
                look_up(value)
            except KeyError:
                yield Cause(f"there is no {name.lower()} {value!r}", f"make it, or name one that exists in {name}=")
    if settings.user != "root" and os.geteuid() != 0:
        yield Cause("this manager is an ordinary user's, and can run nothing as somebody else", "leave User= out")


def _on_host(path: str, root: Path | None) -> Path:
    return Path(path) if root is None else root / path.lstrip("/")


def _within(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place.rstrip('/')}/")


def _parent(path: str) -> str:
    return os.path.dirname(path) or "/"
