"""Unit properties from text and from Python values, and back; the truth about text is asked of systemd-run elsewhere."""

from __future__ import annotations

import datetime as dt
import ipaddress
import math
import signal
from pathlib import Path
from typing import Any

import pytest
from sandbox_systemd.bus import Variant
from sandbox_systemd.errors import InvalidProperty
from sandbox_systemd.properties import AllowList, Command, from_python, names, parse, to_python

ARGUMENTS = ["/bin/sh", "-c", 'echo "$HOME" 50% \\n']


def sent(name: str, value: Any, unit_type: str = "service") -> list[tuple[str, Variant]]:
    return from_python({name: value}, unit_type)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("MemoryMax", 1 << 26, "64M"),
        ("MemoryMax", math.inf, "infinity"),
        ("MemoryMax", 1024.0, "1K"),
        ("TasksMax", 64, "64"),
        ("CPUQuota", 1.5, "150%"),
        ("CPUQuota", math.inf, ""),
        ("CPUWeight", 200, "200"),
        ("PrivateTmp", True, "yes"),
        ("PrivateTmp", False, "no"),
        ("Delegate", ["memory", "pids"], "memory pids"),
        ("RuntimeMaxSec", 90, "1min 30s"),
        ("RuntimeMaxSec", 0.25, "250ms"),
        ("RuntimeMaxSec", dt.timedelta(minutes=2, microseconds=3), "2min 3us"),
        ("RuntimeMaxSec", math.inf, "infinity"),
        ("TimerSlackNSec", 0.000_05, "50us"),
        ("TimeoutSec", 5, "5"),
        ("KillSignal", signal.SIGUSR1, "SIGUSR1"),
        ("UMask", 0o077, "0077"),
        ("Nice", -5, "-5"),
        ("WorkingDirectory", Path("/srv"), "/srv"),
        ("ReadOnlyPaths", [Path("/a b"), "/c"], '"/a b" /c'),
        ("Environment", {"A": "b c", "N": 1}, '"A=b c" N=1'),
        ("Environment", ["A=b", "C=d e"], "A=b 'C=d e'"),
        ("PassEnvironment", ("A", "B"), "A B"),
        ("EnvironmentFile", "-/etc/default/x", "-/etc/default/x"),
        ("AllowedCPUs", {0, 1, 3}, "0-1,3"),
        ("AllowedCPUs", range(4), "0-3"),
        ("NUMAMask", [1], "1"),
        ("SystemCallFilter", ["@system-service", "ptrace"], "@system-service ptrace"),
        ("SystemCallFilter", AllowList(allow=False, names=["@mount"]), "~@mount"),
        ("CapabilityBoundingSet", [], ""),
        ("CapabilityBoundingSet", ["CAP_KILL"], "CAP_KILL"),
        ("RestrictNamespaces", True, "yes"),
        ("RestrictNamespaces", ["user", "mnt"], "user mnt"),
        ("BindPaths", ("/a", "/b", "norbind"), "/a:/b:norbind"),
        ("BindReadOnlyPaths", [("-/a b",)], '"-/a b"'),
        ("BindReadOnlyPaths", {"-/a:b": "/c d"}, r'-/a\:b:"/c d"'),
        ("TemporaryFileSystem", {"/t": ["ro", "size=1M"]}, "/t:ro,size=1M"),
        ("TemporaryFileSystem", ("/a:b", "mode=0700"), r"/a\\:b:mode=0700"),
        ("StateDirectory", [("a b",)], '"a b"'),
        ("StateDirectory", ("a", "link to"), '"a:link to"'),
        ("MountImages", ("/a b", "/c:d", "root", "ro,noatime"), r"/a\x20b:/c\:d:root:ro,noatime"),
        ("RootImageOptions", {"root": "ro"}, "root:ro"),
        ("LimitNOFILE", (1024, math.inf), "1024:infinity"),
        ("LimitNOFILE", 512, "512"),
        ("DeviceAllow", ("/dev/null", "rw"), "/dev/null rw"),
        ("DeviceAllow", ["char-pts rwm"], "char-pts rwm"),
        ("IOReadBandwidthMax", {"/dev/sda": 5_000_000}, "/dev/sda 5M"),
        ("IODeviceLatencyTargetSec", {"/dev/sda": 0.025}, "/dev/sda 25ms"),
        ("IPAddressDeny", ipaddress.ip_network("10.0.0.0/8"), "10.0.0.0/8"),
        ("SocketBindAllow", "tcp:80", "tcp:80"),
        ("SetCredential", {"key": b"a\0b"}, r"key:a\x00b"),
        ("SetCredentialEncrypted", {"key": b"abc"}, "key:YWJj"),
        ("LoadCredential", {"key": "/etc/key"}, "key:/etc/key"),
        ("LoadCredential", ["key"], "key"),
        ("StandardInputData", b"abc", "YWJj"),
        ("RootHash", bytes(range(16)), "000102030405060708090a0b0c0d0e0f"),
        ("LogExtraFields", {"A": "b c"}, "A=b c"),
        ("After", ["a.service", "b.service"], "a.service b.service"),
        ("Documentation", ["man:a(1)"], "man:a(1)"),
        ("ConditionPathExists", ["!/a b"], "!/a b"),
        ("SuccessExitStatus", [1, "TEMPFAIL", "SIGKILL"], "1 TEMPFAIL SIGKILL"),
        ("SuccessActionExitStatus", 3, "3"),
        ("ExecStop", ARGUMENTS, r''':"/bin/sh" -c "echo \"$HOME\" 50% \\n"'''),
        ("ExecStop", Command("/bin/sh", ("sh", "-c", "x y"), ("ignore-failure",)), "-@/bin/sh sh -c 'x y'"),
    ],
)
def test_a_python_value_says_what_a_text_says(name: str, value: Any, text: str) -> None:
    assert sent(name, value) == parse([f"{name}={text}"])


