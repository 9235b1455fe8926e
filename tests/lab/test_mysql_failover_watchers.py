"""Who decides: watchers that are cut off, that race, that sleep, and those that may not."""

from __future__ import annotations

import os
import time

import pytest
from databases import WATCHER, Databases, blocked
from guests import control, needs_lab, until
from typed import fab

from flotilla.rules.mysql_state import Claim

pytestmark = [needs_lab, pytest.mark.drill, pytest.mark.thorough]

SATURATED_SECONDS = 600
# Of one core, while all is well.
HEALTHY_CPU_SHARE = 0.01
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
HEALTHY_BYTES = 40 << 20
WATCHED_SECONDS = 60
LONG_CHANGE = """
CREATE TABLE ops.long_one (id INT PRIMARY KEY AUTO_INCREMENT, t CHAR(200)) AS SELECT UUID() AS t
  FROM performance_schema.global_variables a, performance_schema.global_variables b LIMIT 200000;
ALTER TABLE ops.long_one ENGINE = InnoDB, ALGORITHM = COPY;
DROP TABLE ops.long_one
"""


# --- no failover ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_all", [True, False], ids=["from everybody", "from the primary"])
def test_a_watcher_that_is_cut_off_alone_changes_nothing(
    databases: Databases, is_all: bool
) -> None:
    blind = databases.replicas[0]
    with databases.clients() as writing:
        databases.cut(blind, *([] if is_all else [databases.primary]))
        databases.stays(45)
        databases.heal(blind)
        until(lambda: not databases.view().why, 60, "the replica follows again")
        assert writing.stop()["write_gap_seconds"] < 1


@pytest.mark.timeout(900)
def test_hosts_without_a_free_core_for_ten_minutes_are_not_dead(databases: Databases) -> None:
    burn = f"systemd-run --unit=burn-$i timeout {SATURATED_SECONDS} sh -c 'while :; do :; done'"
    record = databases.state.record
    with databases.clients() as writing:
        for name in databases.hosts:
            databases.root(name, f"for i in 1 2; do {burn}; done")
        try:
            databases.stays(SATURATED_SECONDS)
        finally:
            for name in databases.hosts:
                databases.root(name, "systemctl stop 'burn-*'", check=False)
        writing.stop()
    assert databases.state.record == record


@pytest.mark.parametrize(
    "statement",
    [
        "FLUSH TABLES WITH READ LOCK; SELECT SLEEP(25)",
        LONG_CHANGE,
    ],
    ids=["everything locked", "a long table change"],
)
def test_a_primary_that_makes_writers_wait_is_alive(databases: Databases, statement: str) -> None:
    with databases.clients() as writing:
        run = f'systemd-run --unit=slow-{time.time_ns()} mysql -e "{statement}"'
        databases.root(databases.primary, run)
        databases.stays(30)
        writing.stop()


# --- nobody may -----------------------------------------------------------------------------------


def test_a_pause_holds_a_failover_back_and_its_end_lets_it_happen(databases: Databases) -> None:
    old = databases.primary
    databases.write(old, "kept")
    fab("mysql.pause", "--reason", "a test works here", "--minutes", "10", "--yes")
    databases.dies(old)
    databases.stays()
    fab("mysql.unpause", "--yes")
    assert "kept" in databases.rows(databases.moved(old))


def test_after_a_failover_there_is_no_second_one_until_somebody_has_looked(
    databases: Databases,
) -> None:
    first = databases.primary
    databases.kill(first)
    second = databases.moved(first)
    # Not by the drill's own hands: those tell that somebody has looked.
    until(lambda: not databases.view().why, 60, "everybody is in order")
    databases.dies(second)
    databases.stays()
    told = fab("mysql.history")
    assert told["blocked_until"]
    fab("mysql.history", "--acknowledge", "--yes")
    databases.moved(second)


def test_a_primary_that_comes_and_goes_is_left_once_and_loses_nothing(
    databases: Databases,
) -> None:
    """Group Replication lost acknowledged writes under these two rhythms."""
    term, old = databases.state.record.term, databases.primary
    with databases.clients() as writing:
        for rounds, off, on in ((6, 5, 4), (4, 11, 5)):
            for _ in range(rounds):
                databases.cut(old)
                time.sleep(off)
                databases.heal(old)
                time.sleep(on)
        assert databases.state.record.term <= term + 1
        databases.subject.mend(old, writing.revive)
        writing.stop()


