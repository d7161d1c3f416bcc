"""Ways out of a container, tried from the inside by a program that reports how each went (tests/data/probe.py)."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from gate import requires
from programs import PYTHON

import sandbox
from sandbox import Container, Pod, Security
from sandbox.oci.capabilities import ALL
from sandbox.pods import Options

pytestmark = requires("userns", "overlay")

PROBE = [PYTHON, "-I", "-c", (Path(__file__).parents[1] / "data" / "probe.py").read_text()]
Report = Mapping[str, Any]


def refused(result: Any) -> bool:
    return isinstance(result, dict) and set(result) == {"errno"}


def everything(results: Mapping[str, Any]) -> list[str]:
    """What was *not* refused."""
    return [name for name, result in results.items() if not refused(result)]


@pytest.fixture(
    scope="module", params=["root", pytest.param("nobody", marks=requires("subuid")), "exec", "no cgroups"]
)
def report(request: pytest.FixtureRequest) -> Report:
    """What the probe saw: as root of a container, as an ordinary user, and as an exec'd process."""
    if request.param == "nobody":
        done = sandbox.run(PROBE, user="nobody", timeout=60)
    elif request.param == "exec":
        with sandbox.start(command=["sleep", "inf"]) as pod:
            done = pod.exec(PROBE, timeout=60)
    else:
        options = Options(cgroups="none" if request.param == "no cgroups" else "auto")
        done = sandbox.run(PROBE, timeout=60, options=options)
    assert done.returncode == 0, done.stderr
    found: Report = json.loads(done.stdout)
    return found


class TestFromInside:
    def test_no_process_but_its_own_is_seen(self, report: Report) -> None:
        assert set(report["processes"]) <= {"sleep inf"}

    def test_nothing_is_open_but_the_standard_streams(self, report: Report) -> None:
        assert report["descriptors"] == [0, 1, 2, 3]  # 3 is the directory that was read for this

    def test_homes_and_places_for_data_are_empty(self, report: Report) -> None:
        places = dict(report["places"])
        assert places.pop("/run", ["lock"]) == ["lock"]
        assert places
        assert set(map(tuple, places.values())) == {()}

    def test_secrets_of_the_host_cannot_be_read(self, report: Report) -> None:
        assert refused(report["shadow"])

    def test_devices_are_the_standard_ones(self, report: Report) -> None:
        assert set(report["devices"]) == {
            "null", "zero", "full", "random", "urandom", "tty", "pts", "shm", "mqueue",
        }  # fmt: skip
        assert everything(report["device_nodes"]) == []

    def test_the_network_is_loopback(self, report: Report) -> None:
        assert report["interfaces"] == ["lo"]
        assert report["sockets"]["internet"] == {"errno": "ENETUNREACH"}
        assert set(everything(report["sockets"])) <= {"audit"}  # a socket, with which only real root can do anything

    def test_rights_are_as_declared(self, report: Report) -> None:
        limits = report["limits"]
        assert (limits["NoNewPrivs"], limits["Seccomp"]) == ("1", "2")
        declared = sum(1 << ALL.index(name) for name in Security().effective_capabilities())
        is_root = limits["Uid"].split()[0] == "0"
        assert int(limits["CapBnd"], 16) == declared
        assert int(limits["CapEff"], 16) == (declared if is_root else 0)
        assert int(limits["CapAmb"], 16) == 0

    def test_its_session_is_its_own(self, report: Report) -> None:
        assert report["session"] is True

    def test_nothing_of_our_environment_is_in_it(self, report: Report) -> None:
        if isinstance(report["init_environment"], str):
            names = {entry.partition("=")[0] for entry in report["init_environment"].split("\0") if entry}
            assert names <= {"PATH", "HOME", "HOSTNAME", "TERM", "container"}
        else:
            assert refused(report["init_environment"])

    def test_what_tells_about_the_machine_is_covered(self, report: Report) -> None:
        assert report["masked"]
        assert [path for path, result in report["masked"].items() if result and not refused(result)] == []

    def test_files_of_the_kernel_cannot_be_written(self, report: Report) -> None:
        assert report["kernel_files"]
        assert everything(report["kernel_files"]) == []

    def test_cgroups_cannot_be_written(self, report: Report) -> None:
        assert report["cgroup_files"] == "none" or refused(report["cgroup_files"])

    def test_programs_that_run_cannot_be_overwritten(self, report: Report) -> None:
        """CVE-2019-5736: neither its own, which is the host's, nor what started it."""
        assert everything(report["own_executable"]) == []

    def test_nothing_can_be_mounted_or_unmounted(self, report: Report) -> None:
        assert everything(report["mounts"]) == []

    def test_no_namespace_can_be_made(self, report: Report) -> None:
        assert everything(report["namespaces"]) == []

    def test_dangerous_system_calls_are_refused(self, report: Report) -> None:
        assert everything(report["system_calls"]) == []

    def test_nothing_can_be_typed_into_a_terminal(self, report: Report) -> None:
        assert report["typed_into_the_terminal"] == {"errno": "EPERM"}

    def test_the_host_name_is_fixed(self, report: Report) -> None:
        assert report["host_name"] == {"errno": "EPERM"}

    def test_set_user_id_programs_belong_to_nobody(self, report: Report) -> None:
        mode, owner = report["set_user_id"]
        assert not mode or owner == 65534


