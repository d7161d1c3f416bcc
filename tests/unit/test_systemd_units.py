"""Scopes and services, declared."""

from __future__ import annotations

import pytest
from sandbox_systemd.bus import Variant
from sandbox_systemd.errors import InvalidProperty
from sandbox_systemd.units import Scope, Service


def test_a_scope_says_what_it_was_told() -> None:
    scope = Scope(
        name="sandbox-1.scope", pids=[7, 8], description="test_x", documentation=["man:sandbox(1)"],
        slice="sandbox.slice", delegate=["memory"], runtime_max=90, properties={"TasksMax": 5, "MemoryMax": "64M"},
    )  # fmt: skip
    assert scope.to_properties() == [
        ("PIDs", Variant("au", [7, 8])),
        ("Description", Variant("s", "test_x")),
        ("Documentation", Variant("as", ["man:sandbox(1)"])),
        ("Slice", Variant("s", "sandbox.slice")),
        ("DelegateControllers", Variant("as", ["memory"])),
        ("RuntimeMaxUSec", Variant("t", 90_000_000)),
        ("CollectMode", Variant("s", "inactive-or-failed")),
        ("TasksMax", Variant("t", 5)),
        ("MemoryMax", Variant("t", 64 << 20)),
    ]


def test_what_is_not_said_is_left_to_systemd() -> None:
    assert Scope(name="a.scope", collect=False).to_properties() == []
    assert Service(name="a.service", collect=False).to_properties() == [("Type", Variant("s", "exec"))]


def test_a_service_says_what_it_was_told() -> None:
    service = Service(
        name="web@1.service", command=["/bin/echo", "$HOME"], type="notify", delegate=True, collect=False,
        environment={"A": "b c"}, user="nobody", working_directory="/srv", stdin=3, stdout=4, stderr=5,
        properties={"PrivateTmp": True, "Type": "oneshot"},
    )  # fmt: skip
    assert service.to_properties() == [
        ("Delegate", Variant("b", True)),
        ("Type", Variant("s", "oneshot")),
        ("Environment", Variant("as", ["A=b c"])),
        ("User", Variant("s", "nobody")),
        ("WorkingDirectory", Variant("s", "/srv")),
        ("StandardInputFileDescriptor", Variant("h", 3)),
        ("StandardOutputFileDescriptor", Variant("h", 4)),
        ("StandardErrorFileDescriptor", Variant("h", 5)),
        ("ExecStartEx", Variant("a(sasas)", [("/bin/echo", ["/bin/echo", "$HOME"], ["no-env-expand"])])),
        ("PrivateTmp", Variant("b", True)),
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a", "ends with .scope"),
        ("a.service", "ends with .scope"),
        ("a b.scope", "are allowed"),
        (".scope", "are allowed"),
        ("a/b.scope", "are allowed"),
        ("a@b@c.scope", "are allowed"),
        ("ä.scope", "are allowed"),
        ("a\n.scope", "are allowed"),
        ("a" * 250 + ".scope", "longer than 255"),
    ],
)
def test_a_name_that_no_unit_can_have_is_refused_at_once(name: str, reason: str) -> None:
    with pytest.raises(InvalidProperty) as caught:
        Scope(name=name)
    assert caught.value.object == name
    assert reason in caught.value.detail


@pytest.mark.parametrize("name", ["a.scope", "a-b_c:d.e\\x2d.scope", "a@.scope", "a@b.scope", "a" * 249 + ".scope"])
def test_names_that_units_have(name: str) -> None:
    assert Scope(name=name).name == name


def test_a_slice_is_a_slice() -> None:
    with pytest.raises(InvalidProperty, match=r"ends with \.slice"):
        Service(name="a.service", slice="a.scope")


def test_a_bad_property_is_told_by_name() -> None:
    with pytest.raises(InvalidProperty, match="scope units have no property PrivateTmp"):
        Scope(name="a.scope", properties={"PrivateTmp": True}).to_properties()
