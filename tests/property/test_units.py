"""Sizes, shares, CPUs and signals: laws that hold for all values."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given, strategies as st

from sandbox import _units as units
from sandbox._units import Percent

EXPONENTS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@given(
    st.integers(0, 2**20),
    st.sampled_from(sorted(EXPONENTS)),
    st.sampled_from(["", "B", "iB", "b"]),
    st.booleans(),
)
def test_units_are_powers_of_1024(number: int, unit: str, suffix: str, lower: bool) -> None:
    text = f"{number}{unit}{suffix}" if unit or suffix != "iB" else str(number)
    assert units.parse_size(text.lower() if lower else text) == number * 1024 ** EXPONENTS[unit]


@given(st.integers(0, units.MAX_SIZE))
def test_whole_numbers_are_exact(number: int) -> None:
    assert units.parse_size(number) == units.parse_size(str(number)) == number


@given(st.integers(0, 10**6), st.integers(1, 999))
def test_fractions_round_down(whole: int, thousandths: int) -> None:
    size = units.parse_size(f"{whole}.{thousandths:03}K")
    assert abs(size - (whole + thousandths / 1000) * 1024) <= 1
    assert size <= (whole + 1) * 1024


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        size = units.parse_size(text)
    except ValueError:
        return
    assert 0 <= size <= units.MAX_SIZE
    assert any(char.isdigit() for char in text)


@given(st.floats(0.01, 100), st.integers(0, 2**50))
def test_a_share_is_never_more_than_all(share: float, total: int) -> None:
    assert 0 <= Percent(share).of(total) <= total


def test_shares_and_swap() -> None:
    assert units.parse_memory("12.5%") == Percent(12.5)
    assert str(Percent(12.5)) == "12.5%"
    assert [units.parse_swap(value) for value in ("max", -1, "-1", 0, "1K")] == [-1, -1, -1, 0, 1024]
    with pytest.raises(ValueError, match="share"):
        units.parse_memory("0%")


@given(st.integers(10, 10_000_000))
def test_cpus_in_all_notations(millis: int) -> None:
    as_text = units.parse_cpus(f"{millis}m")
    assert as_text == pytest.approx(units.parse_cpus(millis / 1000))
    assert as_text == pytest.approx(units.parse_cpus(f"{millis // 10}.{millis % 10}%"), rel=1e-9)


@pytest.mark.parametrize("value", ["1e3", "+1", "", "%", "m", "٣", None, True, -1, "1 2"])
def test_not_cpus(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        units.parse_cpus(value)  # type: ignore[arg-type]


@given(st.sampled_from(sorted(signal.valid_signals())))
def test_signals_by_name_and_number(number: int) -> None:
    name = units.parse_signal(int(number))
    assert units.signal_number(name) == number
    assert units.parse_signal(name) == units.parse_signal(name.removeprefix("SIG").lower()) == name
    assert units.parse_signal(str(int(number))) == name


def test_real_time_signals_as_systemd_writes_them() -> None:
    assert units.parse_signal("RTMIN+3") == "SIGRTMIN+3"
    assert units.signal_number("SIGRTMIN+3") == 37
    assert units.parse_signal("SIGRTMAX-1") == "SIGRTMIN+29"
    for wrong in ("SIGRTMIN+31", "RTMIN-1", 0, 32, "", "SIG"):
        with pytest.raises(ValueError, match="no such signal"):
            units.parse_signal(wrong)