def test_more_than_one_item_is_more_than_one_assignment() -> None:
    assert sent("IPAddressAllow", ["localhost", "10.0.0.1"]) == parse(
        ["IPAddressAllow=localhost", "IPAddressAllow=10.0.0.1"]
    )
    assert sent("ExecStartPre", [["/bin/a", "b c"], ["/bin/d"]]) == [
        ("ExecStartPreEx", Variant("a(sasas)", [("/bin/a", ["/bin/a", "b c"], ["no-env-expand"])])),
        ("ExecStartPreEx", Variant("a(sasas)", [("/bin/d", ["/bin/d"], ["no-env-expand"])])),
    ]


def test_none_leaves_out_and_a_variant_goes_as_it_is() -> None:
    variant = Variant("t", 5)
    assert from_python({"MemoryMax": None, "PIDs": None, "Whatever": variant}) == [("Whatever", variant)]


def test_programs_can_set_what_text_cannot() -> None:
    assert from_python({"PIDs": (1, 2), "AddRef": True, "StandardOutputFileDescriptor": 7}, "scope") == [
        ("PIDs", Variant("au", [1, 2])),
        ("AddRef", Variant("b", True)),
        ("StandardOutputFileDescriptor", Variant("h", 7)),
    ]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("CPUQuota", 50, "a percentage is meant: '50%' or 0.5"),
        ("MemoryMax", 1.5, "not a whole number"),
        ("MemoryMax", -1, "not a size"),
        ("MemoryMax", math.nan, "not a whole number"),
        ("PrivateTmp", object(), "a value of type object does not fit"),
        ("Environment", [b"A=b"], "a value of type bytes does not fit"),
        ("Environment", {"A": "b\0c"}, "there is a NUL in it"),
        ("RuntimeMaxSec", -1.5, "not a time span"),
        ("RuntimeMaxSec", dt.timedelta(seconds=-1), "not a time span"),
        ("DeviceAllow", ("/dev/a b", "r"), "a path with a space cannot be written"),
        ("UMask", -1, "not a file mode"),
        ("ExecStart", Command("/bin/a", ("a",), ("quietly",)), "no flag of a command: quietly"),
        ("AllowedCPUs", [-1], "not a whole number"),
    ],
)
def test_a_python_value_that_says_nothing_is_refused(name: str, value: Any, reason: str) -> None:
    with pytest.raises(InvalidProperty) as caught:
        sent(name, value)
    assert caught.value.object == f"{name}={value}"
    assert reason in caught.value.detail


@pytest.mark.parametrize(
    ("assignment", "unit_type", "detail", "hint"),
    [
        ("MemoryMx=64M", "service", "service units have no property MemoryMx", "did you mean MemoryMax"),
        ("privatetmp=yes", "service", "service units have no property privatetmp", "did you mean PrivateTmp"),
        ("Nice=5", "scope", "scope units have no property Nice", "Nice is for service and socket and mount units"),
        ("RuntimeMaxUSec=5", "scope", "scope units have no property", "write RuntimeMaxSec=, in seconds"),
        ("Xyzzy=5", "slice", "slice units have no property Xyzzy", "systemd.exec(5)"),
        ("MemoryMax", "service", "not an assignment", "write NAME=VALUE"),
        ("CapabilityBoundingSet=CAP_KIL", "service", "not a capability: CAP_KIL", "systemd.exec(5)"),
    ],
)
def test_an_error_names_the_assignment_and_what_may_have_been_meant(
    assignment: str, unit_type: str, detail: str, hint: str
) -> None:
    with pytest.raises(InvalidProperty) as caught:
        parse(["Description=x", assignment], unit_type)
    error = caught.value
    assert error.object == assignment
    assert detail in error.detail
    assert hint in str(error.hint)
    assert str(error).startswith(f"set property `{assignment}`: ")


def test_a_type_of_unit_that_there_is_not_is_an_error() -> None:
    with pytest.raises(ValueError, match="'servce' is no type of unit: service, scope"):
        parse([], "servce")
    assert "MemoryMax" in names("slice")
    assert "ExecStart" not in names("slice")


FULL = 2**64 - 1


