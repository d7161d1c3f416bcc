"""Everything CI runs, in the order in which it fails fastest; `make test` calls it.

Usage: VENV=.venv JOBS=auto python3 tools/suite.py [STAGE…]

Without the name of a stage it runs all; an unknown one lists them.
As root it installs the system packages the tests need (APT=no leaves that out), and runs the kernel part
of the suite a second time as a throw-away ordinary user. The last line is the closing line of the test
runner: of the first run that failed, else of the main one. Standard library only, for it makes the virtual
environment itself.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
VENV = Path(os.environ.get("VENV", ".venv")).absolute()
JOBS = os.environ.get("JOBS", "auto")

#: The Debian and Ubuntu packages the tests use, and which requirement of tests/gate.py each one meets.
PACKAGES = {
    "binutils": "as: the instructions of the stub are assembled again",
    "binutils-aarch64-linux-gnu": "aarch64-linux-gnu-as: those for the other architecture",
    "bubblewrap": "bwrap",
    "buildah": "buildah: images that it built are unpacked here",
    "busybox-static": "busybox: the root file system of most kernel tests",
    "crun": "crun",
    "dbus": "systemd.system: the bus of nested system managers",
    "docker.io": "docker: the same of docker, which also runs images that were built here; tools/dockerd.py starts its daemon",
    "docker-registry": "docker-registry: pulls and pushes are tested against a real one",
    "e2fsprogs": "the machine: mke2fs",
    "gcc": "the machine: cc",
    "golang-github-opencontainers-specs-dev": "schema: the official JSON schemas",
    "kmod": "the machine: depmod",
    "libseccomp2": "seccomp",
    "mmdebstrap": "the machine: its root file system",
    "openssl": "openssl: certificates and tokens for the registries of the tests",
    "podman": "podman",
    "postgresql": "postgres",
    "procps": "ps, which the containers of tests look around with",
    "python3-gi": "pydbus",
    "python3-pydbus": "pydbus",
    "python3-venv": "ensurepip",
    "qemu-user-static": "qemu-aarch64-static: runs them",
    "redis-server": "redis",
    "runc": "runc",
    "skopeo": "skopeo",
    "systemd": "systemd: private managers; systemd.system: nested ones",
    "uidmap": "subuid: newuidmap and newgidmap",
    "umoci": "umoci",
    "user-mode-linux": "the machine: its kernel",
}

#: Throw-away users carry the id of the process that made them: a later run can sweep after a killed one.
USER_PREFIX = "sandbox-test-"

#: So many tests may fail in the crowd and are tried again alone.
MOST_UNSTEADY = 5
#: Those that passed then.
UNSTEADY: list[str] = []

FAILED_TEST = re.compile(r"(?:FAILED|ERROR) (tests/\S+?::.*?)(?: - .*)?$")
CLOSING_LINE = re.compile(r"^=+ .*\b(?:in \d[\d.]*s|no tests ran)\b.* =+$")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Stage:
    """One step of the suite and how it ended."""

    name: str
    passed: bool = False
    seconds: float = 0.0
    closing_line: str = ""
    failed: tuple[str, ...] = ()


@dataclass
class As:
    """Who runs a command, and where."""

    cwd: Path = CHECKOUT
    user: int | None = None
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))


ME = As()
MACHINE = As(environment=os.environ | {"VENV": str(VENV)})


def run(*command: str | Path, who: As = ME, label: str = "") -> str:
    """Run to the end, passing the output on; returns the test runner's closing line, if there was one."""
    print(f"{label}$", *command, flush=True)
    process = subprocess.Popen(
        command,
        cwd=who.cwd,
        env=who.environment,
        user=who.user,
        group=who.user,
        extra_groups=None if who.user is None else [],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    closing_line, failed = "", []
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{label}{line}", end="", flush=True)
            if CLOSING_LINE.match(plain := ANSI.sub("", line.strip())):
                closing_line = plain
            elif found := FAILED_TEST.match(plain):
                failed.append(found[1])
    if process.returncode:
        raise StageFailed(closing_line, f"{command[0]} ended with {process.returncode}", tuple(dict.fromkeys(failed)))
    return closing_line


class StageFailed(Exception):
    """A command of a stage failed; carries the closing line it got to, and the tests that failed."""

    def __init__(self, closing_line: str, reason: str, failed: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.closing_line = closing_line
        self.failed = failed


def steadied(again: Callable[..., str], *arguments: str | Path) -> str:
    """Run tests; a few that fail in the crowd are tried once more, alone. Which these were is told at the end.

    Not to hide them: on a machine that is shared, one that waits for time fails now and then, and whoever reads the end of
    the report is to know which.
    """
    try:
        return again(*arguments)
    except StageFailed as failure:
        if not 0 < len(failure.failed) <= MOST_UNSTEADY:
            raise
        print("once more, alone:", *failure.failed, flush=True)
        closing_line = again(*failure.failed)
        UNSTEADY.extend(failure.failed)
        return closing_line


# --- the stages -----------------------------------------------------------------


def system_packages() -> str:
    """Install what is missing; what the distribution does not have, the gate will tell."""
    lacking = [name for name in PACKAGES if not installed(name)]
    if not lacking:
        return ""
    if os.geteuid() != 0 or shutil.which("apt-get") is None or os.environ.get("APT") == "no":
        print("not installed, and not for us to install:", *lacking)
        return ""
    apt = As(environment=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
    install = ("apt-get", "install", "--yes", "--no-install-recommends")
    with no_daemons():
        run("apt-get", "update", "--quiet", who=apt)
        try:
            run(*install, *lacking, who=apt)
        except StageFailed:
            for name in lacking:
                with contextlib.suppress(StageFailed):
                    run(*install, name, who=apt)
    return ""


def installed(package: str) -> bool:
    if shutil.which("dpkg-query") is None:
        return True
    command = ["dpkg-query", "--show", "--showformat=${Status}", package]
    query = subprocess.run(command, capture_output=True, text=True, check=False)
    return query.stdout.endswith(" installed")


@contextlib.contextmanager
def no_daemons() -> Iterator[None]:
    """Keep packages from starting their services (policy-rc.d of invoke-rc.d(8)): we want the programs."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n", "ascii")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def environment() -> str:
    run(sys.executable, "tools/environment.py", VENV)
    return run(VENV / "bin/python", "-m", "pip", "install", "--quiet", "--editable", ".[test]")


def lint() -> str:
    return run(VENV / "bin/ruff", "check", "--output-format=concise")


def types() -> str:
    return run(VENV / "bin/mypy")


def wheel() -> str:
    """The wheel as a user gets it: starts a sandbox, keeps the house rules, passes the examples."""
    with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
        there = As(cwd=Path(folder))
        build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, CHECKOUT)
        run(VENV / "bin/python", *build)
        programs = Path(folder, "venv", "bin")
        run(sys.executable, CHECKOUT / "tools/environment.py", programs.parent, who=there)
        wheels = Path(folder).glob("*.whl")
        run(programs / "python", "-m", "pip", "install", "--quiet", *wheels, who=there)
        run(programs / "sandbox", "run", "host", "--", "echo", "a sandbox from the wheel", who=there)
        return pytest(programs, CHECKOUT / "tests/unit/test_house.py", CHECKOUT / "examples", who=there)


def ordinary_user() -> str:
    """All but the pure part of the suite, as somebody who is not root and sees a checkout of their own."""
    with throw_away_user() as (uid, home):
        shutil.copytree(
            CHECKOUT,
            home / "checkout",
            ignore=shutil.ignore_patterns(".git", ".venv*", ".tox", ".*_cache", "__pycache__", VENV.name),
        )
        hand_over(home / "checkout", uid)
        somebody = As(home / "checkout", uid, environment_of(uid))
        python = python_for(somebody)
        run(python, "tools/environment.py", home / "venv", who=somebody)
        programs = home / "venv/bin"
        run(programs / "python", "-m", "pip", "install", "--quiet", "--editable", ".[test]", who=somebody)

        def theirs(*tests: str | Path) -> str:
            return pytest(programs, "--timeout=180", *tests, who=somebody)

        closing_line = steadied(
            theirs, "--numprocesses", JOBS, "-m", "not serial", "--ignore=tests/unit", "--ignore=tests/property", "tests",
            "examples",
        )  # fmt: skip
        if left := processes_of(uid):
            raise StageFailed(closing_line, f"processes left behind by the ordinary user: {left}")
        return closing_line


#: What of tests/ is run in the User-mode Linux machine: all that the kernel, cgroups or systemd have a say in.
IN_MACHINE = ("kernel", "systemd", "plugin", "hostile")
#: And what of that is not, with the reason. One processor, and programs start slowly there.
NOT_IN_MACHINE = {
    "hostile/test_builds.py": "names, which are refused alike everywhere",
    "hostile/test_images.py": "documents, archives and layers are read alike everywhere",
    "hostile/test_interpreters.py": "what is open in a process has nothing to do with limits or systemd; a thousand starts",
    "hostile/test_layers.py": "documents, archives and layers are read alike everywhere",
    "hostile/test_registry.py": "the same",
    "hostile/test_specs.py": "most are refused before the kernel is asked; 180 starts take three minutes",
    "hostile/test_spec_processes.py": "files and processes of containers, in 50 slow starts; no limits, no systemd",
    "hostile/test_escape.py::test_what_is_being_started_cannot_be_looked_into": "a busy watcher leaves nothing for others",
    "kernel/test_benchmarks.py": "times of such a machine tell nothing",
    "kernel/test_build.py": "builds take minutes; what the kernel has to do for them, it does for pods as well",
    "kernel/test_build_elsewhere.py": "what it compares with is not there",
    "kernel/test_build_peers.py": "the same",
    "kernel/test_leaks.py::test_without_cgroups_neither": "the run with cgroups takes a minute",
    "kernel/test_pod_files.py::test_a_deep_tree_is_removed": "thousands of directories",
    "kernel/test_prepare.py": "builds, again",
    "kernel/test_readiness.py": "sockets, lines and programs that are looked at from outside, in 60 slow starts",
    "kernel/test_readiness_programs.py": "the same",
    "kernel/test_store.py": "files, which are alike everywhere",
    "kernel/test_store_collect.py": "the same",
    "kernel/test_store_peers.py": "what it compares with is not there",
    "plugin/test_cost.py": "times, again",
    "plugin/test_fixtures.py": "an inner pytest takes seconds to start; reports and services are enough of them",
    "plugin/test_hooks.py": "the same",
    "plugin/test_options.py": "the same",
    "systemd/test_exposure.py": "asks no manager",
    "systemd/test_inside.py": "is about the nested manager, which stands in where there is no machine",
    "systemd/test_managers.py::test_a_connection_that_nobody_reads_does_not_keep_news_from_others":
        "six hundred services, which take half a minute",
    "systemd/test_nested.py": "is about the nested manager, too",
    "systemd/test_properties_read_back.py": "a thousand assignments, which mean the same whatever the kernel can do",
    "systemd/test_properties_said.py": "the same",
    "systemd/test_scopes.py::test_many_one_after_another": "a thousand scopes take minutes",
    "systemd/test_scopes.py::test_a_hundred_at_once_from_four_processes": "four interpreters and a hundred containers, too",
    "systemd/test_services_system.py": "what test_services.py asks of the machine's manager, asked of a nested one",
    "systemd/test_services.py::TestServices::test_find": "it tries dozens of services, one after another",
}  # fmt: skip


def build_machine() -> str:
    """Begin to make the machine's disk, which takes a minute on its own: the stage `machine` waits for it."""
    subprocess.Popen(
        machine_command("build"), env=MACHINE.environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return ""


def machine() -> str:
    """In a machine with systemd and cgroup v2 alone, as root and, in a second one beside it, as an ordinary user."""
    try:
        run(*machine_command("build"), who=MACHINE)
    except StageFailed:
        if os.environ.get("CI"):
            raise
        print("no machine here, so nothing is tested in it")
        return ""
    left_out = [f"--{'deselect' if '::' in name else 'ignore'}=tests/{name}" for name in NOT_IN_MACHINE]
    folders = [f"tests/{name}" for name in IN_MACHINE if (CHECKOUT / "tests" / name).is_dir()]
    command = ("env", "SANDBOX_KILLS=5", "pytest", "-p", "no:cacheprovider", "--timeout=300", "--durations=10")

    def inside(user: str) -> str:
        def there(*tests: str | Path) -> str:
            return run(
                *machine_command("run", "--user", user, "--timeout=1500", "--"), *command, *tests,
                who=MACHINE, label=f"{user}: ",
            )  # fmt: skip

        return steadied(there, *left_out, *folders)

    with ThreadPoolExecutor() as pool:
        outcomes = [pool.submit(inside, user) for user in ("root", "tester")]
        root, _ = [outcome.result() for outcome in outcomes]
    return root


def machine_command(*arguments: str) -> tuple[str | Path, ...]:
    return (sys.executable, CHECKOUT / "tools/machine.py", *arguments)


def serial() -> str:
    """The tests that look at the whole machine, one after another."""
    return steadied(ours, "--timeout=600", "-m", "serial", "tests")


def suite() -> str:
    return steadied(ours, "--timeout=180", "--numprocesses", JOBS, "-m", "not serial", "tests")


def ours(*arguments: str | Path) -> str:
    return pytest(VENV / "bin", *arguments)


def pytest(programs: Path, *arguments: str | Path, who: As = ME) -> str:
    return run(programs / "pytest", "-p", "no:cacheprovider", *arguments, who=who)


# --- the throw-away user --------------------------------------------------------


@contextlib.contextmanager
def throw_away_user() -> Iterator[tuple[int, Path]]:
    """Add a user with a home and, by useradd(8), sub-ids; take it all away again."""
    sweep_users()
    name = f"{USER_PREFIX}{os.getpid()}"
    run("useradd", "--create-home", "--user-group", "--shell", "/bin/sh", name)
    try:
        entry = pwd.getpwnam(name)
        yield entry.pw_uid, Path(entry.pw_dir)
    finally:
        remove_user(name)


def sweep_users() -> None:
    """Remove what runs that were killed have left."""
    for entry in pwd.getpwall():
        number = entry.pw_name.removeprefix(USER_PREFIX)
        if entry.pw_name.startswith(USER_PREFIX) and not Path("/proc", number).exists():
            remove_user(entry.pw_name)


def remove_user(name: str) -> None:
    uid = pwd.getpwnam(name).pw_uid
    for process in processes_of(uid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process.partition(" ")[0]), signal.SIGKILL)
    subprocess.run(["userdel", "--remove", name], stderr=subprocess.DEVNULL, check=False)


def processes_of(uid: int) -> list[str]:
    """Process ids and names of all that runs as a user, a moment after the last of it should have gone."""
    time.sleep(0.3)
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if directory.stat().st_uid == uid:
                found.append(f"{directory.name} {(directory / 'comm').read_text().strip()}")
    return found


def hand_over(tree: Path, uid: int) -> None:
    os.chown(tree, uid, uid)
    for folder, folders, files in os.walk(tree):
        for name in (*folders, *files):
            os.chown(Path(folder, name), uid, uid, follow_symlinks=False)


def environment_of(uid: int) -> dict[str, str]:
    """What a login would set, and what pip and CI need; nothing of root's own."""
    entry = pwd.getpwuid(uid)
    kept = {name: os.environ[name] for name in os.environ if re.match("PIP_|CI$|LANG$", name)}
    return kept | {
        "HOME": entry.pw_dir,
        "LOGNAME": entry.pw_name,
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        "USER": entry.pw_name,
    }


def python_for(somebody: As) -> str:
    """A Python that the user may run: root's own may lie below /root."""
    names = (os.path.realpath(sys.executable), "/usr/local/bin/python3", "/usr/bin/python3")
    for name in names:
        with contextlib.suppress(OSError, StageFailed):
            run(name, "-c", "import sys; sys.exit(sys.version_info < (3, 11))", who=somebody)
            return name
    raise StageFailed("", f"the ordinary user can run none of {', '.join(names)} as Python 3.11 or later")


# --- all together ---------------------------------------------------------------

#: What has to work before anything else can be tried.
GROUND: Sequence[Callable[[], str]] = (system_packages, environment)


def stages() -> Iterator[Callable[[], str]]:
    yield from (*GROUND, build_machine, lint, types, wheel)
    if os.geteuid() == 0:
        yield ordinary_user
    yield from (serial, machine, suite)


def attempt(step: Callable[[], str]) -> Stage:
    stage = Stage(step.__name__.replace("_", " "))
    print(f"\n--- {stage.name} ".ljust(80, "-"), flush=True)
    start = time.monotonic()
    try:
        stage.closing_line = step()
        stage.passed = True
    except StageFailed as failure:
        stage.closing_line, stage.failed = failure.closing_line, failure.failed
        print(f"{stage.name}: {failure}", flush=True)
    stage.seconds = time.monotonic() - start
    return stage


def report(done: list[Stage]) -> None:
    print()
    for stage in done:
        verdict = "ok" if stage.passed else "FAILED"
        print(f"{stage.name:16} {verdict:7} {stage.seconds:6.1f} s  {stage.closing_line.strip('= ')}")
    for stage in done:
        for test in stage.failed:
            print(f"failed: {test}")
    for test in UNSTEADY:
        print(f"failed in the crowd, passed alone: {test}")
    failed = [stage for stage in done if not stage.passed]
    lines = [stage.closing_line for stage in (*failed, done[-1]) if stage.closing_line]
    print(*lines[:1], sep="\n")


def main() -> int:
    known = {step.__name__: step for step in stages()}
    wanted = sys.argv[1:] or known
    if unknown := [name for name in wanted if name not in known]:
        print(f"no stage {unknown[0]}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    done: list[Stage] = []
    for step in (known[name] for name in wanted):
        done.append(attempt(step))
        if step in GROUND and not done[-1].passed:
            break
    report(done)
    return 0 if all(stage.passed for stage in done) else 1


if __name__ == "__main__":
    sys.exit(main())
