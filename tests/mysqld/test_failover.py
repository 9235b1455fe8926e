"""Failovers on three real servers: what was acknowledged is there, and only one takes writes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest
from mysqld.checks import (
    commit,
    is_whole_without,
    nothing_is_lost,
    settled,
    writable,
    writes_go_on,
)
from mysqld.commits import held_applier
from mysqld.managers import fail_over, never, resume, through_server
from mysqld.server import Mysqld
from mysqld.trio import Trio
from mysqld.writers import TABLE, Writers, gap_seconds, held

from flotilla.errors import FlotillaError, Refused
from flotilla.hosts.mysql_glimpse import Regard
from flotilla.mysql import failover, store
from flotilla.mysql.failover import Done, Failover
from flotilla.rules.mysql_failover import Found, Opening
from flotilla.rules.mysql_state import State
from flotilla.rules.mysql_verdict import Kind, Verdict
from flotilla.wait import until

log = logging.getLogger(__name__)


def under_load(trio: Trio, fault: Callable[[], None], **options: object) -> tuple[Done, Writers]:
    """Four clients write, a fault hits the primary, a failover runs, clients go on for a while."""
    with Writers(trio) as clients:
        until(lambda: len(clients.acked) > 40, seconds=20)
        fault()
        moment = time.monotonic()
        done = fail_over(trio, **options)  # type: ignore[arg-type]
        writes_go_on(clients)
        nothing_is_lost(trio, clients)
    gap = gap_seconds(clients.acked, moment)
    log.info("gap %.2f s, by the servers %s: %s", gap, done.gap_seconds, dict(done.seconds))
    return done, clients


# --- faults


def test_a_primary_that_waits_for_nobody_is_remembered_so_when_it_is_dead(trio: Trio) -> None:
    """Its last writes may be nowhere else, and no count of members would show it."""
    primary = trio.primary
    eye = Regard(primary.session(), time.monotonic)

    def alone() -> str:
        return eye.look(seconds=1.0, waiting=False, stalled=True).alone

    assert alone() == ""
    trio.rows(primary.name, "SET GLOBAL rpl_semi_sync_source_enabled = OFF")
    assert "waited for no replica" in alone()
    primary.kill()
    assert "waited for no replica" in alone()
    primary.start()
    primary.ready()
    assert until(lambda: alone() == "", seconds=10), "it takes no write"


def test_a_killed_primary_is_replaced_and_nothing_is_lost(trio: Trio) -> None:
    done, _ = under_load(trio, trio.primary.kill)
    assert (done.term, done.old, done.left_out) == (2, "mysql-1", {})
    assert sorted(done.revoked) == ["mysql-2", "mysql-3"]
    is_whole_without(trio, "mysql-1")


def test_hours_without_a_writer_are_no_outage(trio: Trio, table: str) -> None:
    """An idle fleet's report said 110 s for a failover of 4."""
    trio.rows(trio.primary.name, f"INSERT INTO {table} VALUES (1)")
    began = time.monotonic()
    time.sleep(4)  # nobody writes: there is nothing to wait for
    trio.primary.kill()
    struck = time.monotonic()
    done = fail_over(trio)
    assert done.gap_seconds is not None
    # A heartbeat a second: the newest is no older than that.
    assert done.gap_seconds < time.monotonic() - struck + 1.5
    assert done.gap_seconds < time.monotonic() - began - 2


def test_a_frozen_primary_is_replaced_and_stopped(trio: Trio) -> None:
    primary = trio.primary
    done, _ = under_load(trio, primary.freeze, reachable={primary.name: False})
    assert done.fenced == "mysql-1 is stopped"
    is_whole_without(trio, "mysql-1")