@pytest.mark.parametrize(
    ("name", "signature", "value", "read"),
    [
        ("MemoryMax", "t", FULL, math.inf),
        ("MemoryMax", "t", 5, 5),
        ("TasksMax", "t", FULL, math.inf),
        ("LimitNOFILESoft", "t", FULL, math.inf),
        ("MemoryCurrent", "t", FULL, None),
        ("MemoryPeak", "t", 7, 7),
        ("IPIngressBytes", "t", FULL, None),
        ("CPUWeight", "t", FULL, None),
        ("CPUUsageNSec", "t", 1_500_000_000, 1.5),
        ("CPUUsageNSec", "t", FULL, None),
        ("CPUQuotaPerSecUSec", "t", 500_000, 0.5),
        ("CPUQuotaPerSecUSec", "t", FULL, math.inf),
        ("RuntimeMaxUSec", "t", 1_500_000, 1.5),
        ("ActiveEnterTimestamp", "t", 0, None),
        ("ActiveEnterTimestamp", "t", 10**15, dt.datetime(2001, 9, 9, 1, 46, 40, tzinfo=dt.UTC)),
        ("ActiveEnterTimestampMonotonic", "t", 2_500_000, 2.5),
        ("NextElapseUSecRealtime", "t", FULL, None),
        ("LastTriggerUSec", "t", 10**15, dt.datetime(2001, 9, 9, 1, 46, 40, tzinfo=dt.UTC)),
        ("NextElapseUSecMonotonic", "t", 1_500_000, 1.5),
        ("MemoryMaxScale", "u", 2**31, 0.5),
        ("CapabilityBoundingSet", "t", 0b100001, ["CAP_CHOWN", "CAP_KILL"]),
        ("RestrictNamespaces", "t", 0, True),
        ("RestrictNamespaces", "t", FULL, False),
        ("RestrictNamespaces", "t", 0x10020000, ["mnt", "user"]),
        ("SecureBits", "i", 1, ["noroot"]),
        ("KillSignal", "i", 15, "SIGTERM"),
        ("KillSignal", "i", 40, 40),
        ("SyslogLevel", "i", 7, "debug"),
        ("LogLevelMax", "i", -1, None),
        ("SyslogFacility", "i", 3, "daemon"),
        ("CPUSchedulingPolicy", "i", 0, "other"),
        ("IOSchedulingClass", "i", 3, "idle"),
        ("MountFlags", "t", 1 << 20, "shared"),
        ("MountFlags", "t", 0, 0),
        ("SystemCallErrorNumber", "i", 1, "EPERM"),
        ("SystemCallErrorNumber", "i", 2**31 - 2, "kill"),
        ("Environment", "as", ["A=b=c", "D="], {"A": "b=c", "D": ""}),
        ("EnvironmentFiles", "a(sb)", [("/a", True), ("/b", False)], ["-/a", "/b"]),
        ("SystemCallFilter", "(bas)", (False, ["ptrace"]), AllowList(allow=False, names=["ptrace"])),
        ("ExecStart", "a(sasbttttuii)", [("/a", ["/a", "b"], True, 0, 0, 0, 0, 0, 0, 0)],
         [Command("/a", ("/a", "b"), ("ignore-failure",))]),
        ("ExecStartEx", "a(sasasttttuii)", [("/a", ["a"], ["no-env-expand"], 0, 0, 0, 0, 0, 0, 0)],
         [Command("/a", ("a",), ("no-env-expand",))]),
        ("IPAddressAllow", "a(iayu)", [(2, b"\x0a\0\0\0", 8)], [ipaddress.ip_network("10.0.0.0/8")]),
        ("IOReadBandwidthMax", "a(st)", [("/dev/a", FULL)], {"/dev/a": math.inf}),
        ("IODeviceLatencyTargetUSec", "a(st)", [("/dev/a", 25_000)], {"/dev/a": 0.025}),
        ("AllowedCPUs", "ay", b"\x05\x01", [0, 2, 8]),
        ("StandardInputData", "ay", b"abc", b"abc"),
        ("LogExtraFields", "aay", [b"A=b"], ["A=b"]),
        ("AppArmorProfile", "(bs)", (True, "x"), "-x"),
        ("SuccessExitStatus", "(aiai)", ([1], [9]), [1, "SIGKILL"]),
        ("Conditions", "a(sbbsi)", [("ConditionPathExists", True, True, "/x", 0)], ["ConditionPathExists=|!/x"]),
        ("BindPaths", "a(ssbt)", [("/a", "/b", True, 0)], [("-/a", "/b", "norbind")]),
        ("SetCredential", "a(say)", [("a", b"b")], {"a": b"b"}),
        ("TemporaryFileSystem", "a(ss)", [("/a", "ro")], {"/a": "ro"}),
        ("TimersMonotonic", "a(stt)", [("OnBootUSec", 5_000_000, 0)], [("OnBootSec", 5.0)]),
        ("Id", "s", "a.service", "a.service"),
        ("Job", "(uo)", (0, "/"), (0, "/")),
        ("MainPID", "u", 5, 5),
    ],
)  # fmt: skip
def test_what_is_read_reads_well(name: str, signature: str, value: Any, read: Any) -> None:
    assert to_python(name, Variant(signature, value)) == read
