"""What a test needs from the machine: one declarative gate, probed for real.

A test says ``pytestmark = requires("root", "cgroup2")`` or ``@requires("crun")``. Where something is
missing, a laptop skips the test; CI must run it, so there (``CI`` set in the environment) the skip is a
failure, unless the table EXPECTED_IN_CI gives the reason why this very machine cannot have it. An unknown
name is an error everywhere.

A probe does what the test will do, not what a version number promises: it makes the namespace, the cgroup,
the mount. It answers None ("it is there") or says in a few words what is missing.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from gate_cgroups import cgroup1, cgroup2, mounts

Probe = Callable[[], str | None]

#: Where Debian's golang-github-opencontainers-specs-dev puts the official JSON schemas.
SCHEMAS = Path("/usr/share/gocode/src/github.com/opencontainers")

#: The Python that packages of the distribution are for.
DISTRIBUTION_PYTHON = "/usr/bin/python3"

PROBES: dict[str, Probe] = {}


def probe(name: str) -> Callable[[Probe], Probe]:
    """Register a probe; it runs at most once in a test process."""

    def register(function: Probe) -> Probe:
        PROBES[name] = functools.cache(function)
        return function

    return register


def missing(name: str) -> str | None:
    """What the machine lacks for ``name``, or None. Raises ValueError for a name that no probe has."""
    if name not in PROBES:
        raise ValueError(f"requires({name!r}): no such requirement; there are {', '.join(sorted(PROBES))}")
    return PROBES[name]()


def requires(*names: str) -> pytest.MarkDecorator:
    """Mark a test, a class or (as ``pytestmark``) a module with what it needs from the machine."""
    for name in names:
        if name not in PROBES:
            missing(name)
    return pytest.mark.requires(*names)


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}


# --- who we are ---------------------------------------------------------------


@probe("root")
def _root() -> str | None:
    return None if os.geteuid() == 0 else "not root"


@probe("rootless")
def _rootless() -> str | None:
    return None if os.geteuid() != 0 else "is root, not an ordinary user"


@probe("subuid")
def _subuid() -> str | None:
    """A range of sub-ids that may be mapped: root maps what it likes, others through newuidmap."""
    if os.geteuid() == 0:
        return None
    for tool in ("newuidmap", "newgidmap"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    owners = {str(os.getuid()), pwd.getpwuid(os.getuid()).pw_name}
    for table in ("/etc/subuid", "/etc/subgid"):
        try:
            lines = Path(table).read_text("utf-8").splitlines()
        except OSError as error:
            return f"{table}: {error.strerror}"
        if not any(line.split(":")[0] in owners for line in lines):
            return f"{table} has no range for {' or '.join(sorted(owners))}"
    return None


# --- the kernel ---------------------------------------------------------------

_LIBC = "import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True)\n"
_UNSHARE = _LIBC + "if libc.unshare({flags:#x}): sys.exit(os.strerror(ctypes.get_errno()))\n"
_CLONE_NEWUSER, _CLONE_NEWNS = 0x10000000, 0x00020000


def _failure_of(script: str) -> str | None:
    """Run a probe in a process of its own, for what it does to itself cannot be undone."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=False, timeout=30
    )
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["failed"])[-1]


@probe("userns")
def _userns() -> str | None:
    failure = _failure_of(_UNSHARE.format(flags=_CLONE_NEWUSER | _CLONE_NEWNS))
    return failure and f"no user namespace: {failure}"


