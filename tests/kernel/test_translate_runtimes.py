"""A generated spec runs unchanged under crun and runc, and a program inside sees what was declared."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gate import requires

from sandbox import oci
from sandbox.linux.users import UserDatabase
from sandbox.models import Container, Mount, Pod, Resources, Security
from sandbox.oci import capabilities

pytestmark = [requires("root", "userns", "busybox")]

USERS = UserDatabase("root:x:0:0::/root:/bin/sh\napp:x:10:20::/srv:/bin/sh\n", "wheel:x:3:app\n")
FIRST_ID = 0x70000000

#: Reports what it sees, a line of ``key=value`` each.
PROBE = r"""
say() { echo "$1=$2"; }
field() { grep "^$1:" /proc/self/status | cut -d: -f2 | tr -d '\t'; }
say ids "$(id -u):$(id -g):$(id -G)"
say cwd "$(pwd)"
say hostname "$(hostname)"
say umask "$(umask)"
say home "$HOME"
say own "$OWN"
say nofile "$(ulimit -Sn):$(ulimit -Hn)"
for name in CapBnd CapEff CapAmb NoNewPrivs Seccomp; do say $name "$(field $name)"; done
say uid_map "$(tr -s ' ' </proc/self/uid_map)"
say root_writable "$(touch /probe 2>/dev/null && echo yes || echo no)"
say tmp_writable "$(touch /tmp/probe 2>/dev/null && echo yes || echo no)"
say bind "$(cat /in/file) $(touch /in/new 2>/dev/null && echo yes || echo no)"
say kcore "$(head -c1 /proc/kcore 2>/dev/null | wc -c)"
say sysctl "$(sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward' 2>/dev/null && echo yes || echo no)"
say devices "$(ls /dev | tr '\n' ' ')"
say interfaces "$(ls /sys/class/net | tr '\n' ' ')"
say pid "$$"
say unshare "$(unshare -U true 2>/dev/null && echo yes || echo no)"
say shm "$(stat -c %a /dev/shm) $(stat -f -c %T /dev/shm)"
say ports "$(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)"
"""
APPLETS = "sh id pwd hostname grep cut tr touch cat head wc ls echo unshare stat true"


def _crun(bundle: Path) -> list[str]:
    """With cgroup2 where it looks for it, if need be in a mount namespace of its own: crun refuses hybrid layouts."""
    run = ["crun", "--cgroup-manager=disabled", "run", "--bundle", str(bundle), bundle.name]
    if Path("/sys/fs/cgroup/cgroup.procs").exists():
        return run
    return ["unshare", "--mount", "sh", "-c", 'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"', "sh", *run]


def _runc(bundle: Path) -> list[str]:
    return ["runc", "run", "--bundle", str(bundle), bundle.name]


RUNTIMES = [
    pytest.param(_crun, marks=requires("crun"), id="crun"),
    pytest.param(_runc, marks=requires("runc"), id="runc"),
]


@pytest.fixture
def bundle() -> Iterator[Path]:
    """A bundle with a busybox as root file system, owned by the container's root and readable on the way to it."""
    path = Path(tempfile.mkdtemp(prefix="sandbox-test-"))
    path.chmod(0o755)
    for directory in ("bin", "proc", "dev", "sys", "tmp", "in", "srv"):
        (path / "rootfs" / directory).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", path / "rootfs" / "bin" / "busybox")
    for applet in APPLETS.split():
        (path / "rootfs" / "bin" / applet).symlink_to("busybox")
    (path / "rootfs" / "tmp").chmod(0o1777)  # runc gives a tmpfs the mode of the directory below
    for found in (path / "rootfs", *(path / "rootfs").rglob("*")):
        os.chown(found, FIRST_ID, FIRST_ID, follow_symlinks=False)
    yield path
    shutil.rmtree(path)
    _remove_cgroups(path.name)


def _remove_cgroups(name: str) -> None:
    """Runc makes the parents of its cgroup, and leaves them."""
    for found in Path("/sys/fs/cgroup").glob(f"*/{name}/*"):
        with contextlib.suppress(OSError):
            found.rmdir()
            found.parent.rmdir()


def observe(runtime: Callable[[Path], list[str]], bundle: Path, container: Container) -> dict[str, str]:
    pod = Pod(container, hostname="box.test")
    host = oci.Host(pod_id="p1", cgroup_parent=f"/{bundle.name}", kernel=(5, 0), machine=os.uname().machine)
    spec = oci.to_spec(container, pod, None, host, users=USERS)
    (bundle / "config.json").write_text(oci.dumps(spec), "utf-8")
    done = _run(runtime(bundle))
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """With pipes only: crun and runc give their standard streams to the container's user, and /dev/null is the host's."""
    return subprocess.run(command, capture_output=True, text=True, input="", timeout=60, check=False)


def mask(names: tuple[str, ...]) -> str:
    return f"{sum(1 << capabilities.ALL.index(name) for name in names):016x}"


