"""The probes of ``sandbox doctor``: each does on this machine what a container would need, and says how it went."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from sandbox.linux import constants as c, syscalls
from sandbox.linux.errors import KernelError
from sandbox.linux.idmap import IdMap, IdRange, host_map, is_privileged, write_map

_KERNEL = (5, 12)
_KERNEL_HINT = "use Linux {}.{} or newer"


class Check(NamedTuple):
    """What was found about one capability."""

    name: str
    ok: bool
    #: What it is good for.
    gives: str
    #: What was found: a version, a range, or the reason why it is missing.
    found: str
    #: What to do about it, if it is missing.
    remedy: str = ""
    #: Without it there are no containers at all.
    required: bool = False


def in_namespaces(action: Callable[[], object], idmap: IdMap | None = None) -> OSError | None:
    """Do something as root of a new user and mount namespace; the error it met, if any."""
    report, theirs = os.pipe()
    wait, go = os.pipe()
    try:
        pid, pidfd = syscalls.clone3(c.CLONE_NEWUSER | c.CLONE_NEWNS | c.CLONE_NEWPID, signal.SIGCHLD)
        if pid == 0:
            _act(action, wait, theirs)
    except KernelError as error:
        for fd in (report, theirs, wait, go):
            os.close(fd)
        return error
    os.close(theirs)
    os.close(wait)
    failure: OSError | None = None
    try:
        write_map(pid, host_map() if idmap is None else idmap)
        os.write(go, b"x")
    except OSError as error:
        failure = error
    os.close(go)
    with os.fdopen(report, "rb") as stream:
        said = stream.read().decode()
    os.waitpid(pid, 0)
    os.close(pidfd)
    return failure or (_os_error(said) if said else None)


def _os_error(said: str) -> OSError:
    number, _, text = said.partition(" ")
    return OSError(int(number), text)


def _words(error: OSError) -> str:
    return error.strerror or str(error)


def _act(action: Callable[[], object], wait: int, report: int) -> None:
    """The child's side."""
    try:
        if os.read(wait, 1):
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            action()
    except OSError as error:
        os.write(report, f"{error.errno or 0} {error}".encode())
    finally:
        os._exit(0)


def all_checks() -> Iterator[Check]:
    """Every check, in the order in which things depend on each other."""
    yield kernel()
    yield user_namespaces()
    yield id_map()
    yield overlay()
    yield tmpfs_attributes()
    yield idmapped_mounts()
    yield from cgroups()
    yield libseccomp()
    yield from programs()
    yield dbus()
    yield services()
    yield store()


def kernel() -> Check:
    """clone3 into cgroups, overlayfs in user namespaces, mount_setattr."""
    release = os.uname().release
    numbers = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in release.split(".")[:2])
    remedy = _KERNEL_HINT.format(*_KERNEL)
    return Check("kernel", numbers >= _KERNEL, "everything below", release, remedy, required=True)


def user_namespaces() -> Check:
    """Makes one."""
    ids = IdMap((IdRange(0, os.geteuid(), 1),), (IdRange(0, os.getegid(), 1),))
    failure = in_namespaces(lambda: None, ids)
    remedy = "" if failure is None else _userns_remedy()
    return Check("user namespaces", failure is None, "containers without root's powers over the host",
                 _words(failure) if failure else "allowed", remedy, required=True)  # fmt: skip


def _userns_remedy() -> str:
    switches = {
        "/proc/sys/kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone=1"),
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
            "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that allows userns",
        ),
        "/proc/sys/user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces=15000"),
    }  # fmt: skip
    for path, (closed, remedy) in switches.items():
        if _first_line(path) == closed:
            return remedy
    return "in a container: run the outer one with --security-opt seccomp=unconfined or --privileged"


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text("ascii").strip()
    except OSError:
        return ""


def id_map() -> Check:
    """Maps the ids a pod would have."""
    idmap = host_map()
    failure = in_namespaces(lambda: None)
    rows = ", ".join(f"{r.count} from {r.inside} on are {r.outside} and on" for r in idmap.uids)
    found = _words(failure) if failure else "one user only" if idmap.single else rows
    return Check("range of ids", failure is None and not idmap.single, "users in a container, files with their owners",
                 found, _subid_remedy(), required=failure is not None)  # fmt: skip


