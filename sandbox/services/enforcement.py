"""Would the manager really do it? systemd takes many properties that it cannot keep, and says so in its journal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sandbox.errors import LimitNotEnforceable, SandboxError
from sandbox.services.errors import NotEnforced

if TYPE_CHECKING:
    from sandbox.services.managers import Home
    from sandbox.services.settings import Settings

__all__ = ["check", "refusals"]

#: limit → the controller that keeps it (systemd.resource-control(5)).
_LIMITS = {
    "memory": ("MemoryMax", "MemoryHigh", "MemoryMin", "MemoryLow", "MemorySwapMax", "MemoryLimit", "MemoryZSwapMax"),
    "pids": ("TasksMax",),
    "cpu": ("CPUQuota", "CPUQuotaPerSecUSec", "CPUWeight", "StartupCPUWeight"),
    "cpuset": ("AllowedCPUs", "AllowedMemoryNodes"),
    "io": ("IOWeight", "IODeviceWeight", "IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax",
           "IODeviceLatencyTargetSec"),
}  # fmt: skip
_CONTROLLER = {limit: controller for controller, limits in _LIMITS.items() for limit in limits}
#: An unlimited limit needs nobody.
_NO_LIMIT = frozenset({"", "infinity", "0"})
#: Take a new namespace, which an ordinary user's manager makes only inside a user namespace of the service's.
_NAMESPACED = (
    "PrivateTmp", "PrivateDevices", "PrivateNetwork", "PrivateMounts", "PrivateIPC", "ProtectSystem", "ProtectHome",
    "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ProtectHostname",
    "ProtectProc", "ProcSubset", "ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths", "TemporaryFileSystem",
    "BindPaths", "BindReadOnlyPaths",
)  # fmt: skip
#: What an ordinary user's manager cannot do at all → why.
_OF_ROOT = {
    "ProtectProc": "another view of /proc takes a process namespace, which services do not have",
    "ProcSubset": "another view of /proc takes a process namespace, which services do not have",
    "DevicePolicy": "only root may load the BPF programs that guard devices",
    "DeviceAllow": "only root may load the BPF programs that guard devices",
}  # fmt: skip
#: property → what systemd must have been built with.
_BUILT = {
    "RestrictFileSystems": "BPF_FRAMEWORK", "SocketBindAllow": "BPF_FRAMEWORK", "SocketBindDeny": "BPF_FRAMEWORK",
    "RestrictNetworkInterfaces": "BPF_FRAMEWORK", "SystemCallFilter": "SECCOMP", "RestrictAddressFamilies": "SECCOMP",
    "RestrictNamespaces": "SECCOMP", "MemoryDenyWriteExecute": "SECCOMP", "SystemCallArchitectures": "SECCOMP",
    "LockPersonality": "SECCOMP", "RestrictRealtime": "SECCOMP", "RestrictSUIDSGID": "SECCOMP",
    "AppArmorProfile": "APPARMOR", "SELinuxContext": "SELINUX", "SmackProcessLabel": "SMACK",
}  # fmt: skip
_FIREWALL = ("IPAddressDeny", "IPAddressAllow", "IPIngressFilterPath", "IPEgressFilterPath")


def check(settings: Settings, home: Home, firewall: Callable[[], bool]) -> None:
    """Raise the first of :func:`refusals`, if there are any."""
    for refusal in refusals(settings, home, firewall):
        raise refusal


def refusals(settings: Settings, home: Home, firewall: Callable[[], bool]) -> Iterator[SandboxError]:
    """An error for everything that is set and would have no effect.

    :param firewall: tells whether packets can be filtered; asked only if it matters
    """
    for name in sorted(settings.names & set(_CONTROLLER)):
        if settings.last(name) not in _NO_LIMIT and _CONTROLLER[name] not in home.controllers:
            yield _no_controller(name, settings.last(name), home)
    for name in sorted(settings.names & set(_BUILT)):
        if settings.given(name) and _BUILT[name] not in home.features and settings.explicit(name) is not False:
            yield NotEnforced(
                "systemd takes it and does nothing about it", property=name, feature=_BUILT[name],
                cause=f"this systemd was built without {_BUILT[name]}", hint=_BEST_EFFORT,
            )  # fmt: skip
    if not home.root:
        yield from _of_ordinary_users(settings)
    filtered = [name for name in _FIREWALL if settings.given(name)]
    if filtered and not firewall():
        yield NotEnforced(
            "systemd takes it and does nothing about it", property=filtered[0],
            cause="a service with it had no packet counters: this manager may load no BPF programs for cgroups",
            hint="use PrivateNetwork=True, or the system's manager",
        )  # fmt: skip


def _of_ordinary_users(settings: Settings) -> Iterator[SandboxError]:
    asked = [name for name in sorted(settings.names) if settings.given(name) and settings.explicit(name) is not False]
    for name in asked:
        if name in _OF_ROOT:
            yield NotEnforced("the manager of an ordinary user takes it and does nothing about it", property=name,
                              cause=_OF_ROOT[name], hint=_BEST_EFFORT)  # fmt: skip
        elif name in _NAMESPACED and not settings.on("PrivateUsers"):
            yield NotEnforced(
                "the manager of an ordinary user takes it and does nothing about it", property=name,
                cause="it makes namespaces only inside a user namespace of the service", hint="add PrivateUsers=True",
            )  # fmt: skip


_BEST_EFFORT = "leave it out, or go without (best_effort=True, --best-effort)"


def _no_controller(name: str, value: str, home: Home) -> LimitNotEnforceable:
    there = ", ".join(sorted(home.controllers)) or "none"
    controller = _CONTROLLER[name]
    return LimitNotEnforceable(
        f"systemd takes it and does nothing about it: its manager has no controller `{controller}`", operation="limit service",
        object=f"{name}={value}", controller=controller, limit=f"{name}={value}",
        cause=f"controllers of {home.cgroup or 'the manager'}: {there}", hint=_BEST_EFFORT,
    )  # fmt: skip