def test_a_frozen_primary_that_cannot_be_stopped_tells_nobody_ok_when_it_goes_on(
    trio: Trio,
) -> None:
    """Nobody acknowledges to it: the writes it still takes wait for ever.

    What was acknowledged right before it froze it may tell of now, one write a client at most.
    """
    old = trio.primary
    with Writers(trio, answer_seconds=1.0) as clients:
        until(lambda: len(clients.acked) > 40, seconds=20)
        old.freeze()
        done = fail_over(trio, fence=never, reachable={old.name: False})
        assert "could not be stopped" in done.left_out[old.name]
        old.thaw()
        moment = time.monotonic()
        until(lambda: len(clients.since(moment)) > 100, seconds=20)
        told = [write.id for write in clients.since(moment) if write.server != done.new]
        assert len(told) <= clients.count
        assert set(told) <= held(trio, done.new)
        nothing_is_lost(trio, clients)


def test_a_primary_that_nobody_acknowledges_to_is_closed_through_its_own_server(
    trio: Trio,
) -> None:
    def cut() -> None:
        for replica in trio.replicas:
            trio.rows(replica.name, "STOP REPLICA IO_THREAD")

    blocked = Verdict(Kind.BLOCKED, ("commits wait",), is_actionable=True)
    old = trio.primary
    done, clients = under_load(trio, cut, fence=through_server, verdict=blocked)
    assert "offline and read-only" in done.fenced
    assert done.given_up == ""
    unacked = held(trio, old.name) - held(trio, done.new)
    assert not unacked & {write.id for write in clients.acked}
    assert writable(trio) == [done.new]


def test_a_promoted_primary_comes_back_closed_after_a_restart(trio: Trio) -> None:
    trio.primary.kill()
    done = fail_over(trio)
    new = trio[done.new]
    new.kill()
    new.start()
    new.ready()
    assert writable(trio) == []


def test_what_was_taken_over_stands_after_a_second_failover(trio: Trio) -> None:
    """The old primary is back as a replica, and takes over again: term 3."""
    with Writers(trio) as clients:
        until(lambda: len(clients.acked) > 20, seconds=20)
        old = trio.primary
        old.kill()
        fail_over(trio)
        rejoin(trio, old)
        writes_go_on(clients)
        trio.primary.kill()
        done = fail_over(trio)
        assert done.term == 3
        writes_go_on(clients)
        nothing_is_lost(trio, clients)


def rejoin(trio: Trio, old: Mysqld) -> None:
    """Start a former primary again; it follows, and is let in. Its unacknowledged tail goes."""
    old.start()
    old.ready()
    with suppress(FlotillaError):
        trio.ensure()
    with store.lock(trio.settings, "a test") as lock:
        trio.records.bar({}, term=trio.record.term, fence=lock.term)


# --- a primary that is cut off from the manager only, and goes on


class Hasty(Failover):
    """Reads positions while members still acknowledge, as if nothing could come in between."""

    def _open(self, opened: Opening) -> None:
        self._revoked = set(opened.ackers)
        state = self._book.state()
        assert state is not None
        self._early = super()._positions(state)
        super()._open(opened)

    def _positions(self, _: State) -> Found:
        return self._early


def write_at_the_last_moment(trio: Trio) -> Callable[[Mapping[str, Any]], None]:
    """Right before members are told to acknowledge no more, mysql-3 alone acknowledges a row."""

    def on_line(line: Mapping[str, Any]) -> None:
        if (line["event"], line.get("act")) == ("intent", "revoke"):
            commit(trio, 10**6)

    return on_line


@pytest.mark.parametrize(("kind", "new", "kept"), [(Failover, "mysql-3", 1), (Hasty, "mysql-2", 0)])
def test_positions_count_only_once_nobody_acknowledges(
    trio: Trio, kind: type[Failover], new: str, kept: int
) -> None:
    settled(trio)
    trio.rows("mysql-2", "STOP REPLICA IO_THREAD")
    done = fail_over(
        trio,
        reachable={"mysql-1": False},
        on_line=write_at_the_last_moment(trio),
        kind=kind,
    )
    assert done.new == new
    assert len({10**6} & held(trio, new)) == kept