def _subid_remedy() -> str:
    import getpass

    steps = [] if shutil.which("newuidmap") and shutil.which("newgidmap") else ["install newuidmap (package uidmap)"]
    usermod = f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {getpass.getuser()}"
    return " and ".join([*steps, usermod])


def _in_tmpfs(action: Callable[[], object]) -> Callable[[], None]:
    def enter() -> None:
        syscalls.mount("probe", "/tmp", "tmpfs")
        os.chdir("/tmp")
        action()

    return enter


def _mount_overlay() -> None:
    for name in ("low", "up", "work", "all"):
        os.mkdir(name)
    syscalls.mount("probe", "all", "overlay", 0, "lowerdir=low,upperdir=up,workdir=work,userxattr")


def overlay() -> Check:
    """Mounts one in a user namespace."""
    failure = in_namespaces(_in_tmpfs(_mount_overlay))
    return Check("overlayfs", failure is None, "images as root file systems",
                 _words(failure) if failure else "mounted in a user namespace",
                 "modprobe overlay, Linux 5.11 or newer", required=True)  # fmt: skip


def _set_attribute() -> None:
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY))
    os.setxattr("file", "user.probe", b"1")


def tmpfs_attributes() -> Check:
    """Sets one."""
    failure = in_namespaces(_in_tmpfs(_set_attribute))
    return Check("tmpfs attributes", failure is None, "removing directories of an image, user.* attributes inside",
                 _words(failure) if failure else "user.* is kept", _KERNEL_HINT.format(6, 6))  # fmt: skip


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _store_root() -> Path:
    from sandbox.images import Store

    return Store(os.environ.get("SANDBOX_STORE") or None).root


def idmapped_mounts() -> Check:
    """Makes one of the directory that holds (or will hold) the store."""
    gives = "layers and bind mounts with their owners, as root"
    place = _existing(_store_root())
    if not is_privileged():
        return Check("idmapped mounts", False, gives, "only root can make them",
                     "none needed: layers are unpacked under your own sub-ids")  # fmt: skip
    from sandbox.linux.mounts import idmapped_clone
    from sandbox.runtime.native import user_namespace

    namespace = user_namespace(host_map())
    try:
        os.close(idmapped_clone(str(place), namespace))
    except KernelError as error:
        return Check("idmapped mounts", False, gives, f"{place}: {error.strerror}",
                     "keep the store on ext4, xfs or btrfs (SANDBOX_STORE)")  # fmt: skip
    finally:
        os.close(namespace)
    return Check("idmapped mounts", True, gives, f"of {place}")


_GIVER_REMEDIES = {
    "systemd": "install systemd; others than root: log in through logind, or loginctl enable-linger",
    "cgroupfs": "run as root, or in a delegated cgroup: systemd-run --user --scope -p Delegate=yes …",
}
_LIMITS = {"memory": "memory", "pids": "processes", "cpu": "CPU time", "io": "I/O"}


def cgroups() -> Iterator[Check]:
    """What every giver says; then which limits are left, and how the machine mounts cgroups."""
    from sandbox import cgroups as givers
    from sandbox.linux.cgroup import hierarchies

    found = hierarchies()
    kind = "hybrid" if found.v2 and found.v1 else "version 2" if found.v2 else "version 1" if found.v1 else "none"
    yield Check("cgroup2", found.v2 is not None, "freezing, killing a whole exec, usage by container", kind,
                "boot with systemd.unified_cgroup_hierarchy=1")  # fmt: skip
    able: set[str] = set()
    for name, facts in givers.facts().items():
        if name == "none":
            continue
        able |= set(facts["controllers"])
        yield Check(f"cgroups: {name}", facts["why_not"] is None, "limits, freezing, usage",
                    facts["why_not"] or f"{', '.join(facts['controllers']) or 'no controllers'} for pods: {facts['what']}",
                    _GIVER_REMEDIES[name])  # fmt: skip
    missing = [text for name, text in _LIMITS.items() if name not in able]
    yield Check("limits", not missing, "the limits of Resources",
                f"none for {', '.join(missing)}" if missing else ", ".join(_LIMITS.values()),
                _limits_remedy(found.v1, missing))  # fmt: skip


