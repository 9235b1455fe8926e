"""What becomes of a primary that was replaced: it takes nothing, loses nothing, comes back."""

from __future__ import annotations

import threading
import time

import pytest
from databases import TABLE, WATCHER, Databases, blocked
from guests import needs_lab, until
from typed import fab

from flotilla.errors import FlotillaError

pytestmark = [needs_lab, pytest.mark.drill, pytest.mark.thorough]

HEALTH = "curl -s -m 2 -o /dev/null -w '%{http_code}' localhost:3380/"
RESUMED_SECONDS = 10


def test_a_write_that_was_never_acknowledged_is_saved_and_never_comes_back(
    databases: Databases,
) -> None:
    """The server itself would commit it after its crash, and pass it on once it follows."""
    old = databases.primary
    databases.write(old, "before")
    databases.cut(old, *databases.replicas)
    assert blocked(databases, old, "never acknowledged")
    databases.kill(old)
    new = databases.moved(old)
    databases.heal(old)
    fate = databases.subject.mend(old, lambda _: None)
    assert fate[-2:] == ["quarantined", "rebuilt"]
    surplus = databases.report()["surplus"]
    assert surplus["host"] == old
    assert surplus["saved_to"]
    assert surplus["rows"][TABLE]
    fab("mysql.switchover", "--to", old, "--yes")
    assert databases.primary == old
    for name in (old, new):
        assert databases.rows(name) == {"before"}


def test_commits_that_wait_on_a_primary_that_is_closed_are_not_answered_with_ok(
    databases: Databases,
) -> None:
    """It can still be asked to close itself: in the wrong order it would let them all through."""
    old = databases.primary
    with databases.clients() as writing:
        databases.cut(old, *databases.replicas)
        new = databases.moved(old)
        until(lambda: not _takes_clients(databases, old), 30, "the old primary is closed")
        databases.heal(old)
        databases.subject.mend(old, writing.revive)
        figures = writing.stop()
    assert figures["new"] == new
    assert figures["unknown"] > 0, "nobody waited: the test shows nothing"


def _takes_clients(databases: Databases, name: str) -> bool:
    try:
        closed = databases.value(name, "@@GLOBAL.super_read_only OR @@GLOBAL.offline_mode")
    except FlotillaError:
        return False  # its host was stopped
    return not closed


def test_closing_in_the_wrong_order_loses_acknowledged_writes_and_the_clients_see_it(
    databases: Databases,
) -> None:
    """Proves the other tests: a ledger that does not notice this would notice nothing."""
    old = databases.primary
    fab("mysql.pause", "--reason", "a test works here", "--minutes", "10", "--yes")
    with databases.clients(is_probed=False) as writing:
        databases.cut(old, *databases.replicas)
        time.sleep(2)  # of commits that wait, which the next line acknowledges
        databases.sql(old, "SET GLOBAL rpl_semi_sync_source_enabled = OFF")
        time.sleep(1)
        databases.sql(old, "SET GLOBAL super_read_only = ON", seconds=30)
        databases.dies(old)
        fab("mysql.unpause", "--yes")
        databases.moved(old)
        assert writing.figures()["lost"] > 0


def test_a_former_primary_that_claims_the_role_with_an_old_term_is_sent_no_write(
    databases: Databases,
) -> None:
    old = databases.primary
    databases.kill(old)
    new = databases.moved(old)
    databases.subject.mend(old, lambda _: None)
    with databases.clients(is_probed=False) as writing:
        databases.sql(old, "STOP REPLICA", "RESET REPLICA ALL", seconds=40)
        for _ in range(RESUMED_SECONDS):
            # Its watcher closes it again, as often as that takes.
            databases.sql(old, "SET GLOBAL super_read_only = OFF", "SET GLOBAL read_only = OFF")
            assert databases.root(old, HEALTH + "primary", check=False) != "200"
            time.sleep(1)
        until(lambda: _is_closed(databases, old), 30, "its watcher closes it")
        figures = writing.figures()
    assert figures["lost"] == 0
    assert set(figures["writable"]) == {new}, "every acknowledged write was taken by the primary"


