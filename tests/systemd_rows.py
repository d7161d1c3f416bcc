"""Assignments of unit properties, one row each, that systemd-run and we must understand alike (tests/data/properties)."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).with_name("data") / "properties"


def rows(name: str) -> list[str]:
    lines = (DATA / f"{name}.txt").read_text("utf-8").splitlines()
    return [line for line in lines if not line.startswith("# ")]


#: Understood, and the unit is another one than without.
SERVICE, SCOPE, SLICE = rows("service"), rows("scope"), rows("slice")
#: Understood; the unit is as it is without.
NEUTRAL = [*rows("neutral"), "RuntimeMaxSec= infinity "]
#: Not understood by systemd-run.
REFUSED = [*rows("refused"), "MemoryMax=10M ", "TasksMax=7 "]
#: Passed on by systemd-run, and refused by the manager.
REFUSED_BY_MANAGER = rows("refused-by-manager")
#: Of other units: their type and the assignment.
OTHERS = [(kind, text) for kind, _, text in (line.partition(" ") for line in rows("others"))]

# --- where we differ from systemd-run, and why -----------------------------------------------

_IGNORED = (
    "systemd-run leaves out words that it does not know, and with a slip of the pen nothing is restricted"
)
_MANAGER = "the manager refuses an empty path"

#: systemd-run accepts these; we do not.
STRICTER = {
    "AllowedCPUs=3-1": "systemd-run takes an empty range for no CPU, that is: for all",
    "AmbientCapabilities=CAP_KIL": _IGNORED,
    "BindPaths=": _MANAGER,
    "BindPaths=:/b": _MANAGER,
    "BindReadOnlyPaths= /a": _MANAGER,
    "BindReadOnlyPaths=/a ": _MANAGER,
    "BindReadOnlyPaths=/a  /b": _MANAGER,
    "CapabilityBoundingSet=CAP_FOO": _IGNORED,
    "CapabilityBoundingSet=~CAP_NET_ADMIN CAP_FOO": _IGNORED,
    "IODeviceLatencyTargetSec=": "systemd-run sends one device with an empty name, not none",
    "SecureBits=foo": _IGNORED,
}

_UNKNOWN_PROPERTY = "systemd-run sends a property that no manager has; we send the data that are meant"
_LATER = "of a later version than this systemd-run"

#: systemd-run does not accept these, or says something that cannot work.
WIDER = {
    "StandardInputText=": _UNKNOWN_PROPERTY,
    r"StandardInputText=hello\x20\u00e4": _UNKNOWN_PROPERTY,
    r"StandardInputText=two\nlines": _UNKNOWN_PROPERTY,
    "MemoryZSwapMax=5": _LATER,
    "OnSuccessJobMode=fail": _LATER,
}
#: Properties of later versions: what systemd 252 has no words for.
LATER = {
    "CoredumpReceive", "DefaultStartupMemoryLow", "DelegateSubgroup", "FileDescriptorStorePreserve", "ImportCredential",
    "MemoryKSM", "MemoryPressureWatch", "MemoryZSwapMax", "OnSuccessJobMode", "ReloadSignal", "RestartMaxDelaySec",
    "RestartMode", "RestartSteps", "RootEphemeral", "SetLoginEnvironment", "StartupMemoryHigh", "StartupMemoryLow",
    "StartupMemoryMax", "StartupMemorySwapMax", "StartupMemoryZSwapMax", "SurviveFinalKillSignal",
}  # fmt: skip
