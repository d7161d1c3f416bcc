"""What assignments come to, what they leave open, and the profiles: pure, no systemd."""

from __future__ import annotations

from pathlib import Path

import pytest

import sandbox
from sandbox.services.assessment import IO_URING_ITEM, exposure
from sandbox.services.profiles import PROFILES, profile
from sandbox.services.settings import (
    ALL_CAPABILITIES,
    NAMESPACES,
    Settings,
    read_unit,
    split_assignment,
    text_of,
)
from sandbox.services.syscalls import members


def settings(*lines: str) -> Settings:
    return Settings(split_assignment(line) for line in lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"), (False, "no"), (None, ""), (64, "64"), ("64M", "64M"), (["a", "b"], "a b"), ((), ""),
        ({"b", "a"}, "a b"), ({"A": "b", "C": 1}, "A=b C=1"),
    ],
)  # fmt: skip
def test_python_values_as_text(value: object, text: str) -> None:
    assert text_of(value) == text


@pytest.mark.parametrize("line", ["PrivateTmp", "=yes", "Private Tmp=yes", ""])
def test_what_is_no_assignment(line: str) -> None:
    with pytest.raises(sandbox.ModelError, match="expected NAME=VALUE"):
        split_assignment(line)


class TestScalars:
    @pytest.mark.parametrize("word", ["1", "yes", "Y", "true", "T", "on"])
    def test_spellings(self, word: str) -> None:
        assert settings(f"PrivateTmp={word}").on("PrivateTmp")

    def test_the_last_valid_one_counts(self) -> None:
        assert settings("PrivateTmp=yes", "PrivateTmp=", "PrivateTmp=perhaps").on("PrivateTmp")
        assert not settings("PrivateTmp=yes", "PrivateTmp=no").on("PrivateTmp")
        assert settings("ProtectSystem=full", "ProtectSystem=banana").protect_system == "full"

    def test_a_dynamic_user_brings_others_along(self) -> None:
        found = settings("DynamicUser=yes", "PrivateTmp=no", "ProtectSystem=full", "ProtectHome=no")
        assert found.on("PrivateTmp")
        assert found.on("NoNewPrivileges")
        assert (found.protect_system, found.protect_home) == ("strict", "read-only")


class TestLists:
    @pytest.mark.parametrize(
        ("lines", "left"),
        [
            ((), ALL_CAPABILITIES),
            (("",), set()),
            (("~",), ALL_CAPABILITIES),
            (("CAP_KILL",), {"CAP_KILL"}),
            (("CAP_KILL", "cap_chown"), {"CAP_KILL", "CAP_CHOWN"}),
            (("~CAP_KILL", "~CAP_CHOWN"), ALL_CAPABILITIES - {"CAP_KILL", "CAP_CHOWN"}),
            (("CAP_KILL CAP_CHOWN", "~CAP_KILL"), {"CAP_CHOWN"}),
            (("", "~CAP_KILL"), set()),
        ],
    )
    def test_capabilities(self, lines: tuple[str, ...], left: set[str]) -> None:
        assert settings(*(f"CapabilityBoundingSet={line}" for line in lines)).capabilities == left

    def test_capabilities_go_with_other_settings(self) -> None:
        found = settings("PrivateDevices=yes", "ProtectClock=yes", "CapabilityBoundingSet=CAP_MKNOD CAP_KILL")
        assert found.capabilities == {"CAP_KILL"}

    @pytest.mark.parametrize(
        ("lines", "left"),
        [
            ((), NAMESPACES), (("yes",), set()), (("no",), NAMESPACES), (("user",), {"user"}),
            (("~user",), NAMESPACES - {"user"}), (("yes", "user"), {"user"}), (("yes", ""), NAMESPACES),
            (("~user", "~net"), NAMESPACES - {"user", "net"}), (("user", "net"), {"user", "net"}),
        ],
    )  # fmt: skip
    def test_namespaces(self, lines: tuple[str, ...], left: set[str]) -> None:
        assert settings(*(f"RestrictNamespaces={line}" for line in lines)).namespaces == left

    @pytest.mark.parametrize(
        ("lines", "expected"),
        [
            ((), (False, set())), (("AF_UNIX",), (True, {"AF_UNIX"})), (("none",), (True, set())),
            (("~AF_UNIX",), (False, {"AF_UNIX"})), (("AF_UNIX", "~AF_UNIX"), (True, set())),
            (("~AF_UNIX", "AF_UNIX"), (False, set())), (("AF_UNIX", ""), (False, set())),
        ],
    )  # fmt: skip
    def test_address_families(self, lines: tuple[str, ...], expected: tuple[bool, object]) -> None:
        assert settings(*(f"RestrictAddressFamilies={line}" for line in lines)).address_families == expected

    def test_system_calls(self) -> None:
        allow, calls = settings("SystemCallFilter=@swap read:EPERM", "SystemCallFilter=~swapon").system_calls
        assert (allow, set(calls)) == (True, {"swapoff"}), "what is allowed cannot have an error number"
        allow, calls = settings("SystemCallFilter=~@swap:EPERM").system_calls
        assert (allow, set(calls)) == (False, {"swapon", "swapoff"})
        assert members("@clock") < members("@privileged") < members("@known")