def test_a_host_boots_without_a_role_and_its_watcher_gives_it_the_one_of_the_record(
    databases: Databases,
) -> None:
    primary, term = databases.primary, databases.state.record.term
    fab("mysql.pause", "--reason", "a test works here", "--minutes", "10", "--yes")
    databases.watchers("stop", primary)
    databases.root(primary, "systemctl restart mysql.service")
    until(lambda: _is_closed(databases, primary), 60, "it boots read-only")
    time.sleep(3)  # in which somebody might open it
    assert _is_closed(databases, primary), "nothing but the record makes a primary"
    assert databases.root(primary, HEALTH + "primary", check=False) != "200"
    databases.watchers("start", primary)
    fab("mysql.unpause", "--yes")
    until(lambda: not databases.view().why, 60, "the cluster is in order")
    assert databases.state.record.term in {term, term + 1}


def _is_closed(databases: Databases, name: str) -> bool:
    try:
        return databases.value(name, "@@GLOBAL.super_read_only") == 1
    except FlotillaError:
        return False


def test_a_frozen_primary_that_wakes_up_takes_nothing(databases: Databases) -> None:
    """It wakes before EC2 has stopped its host, which may take that long on AWS."""
    old = databases.primary
    databases.strike("api", "slow-stop", seconds=str(3 * RESUMED_SECONDS))
    with databases.clients() as writing:
        databases.freeze(old)
        databases.moved(old)
        databases.thaw(old)
        time.sleep(RESUMED_SECONDS)
        databases.heal("api")
        databases.subject.mend(old, writing.revive)
        figures = writing.stop()
    assert figures["write_gap_seconds"] <= 7


@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["donor", "recipient"])
def test_a_rebuild_whose_donor_or_host_dies_is_done_again_and_never_serves_half(
    databases: Databases, victim: str
) -> None:
    """Enough data that copying it takes a while, and a kill in the middle of it."""
    primary, (host, other) = databases.primary, databases.replicas
    databases.sql(
        primary,
        f"CREATE TABLE IF NOT EXISTS {TABLE}_big (id INT AUTO_INCREMENT PRIMARY KEY, t LONGTEXT)",
        *[f"INSERT INTO {TABLE}_big (t) VALUES (REPEAT('x', 8000000))"] * 30,
        seconds=120,
    )
    killed = threading.Event()

    def kill() -> None:
        copying = "SELECT STATE FROM performance_schema.clone_status"
        until(
            lambda: any("Progress" in row["STATE"] for row in _tried(databases, host, copying)),
            120,
            "it copies",
        )
        databases.kill(host if victim == "recipient" else other)
        killed.set()

    striker = threading.Thread(target=kill, daemon=True)
    striker.start()
    try:
        try:
            databases.rebuilt(host)
        except AssertionError:
            assert killed.is_set(), "it failed by itself"
        else:
            assert killed.is_set() or victim == "donor", "it was over before it was disturbed"
        assert databases.root(host, HEALTH + "primary", check=False) != "200"
        databases.rebuilt(host)
        until(lambda: not databases.view().why, 120, "the cluster is in order")
        count = f"(SELECT COUNT(*) FROM {TABLE}_big)"
        assert databases.value(host, count) == 30
    finally:
        databases.sql(databases.primary, f"DROP TABLE IF EXISTS {TABLE}_big", seconds=60)


def _tried(databases: Databases, name: str, sql: str) -> list[dict[str, str]]:
    try:
        return list(databases.sql(name, sql, seconds=2))
    except FlotillaError:
        return []


def test_reads_leave_a_replica_that_lags_and_come_back(databases: Databases) -> None:
    primary, (late, _) = databases.primary, databases.replicas
    fab("mysql.pause", "--reason", "a test works here", "--minutes", "10", "--yes")
    databases.sql(late, "STOP REPLICA SQL_THREAD")
    databases.write(primary, "ahead")
    until(lambda: databases.root(late, HEALTH + "replica", check=False) == "503", 30, "it leaves")
    databases.sql(late, "START REPLICA SQL_THREAD")
    until(lambda: databases.root(late, HEALTH + "replica", check=False) == "200", 30, "it is back")
    fab("mysql.unpause", "--yes")


def test_watchers_run_everywhere_and_come_back_when_they_are_killed(databases: Databases) -> None:
    for name in databases.hosts:
        databases.root(name, f"systemctl kill --signal=KILL {WATCHER}.service")
    for name in databases.hosts:
        until(
            lambda name=name: (
                databases.root(name, f"systemctl is-active {WATCHER}", check=False).strip()
                == "active"
            ),
            10,
            f"the watcher of {name} runs",
        )
