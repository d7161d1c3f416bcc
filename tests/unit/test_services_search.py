"""Finding the strictest settings: the search over restrictions that hurt, and what they become in a unit."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

import pytest

from sandbox.services.finder import Found
from sandbox.services.restrictions import Restriction, compose, ladders
from sandbox.services.search import Search
from sandbox.services.settings import NAMESPACES, Settings


class Patient:
    """Fails under some restrictions, and under some pairs; remembers what was tried."""

    def __init__(self, hurt: set[int], pairs: Sequence[set[int]] = ()) -> None:
        self.hurt, self.pairs = hurt, pairs
        self.tried: list[frozenset[int]] = []
        self._lock = threading.Lock()

    def __call__(self, chosen: Sequence[int]) -> str | None:
        with self._lock:
            self.tried.append(frozenset(chosen))
        if found := self.hurt & set(chosen):
            return f"hurt by {min(found)}"
        return next((f"hurt by {sorted(pair)}" for pair in self.pairs if pair <= set(chosen)), None)


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("hurt", [set(), {0}, {99}, {3, 50}, {1, 2, 3}, set(range(100))])
def test_what_hurts_is_left_out_and_nothing_else(hurt: set[int], jobs: int) -> None:
    patient = Patient(hurt)
    search: Search[int] = Search(patient, jobs)
    assert search.largest([], range(100)) == [n for n in range(100) if n not in hurt]
    assert search.failed == {n: f"hurt by {n}" for n in hurt}
    if len(hurt) <= 3:
        assert search.tries <= 2 + 2 * 7 * len(hurt), "a few tries for each thing that hurts"


def test_nothing_is_tried_twice() -> None:
    patient = Patient({3, 50})
    Search(patient, 4).largest([], range(100))
    assert len(patient.tried) == len(set(patient.tried))


def test_of_what_hurts_together_the_first_is_kept() -> None:
    patient = Patient({7}, [{2, 90}, {5, 6}])
    assert Search(patient).largest([], range(100)) == [n for n in range(100) if n not in {7, 90, 6}]


def test_the_result_does_not_depend_on_timing() -> None:
    chance = random.Random(0)
    for _ in range(50):
        hurt = set(chance.sample(range(40), 4))
        pairs = [set(chance.sample(range(40), 2)) for _ in range(3)]
        alone, together = (Search(Patient(hurt, pairs), jobs).largest([], range(40)) for jobs in (1, 4))
        assert alone == together
        assert Patient(hurt, pairs)(together) is None
        for more in set(range(40)) - set(together):
            assert Patient(hurt, pairs)([*together, more]) is not None, "nothing more could be taken away"


def test_the_next_rung_of_a_ladder_is_tried_when_one_fails() -> None:
    def attempt(chosen: Sequence[str]) -> str | None:
        return "no" if {"strict", "full"} & set(chosen) else None

    search = Search(attempt)
    assert search.best([("strict", "full", "yes"), ("other",), ()]) == ["other", "yes"]
    assert set(search.failed) == {"strict", "full"}


class TestCompose:
    def test_all_of_it_is_what_systemd_calls_nothing(self) -> None:
        strictest = [ladder[0] for ladder in ladders()]
        written = dict(compose(strictest))
        assert written["CapabilityBoundingSet"] == ""
        assert written["RestrictNamespaces"] == "yes"
        assert written["RestrictAddressFamilies"] == "none"
        assert written["ProtectSystem"] == "strict"

    def test_what_is_taken_is_what_is_missing(self) -> None:
        some = [
            Restriction("CapabilityBoundingSet", "~CAP_KILL"), Restriction("RestrictNamespaces", "~user"),
            Restriction("RestrictAddressFamilies", "~AF_INET"), Restriction("SystemCallFilter", "~@swap"),
        ]  # fmt: skip
        found = Settings(compose(some))
        assert "CAP_KILL" not in found.capabilities
        assert "CAP_CHOWN" in found.capabilities
        assert found.namespaces == NAMESPACES - {"user"}
        assert found.address_families == (False, frozenset({"AF_INET"}))
        assert found.system_calls == (False, frozenset({"swapon", "swapoff"}))

    def test_rare_families_are_denied_by_listing_the_others(self) -> None:
        some = [Restriction("RestrictAddressFamilies", value) for value in ("~AF_INET", "~AF_*")]
        assert compose(some) == [("RestrictAddressFamilies", "AF_INET6 AF_PACKET AF_NETLINK AF_UNIX")]

    def test_groups_that_are_not_allowed_anyway_are_not_denied(self) -> None:
        some = [Restriction("SystemCallFilter", value) for value in ("@system-service", "~@mount", "~@ipc")]
        assert compose(some) == [
            ("SystemCallErrorNumber", "EPERM"), ("SystemCallFilter", "@system-service"), ("SystemCallFilter", "~@ipc"),
        ]  # fmt: skip

    def test_io_uring_goes_alone_where_the_rest_of_its_group_is_needed(self) -> None:
        ladder = next(ladder for ladder in ladders() if Restriction("SystemCallFilter", "~@aio") in ladder)
        assert not Settings(compose([ladder[1]])).io_uring
        found = Settings(compose([Restriction("SystemCallFilter", "@system-service"), ladder[1]]))
        assert not found.io_uring
        assert "io_submit" in found.system_calls[1]

    def test_only_localhost(self) -> None:
        found = Settings(compose([Restriction("IPAddressDeny", "any except localhost")]))
        assert found.addresses("IPAddressAllow") == {"127.0.0.0/8", "::1/128"}


def test_a_drop_in_says_what_is_not_in_it() -> None:
    needed = {Restriction("PrivateNetwork", "yes"): "exit status 1: no route"}
    unknown = (Restriction("IPAddressDeny", "any"),)
    text = Found((Restriction("PrivateTmp", "yes"),), needed, unknown, 9, ("curl", "x y"), (("PrivateUsers", "yes"),)).drop_in()
    assert text.splitlines() == [
        "# Under these `curl 'x y'` passes: found by 9 tries.",
        "# Exposure as of `systemd-analyze security`: 9.2 UNSAFE.",
        "# It needs what these would take away:",
        "#   PrivateNetwork=yes: exit status 1: no route",
        "# Not tried, for this manager cannot keep them: IPAddressDeny=any",
        "[Service]", "PrivateUsers=yes", "PrivateTmp=yes",
    ]  # fmt: skip
