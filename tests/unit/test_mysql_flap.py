"""When the watchers may act by themselves, and when a human must have looked first."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.mysql_flap import BLOCK_SECONDS, RETRY_SECONDS, hold
from flotilla.rules.mysql_state import Claim, Past, Pause, State
from flotilla.rules.mysql_topology import Record

NOW = 1_000_000.0
QUIET = State(Record(4, "i-mysql-1", "u1"))
LAST = Past(at=NOW - 60, term=4, old="mysql-2", new="mysql-1")


def why(state: State, **options: float) -> str:
    reason = hold(state, "mysql-3", NOW, **options)
    assert reason is not None
    return reason


def test_a_quiet_cluster_may_fail_over():
    assert hold(QUIET, "mysql-3", NOW) is None


def test_a_second_failover_within_the_hour_waits_for_a_human():
    reason = why(replace(QUIET, past=(LAST,)))
    assert "mysql-1 took over from mysql-2 in term 4" in reason
    assert "fab mysql.history --acknowledge" in reason


def test_an_acknowledged_failover_blocks_nothing():
    assert hold(replace(QUIET, past=(replace(LAST, acknowledged=True),)), "mysql-3", NOW) is None


def test_the_block_ends_by_itself():
    assert hold(replace(QUIET, past=(replace(LAST, at=NOW - BLOCK_SECONDS),)), "m", NOW) is None


def test_a_pause_stops_it_and_says_who_and_why():
    reason = why(replace(QUIET, paused=Pause("ann", "new disks", NOW + 90)))
    assert "ann" in reason
    assert "new disks" in reason
    assert hold(replace(QUIET, paused=Pause("ann", "new disks", NOW)), "mysql-3", NOW) is None


def test_whoever_holds_the_lease_is_left_alone():
    claim = Claim("mysql-2", 9, NOW + 5, "failover")
    assert "mysql-2 is at work" in why(replace(QUIET, claim=claim))
    assert hold(replace(QUIET, claim=claim), "mysql-2", NOW) is None
    assert hold(replace(QUIET, claim=replace(claim, expires_at=NOW - 1)), "mysql-3", NOW) is None


def test_a_failed_try_is_not_repeated_at_once():
    assert "the last try failed" in why(QUIET, failed_at=NOW - RETRY_SECONDS / 2)
    assert hold(QUIET, "mysql-3", NOW, failed_at=NOW - RETRY_SECONDS) is None


@given(st.lists(st.floats(1, 600), min_size=2, max_size=40), st.floats(1, 30))
def test_a_flapping_cluster_fails_over_once_an_hour(pauses, took):
    """Whatever the rhythm of the deaths: each one is tried as soon as it is seen."""
    now, state, times = NOW, QUIET, []
    for gap in pauses:
        now += gap
        if hold(state, "mysql-3", now) is None:
            times.append(now)
            term = state.record.term + 1
            event = Past(now, term, "mysql-1", "mysql-2")
            record = replace(state.record, term=term)
            state = replace(state, record=record, past=(*state.past, event))
            now += took
    assert all(b - a >= BLOCK_SECONDS for a, b in pairwise(times))


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_history_does_not_matter(order):
    seen = replace(LAST, term=3, at=NOW - 7200, acknowledged=True)
    state = replace(QUIET, past=(seen, LAST)[::order])
    assert hold(state, "mysql-3", NOW) is not None
