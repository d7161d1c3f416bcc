"""What is left to do for a finished container (:mod:`.finished`), as system calls for its :mod:`.stub`.

The same as :func:`.process.become` does, in the same order, but without a word about what goes wrong: then the container is
made anew, by that.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sandbox.linux import bpf, capabilities, constants as c, syscalls

from . import process
from .init import Order
from .plan import Plan
from .process import Program
from .stub import ANY_ERROR, CHANNEL, HERE, LARGEST, Full, Machine, Script, errors

#: A message of a socket has to fit its buffer, as a rule 200 KiB.
LONGEST = min(LARGEST, 100_000)
#: Descriptors of the stub beside its channel: /proc/self/oom_score_adj, then the files that get their text now.
OOM_SCORE, FILES = CHANNEL + 1, CHANNEL + 2
#: Hooks that are run on the way.
_HOOKS = frozenset({"prestart", "createRuntime", "createContainer", "startContainer"})
_HIGHEST_CAPABILITY = capabilities.last()
#: Room for calls, in a script whose PATH has a usual number of entries.
_CALLS = 96
#: After these, the next directory of PATH is tried (execvp(3)).
_NEXT_CANDIDATE = errors(errno.ENOENT, errno.ENOTDIR, errno.EACCES)
_NO_ID = (1 << 32) - 1
_WORD = (1 << 64) - 1
#: What a stub does after the filter has been loaded, if it has to report.
_REPORT = ("sendmsg", "exit_group")
_SECCOMP_RET_ALLOW = 0x7FFF0000


def write(order: Order, files: Sequence[str]) -> bytes | None:
    """The script for a container; None if it needs more than a stub can do. ``files``: the paths of the open ones."""
    try:
        return _write(order, files)
    except Full:
        return None


def _write(order: Order, files: Sequence[str]) -> bytes | None:
    machine, program = HERE, order.plan.program
    if machine is None or not is_simple(order.plan) or order.notify or order.v1_tasks or not _streams_are_simple(order):
        return None
    candidates = process.candidates(program)
    if any(path.startswith("/proc/") for path in candidates):
        return None  # /proc/self/exe is another file here than elsewhere
    most = _CALLS * (1 + len(candidates) // (_CALLS // 4))
    identity = _identity(most, program[2:])
    if identity is None:
        return None
    calls, data = identity
    script = Script(machine, most, data)
    script.call("fcntl", 2, fcntl.F_GETFD)  # all three streams have arrived
    _name(script, order.plan)
    _fill(script, files, dict(order.rootfs.files))
    script.append(calls)
    arguments = script.texts(program.args)
    environment = script.texts(f"{name}={value}" for name, value in program.env.items())
    for path in candidates:
        script.call("execve", script.text(path), arguments, environment, may=_NEXT_CANDIDATE)
    message = script.message()
    return message if len(message) <= LONGEST else None


def is_simple(plan: Plan) -> bool:
    """Whether nothing is wanted of the init for which the interpreter is needed."""
    return not (plan.init or plan.program.terminal or _HOOKS.intersection(plan.hooks))


def _streams_are_simple(order: Order) -> bool:
    """A directory as a standard stream would be a way out of the root for a working directory below /proc/self/fd."""
    return not any(stat.S_ISDIR(os.fstat(fd).st_mode) for fd in order.stdio)


def _name(script: Script, plan: Plan) -> None:
    for call, name in (("sethostname", plan.hostname), ("setdomainname", plan.domainname)):
        if name:
            script.call(call, script.text(name), len(os.fsencode(name)))


def _fill(script: Script, files: Sequence[str], texts: dict[str, str]) -> None:
    for number, path in enumerate(files):
        if text := texts[path].encode():
            script.call("write", FILES + number, script.put(text), len(text))


@lru_cache(maxsize=16)
def _identity(most: int, fields: tuple[Any, ...]) -> tuple[bytes, bytes] | None:
    """Calls and data of :func:`.process.take_identity`, which are the same for most programs of a session.

    ``fields``: those of a :class:`Program` but ``args`` and ``env``. None if the kernel would refuse, or something else than
    the program's first word be refused by its own filter: who explains that is there.
    """
    assert HERE is not None
    machine, program = HERE, Program((), {}, *fields)
    if not _may_be(program) or not _may_report(program.seccomp, machine):
        return None
    script = Script(machine, most)
    for number, _, soft, hard in program.rlimits:
        script.call("prlimit64", 0, number, script.put(struct.pack("=QQ", soft & _WORD, hard & _WORD), alignment=8), 0)
    if program.oom_score_adj is not None:
        text = str(program.oom_score_adj).encode()
        script.call("write", OOM_SCORE, script.put(text), len(text))
    script.call("umask", program.umask)
    if program.personality is not None:
        script.call("personality", program.personality)
    script.call("close_range", CHANNEL + 1, (1 << 32) - 1, 0)
    script.call("close_range", CHANNEL, CHANNEL, c.CLOSE_RANGE_CLOEXEC)
    for directory in _directories(program.cwd):
        script.call("mkdirat", c.AT_FDCWD, script.text(directory), 0o755, may=ANY_ERROR)
    script.call("chdir", script.text(program.cwd))
    if not program.no_new_privileges:
        _filter(script, program)
    _drop_privileges(script, program)
    if program.no_new_privileges:
        script.call("prctl", c.PR_SET_NO_NEW_PRIVS, 1)
        _filter(script, program)
    return script.parts


def _may_be(program: Program) -> bool:
    ids_are_good = all(0 <= number < _NO_ID for number in (program.uid, program.gid, *program.groups))
    return ids_are_good and (program.may_set_groups or not program.groups)


def _may_report(filter_program: bytes, machine: Machine) -> bool:
    """Whether a stub could still say that no candidate was executed, once this filter is on."""
    if not filter_program:
        return True
    instructions = bpf.decode(filter_program)
    try:
        answers = {bpf.evaluate(instructions, machine.audit, machine.calls[name]) for name in _REPORT}
    except (bpf.NeedsWord, bpf.UnknownInstruction):
        return False
    return answers == {_SECCOMP_RET_ALLOW}


def _directories(cwd: str) -> list[str]:
    """The working directory and those above it: a missing one is made."""
    names = cwd.strip("/").split("/") if cwd.strip("/") else []
    return ["/" + "/".join(names[: count + 1]) for count in range(len(names))]


def _filter(script: Script, program: Program) -> None:
    if program.seccomp:
        instructions = script.put(program.seccomp, alignment=8)
        header = script.put(struct.pack("=H6xQ", len(program.seccomp) // 8, instructions), alignment=8)
        script.call("seccomp", c.SECCOMP_SET_MODE_FILTER, program.seccomp_flags, header)


def _drop_privileges(script: Script, program: Program) -> None:
    """capabilities(7): those of the bounding set first, the ids while CAP_SETUID is there, then the rest."""
    sets, highest = program.capabilities, _HIGHEST_CAPABILITY
    existing = (1 << highest + 1) - 1
    for number in capabilities.members(existing & ~sets.bounding):
        script.call("prctl", c.PR_CAPBSET_DROP, number)
    script.call("prctl", c.PR_SET_KEEPCAPS, 1)
    if program.may_set_groups:
        groups = script.put(struct.pack(f"={len(program.groups)}I", *program.groups), alignment=4)
        script.call("setgroups", len(program.groups), groups)
    script.call("setresgid", program.gid, program.gid, program.gid)
    script.call("setresuid", program.uid, program.uid, program.uid)
    script.call("prctl", c.PR_SET_KEEPCAPS, 0)
    permitted = sets.permitted & existing
    header, data = syscalls.capability_sets(sets.effective & permitted, permitted, sets.inheritable & existing)
    script.call("capset", script.put(header, alignment=8), script.put(data, alignment=8))
    if sets.ambient:
        script.call("prctl", c.PR_CAP_AMBIENT, c.PR_CAP_AMBIENT_CLEAR_ALL)
        for number in capabilities.members(sets.ambient & permitted & sets.inheritable):
            script.call("prctl", c.PR_CAP_AMBIENT, c.PR_CAP_AMBIENT_RAISE, number)