@pytest.fixture(scope="module")
def privileged() -> Report:
    done = sandbox.run(PROBE, security=Security(privileged=True), timeout=60)
    assert done.returncode == 0, done.stderr
    found: Report = json.loads(done.stdout)
    return found


class TestPrivileged:
    """Without seccomp and with all capabilities, the user namespace alone still keeps the machine's own things."""

    def test_has_what_it_asked_for(self, privileged: Report) -> None:
        assert privileged["limits"]["Seccomp"] == "0"
        assert privileged["mounts"]["mount"] == 0
        assert privileged["namespaces"]["mount"] == 0

    def test_files_of_the_machine_cannot_be_written(self, privileged: Report) -> None:
        of_its_own = {"/proc/sys/kernel/ns_last_pid"}  # of its process namespace
        assert set(everything(privileged["kernel_files"])) <= of_its_own
        assert refused(privileged["shadow"])
        assert everything(privileged["own_executable"]) == []
        assert refused(privileged["programs_of_the_host"])

    def test_no_device_can_be_made(self, privileged: Report) -> None:
        assert everything(privileged["device_nodes"]) == []

    def test_the_machine_cannot_be_changed(self, privileged: Report) -> None:
        calls = ["init_module", "kexec_load", "swapon", "settimeofday", "acct", "open_by_handle_at", "reboot"]
        if Path("/proc/sys/kernel/dmesg_restrict").read_text() == "1\n":  # else anybody may read the kernel's log
            calls.append("syslog")
        assert [name for name in calls if not refused(privileged["system_calls"][name])] == []

    def test_nothing_else_is_seen(self, privileged: Report) -> None:
        assert privileged["processes"] == []
        assert privileged["descriptors"] == [0, 1, 2, 3]
        assert privileged["interfaces"] == ["lo"]

    def test_its_host_name_is_not_ours(self, privileged: Report) -> None:
        assert privileged["host_name"] is None
        assert socket.gethostname() != "escaped"

    def test_its_mounts_are_not_ours(self) -> None:
        before = Path("/proc/self/mountinfo").read_text()
        script = "mount -t tmpfs none /mnt && mount --make-rshared / && mount -t tmpfs none /srv && cat /proc/self/mountinfo"
        done = sandbox.run(["sh", "-c", script], security=Security(privileged=True))
        assert " /srv " in done.stdout, done.stderr
        assert Path("/proc/self/mountinfo").read_text() == before


# --- one container and another, or the host ---------------------------------------------------------------------


def test_nothing_of_the_host_is_found_by_name(tmp_path: Path) -> None:
    """A file of ours is looked for in all that can be seen, whatever the place is called inside."""
    name = f"canary-{secrets.token_hex(8)}"
    places = [Path("/tmp", name), Path("/var/tmp", name), Path.home() / name, tmp_path / name]
    places += [Path("/dev/shm", name)]
    if os.geteuid() == 0:
        places += [Path("/run", name), Path("/var/log", name), Path("/srv", name), Path("/mnt", name), Path("/opt", name)]
    for place in places:
        place.touch(0o644)
    try:
        done = sandbox.run(["find", "/", "-xdev", "-name", name, "-print"], timeout=60)
        shared = sandbox.run(["find", "/dev", "/run", "/tmp", "-name", name, "-print"], timeout=60)
    finally:
        for place in places:
            place.unlink()
    found = [path for path in (done.stdout + shared.stdout).split() if not path.startswith("/opt/")]
    assert found == []


def test_what_is_readable_inside_everybody_may_read_outside() -> None:
    """As root of the container: not one file of /etc shows more than the host shows to anybody."""
    script = "find /etc -xdev -type f -readable -size +0 -printf '%p\\n'"
    done = sandbox.run(["sh", "-c", script], timeout=60)
    inside = [path for path in done.stdout.splitlines() if os.path.isfile(path)]
    assert len(inside) > 10
    made = {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
    assert [path for path in inside if path not in made and not os.stat(path).st_mode & 0o004] == []


def test_abstract_sockets_of_the_host_are_out_of_reach() -> None:
    name = f"\0{secrets.token_hex(8)}"
    code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(bytes.fromhex(sys.argv[1]))"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        done = sandbox.run([PYTHON, "-c", code, name.encode().hex()])
        assert "ConnectionRefusedError" in done.stderr
        beside = sandbox.run([PYTHON, "-c", code, name.encode().hex()], network="host")
        assert beside.returncode == 0, "the host's network was asked for, and has them"


def test_ports_of_the_host_are_out_of_reach() -> None:
    code = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 2)"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = sandbox.run([PYTHON, "-c", code, str(listener.getsockname()[1])])
    assert "ConnectionRefusedError" in done.stderr