# --- who takes over


def write_behind(trio: Trio, server: Mysqld, number: int, *, tag: str = "") -> None:
    """Somebody writes where nobody should."""
    session = server.session()
    session.query("SET GLOBAL super_read_only = OFF")
    if tag:
        session.query(f"SET gtid_next = 'AUTOMATIC:{tag}'")
    table = f"{trio.settings.mysql.database}.{TABLE}"
    session.query(f"INSERT INTO {table} VALUES ({number}, @@server_uuid)")
    session.query("SET GLOBAL super_read_only = ON")
    session.close()


@pytest.mark.parametrize("tag", ["", "night"], ids=["plain", "tagged"])
def test_a_member_with_a_write_of_its_own_is_not_chosen(trio: Trio, tag: str) -> None:
    settled(trio)
    write_behind(trio, trio["mysql-2"], 10**6, tag=tag)
    trio.primary.kill()
    done = fail_over(trio)
    assert done.new == "mysql-3"
    assert 10**6 not in held(trio, "mysql-3")


def test_with_every_replica_diverged_nobody_is_promoted_and_each_surplus_is_named(
    trio: Trio,
) -> None:
    settled(trio)
    for number, replica in enumerate(trio.replicas):
        write_behind(trio, replica, 10**6 + number)
    uuids = {r.name: trio.rows(r.name, "SELECT @@server_uuid AS u")[0]["u"] for r in trio.replicas}
    trio.primary.kill()
    with pytest.raises(Refused) as refused:
        fail_over(trio)
    for name, uuid in uuids.items():
        assert f"{name}: it holds what no primary wrote: {uuid}:1" in refused.value.what
    assert writable(trio) == []
    assert trio.record.term == 1


def test_a_delayed_replica_that_alone_has_the_last_writes_takes_over_with_them(
    trio: Trio,
) -> None:
    settled(trio)
    delayed, other = trio.replicas
    for statement in (
        "STOP REPLICA SQL_THREAD",
        "CHANGE REPLICATION SOURCE TO SOURCE_DELAY = 3600",
        "START REPLICA SQL_THREAD",
    ):
        trio.rows(delayed.name, statement)
    trio.rows(other.name, "STOP REPLICA IO_THREAD")
    for number in range(10**6, 10**6 + 5):
        commit(trio, number)
    trio.primary.kill()
    assert 10**6 not in held(trio, delayed.name)
    done = fail_over(trio)
    assert done.new == delayed.name
    assert set(range(10**6, 10**6 + 5)) <= held(trio, delayed.name)
    until(lambda: 10**6 + 4 in held(trio, other.name), seconds=10)
    is_whole_without(trio, "mysql-1")


def test_a_member_whose_applier_has_stopped_leaves_it_to_another_one(trio: Trio) -> None:
    settled(trio)
    broken, other = trio.replicas
    trio.rows(broken.name, "STOP REPLICA SQL_THREAD")
    table = f"{trio.settings.mysql.database}.{TABLE}"
    session = broken.session()
    session.query("SET GLOBAL super_read_only = OFF")
    session.query("SET sql_log_bin = OFF")
    session.query(f"INSERT INTO {table} VALUES (1000000, '')")
    session.query("SET GLOBAL super_read_only = ON")
    session.close()
    commit(trio, 10**6)
    trio.rows(broken.name, "START REPLICA SQL_THREAD")
    trio.primary.kill()
    done = fail_over(trio)
    assert done.new == other.name
    assert "it acknowledges, but its applier has stopped" in done.left_out[broken.name]
    assert "Duplicate entry" in done.left_out[broken.name]
    assert writable(trio) == [other.name]


def test_a_member_whose_role_would_survive_a_restart_is_not_chosen(trio: Trio) -> None:
    settled(trio)
    trio.rows("mysql-2", "SET PERSIST_ONLY super_read_only = OFF")
    trio.primary.kill()
    assert fail_over(trio).new == "mysql-3"


