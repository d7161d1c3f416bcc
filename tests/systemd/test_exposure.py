"""Our report against ``systemd-analyze security --offline=true``: the same items, open or not, and the same figures."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from gate import requires

from sandbox.services.assessment import IO_URING_ITEM, exposure
from sandbox.services.profiles import PROFILES
from sandbox.services.settings import read_unit
from sandbox.services.syscalls import GROUPS, members

pytestmark = requires("systemd-analyze")

#: The services that come with systemd and the packages of this machine; templates cannot be analysed.
UNITS = sorted(
    path for path in Path("/lib/systemd/system").glob("*.service") if "@" not in path.name and path.resolve().is_file()
)


def analyze(*arguments: str) -> str:
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def compare(unit: Path) -> None:
    """Every item, and the sum."""
    theirs = json.loads(analyze("security", "--offline=true", "--json=short", str(unit)))
    report = exposure(read_unit(unit))
    ours = {item.name: item for item in report.findings if item.name != IO_URING_ITEM}
    assert {item["name"] for item in theirs} == set(ours)
    for item in theirs:
        mine = ours[item["name"]]
        share = None if mine.closed else f"{report.share(mine) / 10:.1f}"
        closed = None if mine.badness is None else mine.closed
        assert (item["exposure"], item["set"]) == (share, closed), f"{item['name']}: {item['description']}"
    last = analyze("security", "--offline=true", "--no-pager", str(unit)).splitlines()[-1]
    found = re.search(r": (\d+\.\d) (\w+)", last)
    assert found is not None
    assert found.groups() == (f"{report.percent / 10:.1f}", report.level)


def test_there_are_units_to_compare() -> None:
    assert len(UNITS) > 30


@pytest.mark.parametrize("part", range(4))
def test_units_of_this_machine(part: int) -> None:
    for unit in UNITS[part::4][:12]:
        compare(unit)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles(name: str, tmp_path: Path) -> None:
    lines = [f"{key}={value}" for key, value in PROFILES[name].assignments()]
    unit = tmp_path / "x.service"
    unit.write_text("\n".join(["[Service]", "ExecStart=/bin/true", *lines, ""]))
    compare(unit)


SWITCHES = (
    "NoNewPrivileges", "PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateNetwork", "PrivateUsers", "ProtectClock",
    "ProtectKernelModules", "ProtectKernelLogs", "DynamicUser", "RemoveIPC", "Delegate", "LockPersonality",
)  # fmt: skip
VALUES = {
    "ProtectSystem": ("yes", "full", "strict", "no", "banana"), "ProtectHome": ("yes", "read-only", "tmpfs", ""),
    "ProtectProc": ("noaccess", "invisible", "ptraceable", "default"), "ProcSubset": ("pid", "all"),
    "UMask": ("0077", "0027", "0007", "0", "0002", "0700"), "KeyringMode": ("private", "shared", "inherit"),
    "NotifyAccess": ("all", "main", "none"), "User": ("root", "daemon", "0", "1000", ""), "SupplementaryGroups": ("adm", ""),
    "CapabilityBoundingSet": ("", "~", "CAP_KILL CAP_CHOWN", "~CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "~CAP_SETUID CAP_SETGID"),
    "AmbientCapabilities": ("CAP_KILL", ""), "RestrictNamespaces": ("yes", "no", "user", "~user pid", "", "net uts"),
    "RestrictAddressFamilies": ("AF_UNIX", "~AF_INET AF_INET6", "none", "", "AF_INET", "~AF_PACKET", "AF_VSOCK AF_NETLINK"),
    "SystemCallFilter": ("@system-service", "~@privileged @resources", "", "~@swap", "@clock read", "~@mount:EPERM"),
    "SystemCallArchitectures": ("native", "x86-64", "native arm", ""), "DevicePolicy": ("closed", "strict", "auto"),
    "DeviceAllow": ("/dev/null rw", ""), "IPAddressDeny": ("any", "10.0.0.0/8", ""), "RootDirectory": ("/srv", "/", ""),
    "IPAddressAllow": ("localhost", "127.0.0.1", "::1/128", "10.0.0.1", "any", ""),
}  # fmt: skip


def random_lines(seed: int) -> Iterator[str]:
    chance = random.Random(seed)
    names = [*SWITCHES, *VALUES]
    for name in chance.choices(names, k=chance.randrange(4, 40)):
        values = VALUES.get(name, ("yes", "no", "1", "off"))
        yield f"{name}={chance.choice(values)}"


@pytest.mark.parametrize("seed", range(40))
def test_settings_at_random(seed: int, tmp_path: Path) -> None:
    unit = tmp_path / "x.service"
    unit.write_text("\n".join(["[Service]", "ExecStart=/bin/true", *random_lines(seed), ""]))
    compare(unit)


def test_the_groups_of_system_calls() -> None:
    text = analyze("syscall-filter")
    blocks = re.split(r"^(@[\w-]+)\n", text, flags=re.MULTILINE)[1:]
    theirs = {
        name: {line.strip() for line in body.splitlines() if line.startswith("    ") and "#" not in line}
        for name, body in zip(blocks[::2], blocks[1::2], strict=True)
    }
    assert set(theirs) == {*GROUPS, "@known"}
    for name, listed in GROUPS.items():
        assert theirs[name] == set(listed), name
    assert members("@privileged") <= members("@known")