def test_keys_of_one_container_are_not_found_by_another() -> None:
    """Both may use keyctl(2), and both come from the same shim."""
    add = "import ctypes; assert ctypes.CDLL(None).syscall({add_key}, b'user', b'canary', b'x', 1, -3) > 0"
    find = "import ctypes; raise SystemExit(ctypes.CDLL(None).syscall({keyctl}, 10, -3, b'user', b'canary', 0) > 0)"
    numbers = {"add_key": 248, "keyctl": 250} if os.uname().machine == "x86_64" else {"add_key": 217, "keyctl": 219}
    free = Security(seccomp="unconfined")
    sleepers = [Container(name, command=["sleep", "inf"], security=free) for name in ("one", "two")]
    with sandbox.start(Pod(sleepers)) as pod:
        program = add.format(**numbers) + "; " + find.format(**numbers)
        assert pod["one"].exec([PYTHON, "-c", program]).returncode == 1, "it does find its own"
        for other in (pod["one"], pod["two"]):
            assert other.exec([PYTHON, "-c", find.format(**numbers)]).returncode == 0
        assert sandbox.run([PYTHON, "-c", find.format(**numbers)], security=free).returncode == 0


def test_containers_of_a_pod_do_not_see_each_others_processes_or_files() -> None:
    with sandbox.start(Pod([Container(name, command=["sleep", name]) for name in ("111", "222")])) as pod:
        pod["111"].write_text("/tmp/canary", "x")
        assert not pod["222"].exists("/tmp/canary")
        seen = pod["222"].exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"]).stdout.split("\0")
        assert "222" in seen
        assert "111" not in seen


def test_a_tracer_inside_cannot_stop_the_shim() -> None:
    """An exec'd process is a child of the shim; its end is shown to a tracer first, who may take for ever."""
    tracer = """
import ctypes, os, time
ptrace = ctypes.CDLL(None).ptrace
while True:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = open(f"/proc/{pid}/cmdline").read()
        except OSError:
            continue
        if command.startswith("sleep\\0") and ptrace(0x4206, int(pid), 0, 0) == 0:
            print("traced", flush=True)
            time.sleep(1000)
"""
    with sandbox.start(command=[PYTHON, "-c", tracer]) as pod, sandbox.start(command=["sleep", "inf"]) as other:
        process = pod.popen(["sleep", "1000"])
        next(record for record in pod.log_records(follow=True) if record.line == "traced")
        process.send_signal("KILL")
        assert other.exec(["echo", "on"], timeout=10).stdout == "on\n"
        assert pod.exec(["echo", "on"], timeout=10).stdout == "on\n"
        pod.kill()
        assert process.wait(10) == -9
        process.close()


def test_what_is_being_started_cannot_be_looked_into() -> None:
    """Until it executes its program, an exec'd process has the shim's memory. Even a privileged container sees none."""
    watcher = """
import os
me = {str(os.getpid()), "1"}
print("on", flush=True)
def read(pid, name):
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read(4096)
while True:
    for pid in set(filter(str.isdigit, os.listdir("/proc"))) - me:
        found = {}
        for name in ("mem", "environ", "maps"):
            try:
                found[name] = open(f"/proc/{pid}/{name}", "rb")
            except OSError:
                pass
        try:
            command = read(pid, "cmdline").split(b"\\0")[0]
        except OSError:
            continue
        if b"/" in command:
            print("told", command, flush=True)
        if command == b"sandbox: shim":
            for name in found:
                print("opened", name, flush=True)
        for file in found.values():
            file.close()
"""
    security = Security(privileged=True)
    with sandbox.start(command=[PYTHON, "-c", watcher], security=security) as pod:
        next(record for record in pod.log_records(follow=True) if record.line == "on")
        for user in (None, "0"):
            for _ in range(150):
                pod.exec(["true"], user=user)
        assert pod.logs() == "on\n"


# --- floods and bombs -------------------------------------------------------------------------------------------


def shim_memory() -> int:
    """Resident bytes of our shim."""
    monitor = next(pid for pid in _children(os.getpid()) if _children(pid))
    (shim,) = _children(monitor)
    for line in Path(f"/proc/{shim}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("it has none")


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(word) for task in tasks for word in (task / "children").read_text().split()]