def test_a_member_that_can_apply_at_once_is_preferred_to_one_that_waits_for_a_lock(
    trio: Trio,
) -> None:
    settled(trio)
    table = f"{trio.settings.mysql.database}.{TABLE}"
    with held_applier(trio, trio["mysql-2"], table):
        commit(trio, 10**6)
        until(lambda: 10**6 in held(trio, "mysql-3"), seconds=10)
        trio.primary.kill()
        start = time.monotonic()
        assert fail_over(trio).new == "mysql-3"
        assert time.monotonic() - start < 5
    until(lambda: 10**6 in held(trio, "mysql-2"), seconds=10)
    is_whole_without(trio, "mysql-1")


def test_where_nobody_can_apply_all_nobody_is_promoted_and_nothing_is_thrown_away(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "DRAIN_SECONDS", 2.0)
    settled(trio)
    table = f"{trio.settings.mysql.database}.{TABLE}"
    names = [replica.name for replica in trio.replicas]
    with held_applier(trio, trio["mysql-2"], table), held_applier(trio, trio["mysql-3"], table):
        commit(trio, 10**6)
        trio.primary.kill()
        with pytest.raises(Refused, match=r"mysql-2: .*more than 2 s.*mysql-3: .*more than 2 s"):
            fail_over(trio)
        assert writable(trio) == []
        assert trio.record.term == 1
    for name in names:
        until(lambda n=name: 10**6 in held(trio, n), seconds=10)
    fail_over(trio)
    is_whole_without(trio, "mysql-1")


def test_with_a_replica_away_nobody_is_promoted_and_the_others_go_back(trio: Trio) -> None:
    """It may hold the only copy of an acknowledged write."""
    settled(trio)
    away, _ = trio.replicas
    away.kill()
    old = trio.primary
    old.kill()
    with pytest.raises(Refused, match="2 must be"):
        fail_over(trio)
    assert writable(trio) == []
    old.start()
    old.ready()
    trio.ensure()
    commit(trio, 10**6)
    assert trio.record.term == 1


def test_a_replica_that_freezes_meanwhile_stops_the_failover_and_is_given_back(
    trio: Trio,
) -> None:
    settled(trio)
    frozen, other = trio.replicas
    trio.primary.kill()
    frozen.freeze()
    try:
        with pytest.raises(Refused, match="2 must be"):
            fail_over(trio)
    finally:
        frozen.thaw()
    assert writable(trio) == []
    acknowledges = "SELECT @@GLOBAL.rpl_semi_sync_replica_enabled AS is_on"
    assert trio.rows(other.name, acknowledges) == [{"is_on": 1}]


def test_giving_up_a_missing_replica_waits_for_the_old_primary_to_be_stopped(trio: Trio) -> None:
    settled(trio)
    trio.replicas[0].kill()
    old = trio.primary
    old.freeze()
    with pytest.raises(Refused, match="could not be verified to be closed"):
        fail_over(trio, fence=never, reachable={old.name: False}, accept_loss=True)
    assert old.is_running
    assert trio.record.term == 1


def test_a_given_up_replica_that_comes_back_lets_the_new_primary_take_writes(trio: Trio) -> None:
    settled(trio)
    away, new = trio.replicas
    away.kill()
    old = trio.primary
    old.kill()
    done = fail_over(trio, accept_loss=True)
    assert (done.new, done.fenced) == (new.name, "mysql-1 is stopped")
    assert "takes no writes before 1 members acknowledge" in done.left_out[new.name]
    assert writable(trio) == []
    away.start()
    away.ready()
    with store.lock(trio.settings, "a test") as lock:
        trio.records.bar({old.instance_id: "dead"}, term=2, fence=lock.term)
    resume(trio, old, 2)
    commit(trio, 10**6)
    is_whole_without(trio, old.name)