def test_a_unit_file_with_its_drop_ins(tmp_path: Path) -> None:
    unit = tmp_path / "x.service"
    unit.write_text(
        "# PrivateTmp=no\n[Unit]\nDefaultDependencies=no\nPrivateTmp=yes\n[Service]\n; a comment\n"
        "CapabilityBoundingSet = CAP_KILL \\\n# in between\n CAP_CHOWN\nPrivateNetwork=yes\n[Install]\nUser=me\n"
    )
    (tmp_path / "x.service.d").mkdir()
    (tmp_path / "x.service.d" / "10.conf").write_text("[Service]\nPrivateNetwork=no\n")
    assert read_unit(unit) == [
        ("DefaultDependencies", "no"), ("CapabilityBoundingSet", "CAP_KILL  CAP_CHOWN"), ("PrivateNetwork", "yes"),
        ("PrivateNetwork", "no"),
    ]  # fmt: skip


class TestExposure:
    def test_of_nothing(self) -> None:
        report = exposure([])
        assert (report.percent, report.level) == (96, "UNSAFE")
        assert report.open[0].name == "PrivateNetwork="
        assert report.share(report.open[0]) == 5

    def test_items_that_do_not_apply_have_no_weight(self) -> None:
        report = exposure([("DefaultDependencies", "no")])
        left_out = {item.name for item in report.findings if item.badness is None}
        assert {"ProtectHome=", "ProtectSystem=", "PrivateTmp=", "RootDirectory=/RootImage="} <= left_out

    def test_everything_at_once_is_safe(self) -> None:
        report = exposure(PROFILES["strict"].assignments())
        assert report.level == "SAFE"
        assert [item.name for item in report.open] == [
            "IPAddressDeny=", "DeviceAllow=", "RootDirectory=/RootImage=", "RestrictAddressFamilies=~AF_UNIX",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "badness"),
    [
        ([], None), (["SystemCallFilter=@system-service"], None), (["RestrictSUIDSGID=yes"], 1),
        (["RestrictAddressFamilies=none"], 1), (["DynamicUser=yes", "SystemCallFilter=@system-service"], 1),
        (["RestrictSUIDSGID=yes", "SystemCallFilter=~@aio"], 0),
        (["RestrictSUIDSGID=yes", "SystemCallFilter=~io_uring_setup"], 1),
        (["RestrictSUIDSGID=yes", "SystemCallFilter=~@aio", "SystemCallFilter=@system-service"], 1),
    ],
)  # fmt: skip
def test_what_io_uring_goes_past_is_told_and_not_counted(lines: list[str], badness: int | None) -> None:
    report = exposure(split_assignment(line) for line in lines)
    finding = next(item for item in report.findings if item.name == IO_URING_ITEM)
    assert (finding.badness, finding.points) == (badness, 0)
    assert (finding in report.open) == bool(badness)


class TestProfiles:
    def test_each_is_stricter_than_the_one_before_it_in_kind(self) -> None:
        percent = {name: exposure(item.assignments()).percent for name, item in PROFILES.items()}
        assert percent["default"] > percent["offline"] > percent["network-server"] > percent["network-client"]
        assert percent["network-client"] > percent["strict"]

    @pytest.mark.parametrize("name", PROFILES)
    def test_each_says_what_it_blocks(self, name: str) -> None:
        assert profile(name).purpose.endswith(".")
        assert len(profile(name).blocks) > 5

    @pytest.mark.parametrize("root", [True, False])
    @pytest.mark.parametrize("name", PROFILES)
    def test_io_uring_goes_past_none(self, name: str, root: bool) -> None:
        settings = Settings(profile(name).assignments(root=root))
        assert settings.io_uring_matters
        assert not settings.io_uring
        assert "io_submit" in settings.system_calls[1], "other asynchronous input and output goes on"

    def test_without_root_what_only_root_can_keep_is_not_in_it(self) -> None:
        names = {name for name, _ in profile("strict").assignments(root=False)}
        assert "PrivateUsers" in names
        assert names.isdisjoint({"DynamicUser", "ProtectProc", "DevicePolicy", "CapabilityBoundingSet"})

    def test_an_unknown_one(self) -> None:
        with pytest.raises(sandbox.ModelError, match="choose one of default, offline, network-client"):
            profile("lax")
