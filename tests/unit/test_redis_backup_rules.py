"""When a backup of Redis is due, whom it is taken from, and where one may be restored."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.test_redis_status import ADDRESSES, host, report

from flotilla.hosts.redis import member
from flotilla.rules.backup import new_id
from flotilla.rules.redis import Member, primary, problems
from flotilla.rules.redis_backup import (
    CHUNK,
    DUE_SECONDS,
    Manifest,
    Restore,
    begun,
    id_of,
    manifest_key,
    not_due,
    pieces,
    restore_on,
    saver,
)

MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def one(name: str, **overrides: object) -> Member:
    return member(host(name), report(name, **overrides))


def group(**of_first: object) -> list[Member]:
    return [one("redis-1", keys=7, **of_first), one("redis-2"), one("redis-3")]


@given(moment=MOMENTS, later=st.floats(0, 3e6))
def test_a_backup_is_due_again_when_the_newest_one_is_old_enough(moment, later):
    backup = new_id(moment, "0" * 8)
    assert begun(backup) == int(moment.timestamp())
    assert id_of(manifest_key(backup)) == backup
    assert bool(not_due(backup, begun(backup) + later)) == (later < DUE_SECONDS)
    assert not_due(None, later) == ""


@pytest.mark.parametrize(
    "key",
    ["redis/full/x/manifest.json", "redis/full/20261120T030000Z-1a2b3c4d/chunk-0", "mysql/full/1"],
)
def test_no_other_object_is_taken_for_a_backup(key):
    assert id_of(key) is None


@given(size=st.integers(0, 20 * CHUNK))
def test_chunks_are_every_byte_once_and_in_order(size):
    end = 0
    for offset, length in pieces(size):
        assert (offset, 0 < length <= CHUNK) == (end, True)
        end += length
    assert end == size


@given(text=st.binary(max_size=200) | st.text().map(str.encode) | st.just(b'{"format": 1}'))
def test_what_is_no_manifest_is_refused_and_never_taken_for_one(text):
    with pytest.raises(ValueError):
        Manifest.parse(text)


STATES = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["master", "slave", None]),
        "master_link_status": st.sampled_from(["up", "down"]),
        "master_host": st.sampled_from([*ADDRESSES.values(), "10.9.9.9"]),
        "slave_repl_offset": st.integers(0, 5),
        "master_sync_in_progress": st.sampled_from([0, 1]),
        "sentinels": st.fixed_dictionaries(
            dict.fromkeys(ADDRESSES, st.sampled_from([*ADDRESSES.values(), None]))
        ),
    }
)


@given(states=st.lists(STATES, min_size=3, max_size=3))
def test_a_backup_is_of_a_linked_replica_of_the_primary_and_of_no_other(states):
    members = [one(n, **state) for n, state in zip(ADDRESSES, states, strict=True)]
    chosen = primary(members)
    found = saver(members, chosen)
    if isinstance(found, Member):
        assert chosen is not None
        assert (found.role, found.primary_address) == ("replica", chosen.address)
        assert (found.is_linked, found.is_syncing) == (True, False)
    else:
        assert found


@given(states=st.lists(STATES, min_size=1, max_size=3))
def test_a_restore_begins_where_a_majority_of_the_sentinels_points_and_nowhere_else(states):
    members = [one(n, **state) for n, state in zip(ADDRESSES, states, strict=False)]
    found = restore_on(members, {})
    if not isinstance(found, Restore):
        assert found
        return
    named = next(m for m in members if m.name == found.host)
    assert named.role != "replica"
    # Of each Sentinel one word counts, and some host has heard it.
    heard = {n for m in members for n, said in m.names.items() if said == named.address}
    assert len(heard) >= 2


def test_a_restore_says_what_is_replaced_and_who_is_missing():
    assert restore_on(group(), {}) == Restore("redis-1", 7, ())
    silent = {"redis-3": "no answer"}
    assert restore_on(group()[:2], silent) == Restore("redis-1", 7, ("redis-3",))
    # Its Redis does not run, as after a restore that was cut off.
    stopped = [one("redis-1", role=None, error="refused"), *group()[1:]]
    assert restore_on(stopped, {}) == Restore("redis-1", None, ())


@pytest.mark.parametrize(
    ("members", "silent", "why"),
    [
        ([], {"redis-1": "no answer"}, "no majority .*redis-1: no answer"),
        (group()[1:], {"redis-1": "gone"}, "name 10.77.5.1, and that host cannot be asked"),
        (group(role="slave"), {}, "redis-1, and it is a replica"),
    ],
)
def test_a_restore_has_a_reason_not_to_begin(members: list[Member], silent: Any, why: str) -> None:
    found = restore_on(members, silent)
    assert isinstance(found, str)
    assert re.search(why, found)


def test_a_sentinel_that_was_left_waiting_is_told_of():
    left = [replace(found, held=120_000) for found in group()]
    assert "redis-2: its Sentinel waits 120 s" in " ".join(problems(left, {}))
    assert problems(group(), {}) == []
