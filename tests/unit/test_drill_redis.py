"""The drill of Redis: what its faults may cost, and whom it strikes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.drill import redis as drill
from flotilla.drill.strikes import STRIKES
from flotilla.errors import BadOption
from flotilla.rules import drill_writes
from flotilla.rules.drill_fault import elsewhere
from flotilla.rules.drill_redis import FAULTS, promised
from flotilla.rules.ledger import Entry, Fate

RUN: dict[str, Any] = {
    "write_gap_seconds": 1.0,
    "acked": 10,
    "lost": 2,
    "lost_ids": ["a", "b"],
    "dual_writable_seconds": 0.0,
    "converged_seconds": 2.0,
    "errors_beyond_gap": 0,
    "old": "redis-1",
    "new": "redis-2",
    "not_fetched": {},
}


def test_every_fault_can_be_made():
    assert set(FAULTS) <= set(STRIKES)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_whoever_waits_for_a_replica_loses_nothing_whatever_happens(fault):
    assert drill_writes.broken(RUN, promised(fault, waits=True))


@pytest.mark.parametrize(
    ("name", "may"),
    [("kill", False), ("switchover", False), ("restart", False), ("freeze", True), ("zone", True)],
)
def test_a_silent_primary_may_have_acknowledged_what_nobody_else_has(name, may):
    is_broken = bool(drill_writes.broken(RUN, promised(FAULTS[name], waits=False)))
    assert is_broken is not may


def lost_of(found: set[str]) -> dict[str, Any]:
    """A run in which the primary fell silent at 103 and writes went on at 105."""
    acked = [
        *(Entry(f"w.0-{n}", 100 + n / 10, 100 + n / 10, Fate.ACKED, "", "old") for n in range(31)),
        *(
            Entry(f"w.0-{n}", 102 + n / 10, 102 + n / 10, Fate.ACKED, "", "new")
            for n in range(31, 60)
        ),
    ]
    seen = drill_writes.Seen(
        clients={"app-1": acked},
        probes={},
        found=dict.fromkeys(found, "new"),
        struck=102.9,
        healed=107.0,
        ended=108.0,
        converged=105.0,
        old="redis-1",
        new="redis-2",
        fate=["rejoined"],
        names={},
    )
    return drill_writes.figures(seen) | {"not_mended": ""}


@pytest.mark.parametrize(
    ("first", "is_broken"),
    [(0, False), (1, False), (12, False), (31, True)],
    ids=["nothing", "the last write", "those of a second", "all that there was"],
)
def test_a_silent_primary_takes_its_last_writes_along_and_not_all_there_was(first, is_broken):
    gone = {f"w.0-{n}" for n in range(31)[-first:]} if first else set()
    run = lost_of({f"w.0-{n}" for n in range(60)} - gone)
    assert run["lost"] == len(gone)
    told = drill_writes.broken(run, FAULTS["freeze"])
    assert bool(told) is is_broken, told


def test_what_may_be_lost_is_told_all_the_same():
    more = dict.fromkeys(("failed", "unknown", "unknown_there"), 0)
    more |= dict.fromkeys(("writer_gap_seconds", "mending_gap_seconds", "ended_seconds"), 0.0)
    told = drill_writes.over_all([RUN | more | {"old_primary": "rejoined"}])
    assert told["lost"] == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fault": "earthquake"}, "choose from: kill, freeze"),
        ({"fault": "disk-full"}, "choose from: kill, freeze"),
        ({"fault": "kill", "runs": 0}, "is 1 to"),
        ({"fault": "kill", "wait_replicas": 2}, "0 or 1"),
        ({"fault": "kill", "wait_replicas": -1}, "0 or 1"),
    ],
)
def test_what_cannot_be_rehearsed_is_a_bad_option(options, says):
    with pytest.raises(BadOption, match=says):
        drill.Options(**options).demand()


def test_the_plan_says_what_clients_ask_for():
    settings: Any = SimpleNamespace(prefix="shop-lab")
    assert "WAIT 1" in drill.described(settings, drill.Options("freeze", wait_replicas=1))
    assert "WAIT" not in drill.described(settings, drill.Options("freeze"))


ZONES = st.sampled_from("abc")


@given(zones=st.dictionaries(st.sampled_from(["r1", "r2", "r3"]), ZONES, min_size=1), spared=ZONES)
def test_the_zone_that_is_struck_has_no_primary_of_the_database_if_that_can_be(zones, spared):
    primary = min(zones)
    to = elsewhere(primary, zones, spared)
    struck = zones[to or primary]
    assert struck != spared or set(zones.values()) == {spared}
    assert to is None or zones[primary] == spared