@probe("overlay")
def _overlay() -> str | None:
    """Overlayfs inside a user namespace, with a tmpfs as its upper layer (Linux 5.11)."""
    script = (
        "import os\nuid, gid = os.getuid(), os.getgid()\n"
        + _UNSHARE.format(flags=_CLONE_NEWUSER | _CLONE_NEWNS)
        + """
for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    with open(f"/proc/self/{file}", "w") as stream:
        stream.write(text)
def mount(kind, where, options):
    if libc.mount(b"none", where, kind, 0, options):
        sys.exit(os.strerror(ctypes.get_errno()))
mount(b"tmpfs", b"/tmp", None)
for name in ("low", "up", "work", "all"):
    os.mkdir("/tmp/" + name)
mount(b"overlay", b"/tmp/all", b"lowerdir=/tmp/low,upperdir=/tmp/up,workdir=/tmp/work,userxattr")
"""
    )
    failure = _failure_of(script)
    return failure and f"no overlayfs in a user namespace: {failure}"


@probe("tmpfs.xattr")
def _tmpfs_xattr() -> str | None:
    """user.* attributes on a tmpfs (Linux 6.6): without, an overlay above it cannot remove an image's directories."""
    script = (
        "import os\nuid, gid = os.getuid(), os.getgid()\n"
        + _UNSHARE.format(flags=_CLONE_NEWUSER | _CLONE_NEWNS)
        + """
for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    with open(f"/proc/self/{file}", "w") as stream:
        stream.write(text)
if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None):
    sys.exit(os.strerror(ctypes.get_errno()))
try:
    open("/tmp/file", "w").close()
    os.setxattr("/tmp/file", "user.probe", b"1")
except OSError as error:
    sys.exit(error.strerror)
"""
    )
    failure = _failure_of(script)
    return failure and f"no user.* attributes on tmpfs: {failure}"


@probe("idmap")
def _idmap() -> str | None:
    """An idmapped mount of the file system that holds the temporary directory (Linux 5.12; needs root)."""
    script = (
        _LIBC
        + f"""
import signal
def check(result):
    if result < 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    return result
ready, child_end = os.pipe()
child = os.fork()
if child == 0:
    failed = libc.unshare({_CLONE_NEWUSER:#x})
    os.write(child_end, b"x" if failed else b".")
    signal.pause()
try:
    if os.read(ready, 1) != b".":
        sys.exit("no user namespace")
    for file in ("uid_map", "gid_map"):
        with open(f"/proc/{{child}}/{{file}}", "w") as stream:
            stream.write("0 100000 65536")
    namespace = os.open(f"/proc/{{child}}/ns/user", os.O_RDONLY)
    tree = check(libc.syscall(428, -100, {os.fsencode(tempfile.gettempdir())!r}, 1))  # OPEN_TREE_CLONE
    attributes = (ctypes.c_uint64 * 4)(0x100000, 0, 0, namespace)  # MOUNT_ATTR_IDMAP
    check(libc.syscall(442, tree, b"", 0x1000, attributes, 32))  # AT_EMPTY_PATH
finally:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""
    )
    failure = _failure_of(script)
    return failure and f"no idmapped mounts of {tempfile.gettempdir()}: {failure}"


# --- cgroups ------------------------------------------------------------------


for _name in ("cpu", "io", "memory", "pids"):
    PROBES[f"cgroup2.{_name}"] = functools.cache(functools.partial(cgroup2, _name))
for _name in ("cpu", "cpuacct", "freezer", "memory", "pids"):
    PROBES[f"cgroup1.{_name}"] = functools.cache(functools.partial(cgroup1, _name))


@probe("cgroup2")
def _cgroup2_for_pods() -> str | None:
    """A cgroup2 directory for a pod: one that we make, or a scope of systemd's."""
    return None if (reason := cgroup2()) is None or missing("systemd.scopes") is None else reason


@probe("memory.limit")
def _memory_limit() -> str | None:
    """A memory limit by either version of cgroups, or by a scope of systemd's."""
    return _any_of("cgroup2.memory", "cgroup1.memory", "systemd.scopes")


@probe("pids.limit")
def _pids_limit() -> str | None:
    return _any_of("cgroup2.pids", "cgroup1.pids", "systemd.scopes")


def _any_of(*names: str) -> str | None:
    reasons = []
    for name in names:
        if (reason := missing(name)) is None:
            return None
        reasons.append(reason)
    return "; ".join(reasons)


# --- programs and files -------------------------------------------------------


def _program(name: str, *arguments: str) -> str | None:
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/lib/systemd")
    if path is None:
        return f"{name} is not installed"
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False, timeout=30)
    return None if done.returncode == 0 else f"{name} {' '.join(arguments)} ended with {done.returncode}"


