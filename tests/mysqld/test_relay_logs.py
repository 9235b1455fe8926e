"""What a replica received and acknowledged outlives delays, turns, stopped appliers and restarts.

Where a wrong way is known to destroy it, that way is walked too and must do so.
"""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from mysqld.commits import Commit, held_applier, ids, io_state, on, received, revoke_all
from mysqld.server import Mysqld
from mysqld.trio import Trio

from flotilla.errors import FlotillaError, HostFailed
from flotilla.mysql import takeover
from flotilla.wait import until


def delay(trio: Trio, replica: Mysqld, seconds: int) -> None:
    trio.rows(replica.name, "STOP REPLICA SQL_THREAD")
    trio.rows(replica.name, f"CHANGE REPLICATION SOURCE TO SOURCE_DELAY = {seconds}")
    trio.rows(replica.name, "START REPLICA SQL_THREAD")


# --- a delayed replica


@pytest.fixture
def delayed(trio: Trio, table: str) -> Mysqld:
    """A replica that holds acknowledged rows 1 to 5 and would apply them in an hour."""
    replica = trio.replicas[0]
    delay(trio, replica, 3600)
    for number in range(1, 6):
        assert Commit(trio, trio.primary, number).wait(5) == "OK"
    wanted = trio.rows("mysql-1", "SELECT @@GLOBAL.gtid_executed AS gtids")[0]["gtids"]
    until(
        lambda: trio.rows(
            replica.name,
            "SELECT GTID_SUBSET(%s, CONCAT(%s, ',', @@GLOBAL.gtid_executed)) AS has",
            wanted,
            received(trio, replica.name),
        )[0]["has"],
        seconds=10,
        every=0.05,
    )
    assert ids(trio, replica.name, table) == [0]
    return replica


def test_a_delayed_replica_is_brought_up_to_date_without_losing_what_it_holds(
    trio: Trio, table: str, delayed: Mysqld
) -> None:
    trio.primary.kill()
    before = received(trio, delayed.name)
    on(delayed, takeover.revoke)
    on(delayed, takeover.undelay)
    on(delayed, lambda session: takeover.drain(session, before, seconds=10))
    assert ids(trio, delayed.name, table) == [0, 1, 2, 3, 4, 5]
    assert received(trio, delayed.name) == before


def test_undelaying_twice_is_the_same_as_once(trio: Trio, table: str, delayed: Mysqld) -> None:
    before = received(trio, delayed.name)
    on(delayed, takeover.revoke)
    on(delayed, takeover.undelay)
    on(delayed, takeover.undelay)
    on(delayed, lambda session: takeover.drain(session, before, seconds=10))
    assert ids(trio, delayed.name, table) == [0, 1, 2, 3, 4, 5]


def test_undelaying_with_both_threads_stopped_destroys_acknowledged_writes(
    trio: Trio, table: str, delayed: Mysqld
) -> None:
    trio.primary.kill()
    trio.rows(delayed.name, "STOP REPLICA")
    trio.rows(delayed.name, "CHANGE REPLICATION SOURCE TO SOURCE_DELAY = 0")
    assert received(trio, delayed.name) == ""


# --- turning a replica to another source


def test_a_turned_replica_keeps_what_it_has_not_applied(trio: Trio, table: str) -> None:
    turned, new = trio.replicas
    with held_applier(trio, turned, table):
        assert Commit(trio, trio.primary, 1).wait(5) == "OK"
        until(lambda: ids(trio, new.name, table) == [0, 1], seconds=10, every=0.05)
        until(lambda: _has_unapplied(trio, turned), seconds=10, every=0.05)
        trio.primary.kill()
        before = received(trio, turned.name)
        on(turned, takeover.revoke)
        on(turned, lambda session: takeover.turn(session, new.address))
        assert received(trio, turned.name) == before
    until(lambda: ids(trio, turned.name, table) == [0, 1], seconds=10, every=0.05)
    until(lambda: io_state(trio, turned) == "ON", seconds=10, every=0.05)


def test_a_replica_whose_applier_has_stopped_is_not_turned(trio: Trio, table: str) -> None:
    turned, new = trio.replicas
    _break_applier(trio, turned, table)
    before = received(trio, turned.name)
    with pytest.raises(HostFailed, match="Duplicate entry"):
        on(turned, lambda session: takeover.turn(session, new.address))
    assert received(trio, turned.name) == before
    on(turned, lambda session: takeover.turn(session, trio.primary.address))
    assert received(trio, turned.name) == before
    until(lambda: io_state(trio, turned) == "ON", seconds=10, every=0.05)


