"""Which manager: that of the system, that of the user, or a private one."""

from __future__ import annotations

import os

from .bus import Address, connect, system_address, user_address
from .errors import NoBus, SystemdError
from .manager import Kind, Manager
from .private import private, shared, why_not as private_why_not

__all__ = ["KINDS", "open_manager", "private", "system", "user", "why_not"]

#: In the order in which ``auto`` tries them; system is root's only, user everybody else's.
KINDS: tuple[Kind, ...] = ("system", "user", "private")
_SYSTEM_SOCKET = "/run/systemd/private"


def system() -> Manager:
    """The system's manager: over its own socket for root, over the system bus for others."""
    if not os.path.isdir("/run/systemd/system"):
        raise NoBus("the machine was not booted with systemd", operation="reach", object="the system's manager",
                    hint="--sandbox-systemd=private starts a manager of your own")  # fmt: skip
    own = Address(_SYSTEM_SOCKET, message_bus=False)
    address = own if os.geteuid() == 0 and os.path.exists(_SYSTEM_SOCKET) else system_address()
    return Manager(lambda: connect(address), "system", address.path)


def user() -> Manager:
    """The manager of this user: over its own socket, or over the user's bus."""
    address = _user_socket() or user_address()
    return Manager(lambda: connect(address), "user", address.path)


def _user_socket() -> Address | None:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    path = f"{runtime}/systemd/private"
    return Address(path, message_bus=False) if os.path.exists(path) else None


def open_manager(kind: str = "auto") -> Manager:
    """The manager of this kind; ``auto``: the system's for root, the user's for others, else a private one.

    Of private ones there is one in a process, however often this is called.

    :raises NoBus: it is not there; the cause says why, for ``auto`` of each
    """
    openers = {"system": system, "user": user, "private": shared}
    if kind != "auto":
        if kind not in openers:
            raise NoBus("there is no such kind of manager", operation="reach", object=kind,
                        hint=f"known: auto, {', '.join(KINDS)}")  # fmt: skip
        return openers[kind]()
    reasons = []
    for name in candidates():
        try:
            return openers[name]()
        except SystemdError as error:
            reasons.append(f"{name}: {error.detail}" + (f" ({error.cause})" if error.cause else ""))
    raise NoBus("there is none", operation="reach", object="a systemd manager", cause="; ".join(reasons),
                hint="install systemd; `sandbox doctor` tells more")  # fmt: skip


def candidates() -> tuple[Kind, ...]:
    """The kinds that ``auto`` tries for this user."""
    return ("system", "private") if os.geteuid() == 0 else ("user", "private")


def why_not(kind: str) -> str | None:
    """Why there is no manager of this kind to be used here; None if there is. Nothing is started."""
    if kind == "private":
        return private_why_not()
    try:
        with (system if kind == "system" else user)() as manager:
            manager.own("Version")
    except SystemdError as error:
        return error.detail + (f" ({error.cause})" if error.cause else "")
    return None