#: Programs, and what shows that one works where that is not ``--version``.
_PROGRAMS = {
    **dict.fromkeys(("buildah", "bwrap", "crun", "docker-registry", "podman", "redis-server", "runc"), "--version"),
    **dict.fromkeys(("skopeo", "systemd", "systemd-run", "systemd-analyze", "umoci"), "--version"),
    **dict.fromkeys(("as", "aarch64-linux-gnu-as", "qemu-aarch64-static", "qemu-x86_64-static"), "--version"),
    "busybox": "true",
    "openssl": "version",
}
for _name, _argument in _PROGRAMS.items():
    PROBES[_name.removesuffix("-server")] = functools.cache(functools.partial(_program, _name, _argument))


@probe("docker")
def _docker() -> str | None:
    """A daemon of docker's that starts: a client alone, and somebody's daemon, are no good."""
    import dockerd

    if (reason := dockerd.why_not()) is not None:
        return reason
    try:
        with tempfile.TemporaryDirectory(prefix="docker-") as home, dockerd.Dockerd(Path(home)):
            return None
    except dockerd.DockerFailed as error:
        return str(error)


@probe("postgres")
def _postgres() -> str | None:
    there = any(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return _program("psql", "--version") if there else "PostgreSQL's server is not in /usr/lib/postgresql"


@probe("python")
def _python() -> str | None:
    """A Python that containers of the host image see: not one that lies in somebody's home."""
    return _program("/usr/bin/python3", "-c", "import sys; sys.exit(sys.version_info < (3, 9))")


@probe("pydbus")
def _pydbus() -> str | None:
    """python3-pydbus, for the Python that it comes for."""
    return _program(DISTRIBUTION_PYTHON, "-c", "import gi, pydbus")


@probe("systemd.private")
def _private_manager() -> str | None:
    """A private manager that starts."""
    from sandbox_systemd import managers
    from sandbox_systemd.errors import SystemdError

    try:
        managers.private().close()
    except SystemdError as error:
        return f"no private manager: {error.cause or error.detail}"
    return None


@probe("systemd.booted")
def _booted() -> str | None:
    """sd_booted(3): systemd is the machine's PID 1."""
    return None if Path("/run/systemd/system").is_dir() else "the machine was not booted with systemd"


@probe("systemd.system")
def _system_manager() -> str | None:
    """A system manager to test with: the machine's own inside a testbed, else a nested one (machines/nested.py)."""
    from machines import nested

    if os.geteuid() != 0:
        return "not root"
    if nested.TESTBED in os.environ:
        return _booted()
    try:
        with nested.boot() as machine:
            machine.run(["systemctl", "list-units"])
    except (OSError, nested.MachineFailed) as error:
        return f"no nested system manager: {error}"
    return None


@probe("systemd.scopes")
def _scopes() -> str | None:
    """The machine's manager (for root) or the user's own makes scopes with limits, and the kernel has them."""
    if (reason := missing("systemd.booted")) is not None:
        return reason
    limits = ("MemoryMax=64M", "TasksMax=64", "CPUQuota=50%")
    command = ["systemd-run", *(() if os.geteuid() == 0 else ("--user",)), "--quiet", "--scope"]
    show = "cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup) && cat memory.max pids.max cpu.max"
    command += [*(f"--property={limit}" for limit in limits), "sh", "-c", show]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if (done.returncode, done.stdout) == (0, "67108864\n64\n50000 100000\n"):
        return None
    return f"no scope with limits: {(done.stderr or done.stdout).strip()}"


@probe("systemd.manager")
def _any_manager() -> str | None:
    """A manager that runs units for us: the machine's, the user's, or a private one."""
    from sandbox_systemd.errors import SystemdError
    from sandbox_systemd.managers import open_manager

    try:
        with open_manager():
            return None
    except SystemdError as error:
        return f"{error.detail} ({error.cause})"


@probe("schema")
def _schema() -> str | None:
    if importlib.util.find_spec("jsonschema") is None:
        return "jsonschema is not installed"
    top = SCHEMAS / "runtime-spec" / "schema" / "config-schema.json"
    return None if top.is_file() else f"{top} is missing (golang-github-opencontainers-specs-dev)"


@probe("zstd")
def _zstd() -> str | None:
    return None if importlib.util.find_spec("zstandard") else "zstandard is not installed (the extra `zstd`)"


# --- what CI may lack ---------------------------------------------------------


def _hybrid() -> bool:
    return any("memory" in options for _, options in mounts("cgroup"))


def _is_root() -> bool:
    return os.geteuid() == 0


def _in_uml() -> bool:
    """Inside the User-mode Linux machine (tools/machine.py)."""
    return os.environ.get("SANDBOX_TESTBED") == "uml"


def _not_in_uml() -> bool:
    return not _in_uml()


def _without_delegation() -> bool:
    return not _is_root() and not _in_uml()


#: requirement → (when CI may lack it, why that is all right).
EXPECTED_IN_CI: dict[str, tuple[Callable[[], bool], str]] = {
    "root": (lambda: not _is_root(), "the suite runs as root as well"),
    "rootless": (_is_root, "the suite runs as an ordinary user as well"),
    "idmap": (lambda: not _is_root(), "only root may make idmapped mounts; the suite runs as root as well"),
    "cgroup2": (_without_delegation, "nobody delegates a cgroup to the throw-away user"),
    "systemd.private": (lambda: not _is_root(), "only root has a cgroup to put one in; the suite runs as root as well"),
    "systemd.system": (lambda: not _is_root(), "only root may boot one; the suite runs as root as well"),
    "systemd.scopes": (_not_in_uml, "CI machines lack systemd as PID 1; the User-mode Linux machine has it"),
    "systemd.manager": (_without_delegation, "nobody delegates a cgroup to the throw-away user"),
    "systemd.booted": (_not_in_uml, "CI machines lack systemd as PID 1; the User-mode Linux machine has it"),
    "tmpfs.xattr": (_in_uml, "its kernel is 6.1, and `sandbox doctor` says what that lacks; the host's suite has it"),
    **dict.fromkeys(
        ("buildah", "podman", "postgres", "redis", "schema", "skopeo", "umoci"),
        (_in_uml, "left out of the disk: what it is for does not depend on the kernel, and the host's suite has it"),
    ),
    "docker": (
        lambda: not _is_root() or _in_uml(),
        "its daemon needs root, and is left out of the machine's disk; the host's suite runs as root and has it",
    ),
    **{
        f"cgroup2.{name}": (lambda: _hybrid() or not _is_root(), "a v1 hierarchy has the controller")
        for name in ("cpu", "io", "memory", "pids")
    },
    **{
        f"cgroup1.{name}": (lambda: not _hybrid() or not _is_root(), "the machine has cgroup2 only")
        for name in ("cpu", "cpuacct", "freezer", "memory", "pids")
    },
    "memory.limit": (_without_delegation, "nobody delegates a cgroup to the throw-away user"),
    "pids.limit": (_without_delegation, "nobody delegates a cgroup to the throw-away user"),
}


def why_ci_may_lack(name: str) -> str | None:
    """The reason why CI on this machine may do without ``name``; None if it may not."""
    if name not in EXPECTED_IN_CI:
        return None
    applies, reason = EXPECTED_IN_CI[name]
    return reason if applies() else None