DEFAULT = mask(tuple(capabilities.DEFAULT))
STANDARD_NODES = {"full", "null", "random", "tty", "urandom", "zero"}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_defaults(runtime: Callable[[Path], list[str]], bundle: Path) -> None:
    seen = observe(runtime, bundle, Container(command=["sh", "-c", PROBE]))
    devices = set(seen.pop("devices").split())
    assert devices >= STANDARD_NODES
    assert devices <= STANDARD_NODES | {
        "core",
        "fd",
        "mqueue",
        "ptmx",
        "pts",
        "shm",
        "stderr",
        "stdin",
        "stdout",
    }
    assert seen.pop("nofile")
    assert seen == {
        "ids": "0:0:0",
        "cwd": "/",
        "hostname": "box.test",
        "umask": "0022",
        "home": "/root",
        "own": "",
        "CapBnd": DEFAULT,
        "CapEff": DEFAULT,
        "CapAmb": mask(()),
        "NoNewPrivs": "1",
        "Seccomp": "2",
        "uid_map": f" 0 {FIRST_ID} 65536",
        "root_writable": "yes",
        "tmp_writable": "yes",
        "bind": " yes",
        "kcore": "0",
        "sysctl": "no",
        "interfaces": "lo ",
        "pid": "1",
        "unshare": "no",
        "shm": "1777 tmpfs",
        "ports": "0",
    }


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_everything_declared(runtime: Callable[[Path], list[str]], bundle: Path) -> None:
    source = bundle / "source"
    source.mkdir()
    (source / "file").write_text("hello")
    source.chmod(0o755)
    (source / "file").chmod(0o644)
    container = Container(
        command=["sh", "-c", PROBE],
        user="app",
        groups=[7],
        working_dir="/srv",
        hostname="own",
        umask=0o077,
        env={"OWN": "a b=c"},
        ulimits={"nofile": (100, 200)},
        mounts=[Mount.bind(source, "/in", read_only=True, idmapped=False), Mount.tmpfs("/tmp", size="1M")],
        resources=Resources(pids=50),
        security=Security(read_only_root=True, cap_add=["net_bind_service"], cap_drop=["chown"]),
    )
    seen = observe(runtime, bundle, container)
    bounding = mask(tuple(name for name in capabilities.DEFAULT if name != "CAP_CHOWN"))
    expected = {
        "ids": "10:20:20 3 7",
        "cwd": "/srv",
        "hostname": "own",
        "umask": "0077",
        "home": "/srv",
        "own": "a b=c",
        "nofile": "100:200",
        "CapBnd": bounding,
        "CapEff": mask(("CAP_NET_BIND_SERVICE",)),
        "CapAmb": mask(("CAP_NET_BIND_SERVICE",)),
        "root_writable": "no",
        "tmp_writable": "yes",
        "bind": "hello no",
    }
    assert {key: seen[key] for key in expected} == expected
    assert not (source / "new").exists()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_privileged_is_still_nobody_on_the_host(runtime: Callable[[Path], list[str]], bundle: Path) -> None:
    source = bundle / "source"
    source.mkdir(mode=0o777)
    source.chmod(0o777)
    container = Container(
        command=["sh", "-c", PROBE],
        mounts=[Mount.bind(source, "/in", idmapped=False)],
        security=Security(privileged=True),
    )
    seen = observe(runtime, bundle, container)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert int(seen["CapEff"], 16) == (1 << (last + 1)) - 1
    assert (seen["Seccomp"], seen["NoNewPrivs"], seen["unshare"]) == ("0", "0", "yes")
    assert seen["uid_map"] == f" 0 {FIRST_ID} 65536"
    made = (source / "new").stat()
    assert (made.st_uid, stat.S_ISREG(made.st_mode)) == (FIRST_ID, True)


@pytest.mark.parametrize("runtime", [RUNTIMES[0]])
def test_bind_mounts_keep_the_owner_of_the_host(runtime: Callable[[Path], list[str]], bundle: Path) -> None:
    """The idmap option of a generated spec, which runc knows from 1.2 on only."""
    source = bundle / "source"
    source.mkdir(mode=0o700)
    container = Container(
        command=["sh", "-c", "touch /in/new && echo ok=$(stat -c %u /in)"], mounts=[(source, "/in")]
    )
    pod = Pod(container)
    host = oci.Host(pod_id="p1", cgroup_parent=f"/{bundle.name}", kernel=(6, 1), machine=os.uname().machine)
    (bundle / "config.json").write_text(oci.dumps(oci.to_spec(container, pod, None, host)), "utf-8")
    done = _run(runtime(bundle))
    if "mount_setattr" in done.stderr:
        pytest.fail(f"crun: {done.stderr}")
    assert (done.returncode, done.stdout) == (0, "ok=0\n"), done.stderr
    assert (source / "new").stat().st_uid == 0
