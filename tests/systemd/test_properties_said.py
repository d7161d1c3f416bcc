"""What we say for an assignment is, word for word, what systemd-run says: the call to the manager is compared.

No manager is needed: a socket listens in the place of one (machines/said.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gate import requires
from hypothesis import HealthCheck, given, settings, strategies as st
from machines.said import Listener, version
from sandbox_systemd.errors import InvalidProperty
from sandbox_systemd.properties import names, parse
from systemd_rows import LATER, NEUTRAL, OTHERS, REFUSED, REFUSED_BY_MANAGER, SCOPE, SERVICE, STRICTER, WIDER

pytestmark = requires("systemd-run")

#: What makes systemd-run make a unit of this type beside the service.
COMPANIONS = {
    "timer": ("--on-active=1", "--timer-property"),
    "path": ("--path-property=PathExists=/first", "--path-property"),
    "socket": ("--socket-property=ListenStream=/first", "--socket-property"),
}
VERSION = version()
Properties = list[tuple[str, tuple[str, Any]]]


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    with Listener() as listener:
        yield listener


def ours(assignments: list[str], unit_type: str = "service") -> Properties:
    return [(name, tuple(value)) for name, value in parse(assignments, unit_type)]


def in_lots(rows: list[str]) -> list[list[str]]:
    """A few together: what comes of one does not depend on the others."""
    return [rows[start : start + 20] for start in range(0, len(rows), 20)]


@pytest.mark.parametrize("lot", in_lots([*SERVICE, *NEUTRAL, *REFUSED_BY_MANAGER]), ids=lambda lot: lot[0])
def test_of_services(listener: Listener, lot: list[str]) -> None:
    assert ours(lot) == listener.properties(lot)


#: Pieces that mean something in one property or another.
PIECES = st.sampled_from(
    [
        *" \t\"'\\:,.-+~!|@%=/0123456789abcxKMGs",
        "infinity",
        "yes",
        "/a",
        "5%",
        "1h",
        "ms",
        "::",
        "0x",
        "\\x41",
        "AF_UNIX",
    ]
)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.sampled_from([*SERVICE, *NEUTRAL, *REFUSED]),
    text=st.lists(PIECES, max_size=6).map("".join),
    at=st.floats(0, 1),
)
def test_of_rows_with_something_else_in_them(listener: Listener, row: str, text: str, at: float) -> None:
    name, _, value = row.partition("=")
    place = round(at * len(value))
    assignment = f"{name}={value[:place]}{text}{value[place:]}"
    try:
        mine: Properties | None = ours([assignment])
    except InvalidProperty:
        mine = None
    theirs = listener.properties([assignment])
    assert mine == theirs or (mine is None and name in MORE_STRICTLY_READ) or name == "StandardInputText"


#: Where STRICTER has differences.
MORE_STRICTLY_READ = {row.partition("=")[0] for row in STRICTER}


def test_of_services_with_a_name_on_the_bus(listener: Listener) -> None:
    assert ours(["BusName=org.example.Name"]) == listener.properties(["BusName=org.example.Name"])


@pytest.mark.parametrize("lot", in_lots(SCOPE), ids=lambda lot: lot[0])
def test_of_scopes(listener: Listener, lot: list[str]) -> None:
    assert ours(lot, "scope") == listener.properties(lot, "--scope")


@pytest.mark.parametrize("kind", COMPANIONS)
def test_of_other_units(listener: Listener, kind: str) -> None:
    trigger, option = COMPANIONS[kind]
    lot = [text for other, text in OTHERS if other == kind]
    before = listener.hear(trigger)
    said = listener.hear(trigger, *(f"{option}={text}" for text in lot))
    assert said.refusal == before.refusal == ""
    assert ours(lot, kind) == [prop for prop in said.properties if prop not in before.properties]


@pytest.mark.parametrize("row", REFUSED)
def test_what_systemd_run_refuses_we_refuse(listener: Listener, row: str) -> None:
    assert listener.properties([row]) is None
    with pytest.raises(InvalidProperty) as caught:
        parse([row])
    assert caught.value.object == row
    assert caught.value.detail
    assert caught.value.hint


@pytest.mark.parametrize("row", STRICTER)
def test_what_only_systemd_run_accepts(listener: Listener, row: str) -> None:
    assert listener.properties([row])
    with pytest.raises(InvalidProperty):
        parse([row])


@pytest.mark.parametrize("row", WIDER)
def test_what_only_we_accept(listener: Listener, row: str) -> None:
    later = VERSION > 252  # systemd-run may have learned it
    assert (listener.properties([row]) != ours([row])) or later


def test_what_is_of_later_versions_is_told_from_what_this_version_has(listener: Listener) -> None:
    for name in LATER:
        said = listener.hear("-p", f"{name}=1")
        assert f"Unknown assignment: {name}=1" in said.refusal or said.properties, said


def test_there_is_a_row_for_every_property() -> None:
    rows = [*SERVICE, *NEUTRAL, *REFUSED_BY_MANAGER, *WIDER, "BusName="]
    assert set(names("service")) - LATER == {row.partition("=")[0] for row in rows} - LATER
