"""The default seccomp profile: what it lists, and what a program under it can do."""

from __future__ import annotations

import errno
import itertools
import json
import platform
import subprocess
import sys

import pytest

from sandbox import oci
from sandbox.oci import capabilities
from sandbox.oci.seccomp import LinuxSeccomp, SeccompSyscall
from sandbox.oci.seccomp_profile import (
    ALLOWED,
    ALLOWED_ON,
    REFUSED,
    REFUSED_IOCTLS,
    _all_but,
    default_profile,
)

DEFAULT = frozenset(capabilities.DEFAULT)
MACHINES = ("x86_64", "aarch64", "riscv64", "s390x", "ppc64le", "armv7l", "i686", "unheard-of")


def profile(*add: str, drop: frozenset[str] = frozenset(), machine: str = "x86_64") -> LinuxSeccomp:
    return default_profile(machine, (DEFAULT | set(add)) - drop)


def rules(made: LinuxSeccomp, name: str) -> list[SeccompSyscall]:
    return [rule for rule in made.syscalls or () if name in rule.names]


def verdict(made: LinuxSeccomp, name: str, *args: int) -> tuple[str, int | None]:
    """What happens to a call: our own small reading of the document, for rules with masks."""
    for rule in rules(made, name):
        conditions = rule.args or ()
        assert all(condition.op == "SCMP_CMP_MASKED_EQ" for condition in conditions)
        if all(args[condition.index] & condition.value == condition.value_two for condition in conditions):
            return rule.action, rule.errno_ret
    return made.default_action, made.default_errno_ret


def test_no_call_is_in_two_groups() -> None:
    groups = [names.split() for names in (*ALLOWED.values(), *REFUSED.values())]
    everything = list(itertools.chain(*groups))
    assert sorted(everything) == sorted(set(everything))
    for special in ("clone", "clone3", "ioctl", "personality", "socket"):
        assert special not in everything


def test_libseccomp_knows_the_names() -> None:
    """Guards against misspelt names, which every runtime passes over without a word."""
    seccomp = pytest.importorskip("pyseccomp", reason="libseccomp is not installed")
    machines = ("X86_64", "X86", "ARM", "AARCH64", "PPC64LE", "S390X", "RISCV64")
    arches = [getattr(seccomp.Arch, name) for name in machines if hasattr(seccomp.Arch, name)]

    def known(name: str) -> bool:
        for arch in arches:
            try:
                if seccomp.resolve_syscall(arch, name) != -1:
                    return True
            except ValueError:
                continue
        return False

    names = {
        name for group in (ALLOWED, ALLOWED_ON, REFUSED) for names in group.values() for name in names.split()
    }
    # newer than the libseccomp 2.5.4 of Debian 12
    young = {
        "cachestat", "fchmodat2", "file_getattr", "file_setattr", "futex_requeue", "futex_wait", "futex_wake",
        "getxattrat", "listmount", "listxattrat", "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr",
        "map_shadow_stack", "mseal", "open_tree_attr", "removexattrat", "riscv_hwprobe", "setxattrat", "statmount",
        "uretprobe", "riscv_flush_icache", "memfd_secret", "quotactl_fd", "set_mempolicy_home_node", "futex_waitv",
        "process_mrelease", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self",
    }  # fmt: skip
    assert {name for name in names - young if not known(name)} == set()


@pytest.mark.parametrize("machine", MACHINES)
def test_every_machine_has_a_profile(machine: str) -> None:
    made = profile(machine=machine)
    assert verdict(made, "read") == ("SCMP_ACT_ALLOW", None)
    assert verdict(made, "mount") == ("SCMP_ACT_ERRNO", errno.EPERM)
    assert verdict(made, "no_such_call") == ("SCMP_ACT_ERRNO", errno.ENOSYS)
    assert (made.architectures is None) == (machine == "unheard-of")
    flags = (0, 0x10000000) if machine == "s390x" else (0x10000000, 0)
    assert verdict(made, "clone", *flags)[0] == "SCMP_ACT_ERRNO"
    assert verdict(made, "clone", *reversed(flags))[0] == "SCMP_ACT_ALLOW"


@pytest.mark.parametrize("capability", sorted(set(REFUSED) - {""}))
def test_calls_open_up_with_their_capability(capability: str) -> None:
    for name in REFUSED[capability].split():
        assert verdict(profile(drop=frozenset({capability})), name) == ("SCMP_ACT_ERRNO", errno.EPERM)
        assert verdict(profile(capability), name) == ("SCMP_ACT_ALLOW", None)


def test_some_calls_never_open_up() -> None:
    for name in REFUSED[""].split():
        assert verdict(default_profile("x86_64", frozenset(capabilities.ALL)), name)[0] == "SCMP_ACT_ERRNO"


def test_namespaces_need_sys_admin() -> None:
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        for upper in (0, 1 << 32, 0xFFFFFFFF << 32):
            assert verdict(profile(), "clone", flag | upper | 17)[0] == "SCMP_ACT_ERRNO"
        assert verdict(profile("CAP_SYS_ADMIN"), "clone", flag)[0] == "SCMP_ACT_ALLOW"
    assert verdict(profile(), "clone", 0x3D0F00)[0] == "SCMP_ACT_ALLOW"  # a thread, as glibc makes it
    assert verdict(profile(), "clone3") == ("SCMP_ACT_ERRNO", errno.ENOSYS)


