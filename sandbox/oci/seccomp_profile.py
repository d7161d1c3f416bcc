"""The default seccomp profile: which system calls a sandbox may make, and why.

An allow-list in groups. What is on no list does not exist for the program (ENOSYS), so that it falls back as it would
on an older kernel; what is known and refused on purpose says EPERM, as the kernel does to the unprivileged. Some groups
open up with the capability that they are about. Names of other architectures and of newer kernels may stand in any
list: a runtime passes over those that it does not know.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

from sandbox.oci.seccomp import LinuxSeccomp, SeccompArg, SeccompSyscall

ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97

#: Calls that every program may make, by what they are for.
ALLOWED: dict[str, str] = {
    # Memory of one's own. memfd_secret only hides; userfaultfd is refused below.
    "memory": """
        brk cachestat get_mempolicy madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock
        mlock2 mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free
        pkey_mprotect process_madvise process_mrelease remap_file_pages""",
    # Files and directories; what they may touch is decided by owners, modes and the mount namespace.
    "files": """
        access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat
        faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat
        fcntl fcntl64 fdatasync fgetxattr file_getattr file_setattr flistxattr flock fremovexattr fsetxattr
        fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents
        getdents64 getxattr getxattrat lchown lchown32 lgetxattr link linkat listxattr listxattrat llistxattr
        _llseek lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at
        newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink
        readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir sendfile sendfile64 setxattr
        setxattrat splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range
        sync_file_range2 syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64
        utimes vmsplice write writev""",
    # Reading what is mounted; as much as /proc/self/mountinfo tells.
    "mount information": "listmount statmount",
    # Waiting for many things at once, and being told of changes.
    "events": """
        epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
        eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch _newselect
        poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4""",
    # The old asynchronous I/O: databases and nginx use it. io_uring is refused below.
    "asynchronous I/O": "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit",
    # Processes of one's own PID namespace. clone has a rule of its own, clone3 hides its flags from filters.
    "processes": """
        execve execveat exit exit_group fork getpgid getpgrp getpid getppid getpriority getsid gettid kill
        pidfd_open pidfd_send_signal pipe pipe2 prlimit64 rseq set_robust_list get_robust_list set_tid_address
        setpgid setpriority setsid tgkill tkill vfork wait4 waitid waitpid""",
    # Debuggers, strace, crash handlers: since Linux 4.8 a tracer cannot lift the tracee's filter.
    "debugging": "kcmp process_vm_readv process_vm_writev ptrace",
    # Threads.
    "locks": """
        futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_thread_area set_thread_area""",
    # What a program may know of itself and limit for itself.
    "limits and identity": """
        capget capset getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid
        getresgid32 getresuid getresuid32 getrlimit getrusage getuid getuid32 prctl setfsgid setfsgid32 setfsuid
        setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid
        setresuid32 setreuid setreuid32 setrlimit setuid setuid32 sysinfo times ugetrlimit uname""",
    # Making one's own cage smaller.
    "self-restriction": """
        landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr lsm_list_modules
        lsm_set_self_attr seccomp""",
    # Scheduling among the pod's own processes.
    "scheduling": """
        ioprio_get ioprio_set nice sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
        sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity
        sched_setattr sched_setparam sched_setscheduler sched_yield""",
    "signals": """
        pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
        rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaction sigaltstack signal
        sigpending sigprocmask sigreturn sigsuspend""",
    # Reading clocks; adjtimex without CAP_SYS_TIME only reads.
    "time": """
        adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
        clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time
        timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
        timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64""",
    "random numbers": "getrandom",
    # System V and POSIX IPC of the pod's own namespace.
    "IPC": """
        ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
        mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop
        semtimedop_time64 shmat shmctl shmdt shmget""",
    # Sockets, but for making one: see the rule for families. socketcall is how 32 bit glibc makes them; a filter
    # cannot look behind its pointer, so 32 bit programs escape that rule.
    "network": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg
        recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair""",
}

#: Calls that only make sense on one family of machines.
ALLOWED_ON: dict[str, str] = {
    "x86_64": "arch_prctl uretprobe",
    "i686": "arch_prctl",
    "armv7l": "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls get_tls sync_file_range2",
    "aarch64": "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls get_tls sync_file_range2",
    "ppc64le": "swapcontext sync_file_range2",
    "riscv64": "riscv_flush_icache riscv_hwprobe",
    "s390x": "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
}

#: Calls refused with EPERM, and by which capability the sandbox is trusted with them: ``""`` means by none.
REFUSED: dict[str, str] = {
    # New namespaces and mounts: most kernel bugs that let a container out began here.
    "CAP_SYS_ADMIN": """
        fanotify_init fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree open_tree_attr
        pivot_root quotactl quotactl_fd setdomainname sethostname setns umount umount2 unshare""",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_BOOT": "kexec_file_load kexec_load reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "create_module delete_module finit_module init_module",
    "CAP_SYS_NICE": "mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "pidfd_getfd",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYSLOG": "syslog",
    # Not namespaced (keyrings, swap, NFS) or bugs in plenty for little use (io_uring, userfaultfd).
    "": """
        add_key keyctl request_key io_uring_enter io_uring_register io_uring_setup lookup_dcookie nfsservctl
        swapoff swapon userfaultfd uselib vm86 vm86old""",
}

