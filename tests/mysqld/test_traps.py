"""What MySQL does where a failover touches it: each trap as it is, and our step that avoids it.

A step that is right only by luck would pass on its own. So where a wrong way exists, it is walked
here too, and must do the damage it is known for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import permutations
from typing import Any

import pymysql
import pytest
from mysqld.server import Mysqld
from mysqld.trio import Trio

from flotilla.errors import FlotillaError, HostFailed
from flotilla.hosts.mysql import SqlError
from flotilla.mysql import takeover
from flotilla.wait import until

log = logging.getLogger(__name__)

_ID = "SELECT id FROM {} ORDER BY id"
SOURCE_OFF = takeover.FENCE[1]
RIGHT = takeover.FENCE


class Commit:
    """One INSERT by an application, on a thread: what was it told?"""

    def __init__(self, trio: Trio, server: Mysqld, number: int) -> None:
        user = trio.settings.mysql.user
        self._table = f"{trio.settings.mysql.database}.t"
        self._connection = server.client(user, trio.secrets.passwords[user])
        self._number = number
        self.said = "nothing yet"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(f"INSERT INTO {self._table} VALUES (%s)", (self._number,))
            self.said = "OK"
        except (pymysql.err.MySQLError, OSError, EOFError) as error:
            self.said = f"error {error.args[0]}"

    def wait(self, seconds: float) -> str:
        """What it was told within that time."""
        self._thread.join(seconds)
        return self.said


@pytest.fixture
def table(trio: Trio) -> str:
    """A table with the row 0, on every member."""
    name = f"{trio.settings.mysql.database}.t"
    trio.rows("mysql-1", f"CREATE TABLE {name} (id INT PRIMARY KEY)")
    trio.rows("mysql-1", f"INSERT INTO {name} VALUES (0)")
    for replica in trio.replicas:
        until(lambda r=replica: ids(trio, r.name, name) == [0], seconds=10, every=0.05)
    return name


def ids(trio: Trio, name: str, table: str) -> list[int]:
    with suppress(SqlError):
        return [row["id"] for row in trio.rows(name, _ID.format(table))]
    return []


def on(server: Mysqld, work: Callable[[Any], None]) -> None:
    """Do one of our steps on a session of its own."""
    session = server.session()
    try:
        work(session)
    finally:
        session.close()


def revoke_all(trio: Trio) -> None:
    for replica in trio.replicas:
        on(replica, takeover.revoke)


def received(trio: Trio, name: str) -> str:
    rows = trio.rows(
        name,
        "SELECT RECEIVED_TRANSACTION_SET AS gtids"
        " FROM performance_schema.replication_connection_status WHERE CHANNEL_NAME = ''",
    )
    return "".join(rows[0]["gtids"].split())


@contextmanager
def held_applier(trio: Trio, replica: Mysqld, table: str) -> Iterator[None]:
    """The replica receives and acknowledges, and cannot apply to the table meanwhile."""
    session = replica.session()
    session.query(f"LOCK TABLES {table} READ")
    try:
        yield
    finally:
        session.close()


def delay(trio: Trio, replica: Mysqld, seconds: int) -> None:
    trio.rows(replica.name, "STOP REPLICA SQL_THREAD")
    trio.rows(replica.name, f"CHANGE REPLICATION SOURCE TO SOURCE_DELAY = {seconds}")
    trio.rows(replica.name, "START REPLICA SQL_THREAD")


# --- closing a primary that answers


def told_while_closing(trio: Trio, order: tuple[str, ...]) -> str:
    """A commit waits for an acknowledgement that cannot come; what is its client told?"""
    revoke_all(trio)
    commit = Commit(trio, trio.primary, 1)
    assert commit.wait(0.5) == "nothing yet"
    on(trio.primary, lambda session: takeover.fence(session, order))
    return commit.wait(3)


def test_closing_a_primary_never_tells_a_waiting_client_ok(trio: Trio, table: str) -> None:
    assert told_while_closing(trio, RIGHT) == "error 2013"
    assert ids(trio, "mysql-1", table) == [0, 1], "it is released where nobody was told OK"
    assert [ids(trio, r.name, table) for r in trio.replicas] == [[0], [0]]


@pytest.mark.parametrize(
    "order",
    [p for p in permutations(RIGHT) if p.index(SOURCE_OFF) == 0],
    ids=lambda order: " then ".join(s.split()[2] for s in order),
)
def test_the_wrong_order_of_closing_loses_an_acknowledged_write(
    trio: Trio, table: str, order: tuple[str, ...]
) -> None:
    assert told_while_closing(trio, order) == "OK"
    assert [ids(trio, r.name, table) for r in trio.replicas] == [[0], [0]], "acknowledged and lost"


def test_read_only_before_commits_are_released_fails_in_time_and_changes_nothing(
    trio: Trio, table: str
) -> None:
    order = (RIGHT[0], RIGHT[2], RIGHT[1])
    start = time.monotonic()
    with pytest.raises(SqlError) as failed:
        told_while_closing(trio, order)
    assert failed.value.code == 1205
    assert time.monotonic() - start < takeover.LOCK_WAIT_SECONDS + 2
    state = trio.rows("mysql-1", "SELECT @@GLOBAL.super_read_only AS s, @@GLOBAL.read_only AS r")
    assert state == [{"s": 0, "r": 0}]


def test_a_closed_primary_takes_no_client_and_no_write(trio: Trio, table: str) -> None:
    on(trio.primary, takeover.fence)
    with pytest.raises(pymysql.err.MySQLError):
        Commit(trio, trio.primary, 2)
    with pytest.raises(SqlError, match="super-read-only"):
        trio.rows("mysql-1", f"INSERT INTO {table} VALUES (3)")
    on(trio.primary, takeover.fence)


# --- revoking acknowledgements


def test_nothing_is_acknowledged_once_everybody_revoked(trio: Trio, table: str) -> None:
    revoke_all(trio)
    assert Commit(trio, trio.primary, 1).wait(1.5) == "nothing yet"


def test_the_variable_alone_revokes_nothing(trio: Trio, table: str) -> None:
    for replica in trio.replicas:
        trio.rows(replica.name, "SET GLOBAL rpl_semi_sync_replica_enabled = OFF")
    assert Commit(trio, trio.primary, 1).wait(3) == "OK"


def test_a_stopped_stream_alone_acknowledges_again_when_it_is_started(
    trio: Trio, table: str
) -> None:
    for replica in trio.replicas:
        trio.rows(replica.name, "STOP REPLICA IO_THREAD")
    commit = Commit(trio, trio.primary, 1)
    assert commit.wait(0.5) == "nothing yet"
    trio.rows(trio.replicas[0].name, "START REPLICA IO_THREAD")
    assert commit.wait(5) == "OK"


def test_a_stream_that_waits_for_its_source_is_revoked_too(trio: Trio, table: str) -> None:
    """A source that flaps back finds nobody who would acknowledge to it."""
    primary = trio.primary
    primary.kill()
    for replica in trio.replicas:
        until(lambda r=replica: _io(trio, r) == "CONNECTING", seconds=10, every=0.05)
    start = time.monotonic()
    revoke_all(trio)
    assert time.monotonic() - start < 1.0
    primary.start()
    primary.ready()
    for statement in (
        "SET GLOBAL rpl_semi_sync_source_enabled = ON",
        "SET GLOBAL super_read_only = OFF",
        "SET GLOBAL read_only = OFF",
    ):
        trio.rows(primary.name, statement)
    assert Commit(trio, primary, 1).wait(3) == "nothing yet"
    assert [_io(trio, r) for r in trio.replicas] == ["OFF", "OFF"]


def test_revoking_from_a_frozen_source_takes_no_time(trio: Trio, table: str) -> None:
    trio.primary.freeze()
    start = time.monotonic()
    revoke_all(trio)
    assert time.monotonic() - start < 1.0


def test_revoking_from_a_source_that_accepts_and_says_nothing_ends(trio: Trio, table: str) -> None:
    """The stream has noticed by itself and is in the middle of connecting again."""
    trio.primary.freeze()
    for replica in trio.replicas:
        until(lambda r=replica: _io(trio, r) == "CONNECTING", seconds=15, every=0.05)
    time.sleep(0.5)
    start = time.monotonic()
    revoke_all(trio)
    log.info("revoked two in %.1f s", time.monotonic() - start)
    assert [_io(trio, r) for r in trio.replicas] == ["OFF", "OFF"]


def _io(trio: Trio, replica: Mysqld) -> str:
    rows = trio.rows(
        replica.name,
        "SELECT SERVICE_STATE AS io FROM performance_schema.replication_connection_status"
        " WHERE CHANNEL_NAME = ''",
    )
    return str(rows[0]["io"])


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
    until(lambda: _io(trio, turned) == "ON", seconds=10, every=0.05)


def test_a_replica_whose_applier_has_stopped_is_not_turned(trio: Trio, table: str) -> None:
    turned, new = trio.replicas
    _break_applier(trio, turned, table)
    before = received(trio, turned.name)
    with pytest.raises(HostFailed, match="Duplicate entry"):
        on(turned, lambda session: takeover.turn(session, new.address))
    assert received(trio, turned.name) == before
    on(turned, lambda session: takeover.turn(session, trio.primary.address))
    assert received(trio, turned.name) == before
    until(lambda: _io(trio, turned) == "ON", seconds=10, every=0.05)


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
