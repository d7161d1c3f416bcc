"""seccomp profiles compiled by libseccomp (through pyseccomp), once, and kept in the user's cache directory."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sandbox import _bpf
from sandbox.errors import SpecError, UnsupportedFeature
from sandbox.linux import bpf
from sandbox.oci import to_dict
from sandbox.oci.seccomp import LinuxSeccomp

#: Changes when the same profile would be compiled differently.
_GENERATION = "4"
#: Profiles of which the compiled form is kept in memory.
_REMEMBERED = 64
_memory: dict[str, bytes] = {}
_by_identity: dict[int, tuple[Any, Compiled]] = {}


class Compiled(NamedTuple):
    """A profile in all its forms."""

    #: By which the shim knows it.
    digest: str
    #: As in the OCI document.
    document: dict[str, Any]
    #: BPF.
    program: bytes


def compiled(profile: LinuxSeccomp) -> Compiled:
    """:func:`compile_profile` of a model; the default one is the same object each time, so nothing is done twice."""
    known = _by_identity.get(id(profile))
    if known is None or known[0] is not profile:
        document = to_dict(profile)
        known = _by_identity[id(profile)] = (profile, Compiled(*_ordered(document)))
        if len(_by_identity) > _REMEMBERED:
            del _by_identity[next(iter(_by_identity))]
    return known[1]


def _ordered(document: dict[str, Any]) -> tuple[str, dict[str, Any], bytes]:
    digest, program = compile_profile(document)
    return digest, document, program


def compile_profile(profile: Mapping[str, Any]) -> tuple[str, bytes]:
    """The BPF program for ``linux.seccomp`` of a runtime spec, and the digest by which it is known.

    Raises :class:`UnsupportedFeature` without libseccomp, :class:`SpecError` for a profile that it refuses.
    """
    described = f"{_GENERATION} {os.uname().machine} {json.dumps(profile, sort_keys=True)}"
    digest = hashlib.sha256(described.encode()).hexdigest()
    if digest not in _memory:
        path = _cache_directory() / f"{digest}.bpf"
        try:
            _memory[digest] = path.read_bytes()
        except OSError:
            _memory[digest] = _compile(profile)
            _keep(path, _memory[digest])
    return digest, _memory[digest]


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "sandbox" / "seccomp"


def _keep(path: Path, program: bytes) -> None:
    """Written aside and renamed: a reader finds all of it or nothing. A cache that cannot be written is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(fd, "wb") as file:
            file.write(program)
        os.rename(temporary, path)
    except OSError:
        return


def _compile(profile: Mapping[str, Any]) -> bytes:
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError) as error:
        raise UnsupportedFeature(
            operation="compile the seccomp profile", feature="libseccomp", cause=str(error),
            hint="install libseccomp (Debian: libseccomp2), or pass seccomp='unconfined' to go without a filter",
        ) from None  # fmt: skip
    whole = _libseccomp(pyseccomp, profile)
    odd = {name for rule in profile.get("syscalls") or () if not _is_range(rule) for name in rule["names"]}
    rest = [rule for rule in profile.get("syscalls") or () if odd.intersection(rule["names"])]
    remainder = _libseccomp(pyseccomp, {**profile, "syscalls": [{**r, "names": sorted(odd & set(r["names"]))} for r in rest]})
    # libseccomp's filters are for the machine's own architecture whatever else is listed.
    own = bpf.MACHINES.get(os.uname().machine)
    return _bpf.shrink(whole, remainder, list(dict.fromkeys((own, *(profile.get("architectures") or ()))))) if own else whole


def _is_range(rule: Mapping[str, Any]) -> bool:
    """Whether a rule is about all calls, or about a range of the low word of one argument."""
    conditions = rule.get("args") or ()
    return not conditions or (
        len(conditions) == 1 and conditions[0]["op"] == "SCMP_CMP_MASKED_EQ" and _is_prefix(conditions[0]["value"])
    )


def _is_prefix(mask: int) -> bool:
    """Ones, then zeroes, in 32 bits: what such a mask selects is one range."""
    inverse = ~mask & 0xFFFFFFFF
    return mask <= 0xFFFFFFFF and inverse & (inverse + 1) == 0


def _libseccomp(api: Any, profile: Mapping[str, Any]) -> bytes:
    default = _action(api, profile["defaultAction"], profile.get("defaultErrnoRet"))
    filter_ = api.SyscallFilter(default)
    for name in profile.get("architectures") or ():
        architecture = getattr(api.Arch, name.removeprefix("SCMP_ARCH_"), None)
        if architecture is None:
            raise SpecError(f"unknown architecture {name!r}", path="$.linux.seccomp.architectures")
        if not filter_.exist_arch(architecture):
            filter_.add_arch(architecture)
    for position, rule in enumerate(profile.get("syscalls") or ()):
        _add_rule(api, filter_, rule, default, f"$.linux.seccomp.syscalls[{position}]")
    with tempfile.TemporaryFile() as file:
        filter_.export_bpf(file)
        file.seek(0)
        return file.read()


def _add_rule(api: Any, filter_: Any, rule: Mapping[str, Any], default: int, place: str) -> None:
    action = _action(api, rule["action"], rule.get("errnoRet"))
    if action == default:
        return
    indexes = [arg["index"] for arg in rule.get("args") or ()]
    conditions = [
        api.Arg(arg["index"], getattr(api, arg["op"].removeprefix("SCMP_CMP_")), arg["value"], arg.get("valueTwo") or 0)
        for arg in rule.get("args") or ()
    ]
    for name in rule["names"]:
        if _number(api, name) is None:
            if action != api.ALLOW and default == api.ALLOW:
                raise SpecError(f"libseccomp does not know the system call {name!r}, so it cannot be denied", path=place)
            continue
        try:
            _add_conditions(filter_, action, name, conditions, distinct=len(set(indexes)) == len(indexes))
        except OSError as error:
            raise SpecError(f"libseccomp refuses the rule for {name}: {error}", path=place) from None


def _add_conditions(filter_: Any, action: int, name: str, conditions: list[Any], *, distinct: bool) -> None:
    """Conditions on different arguments hold together; on the same one libseccomp wants them as rules of their own."""
    if distinct:
        filter_.add_rule(action, name, *conditions)
        return
    for condition in conditions:
        filter_.add_rule(action, name, condition)


def _number(api: Any, name: str) -> int | None:
    try:
        number: int = api.resolve_syscall(api.Arch.NATIVE, name)
    except (OSError, ValueError):
        return None
    return number if number != -1 else None


def _action(api: Any, name: str, errno_ret: int | None) -> int:
    plain = {"SCMP_ACT_ALLOW": api.ALLOW, "SCMP_ACT_KILL": api.KILL_THREAD, "SCMP_ACT_KILL_THREAD": api.KILL_THREAD,
             "SCMP_ACT_KILL_PROCESS": api.KILL_PROCESS, "SCMP_ACT_TRAP": api.TRAP, "SCMP_ACT_LOG": api.LOG}  # fmt: skip
    number = 1 if errno_ret is None else errno_ret
    if name in plain:
        return int(plain[name])
    if name == "SCMP_ACT_ERRNO":
        return int(api.ERRNO(number))
    if name == "SCMP_ACT_TRACE":
        return int(api.TRACE(number))
    raise UnsupportedFeature(feature=f"seccomp action {name}", operation="compile the seccomp profile",
                             detail="it needs a listener, which this version does not have")  # fmt: skip