#: CAP_SYS_ADMIN used to mean these too, and the kernel still takes it for them.
_IMPLIED_BY_ADMIN = ("CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG")

#: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET, see clone(2).
NAMESPACE_FLAGS = 0x7E020000

#: Address families a socket may have. Others are not namespaced (AF_VSOCK talks to the hypervisor) or open rarely
#: tested parts of the kernel (AF_ALG, AF_BLUETOOTH, AF_CAN …).
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
AF_PACKET = 17

#: PER_LINUX, PER_LINUX32, both with UNAME26, and "tell me": nothing that weakens memory protection.
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

#: ADDR_NO_RANDOMIZE: what debuggers ask for (setarch -R), and take a plain refusal for.
NO_RANDOMIZE = 0x0040000

#: ioctls that type into the terminal of whoever started the sandbox: TIOCSTI, TIOCLINUX.
REFUSED_IOCTLS = (0x5412, 0x541C)

_INT = 0xFFFFFFFF

#: The machine and what else its kernel runs. x32 is left out: no distribution uses that third door.
_ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
    "i686": ("SCMP_ARCH_X86",),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "armv7l": ("SCMP_ARCH_ARM",),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
}


@functools.lru_cache(maxsize=64)
def default_profile(machine: str, capabilities: frozenset[str]) -> LinuxSeccomp:
    """The profile for a machine (``uname -m``) and the capabilities that a container may have (its bounding set).

    A machine this module does not know gets a profile without architectures: runtimes then take their own.
    """
    trusted = capabilities | frozenset(_IMPLIED_BY_ADMIN if "CAP_SYS_ADMIN" in capabilities else ())
    return LinuxSeccomp(
        default_action=ERRNO,
        default_errno_ret=ENOSYS,
        architectures=_ARCHITECTURES.get(machine),
        syscalls=tuple(_rules(machine, trusted)),
    )


def _rules(machine: str, trusted: frozenset[str]) -> Iterator[SeccompSyscall]:
    allowed = sorted({name for group in ALLOWED.values() for name in group.split()})
    granted = [name for cap, names in REFUSED.items() if cap in trusted for name in names.split()]
    refused = [name for cap, names in REFUSED.items() if cap not in trusted for name in names.split()]
    yield _allow([*allowed, *ALLOWED_ON.get(machine, "").split(), *granted])
    yield SeccompSyscall(names=tuple(refused), action=ERRNO, errno_ret=EPERM)
    yield from _clone(machine, "CAP_SYS_ADMIN" in trusted)
    yield from _socket((*FAMILIES.values(), *([AF_PACKET] if "CAP_NET_RAW" in trusted else [])))
    for persona in PERSONALITIES:
        yield _allow(["personality"], _masked(0, _INT, persona))
    yield _refuse("personality", EPERM, _masked(0, NO_RANDOMIZE | 1 << 31, NO_RANDOMIZE))
    for mask, value in _all_but(REFUSED_IOCTLS):
        yield _allow(["ioctl"], _masked(1, mask, value))
    for number in REFUSED_IOCTLS:
        yield _refuse("ioctl", EPERM, _masked(1, _INT, number))


def _socket(families: tuple[int, ...]) -> Iterator[SeccompSyscall]:
    """Other families are what they are to a kernel built without them."""
    for family in families:
        yield _allow(["socket"], _masked(0, _INT, family))
    for mask, value in _all_but(families):
        yield _refuse("socket", EAFNOSUPPORT, _masked(0, mask, value))


def _clone(machine: str, trusted: bool) -> Iterator[SeccompSyscall]:
    """Clone without namespaces. s390 has the flags in the second argument."""
    if trusted:
        yield _allow(["clone", "clone3"])
    else:
        yield _allow(["clone"], _masked(1 if machine == "s390x" else 0, NAMESPACE_FLAGS, 0))


def _allow(names: Iterable[str], *args: SeccompArg) -> SeccompSyscall:
    return SeccompSyscall(names=tuple(names), action=ALLOW, args=args or None)


def _refuse(name: str, errno: int, condition: SeccompArg) -> SeccompSyscall:
    return SeccompSyscall(names=(name,), action=ERRNO, errno_ret=errno, args=(condition,))


def _masked(index: int, mask: int, value: int) -> SeccompArg:
    """``argument & mask == value``: the kernel takes only 32 bits of an int, whatever the upper ones say."""
    return SeccompArg(index=index, value=mask, value_two=value, op="SCMP_CMP_MASKED_EQ")


def _all_but(values: Iterable[int], bits: int = 32) -> Iterator[tuple[int, int]]:
    """(mask, value) pairs that together match every number but these.

    Filters have no "masked not equal", so this walks the numbers as a binary tree: wherever a branch holds none of
    ``values``, the bits so far describe all of it.
    """
    yield from _branches(frozenset(values), bits - 1, 0, 0)


def _branches(values: frozenset[int], bit: int, mask: int, prefix: int) -> Iterator[tuple[int, int]]:
    if bit < 0:
        return
    mask |= 1 << bit
    for side in (0, 1 << bit):
        inside = frozenset(value for value in values if value & (1 << bit) == side)
        if inside:
            yield from _branches(inside, bit - 1, mask, prefix | side)
        else:
            yield mask, prefix | side