def test_a_flood_of_output_is_bounded() -> None:
    """300 MB in lines and without an end of line: the shim keeps what it should and reads on, for pipes must not stop."""
    sandbox.run(["true"])
    before = shim_memory()
    size = 300 << 20
    script = f"yes | head -c {size // 2}; head -c {size // 2} /dev/zero; echo; echo over; sleep inf"
    with sandbox.start(command=["sh", "-c", script]) as pod:
        deadline = time.monotonic() + 60
        while pod.logs(tail=1) != "over\n":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert shim_memory() - before < 24 << 20
        assert len(pod.logs()) <= 3 << 20
        other = threading.Thread(target=sandbox.run, args=[["true"]])
        other.start()
        other.join(10)
        assert not other.is_alive(), "the flood keeps the shim from others"


@requires("pids.limit")
def test_a_fork_bomb_is_held() -> None:
    with sandbox.start(command=["sh", "-c", "bomb() { bomb | bomb & }; bomb; sleep inf"], pids=64) as pod:
        limit = time.monotonic() + 1
        while time.monotonic() < limit:
            current = pod.stats().pids.current
            assert current is not None
            assert current <= 64
        assert sandbox.run(["echo", "others live"], timeout=20).stdout == "others live\n"
        began = time.monotonic()
        pod.close()
        assert time.monotonic() - began < 5


@requires("rootless")
def test_a_fork_bomb_is_held_without_cgroups() -> None:
    """RLIMIT_NPROC counts by user of the pod's user namespace; the machine goes on."""
    with sandbox.start(command=["sh", "-c", "bomb() { bomb | bomb & }; bomb; sleep inf"], ulimits={"nproc": 64}):
        assert sandbox.run(["echo", "others live"], timeout=20).stdout == "others live\n"


@requires("memory.limit")
def test_a_memory_bomb_ends_alone() -> None:
    with sandbox.start(command=["sleep", "inf"]) as bystander:
        result = sandbox.run([PYTHON, "-c", "x = bytearray(1 << 30)"], memory="32M", timeout=60)
        assert result.returncode == -9
        assert result.oom_killed
        assert bystander.state == "running"


def test_a_bomb_in_its_files_is_bounded() -> None:
    """What it writes to its root is limited when that is asked for, and is gone with it."""
    result = sandbox.run(["sh", "-c", "head -c 64M /dev/zero > /var/big; stat -c %s /var/big"], ephemeral_storage="8M")
    assert "No space left on device" in result.stderr
    assert int(result.stdout) <= 8 << 20


# --- without a distribution inside --------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[sandbox.RunningPod]:
    """A container of nothing but busybox."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    subprocess.run(["chmod", "-R", "a+rX", tmp_path], check=True)
    for parent in tmp_path.parents:
        if parent.owner() != "root" or not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    with sandbox.start(image=f"dir:{root}", command=["/bin/busybox", "sleep", "99999"]) as pod:
        yield pod


@requires("busybox")
class TestSmallImage:
    def test_only_its_own_files_are_there(self, small: sandbox.RunningPod) -> None:
        assert small.listdir("/") == ["bin", "dev", "etc", "proc", "sys"]
        assert small.listdir("/bin") == ["busybox"]

    def test_the_image_is_not_changed(self, small: sandbox.RunningPod, tmp_path: Path) -> None:
        done = small.exec(["/bin/busybox", "sh", "-c", "echo x > /bin/new; echo '#!' > /bin/busybox; ls /bin"])
        assert "new" in small.listdir("/bin"), done.stderr
        assert os.listdir(tmp_path / "root/bin") == ["busybox"]
        assert (tmp_path / "root/bin/busybox").read_bytes() == Path("/bin/busybox").read_bytes()

    def test_ways_up_end_at_the_root(self, small: sandbox.RunningPod) -> None:
        up = "/".join([".."] * 40)
        script = f"cd /proc/self/cwd/{up}; ls; ls /proc/1/root/; ls /proc/self/root/{up}; cd /proc/1/cwd/{up}; pwd"
        done = small.exec(["/bin/busybox", "sh", "-c", script])
        assert set(done.stdout.split()) == {"bin", "dev", "etc", "proc", "sys", "/"}

    def test_a_second_chroot_does_not_break_out(self, small: sandbox.RunningPod) -> None:
        """The old trick, for who may call chroot(2): a root below the working directory, then up. There is no up."""
        script = "mkdir /jail; cp /bin/busybox /jail; cd /; busybox chroot /jail /busybox ls /../../../.. 2>&1"
        done = small.exec(["/bin/busybox", "sh", "-c", script])
        assert "root" not in done.stdout.split()
        assert "home" not in done.stdout.split()
