"""Unit properties: laws that hold for all values."""

from __future__ import annotations

import ipaddress
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st
from sandbox_systemd.errors import InvalidProperty
from sandbox_systemd.properties import AllowList, Command, from_python, names, parse, to_python
from sandbox_systemd.properties._numbers import microseconds, size
from sandbox_systemd.properties._words import C_STYLE, PLAIN, escape, quote, split, unescape

#: What can be sent over D-Bus: no NUL.
TEXT = st.text(max_size=12).map(lambda text: text.replace("\0", ""))
NAME = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
PATH = TEXT.map("/{}".format)
#: A path that is its own short form: no empty parts, no dots.
SHORT_PATH = st.from_regex(r"[a-z:\\\" ']{1,6}", fullmatch=True)
AMOUNT = st.one_of(st.integers(1, 2**63), st.just(math.inf))
#: Seconds that microseconds can say exactly.
SECONDS = st.integers(0, 10**12).map(lambda value: value / 1000)


def back(name: str, value: Any, unit_type: str = "service") -> Any:
    """What is read of what was sent: of several assignments the lists together."""
    read = [to_python(sent, variant) for sent, variant in from_python({name: value}, unit_type)]
    if len(read) == 1:
        return read[0]
    if all(isinstance(part, dict) for part in read):
        return {key: item for part in read for key, item in part.items()}
    return [item for part in read for item in part]


@given(st.lists(TEXT, max_size=4))
def test_quoted_words_are_the_words(words: list[str]) -> None:
    text = " ".join(map(quote, words))
    assert split(text, PLAIN) == split(text, C_STYLE) == words


@given(st.binary(max_size=20))
def test_escaped_bytes_are_the_bytes(data: bytes) -> None:
    assert unescape(escape(data), accept_nul=True) == data


@given(st.integers(0, 2**63), st.sampled_from(["", "B", "K", "M", "G"]))
def test_sizes_are_powers_of_1024(number: int, suffix: str) -> None:
    expected = number * 1024 ** ("BKMG".index(suffix) if suffix else 0)
    if expected < 2**64:
        assert size(f"{number}{suffix}") == expected
    else:
        with pytest.raises(ValueError, match="too large"):
            size(f"{number}{suffix}")


@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 999_999))
def test_time_spans_add_up(minutes: int, seconds: int, fraction: int) -> None:
    expected = (minutes * 60 + seconds) * 10**6 + fraction
    assert microseconds(f"{minutes}min {seconds}s {fraction}us") == expected
    assert microseconds(f"{minutes * 60 + seconds}.{fraction:06}") == expected


@given(st.sampled_from(names()), st.text(max_size=16))
def test_any_text_is_a_value_or_an_invalid_property(name: str, text: str) -> None:
    try:
        properties = parse([f"{name}={text}"])
    except InvalidProperty:
        return
    for sent, variant in properties:
        to_python(sent, variant)


@given(st.sampled_from(names()), st.one_of(st.none(), st.integers(), st.floats(), st.binary(max_size=4),
       st.lists(st.one_of(TEXT, st.integers()), max_size=3), st.dictionaries(TEXT, TEXT, max_size=2),
       st.tuples(TEXT, TEXT), st.sets(st.integers(-5, 9000), max_size=3)))  # fmt: skip
def test_any_python_value_is_a_value_or_an_invalid_property(name: str, value: Any) -> None:
    try:
        properties = from_python({name: value})
    except InvalidProperty:
        return
    for sent, variant in properties:
        to_python(sent, variant)


