"""Failovers on three real servers: what was acknowledged is there, and only one takes writes."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from mysqld.managers import (
    fail_over,
    let_lease_expire,
    never,
    resume,
    start,
    through_server,
)
from mysqld.server import Mysqld
from mysqld.trio import Trio
from mysqld.writers import TABLE, Writers, gap_seconds, held

from flotilla.errors import FlotillaError, HostFailed, Refused
from flotilla.mysql import store
from flotilla.mysql.failover import Done
from flotilla.rules.mysql_verdict import Kind, Verdict
from flotilla.wait import until

log = logging.getLogger(__name__)

# Of the journal of a failover from a killed primary to one of two replicas.
LINES = 22
_WRITABLE = "SELECT @@GLOBAL.read_only OR @@GLOBAL.offline_mode AS closed"


def writable(trio: Trio) -> list[str]:
    """Every running server that would take an application's write."""
    return [
        name
        for name, server in trio.servers.items()
        if server.is_running and not trio.rows(name, _WRITABLE)[0]["closed"]
    ]


def is_whole_without(trio: Trio, *gone: str) -> None:
    """One primary, by record and in fact; everybody else follows it and acknowledges."""
    primary = trio.primary
    assert writable(trio) == [primary.name]
    term = trio.rows(primary.name, "SELECT term, uuid FROM ops.term ORDER BY term DESC LIMIT 1")
    assert term == [{"term": trio.record.term, "uuid": trio.record.uuid}]
    for replica in trio.replicas:
        if replica.name in gone:
            continue
        rows = trio.rows(
            replica.name,
            "SELECT c.HOST AS host, s.SERVICE_STATE AS io, a.SERVICE_STATE AS applier"
            " FROM performance_schema.replication_connection_configuration c"
            " JOIN performance_schema.replication_connection_status s USING (CHANNEL_NAME)"
            " JOIN performance_schema.replication_applier_status a USING (CHANNEL_NAME)",
        )
        assert rows == [{"host": primary.address, "io": "ON", "applier": "ON"}]
    clients = trio.rows(primary.name, "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_source_clients'")
    assert int(clients[0]["Value"]) == 2 - len(gone)


def nothing_is_lost(trio: Trio, clients: Writers) -> None:
    """Every row that any server said OK to is on the primary."""
    acked = {write.id for write in clients.stop()}
    assert acked
    assert not acked - held(trio, trio.primary.name)


def writes_go_on(clients: Writers) -> None:
    """A server tells them OK again."""
    moment = time.monotonic()
    until(lambda: len(clients.since(moment)) > 20, seconds=20)


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


def test_a_killed_primary_is_replaced_and_nothing_is_lost(trio: Trio) -> None:
    done, _ = under_load(trio, trio.primary.kill)
    assert (done.term, done.old, done.left_out) == (2, "mysql-1", {})
    assert sorted(done.revoked) == ["mysql-2", "mysql-3"]
    is_whole_without(trio, "mysql-1")


def test_a_frozen_primary_is_replaced_and_stopped(trio: Trio) -> None:
    primary = trio.primary
    done, _ = under_load(trio, primary.freeze, reachable={primary.name: False})
    assert done.fenced == "mysql-1 is stopped"
    is_whole_without(trio, "mysql-1")


def test_a_frozen_primary_that_cannot_be_stopped_tells_nobody_ok_when_it_goes_on(
    trio: Trio,
) -> None:
    """Nobody acknowledges to it: the writes it still takes wait for ever."""
    old = trio.primary
    with Writers(trio, answer_seconds=1.0) as clients:
        until(lambda: len(clients.acked) > 40, seconds=20)
        old.freeze()
        done = fail_over(trio, fence=never, reachable={old.name: False})
        assert "could not be stopped" in done.left_out[old.name]
        old.thaw()
        moment = time.monotonic()
        until(lambda: len(clients.since(moment)) > 100, seconds=20)
        assert {write.server for write in clients.since(moment)} == {done.new}
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


# --- who takes over


def settled(trio: Trio) -> None:
    """A table with rows that everybody has applied."""
    with Writers(trio, count=1) as clients:
        until(lambda: len(clients.acked) > 5, seconds=20)
    for replica in trio.replicas:
        until(lambda r=replica: held(trio, r.name) == held(trio, "mysql-1"), seconds=10)


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