def test_a_replica_whose_applier_has_stopped_acknowledges_to_a_source_that_holds_all(
    trio: Trio, table: str
) -> None:
    turned, new = trio.replicas
    _break_applier(trio, turned, table)
    held = received(trio, turned.name)
    on(turned, takeover.revoke)
    on(turned, lambda session: takeover.turn(session, new.address, held_there=True))
    until(lambda: received(trio, turned.name).endswith(held.rpartition("-")[2]), seconds=10)


def _has_unapplied(trio: Trio, replica: Mysqld) -> bool:
    rows = trio.rows(
        replica.name,
        "SELECT GTID_SUBSET(%s, @@GLOBAL.gtid_executed) AS all_applied",
        received(trio, replica.name),
    )
    return not rows[0]["all_applied"]


def _break_applier(trio: Trio, replica: Mysqld, table: str) -> None:
    """A row that somebody wrote there makes the primary's own fail."""
    trio.rows(replica.name, "SET GLOBAL super_read_only = OFF")
    trio.rows(replica.name, f"INSERT INTO {table} VALUES (1)")
    trio.rows(replica.name, "SET GLOBAL super_read_only = ON")
    assert Commit(trio, trio.primary, 1).wait(5) == "OK"
    until(lambda: _has_unapplied(trio, replica), seconds=10, every=0.05)


# --- draining


def test_an_applier_that_has_stopped_is_told_at_once(trio: Trio, table: str) -> None:
    replica = trio.replicas[0]
    _break_applier(trio, replica, table)
    wanted = received(trio, replica.name)
    start = time.monotonic()
    with pytest.raises(HostFailed, match="Duplicate entry"):
        on(replica, lambda session: takeover.drain(session, wanted, seconds=30))
    assert time.monotonic() - start < 3
    assert received(trio, replica.name) == wanted


def test_an_applier_that_waits_for_a_lock_is_given_its_time_and_no_more(
    trio: Trio, table: str
) -> None:
    replica = trio.replicas[0]
    with held_applier(trio, replica, table):
        assert Commit(trio, trio.primary, 1).wait(5) == "OK"
        until(lambda: _has_unapplied(trio, replica), seconds=10, every=0.05)
        wanted = received(trio, replica.name)
        start = time.monotonic()
        with pytest.raises(HostFailed, match=r"more than 1\.5 s"):
            on(replica, lambda session: takeover.drain(session, wanted, seconds=1.5))
        assert 1.4 < time.monotonic() - start < 4
    on(replica, lambda session: takeover.drain(session, wanted, seconds=10))
    assert ids(trio, replica.name, table) == [0, 1]


# --- restarts


def test_a_replica_that_lost_power_still_has_what_it_acknowledged(trio: Trio, table: str) -> None:
    holder, other = trio.replicas
    other.stop()
    with held_applier(trio, holder, table):
        assert Commit(trio, trio.primary, 1).wait(5) == "OK"
        until(lambda: _has_unapplied(trio, holder), seconds=10, every=0.05)
        before = received(trio, holder.name)
        trio.primary.kill()
        holder.kill()
    holder.start()
    holder.ready()
    on(holder, lambda session: takeover.drain(session, before, seconds=10))
    assert ids(trio, holder.name, table) == [0, 1]


def test_relay_log_recovery_would_throw_away_what_it_acknowledged(trio: Trio, table: str) -> None:
    holder, other = trio.replicas
    other.stop()
    with held_applier(trio, holder, table):
        assert Commit(trio, trio.primary, 1).wait(5) == "OK"
        until(lambda: _has_unapplied(trio, holder), seconds=10, every=0.05)
        trio.primary.kill()
        holder.kill()
    holder.start(relay_log_recovery=1)
    holder.ready()
    with suppress(FlotillaError):
        trio.rows(holder.name, "START REPLICA SQL_THREAD")
    time.sleep(1)
    assert ids(trio, holder.name, table) == [0]


def test_a_killed_primary_comes_back_closed_with_a_row_that_nobody_was_told_of(
    trio: Trio, table: str
) -> None:
    revoke_all(trio)
    commit = Commit(trio, trio.primary, 1)
    assert commit.wait(0.5) == "nothing yet"
    primary = trio.primary
    primary.kill()
    assert commit.wait(3).startswith("error")
    primary.start()
    primary.ready()
    assert ids(trio, primary.name, table) == [0, 1]
    state = trio.rows(
        primary.name,
        "SELECT @@GLOBAL.super_read_only AS closed, @@GLOBAL.rpl_semi_sync_source_enabled AS waits",
    )
    assert state == [{"closed": 1, "waits": 0}]