def _limits_remedy(v1: dict[str, str], missing: list[str]) -> str:
    held = [name for name in _LIMITS if name in v1 and _LIMITS[name] in missing]
    if held:
        return (f"version 1 holds {', '.join(held)} here, where only root may use them; "
                "boot with systemd.unified_cgroup_hierarchy=1")  # fmt: skip
    return "have the controllers delegated: systemctl edit user@.service, [Service] Delegate=cpu io memory pids"


def libseccomp() -> Check:
    """Compiles the default profile's language: loads the library."""
    gives = "the default system call filter"
    try:
        import pyseccomp

        version = f"API level {pyseccomp.get_api()}"
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return Check("libseccomp", False, gives, str(error), "install libseccomp2 (or run with seccomp=unconfined)",
                     required=True)  # fmt: skip
    return Check("libseccomp", True, gives, version)


_PROGRAMS = {
    "newuidmap": ("several users in a container for those who are not root", "install uidmap (shadow-utils)"),
    "crun": ("the engine `crun`", "install crun"),
    "runc": ("the engine `runc`", "install runc"),
}


def programs() -> Iterator[Check]:
    """Runs them for their versions."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    for name, (gives, remedy) in _PROGRAMS.items():
        program = shutil.which(name, path=path)
        yield Check(name, program is not None, gives, _version(program) if program else "not installed", remedy)


def _version(program: str) -> str:
    if program.endswith("newuidmap"):
        return program
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout.partition("\n")[0].replace(" version ", " ") or program


def dbus() -> Check:
    """Looks for the libraries."""
    from sandbox.cgroups.systemd import bindings

    found = bindings()
    usable = [name for name, missing in found.items() if missing is None]
    return Check("D-Bus", bool(usable), "scopes and services of systemd",
                 f"by {usable[0]}" if usable else "; ".join(filter(None, found.values())),
                 "pip install jeepney, or apt install python3-pydbus")  # fmt: skip


def services() -> Check:
    """Asks the manager that would run them: it enforces with its own cgroup's controllers, not with ours of version 1."""
    from sandbox.errors import SandboxError
    from sandbox.services.managers import home

    gives = "MemoryMax=, TasksMax= … of service sandboxes"
    try:
        manager = home()
        able = manager.controllers
    except SandboxError as error:
        first, *rest = str(error).splitlines()
        return Check("limits of services", False, gives, first,
                     " ".join(line.strip().removeprefix("hint: ") for line in rest) or _GIVER_REMEDIES["systemd"])  # fmt: skip
    missing = [text for name, text in _LIMITS.items() if name not in able]
    return Check("limits of services", not missing, gives,
                 f"none for {', '.join(missing)}: their manager has {', '.join(sorted(able)) or 'no controllers'}"
                 if missing else ", ".join(_LIMITS.values()),
                 _services_remedy(manager.manager.kind))  # fmt: skip


def _services_remedy(kind: str) -> str:
    if kind == "user":
        return "have the controllers delegated: systemctl edit user@.service, [Service] Delegate=cpu io memory pids"
    return "boot with systemd.unified_cgroup_hierarchy=1; or go without (best_effort=True), or take a pod"


def store() -> Check:
    """Whether the store can be written."""
    root = _store_root()
    existing = _existing(root)
    ok = os.access(existing, os.W_OK | os.X_OK)
    found = str(root) if ok else f"{existing} cannot be written"
    return Check("image store", ok, "images other than `host` and directories", found,
                 "set SANDBOX_STORE to a directory of yours")  # fmt: skip


def container() -> Check:
    """Runs one."""
    import sandbox
    from sandbox.errors import SandboxError

    try:
        result = sandbox.run(["true"], timeout=30)
    except (SandboxError, OSError) as error:
        first, *rest = str(error).splitlines()
        return Check("a container", False, "", first, " ".join(line.strip() for line in rest), required=True)
    return Check("a container", result.returncode == 0, "", f"ran `true` in {result.duration * 1000:.0f} ms",
                 f"it ended with {result.returncode}", required=True)  # fmt: skip


__all__ = ["Check", "all_checks", "container"]
