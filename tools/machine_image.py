"""The disk of the User-mode Linux machine: Debian 12 with systemd, made once and kept by what goes into it.

Images lie in $XDG_CACHE_HOME/pytest-sandbox/machine (~/.cache/… without it), each named by a digest of everything
it is made of; making one takes about a minute. Those that nobody has used for some days are removed when a new one is
made. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
KERNEL = Path("/usr/bin/linux.uml")
MODULES = Path("/usr/lib/uml/modules")
REGISTERS = CHECKOUT / "tools/machine_registers.c"

#: The ordinary user of the machine. useradd(8) gives it sub-ids; lingering starts its `systemd --user` at boot.
USER = "tester"
RELEASE = "bookworm"
#: What the machine consists of besides Debian's essential packages.
PACKAGES = (
    "busybox-static", "bubblewrap", "crun", "dbus", "dbus-user-session", "iproute2", "kmod", "libpam-systemd",
    "libseccomp2", "procps", "python3", "python3-pydbus", "runc", "systemd", "systemd-sysv", "uidmap",
)  # fmt: skip
#: Development dependencies that nothing in the machine needs.
NOT_INSIDE = re.compile(r"(mypy|ruff)\b")
#: The machine's Python, and so what its wheels are chosen for.
PYTHON = "3.11"
#: Seconds after which a disk that nobody uses is removed: 0.5 GB each, and branches differ in what they need.
KEPT = 3 * 24 * 3600
#: In bytes. The image is sparse, and what a machine writes goes elsewhere.
SIZE = 3 << 30

#: Which program comes from which Debian package.
PROGRAMS = {
    KERNEL.name: "user-mode-linux",
    "cc": "gcc",
    "depmod": "kmod",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}

FSTAB = """\
/dev/ubda / ext4 noatime 0 0
none /mnt/host hostfs ro 0 0
"""
AGENT = """\
[Unit]
Description=Runs what the host asks for
Wants=user@1000.service
After=basic.target dbus.socket systemd-logind.service

[Service]
ExecStart=/usr/bin/python3 -u /mnt/host/tools/machine_agent.py
KillMode=process
FailureAction=poweroff-force
SuccessAction=poweroff-force

[Install]
WantedBy=multi-user.target
"""
#: Nothing here is of use to a machine that lives for minutes.
MASKED = (
    "apt-daily-upgrade.timer", "apt-daily.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "getty.target", "systemd-timesyncd.service", "systemd-udev-trigger.service",
    "systemd-tmpfiles-clean.timer",
)  # fmt: skip


class Unavailable(Exception):
    """The machine cannot be had here; the text says why and what helps."""


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "pytest-sandbox", "machine")


def check() -> None:
    """Raise Unavailable for the first thing that is missing."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    lacking = {package for name, package in PROGRAMS.items() if shutil.which(name, path=path) is None}
    if lacking:
        raise Unavailable(f"not installed: {', '.join(sorted(lacking))} (apt-get install … helps)")
    if os.uname().machine != "x86_64":
        raise Unavailable("Debian has User-mode Linux for x86_64 only")


