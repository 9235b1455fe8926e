"""Clusters that are not as they should be when the primary dies: who may take over, and who not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from databases import TABLE, Databases, refused
from guests import needs_lab, until
from typed import fab

from flotilla.aws.items import Change

pytestmark = [needs_lab, pytest.mark.drill, pytest.mark.thorough]

ROWS = [f"row-{number}" for number in range(5)]


@contextmanager
def arranged(databases: Databases) -> Iterator[None]:
    """A block in which no watcher repairs what the test arranges."""
    fab("mysql.pause", "--reason", "a test works here", "--minutes", "10", "--yes")
    yield
    fab("mysql.unpause", "--yes")


def write_all(databases: Databases) -> None:
    for row in ROWS:
        databases.write(databases.primary, row)


# --- who alone has the last writes ----------------------------------------------------------------


def test_a_delayed_replica_that_alone_has_the_last_writes_gives_them_up_first(
    databases: Databases,
) -> None:
    """Changing its delay the usual way would throw its relay log away, and the writes with it."""
    old, (late, other) = databases.primary, databases.replicas
    with arranged(databases):
        databases.sql(
            late,
            "STOP REPLICA SQL_THREAD",
            "CHANGE REPLICATION SOURCE TO SOURCE_DELAY = 3600",
            "START REPLICA SQL_THREAD",
        )
        databases.sql(other, "STOP REPLICA IO_THREAD")
        databases.write(old, "before")
        write_all(databases)
        assert TABLE.split(".")[1] not in str(databases.sql(late, "SHOW TABLES FROM ops"))
        databases.dies(old)
    new = databases.moved(old)
    assert set(ROWS) <= databases.rows(new)


def test_a_replica_that_was_killed_with_unapplied_writes_still_has_them(
    databases: Databases,
) -> None:
    """With relay_log_recovery=1, which many guides recommend, it would have thrown them away."""
    old, (acker, other) = databases.primary, databases.replicas
    with arranged(databases):
        databases.write(old, "before")
        databases.sql(other, "STOP REPLICA IO_THREAD")
        databases.sql(acker, "STOP REPLICA SQL_THREAD")
        write_all(databases)
        databases.kill(acker)
        until(lambda: databases.answers(acker), 30, "the replica is back")
        databases.dies(old)
    new = databases.moved(old)
    assert set(ROWS) <= databases.rows(new)


def test_who_cannot_apply_what_it_received_is_passed_over(databases: Databases) -> None:
    old, (stuck, other) = databases.primary, databases.replicas
    with arranged(databases):
        databases.write(old, "before")
        collides(databases, stuck, "the same")
        databases.sql(old, f"INSERT INTO {TABLE} VALUES ('the same')")
        write_all(databases)
        databases.dies(old)
    assert databases.taken_over(old) == other
    assert {"the same", *ROWS} <= databases.rows(other)


def test_when_nobody_can_apply_what_was_received_nobody_is_promoted(databases: Databases) -> None:
    old = databases.primary
    with arranged(databases):
        databases.write(old, "before")
        for name in databases.replicas:
            collides(databases, name, "the same")
        databases.sql(old, f"INSERT INTO {TABLE} VALUES ('the same')")
        databases.dies(old)
    databases.stays()
    told = databases.failover(code=3)
    refused(told, *databases.replicas)
    for name in databases.replicas:
        databases.errs(
            name,
            "SET SESSION sql_log_bin = 0",
            f"DELETE FROM {TABLE} WHERE id = 'the same'",
            "SET SESSION sql_log_bin = 1",
        )
    databases.lives(old)


def collides(databases: Databases, name: str, row: str) -> None:
    """A row that is only there and that no GTID tells of: the applier stops where it comes."""
    databases.errs(
        name,
        "SET SESSION sql_log_bin = 0",
        f"REPLACE INTO {TABLE} VALUES ('{row}')",
        "SET SESSION sql_log_bin = 1",
    )


# --- who diverged ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["", ":strange"], ids=["plain", "tagged"])
def test_who_has_a_write_that_no_primary_made_is_not_chosen_and_is_named(
    databases: Databases, tag: str
) -> None:
    old, (strange, other) = databases.primary, databases.replicas
    databases.write(old, "before")
    with arranged(databases):
        databases.errs(
            strange,
            f"SET SESSION gtid_next = 'AUTOMATIC{tag}'",
            f"REPLACE INTO {TABLE} VALUES ('errant')",
            "SET SESSION gtid_next = 'AUTOMATIC'",
        )
        write_all(databases)
        # Not only killed: systemd may have it back, and primary, before the pause has ended.
        databases.dies(old)
    assert databases.taken_over(old) == other
    databases.lives(old)
    assert databases.member(strange)["surplus"]
    databases.write(other, "after", seconds=30)
    assert {"after", *ROWS} <= databases.rows(other)
    assert "errant" not in databases.rows(other)
    told = databases.rebuilt(strange)
    assert told["surplus"]
    assert told["saved_to"]
    assert "errant" not in databases.rows(strange)


def test_when_every_replica_diverged_nobody_is_promoted_and_both_are_named(
    databases: Databases,
) -> None:
    old = databases.primary
    databases.write(old, "before")
    with arranged(databases):
        for name in databases.replicas:
            databases.errs(name, f"REPLACE INTO {TABLE} VALUES ('only {name}')")
        databases.dies(old)
    databases.stays()
    refused(databases.failover(code=3), *databases.replicas)
    for name in databases.replicas:
        assert databases.value(name, "@@GLOBAL.super_read_only") == 1
    databases.lives(old)
    until(lambda: databases.member(old)["role"] == "primary", 60, "the old primary serves again")


# --- who cannot be asked --------------------------------------------------------------------------


def test_while_somebody_who_may_hold_the_last_writes_is_silent_nobody_is_promoted(
    databases: Databases,
) -> None:
    old, (acker, behind) = databases.primary, databases.replicas
    last_one(databases, old, acker, behind)
    databases.stays()
    refused(databases.failover(code=3), acker)
    databases.lives(acker)
    new = databases.taken_over(old)
    assert set(ROWS) <= databases.rows(new), "it came back, and with it all that it had promised"


def test_writes_are_given_up_only_in_so_many_words_and_are_counted(databases: Databases) -> None:
    old, (acker, behind) = databases.primary, databases.replicas
    last_one(databases, old, acker, behind)
    told = databases.failover("--accept-loss", code=2)["error"]
    assert f"{behind}, which takes no writes yet" in told["what"], "nobody could acknowledge them"
    assert not set(ROWS) & databases.rows(behind)
    # Who comes back has what was given up: it is saved, and a copy acknowledges.
    databases.lives(acker)
    until(lambda: databases.member(acker).get("surplus"), 60, "what it holds is seen")
    assert databases.rebuilt(acker)["saved_to"]
    databases.write(behind, "after")
    assert "after" in databases.rows(behind)
    # The report waited for a cluster that takes writes.
    loss = databases.failover()["report"]["loss"]
    assert loss["count"] is None or loss["count"] >= len(ROWS)
    assert loss["proof"]
    assert databases.report()["loss"]["proof"] == loss["proof"]


def last_one(databases: Databases, old: str, acker: str, behind: str) -> None:
    """The last writes are on ``old`` and ``acker`` only, and both are dead."""
    databases.write(old, "before")
    with arranged(databases):
        databases.sql(behind, "STOP REPLICA IO_THREAD")
        write_all(databases)
        databases.dies(acker)
        databases.dies(old)


# --- what must not be armed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("break_it", "mend_it", "word"),
    [
        (
            "SET PERSIST_ONLY super_read_only = OFF",
            "RESET PERSIST IF EXISTS super_read_only",
            "persisted",
        ),
        (
            "SET GLOBAL rpl_semi_sync_source_timeout = 1000",
            "SET GLOBAL rpl_semi_sync_source_timeout = 1000000000",
            "asynchronous",
        ),
        ("SET GLOBAL sync_relay_log = 10000", "SET GLOBAL sync_relay_log = 1", "acknowledged"),
    ],
    ids=["a role in a file", "a fall-back", "a relay log in memory"],
)
def test_a_setting_that_could_cost_a_write_is_named_and_its_member_not_switched_to(
    databases: Databases, break_it: str, mend_it: str, word: str
) -> None:
    name = databases.replicas[0]
    databases.sql(name, break_it)
    try:
        assert any(word in fault for fault in databases.member(name)["faults"])
        refused(fab("mysql.switchover", "--to", name, "--yes", code=3), name)
    finally:
        databases.sql(name, mend_it)


def test_a_replica_whose_next_writes_are_purged_is_rebuilt_and_not_guessed_at(
    databases: Databases,
) -> None:
    old, (away, _) = databases.primary, databases.replicas
    with arranged(databases):
        databases.write(old, "before")
        databases.sql(away, "STOP REPLICA IO_THREAD")
        write_all(databases)
        databases.sql(old, "FLUSH BINARY LOGS")
        last = databases.sql(old, "SHOW BINARY LOG STATUS")[0]["File"]
        databases.sql(old, f"PURGE BINARY LOGS TO '{last}'")
        databases.sql(away, "STOP REPLICA SQL_THREAD", "RESET REPLICA ALL")
    databases.rebuilt(away)
    until(lambda: not databases.view().why, 60, "it follows")
    assert set(ROWS) <= databases.rows(away)


def test_a_record_that_cannot_be_read_stops_everything_and_nothing_else(
    databases: Databases,
) -> None:
    """The item is spoilt by hand: nobody may guess who is primary, and nobody is stopped."""
    table, key = databases.records.table, databases.records.cluster
    good = table.get(key)
    assert good is not None
    with databases.clients() as writing:
        table.update(key, Change({"term": {"S": "seven"}}, {}))
        try:
            refused(databases.failover(code=3), "seven")
            refused(fab("mysql.switchover", "--yes", code=3), "seven")
        finally:
            table.update(key, Change({"term": good["term"]}, {}))
        assert writing.stop()["write_gap_seconds"] < 1