class TestThereAndBack:
    @given(st.sampled_from(["MemoryMax", "MemoryHigh", "TasksMax", "MemorySwapMax"]), AMOUNT)
    def test_amounts(self, name: str, amount: float) -> None:
        assert back(name, amount, "scope") == amount

    @given(st.sampled_from(["RuntimeMaxSec", "TimeoutStopSec"]), st.one_of(SECONDS, st.just(math.inf)))
    def test_time_spans(self, name: str, span: float) -> None:
        assert back(name, span, "scope") == pytest.approx(span)

    @given(st.integers(1, 10**6).map(lambda value: value / 10**4))
    def test_shares_of_a_cpu(self, share: float) -> None:
        assert back("CPUQuota", share) == pytest.approx(share)

    @given(st.dictionaries(NAME, TEXT, min_size=1, max_size=4))
    def test_environment(self, environment: dict[str, str]) -> None:
        assert back("Environment", environment) == environment

    @given(
        st.sampled_from(["ReadOnlyPaths", "After", "Documentation", "PassEnvironment"]),
        st.lists(TEXT, max_size=4),
    )
    def test_words(self, name: str, words: list[str]) -> None:
        assert back(name, words) == words

    @given(st.lists(TEXT, min_size=1, max_size=4))
    def test_a_command_in_its_arguments(self, arguments: list[str]) -> None:
        assert back("ExecStart", arguments) == [Command(arguments[0], tuple(arguments), ("no-env-expand",))]

    @given(TEXT, st.lists(TEXT, min_size=1, max_size=3), st.sampled_from([(), ("ignore-failure",), ("privileged",),
           ("no-setuid",), ("ambient",), ("ignore-failure", "ambient", "no-env-expand")]))  # fmt: skip
    def test_commands(self, path: str, arguments: list[str], flags: tuple[str, ...]) -> None:
        command = Command(f"/{path}", tuple(arguments), flags)
        assert back("ExecStop", command) == [command]

    @given(st.lists(st.tuples(PATH, PATH, st.sampled_from(["rbind", "norbind"])), min_size=1, max_size=3))
    def test_bind_paths(self, paths: list[tuple[str, str, str]]) -> None:
        assert back("BindPaths", paths) == paths

    @given(st.dictionaries(PATH, st.sampled_from(["ro", "size=1M,mode=0700", ""]), min_size=1, max_size=3))
    def test_temporary_file_systems(self, systems: dict[str, str]) -> None:
        assert back("TemporaryFileSystem", systems) == systems

    @given(PATH, PATH, TEXT.filter(bool))
    def test_images(self, source: str, inside: str, options: str) -> None:
        expected = [(source, inside, False, [("root", options)])]
        assert back("MountImages", [(source, inside, "root", options)]) == expected

    @given(SHORT_PATH, SHORT_PATH)
    def test_directories_and_links(self, name: str, link: str) -> None:
        assert back("StateDirectory", [(name, link)]) == [(name, link, 0)]
        assert back("CacheDirectory", [(name,)]) == [name]

    @given(st.dictionaries(NAME, st.binary(max_size=9), min_size=1, max_size=3))
    def test_credentials(self, credentials: dict[str, bytes]) -> None:
        assert back("SetCredential", credentials) == credentials
        assert back("SetCredentialEncrypted", credentials) == credentials

    @given(
        st.sets(st.integers(0, 8191), max_size=5), st.sampled_from(["AllowedCPUs", "NUMAMask", "CPUAffinity"])
    )
    def test_cpus(self, cpus: set[int], name: str) -> None:
        assert back(name, cpus) == sorted(cpus)

    @given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), st.integers(0, 32))
    def test_networks(self, address: Any, length: int) -> None:
        network = ipaddress.ip_network((address, length), strict=False)
        assert back("IPAddressAllow", network) == [network]

    @given(st.booleans(), st.lists(st.from_regex("@?[a-z_]{1,6}", fullmatch=True), max_size=3))
    def test_lists_of_what_is_allowed(self, allow: bool, names: list[str]) -> None:
        assert back("SystemCallFilter", AllowList(allow, names)) == AllowList(allow, names)

    @given(st.binary(max_size=12))
    def test_input(self, data: bytes) -> None:
        assert back("StandardInputData", data) == data
