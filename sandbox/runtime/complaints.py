"""What crun and runc write when they fail, as the failures that the native engine would report. No I/O."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .failure import Failure
from .tools import Tool

#: Threads and processes that runc's own program has while it makes a container; crun has two.
_PROCESSES = {"runc": 16, "crun": 3}
_RLIMITS = {getattr(resource, name): name for name in dir(resource) if name.startswith("RLIMIT_")}
_RLIMITS[resource.RLIMIT_NOFILE] = "RLIMIT_NOFILE"  # which has a second name
_ERRNOS = {os.strerror(number).lower(): number for number in errno.errorcode}


class _Complaint(NamedTuple):
    """All that can be told of one failure."""

    tool: str
    spec: Mapping[str, Any]
    text: str
    errno: int | None

    @property
    def command(self) -> str:
        return str(self.spec["process"]["args"][0])


def explain(
    tool: Tool, spec: Mapping[str, Any], command: str, complaints: Sequence[str], code: int, version: str
) -> Failure:
    """The failure behind ``complaints``, the errors in the log of ``command`` (create, start).

    ``code`` is how the command ended (negative: the signal); 0 if it was content and the program was not executed.
    """
    text = "; ".join(dict.fromkeys(complaints))
    if not text and code == 0:
        failure = _not_executed(spec)
    else:
        complaint = _Complaint(tool.name, spec, text, _errno(text))
        failure = _recognised(complaint) or _unknown(complaint, command, code)
    failure.facts["engine"] = version or tool.path
    return failure


def _recognised(complaint: _Complaint) -> Failure | None:
    for pattern, make in _KNOWN:
        if re.search(pattern, complaint.text):
            return make(complaint)
    return None


def _errno(text: str) -> int | None:
    """The kernel's last word in a message; Go writes it in small letters."""
    lowered = text.lower()
    found = [(lowered.rfind(words), len(words), number) for words, number in _ERRNOS.items() if words in lowered]
    return max(found)[2] if found else None


def _unknown(complaint: _Complaint, command: str, code: int) -> Failure:
    ended = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
    detail = complaint.text or f"{complaint.tool} {command} {ended}, and wrote nothing about it"
    needed = _PROCESSES[complaint.tool]
    limit = (((complaint.spec.get("linux") or {}).get("resources") or {}).get("pids") or {}).get("limit")
    if not complaint.text and limit and 0 < limit < needed:
        return Failure(operation="start container", detail=detail,
                       cause=f"{complaint.tool} itself has up to {needed} threads, and the limit is {limit}",
                       hint="raise the limit (pids), or use the native engine")  # fmt: skip
    return Failure(operation="start container", detail=detail)


def _not_executed(spec: Mapping[str, Any]) -> Failure:
    return Failure("CommandNotExecutable", operation="execute", object=spec["process"]["args"][0],
                   cause="its interpreter or loader is missing, or it is no program of this machine; the engine's own "
                         "words are the last in the container's output",
                   hint="look at its first line, and at what `file` says of it")  # fmt: skip


def _not_found(complaint: _Complaint) -> Failure:
    search = "" if "/" in complaint.command else f"it is in none of {_path(complaint.spec)}"
    return Failure("CommandNotFound", operation="execute", object=complaint.command, errno=errno.ENOENT,
                   cause=search or None, hint="install it in the image, or give the path it has there")  # fmt: skip


def _path(spec: Mapping[str, Any]) -> str:
    env = dict(line.partition("=")[::2] for line in spec["process"].get("env") or ())
    return str(env.get("PATH", "(PATH is not set)"))


def _not_executable(complaint: _Complaint) -> Failure:
    return Failure("CommandNotExecutable", operation="execute", object=complaint.command, errno=errno.EACCES,
                   cause="it is a directory, this user may not execute it, or its mount is noexec",
                   hint=f"chmod +x {complaint.command}")  # fmt: skip


def _working_directory(complaint: _Complaint) -> Failure:
    return Failure(operation="enter the working directory", object=complaint.spec["process"].get("cwd"),
                   errno=complaint.errno)  # fmt: skip


def _rlimit(complaint: _Complaint) -> Failure:
    named, numbered = re.search(r"RLIMIT_\w+", complaint.text), re.search(r"rlimit type (\d+)", complaint.text)
    name = named[0] if named else _RLIMITS.get(int(numbered[1])) if numbered else "resource limits"
    return Failure(operation="set", object=name, errno=complaint.errno,
                   cause="the hard limit of the caller is lower, and raising it needs CAP_SYS_RESOURCE on the host",
                   hint="ask for less, or raise the limit of the calling process")  # fmt: skip


def _oom_score(complaint: _Complaint) -> Failure:
    return Failure(operation="set oom_score_adj to", object=str(complaint.spec["process"].get("oomScoreAdj")),
                   errno=complaint.errno or errno.EACCES,
                   hint="lowering it below the caller's own needs CAP_SYS_RESOURCE on the host")  # fmt: skip


def _groups(complaint: _Complaint) -> Failure:
    groups = (complaint.spec["process"].get("user") or {}).get("additionalGids") or ()
    return Failure(operation="set the supplementary groups", object=str(tuple(groups)), errno=errno.EPERM,
                   cause="only one group id is mapped into the user namespace",
                   hint="give the user ranges in /etc/subuid and /etc/subgid, and install newuidmap")  # fmt: skip


#: The first pattern that is found decides; crun's words first, then runc's.
_KNOWN: tuple[tuple[str, Callable[[_Complaint], Failure]], ...] = (
    (r"executable file .* not found|exec: .*(executable file not found|stat .*no such file)", _not_found),
    (r"^open executable|exec: \".*\": (permission denied|is a directory|operation not permitted)", _not_executable),
    (r"^chdir|mkdir .*not a directory|chdir to cwd|working directory|Cwd", _working_directory),
    (r"setrlimit|setting rlimit", _rlimit),
    (r"oom_score_adj", _oom_score),
    (r"^setgroups|cannot set any additional groups", _groups),
)