def test_sockets_are_of_harmless_families_whatever_the_upper_bits_say() -> None:
    made = profile()
    for upper in (0, 1 << 32, 0xFFFFFFFF << 32):
        assert [family for family in range(64) if verdict(made, "socket", family | upper)[0] == "SCMP_ACT_ALLOW"] == [
            1, 2, 10, 16,
        ]  # fmt: skip
    assert verdict(made, "socket", 38) == ("SCMP_ACT_ERRNO", errno.EAFNOSUPPORT)
    assert verdict(made, "socket", 0x10000001) == ("SCMP_ACT_ERRNO", errno.EAFNOSUPPORT)
    assert verdict(profile("CAP_NET_RAW"), "socket", 17)[0] == "SCMP_ACT_ALLOW"


def test_terminal_injection_is_refused_whatever_the_upper_bits_say() -> None:
    made = profile()
    for upper in (0, 1 << 32, 0xFFFFFFFF << 32):
        for number in REFUSED_IOCTLS:
            assert verdict(made, "ioctl", 0, number | upper) == ("SCMP_ACT_ERRNO", errno.EPERM)
        for number in (0, 0x5401, 0x5411, 0x5413, 0x541B, 0x541D, 0x1541C, 0x85412, 0xC0045878, 0xFFFFFFFF):
            assert verdict(made, "ioctl", 0, number | upper) == ("SCMP_ACT_ALLOW", None)


def test_all_but_covers_exactly_the_rest() -> None:
    for values in ([], [0], [5, 9], [0, 255], [17, 18, 19, 240]):
        pairs = list(_all_but(values, bits=8)) if values else [(0, 0)]
        for number in range(256):
            assert any(number & mask == value for mask, value in pairs) == (number not in values)


def test_a_profile_is_made_once() -> None:
    assert profile() is profile()


CHILD = """
import ctypes, errno, json, os, socket, sys, threading
import pyseccomp
profile = json.loads(sys.stdin.read())
number = {"SCMP_ACT_ALLOW": lambda r: pyseccomp.ALLOW, "SCMP_ACT_ERRNO": lambda r: pyseccomp.ERRNO(r)}
made = pyseccomp.SyscallFilter(pyseccomp.ERRNO(profile["defaultErrnoRet"]))
for rule in profile["syscalls"]:
    args = [pyseccomp.Arg(a["index"], pyseccomp.MASKED_EQ, a["value"], a["valueTwo"]) for a in rule.get("args", [])]
    for name in rule["names"]:
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) != -1:
            made.add_rule(number[rule["action"]](rule.get("errnoRet")), name, *args)
made.load()
libc = ctypes.CDLL(None, use_errno=True)
def outcome(call, *args):
    ctypes.set_errno(0)
    result = getattr(libc, call)(*args)
    return errno.errorcode.get(ctypes.get_errno(), "ok") if result == -1 else "ok"
def family(number):
    try:
        socket.socket(number, socket.SOCK_STREAM).close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"
thread = threading.Thread(target=len, args=("",)); thread.start(); thread.join()
pid = os.fork()
if pid == 0:
    os._exit(7)
seen = {
    "fork": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]),
    "unshare": outcome("unshare", 0x10000000),
    "mount": outcome("mount", b"none", b"/", b"tmpfs", 0, None),
    "setns": outcome("setns", 0, 0),
    "tiocsti": outcome("ioctl", 0, ctypes.c_ulong(0x5412), b"x"),
    "tiocsti upper": outcome("syscall", ctypes.c_long(16), 0, ctypes.c_ulong(0x100005412), b"x"),
    "inet": family(socket.AF_INET), "unix": family(socket.AF_UNIX), "vsock": family(40), "alg": family(38),
    "personality": outcome("personality", ctypes.c_ulong(0xFFFFFFFF)),
    "no randomize": outcome("personality", ctypes.c_ulong(0x0040000)),
    "io_uring": outcome("syscall", ctypes.c_long(425), 1, None),
    "clone newuser": outcome("syscall", ctypes.c_long(56), ctypes.c_ulong(0x10000011), 0, 0, 0, 0),
    "clone3": outcome("syscall", ctypes.c_long(435), 0, 0),
    "keyctl": outcome("syscall", ctypes.c_long(250), 0, 0, 0, 0, 0),
    "unknown": outcome("syscall", ctypes.c_long(999)),
}
print(json.dumps(seen))
"""


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the child names system calls by their x86_64 numbers"
)
def test_a_program_under_the_profile() -> None:
    """The kernel's own answer: the profile is compiled, loaded, and tried out from inside."""
    text = json.dumps(oci.to_dict(profile()))
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "fork": 7,
        "unshare": "EPERM",
        "mount": "EPERM",
        "setns": "EPERM",
        "tiocsti": "EPERM",
        "tiocsti upper": "EPERM",
        "inet": "ok",
        "unix": "ok",
        "vsock": "EAFNOSUPPORT",
        "alg": "EAFNOSUPPORT",
        "personality": "ok",
        "no randomize": "EPERM",
        "io_uring": "EPERM",
        "clone newuser": "ENOSYS",
        "clone3": "ENOSYS",
        "keyctl": "EPERM",
        "unknown": "ENOSYS",
    }