def _commit(trio: Trio, number: int) -> None:
    user = trio.settings.mysql.user
    client = trio.primary.client(user, trio.secrets.passwords[user])
    table = f"{trio.settings.mysql.database}.{TABLE}"
    with client.cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} VALUES (%s, @@server_uuid)", (number,))
    client.close()


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
        _commit(trio, number)
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
    _commit(trio, 10**6)
    trio.rows(broken.name, "START REPLICA SQL_THREAD")
    trio.primary.kill()
    done = fail_over(trio)
    assert done.new == other.name
    assert "it acknowledges, but its applier has stopped" in done.left_out[broken.name]
    assert "Duplicate entry" in done.left_out[broken.name]
    assert writable(trio) == [other.name]


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
    _commit(trio, 10**6)
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


# --- managers that die, freeze or meet


def test_a_failover_has_as_many_lines_as_are_killed_after(trio: Trio) -> None:
    settled(trio)
    trio.primary.kill()
    manager = start(trio)
    said = manager.communicate(timeout=60)[1]
    assert manager.returncode == 0, said
    journal = (trio.folder / "journal" / "term-000002.jsonl").read_text()
    assert len(journal.splitlines()) == LINES, journal


@pytest.mark.parametrize("line", range(1, LINES + 1))
def test_a_manager_killed_after_any_line_of_its_journal_is_resumed_under_the_same_term(
    trio: Trio, line: int
) -> None:
    old = trio.primary
    with Writers(trio) as clients:
        writes_go_on(clients)
        old.kill()
        manager = start(trio, at_line=line)
        said = manager.communicate(timeout=60)[1]
        assert manager.returncode == -signal.SIGKILL, said
        let_lease_expire(trio)
        done = resume(trio, old, 2)
        assert (done.term, trio.record.term) == (2, 2)
        writes_go_on(clients)
        nothing_is_lost(trio, clients)
    is_whole_without(trio, old.name)


@pytest.mark.parametrize("line", [2, 7, 9, 10, 11, 12, 16])
def test_a_manager_that_slept_while_another_one_took_over_changes_nothing_any_more(
    trio: Trio, line: int
) -> None:
    settled(trio)
    trio.primary.kill()
    sleeper = start(trio, at_line=line, with_signal=int(signal.SIGSTOP))
    until(lambda: _is_stopped(sleeper.pid), seconds=30)
    let_lease_expire(trio)
    old = trio.primary
    resume(trio, old, 2)
    after = _everything(trio)
    time.sleep(2.5)  # it looks at its lease when it has not for two seconds
    sleeper.send_signal(signal.SIGCONT)
    said = sleeper.communicate(timeout=60)[1]
    assert sleeper.returncode != 0, said
    assert _everything(trio) == after
    is_whole_without(trio, "mysql-1")


def test_of_two_managers_at_once_one_wins_and_the_other_changes_nothing(trio: Trio) -> None:
    settled(trio)
    trio.primary.kill()
    managers = [start(trio), start(trio)]
    said = [manager.communicate(timeout=60)[1] for manager in managers]
    assert sorted(manager.returncode for manager in managers) == [0, 3], said
    assert trio.record.term == 2
    is_whole_without(trio, "mysql-1")


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _everything(trio: Trio) -> dict[str, object]:
    state = trio.records.state()
    assert state is not None
    found: dict[str, object] = {"record": state.record, "barred": dict(state.barred)}
    for name, server in trio.servers.items():
        if server.is_running:
            found[name] = trio.rows(
                name,
                "SELECT @@GLOBAL.read_only, @@GLOBAL.super_read_only, @@GLOBAL.offline_mode,"
                " @@GLOBAL.rpl_semi_sync_source_enabled, @@GLOBAL.rpl_semi_sync_replica_enabled,"
                " @@GLOBAL.gtid_executed, (SELECT GROUP_CONCAT(CONCAT(HOST, PORT)) FROM"
                " performance_schema.replication_connection_configuration) AS source",
            )
    return found


def test_the_new_primary_dying_before_it_is_opened_loses_nothing(trio: Trio) -> None:
    with Writers(trio) as clients:
        until(lambda: len(clients.acked) > 20, seconds=20)
        old = trio.primary
        old.kill()
        manager = start(trio, at_line=_line_of(trio, "record"))
        assert manager.wait(60) == -signal.SIGKILL
        let_lease_expire(trio)
        new = trio.primary
        assert new is not old
        new.kill()
        with pytest.raises((Refused, HostFailed)):
            fail_over(trio)
        assert writable(trio) == []
        new.start()
        new.ready()
        resume(trio, old, 2)
        writes_go_on(clients)
        nothing_is_lost(trio, clients)


def _line_of(trio: Trio, act: str) -> int:
    """The line after which a step of a kill's failover is done."""
    acts = [
        "begin",
        *(a for a in ("revoke", "fence", "positions", "drain", "record") for _ in "id"),
    ]
    return len(acts) - acts[::-1].index(act)
