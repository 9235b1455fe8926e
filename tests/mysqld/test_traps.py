"""What MySQL does to waiting commits where a failover closes and revokes: each trap, and our step.

A step that is right only by luck would pass on its own. So where a wrong way exists, it is walked
here too, and must do the damage it is known for.
"""

from __future__ import annotations

import logging
import time
from itertools import permutations

import pymysql
import pytest
from mysqld.commits import Commit, ids, io_state, on, revoke_all
from mysqld.trio import Trio

from flotilla.hosts.mysql import SqlError
from flotilla.mysql import takeover
from flotilla.wait import until

log = logging.getLogger(__name__)

SOURCE_OFF = takeover.FENCE[1]
RIGHT = takeover.FENCE


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
        until(lambda r=replica: io_state(trio, r) == "CONNECTING", seconds=10, every=0.05)
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
    assert [io_state(trio, r) for r in trio.replicas] == ["OFF", "OFF"]


def test_revoking_from_a_frozen_source_takes_no_time(trio: Trio, table: str) -> None:
    trio.primary.freeze()
    start = time.monotonic()
    revoke_all(trio)
    assert time.monotonic() - start < 1.0


def test_revoking_from_a_source_that_accepts_and_says_nothing_ends(trio: Trio, table: str) -> None:
    """The stream has noticed by itself and is in the middle of connecting again."""
    trio.primary.freeze()
    for replica in trio.replicas:
        until(lambda r=replica: io_state(trio, r) == "CONNECTING", seconds=15, every=0.05)
    time.sleep(0.5)
    start = time.monotonic()
    revoke_all(trio)
    log.info("revoked two in %.1f s", time.monotonic() - start)
    assert [io_state(trio, r) for r in trio.replicas] == ["OFF", "OFF"]