def requirements() -> list[str]:
    """What the suite needs of PyPI, by pyproject.toml: the dependencies and the extra `test`, without this package."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]

    def expand(names: list[str]) -> Iterator[str]:
        for name in names:
            own = re.fullmatch(rf"{re.escape(project['name'])}\[(.+)\]", name)
            if own is None:
                yield name
            else:
                for extra in own[1].split(","):
                    yield from expand(extras[extra.strip()])

    wanted = dict.fromkeys(expand([*project["dependencies"], *extras["test"]]))
    return [name for name in wanted if not NOT_INSIDE.match(name)]


def key() -> str:
    """A digest of everything that an image is made of."""
    kernel = KERNEL.stat()
    parts = (
        Path(__file__).read_bytes(), REGISTERS.read_bytes(), "\n".join(requirements()).encode(),
        f"{kernel.st_size} {kernel.st_mtime_ns}".encode(),
    )  # fmt: skip
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@contextlib.contextmanager
def image(python: Path | str = sys.executable) -> Iterator[Path]:
    """The directory with `disk` and `registers.so`, made if need be, and kept from removal meanwhile.

    `python` is one that has pip. Raises Unavailable.
    """
    check()
    directory = cache() / key()
    directory.mkdir(parents=True, exist_ok=True)
    os.utime(directory)
    with locked(directory, fcntl.LOCK_SH):
        if not (directory / "disk").exists():
            with locked(cache(), fcntl.LOCK_EX):
                if not (directory / "disk").exists():
                    sweep()
                    make(directory, python)
        yield directory


@contextlib.contextmanager
def locked(directory: Path, how: int) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def sweep() -> None:
    """Remove images that no machine and no builder holds, and that were not used for long."""
    for directory in cache().iterdir():
        if time.time() - directory.stat().st_mtime < KEPT:
            continue
        with contextlib.suppress(BlockingIOError), locked(directory, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(directory)


# --- making one -------------------------------------------------------------------


def make(directory: Path, python: Path | str) -> None:
    """Make what belongs into `directory`; `disk` comes last, and whole."""
    compile_registers(directory)
    with tempfile.TemporaryDirectory(prefix="making-", dir=directory) as folder:
        work = Path(folder)
        extras = work / "extras"
        add_python(extras / "opt/venv", python)
        add_system(extras)
        debootstrap(extras, work / "disk")
        (work / "disk").rename(directory / "disk")


def compile_registers(directory: Path) -> None:
    command = ["cc", "-O2", "-shared", "-fPIC", "-nostdlib", "-fno-tree-loop-distribute-patterns"]
    run(*command, "-o", directory / "registers.so", REGISTERS)


def add_python(venv: Path, python: Path | str) -> None:
    """A virtual environment of the machine's Python, filled from here: the machine has no network."""
    site = venv / f"lib/python{PYTHON}/site-packages"
    choice = ("--python-version", PYTHON, "--only-binary=:all:", "--no-compile")
    run(python, "-m", "pip", "--quiet", "install", "--target", site, *choice, *requirements())
    (venv / "bin").mkdir()
    (venv / "bin/python").symlink_to("/usr/bin/python3")
    settings = ("home = /usr/bin", "include-system-site-packages = false", f"version = {PYTHON}.0")
    (venv / "pyvenv.cfg").write_text("\n".join(settings) + "\n", "ascii")
    # Editable: what is tested is the checkout that the agent copies there.
    (site / "checkout.pth").write_text("/checkout\n/checkout/systemd\n", "ascii")
    for name, module in (("pytest", "pytest:main"), ("sandbox", "sandbox.cli:main")):
        script = venv / "bin" / name
        package, _, function = module.partition(":")
        script.write_text(f"#!/opt/venv/bin/python\nimport sys\nfrom {package} import {function}\nsys.exit({function}())\n")
        script.chmod(0o755)


def add_system(top: Path) -> None:
    """Units and tables of the machine, and the modules of its kernel."""
    files = {
        "etc/fstab": FSTAB,
        "etc/hostname": "machine\n",
        "etc/hosts": "127.0.0.1 localhost machine\n",
        "etc/systemd/system/agent.service": AGENT,
        f"var/lib/systemd/linger/{USER}": "",
    }
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text, "ascii")
    units = top / "etc/systemd/system"
    (units / "multi-user.target.wants").mkdir()
    (units / "multi-user.target.wants/agent.service").symlink_to("../agent.service")
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    for name in MASKED:
        (units / name).symlink_to("/dev/null")
    for name in ("checkout", "mnt/host"):
        (top / name).mkdir(parents=True)
    # Below usr, for /lib is a link there.
    shutil.copytree(MODULES, top / "usr/lib/modules", symlinks=True)
    for release in (top / "usr/lib/modules").iterdir():
        run("depmod", "--basedir", top / "usr", release.name)


def debootstrap(extras: Path, disk: Path) -> None:
    """The root file system, and the image of it: both within mmdebstrap, which knows how to without being root."""
    mke2fs = f'mke2fs -q -t ext4 -O ^has_journal -m 0 -d "{extras}" "{disk}" {SIZE >> 10}k'
    hooks = (
        f'cp --recursive --no-dereference --preserve=mode,timestamps "{extras}/." "$1"',
        f'chroot "$1" useradd --create-home --shell /bin/bash {USER}',
        'chroot "$1" /opt/venv/bin/python -m compileall -q -j 2 /opt/venv/lib /usr/lib/python3.11 >/dev/null || true',
        # Bound without what is mounted in it: /proc is not for copying.
        f'unshare --mount sh -ec \'mount --bind "$0" "{extras}"; {mke2fs}\' "$1"',
    )  # fmt: skip
    excluded = ("man", "doc", "doc-base", "info", "lintian", "locale")
    run(
        "mmdebstrap", "--quiet", "--variant=minbase", "--format=null", f"--include={','.join(PACKAGES)}",
        "--dpkgopt=force-unsafe-io", *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in excluded),
        *(f"--customize-hook={hook}" for hook in hooks), RELEASE,
    )  # fmt: skip


def run(*command: str | Path) -> None:
    """Run to the end; raises Unavailable with what it said."""
    environment = os.environ | {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-12:]
        raise Unavailable("\n  ".join([f"{command[0]} ended with {done.returncode}:", *said]))