def test_without_the_api_nobody_is_promoted_and_with_it_somebody_is(databases: Databases) -> None:
    old, replicas = databases.primary, databases.replicas
    databases.write(old, "kept")
    databases.strike("api", "api-outage")
    databases.dies(old)
    time.sleep(15)
    open_ones = [name for name in replicas if _is_writable(databases, name)]
    databases.heal("api")
    assert open_ones == [], "who is primary is in the record, and nobody could write it"
    assert "kept" in databases.rows(databases.moved(old))


def _is_writable(databases: Databases, name: str) -> bool:
    return databases.value(name, "@@GLOBAL.super_read_only") == 0


def test_a_primary_that_is_well_serves_on_while_the_api_is_away(databases: Databases) -> None:
    with databases.clients() as writing:
        databases.strike("api", "api-outage")
        time.sleep(60)
        databases.heal("api")
        assert writing.stop()["write_gap_seconds"] < 1


# --- who of them ----------------------------------------------------------------------------------


def test_two_watchers_that_see_it_at_once_are_one_failover(databases: Databases) -> None:
    old, term = databases.primary, databases.state.record.term
    past = len(databases.state.past)
    with databases.clients() as writing:
        databases.kill(old)
        databases.moved(old)
        databases.subject.mend(old, writing.revive)
        writing.stop()
    assert databases.state.record.term == term + 1
    assert len(databases.state.past) == past + 1


@pytest.mark.parametrize("action", ["UpdateItem", "dynamodb"], ids=["slow writes", "slow record"])
def test_a_watcher_that_sleeps_through_its_own_lease_does_nothing_when_it_wakes(
    databases: Databases, action: str
) -> None:
    """The primary stays down: one that came back before the lease ran out would just go on."""
    old = databases.primary
    with databases.clients() as writing:
        # Slow enough that whoever has the lease is still at work when it is put to sleep, and quick
        # enough that there are answers: a watcher waits for one a second.
        databases.strike("api", "slow-api", action=action, seconds=0.6)
        databases.dies(old)
        claim = until(lambda: _claim(databases, old), 30, "a watcher has the lease")
        sleeper = _holder(databases, claim)
        databases.strike(sleeper, "freeze-process", unit=WATCHER)
        databases.heal("api")
        left = max(0.0, claim.expires_at - time.time())
        new = databases.moved(old, 2 * left + 60)
        time.sleep(left)
        databases.heal(sleeper)
        time.sleep(5)
        assert databases.primary == new
        databases.lives(old)
        databases.subject.mend(old, writing.revive)
        writing.stop()


def _claim(databases: Databases, old: str) -> Claim | None:
    """The lease of a watcher that is about to replace ``old``."""
    claim = databases.state.claim
    if claim is None or not claim.holder or claim.expires_at < time.time():
        return None
    return claim if _holder(databases, claim) not in {"", old} else None


def _holder(databases: Databases, claim: Claim) -> str:
    """The host whose watcher has signed; "" for somebody else."""
    signed = (name for name, host in databases.hosts.items() if host.instance_id in claim.holder)
    return next(signed, "")


# --- what it costs --------------------------------------------------------------------------------


def test_a_healthy_cluster_costs_a_hundredth_of_a_core_and_little_memory(
    databases: Databases,
) -> None:
    def spent(name: str) -> tuple[float, int]:
        """CPU seconds and resident bytes of the watcher's process."""
        pid = int(databases.root(name, f"systemctl show -P MainPID {WATCHER}"))
        told = databases.root(name, f"ps -o cputimes=,rss= -p {pid}; cat /proc/{pid}/stat")
        first, stat = told.strip().split("\n")
        ticks = sum(map(int, stat.rpartition(")")[2].split()[11:13]))
        return ticks / CLOCK_TICKS, int(first.split()[1]) * 1024

    before = {name: spent(name) for name in databases.hosts}
    time.sleep(WATCHED_SECONDS)
    for name in databases.hosts:
        seconds, resident = spent(name)
        share = (seconds - before[name][0]) / WATCHED_SECONDS
        assert share <= HEALTHY_CPU_SHARE, (name, share)
        assert resident <= HEALTHY_BYTES, (name, resident)


def test_a_write_that_nobody_acknowledges_is_never_answered(databases: Databases) -> None:
    """The base of all of it: a primary without its replicas takes writes and says nothing."""
    fab("mysql.pause", "--reason", "a test works here", "--minutes", "10", "--yes")
    old = databases.primary
    databases.cut(old, *databases.replicas)
    assert blocked(databases, old, "never acknowledged")
    assert control("status")["faults"]
