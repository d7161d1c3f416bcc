"""The OCI runtime specification's ``linux.seccomp`` (config-linux.md, "Seccomp")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs


def _extra() -> Any:
    """Members that the class has no field for, and explicit nulls."""
    return attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class SeccompArg:
    """A condition on an argument of a system call."""

    #: Which argument, 0 to 5.
    index: int
    #: What it is compared with; for ``SCMP_CMP_MASKED_EQ`` the mask.
    value: int
    #: For ``SCMP_CMP_MASKED_EQ``: what the masked argument is compared with.
    value_two: int | None = None
    #: ``SCMP_CMP_EQ`` …
    op: str
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class SeccompSyscall:
    """What happens to some system calls, if all conditions hold."""

    names: tuple[str, ...]
    #: ``SCMP_ACT_ALLOW`` …
    action: str
    errno_ret: int | None = None
    args: tuple[SeccompArg, ...] | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen(kw_only=True)
class LinuxSeccomp:
    """A filter for system calls.

    >>> LinuxSeccomp(default_action="SCMP_ACT_ALLOW").default_action
    'SCMP_ACT_ALLOW'
    """

    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] | None = None
    flags: tuple[str, ...] | None = None
    listener_path: str | None = None
    listener_metadata: str | None = None
    syscalls: tuple[SeccompSyscall, ...] | None = None
    extra: Mapping[str, Any] = _extra()
