"""Rebuild and rejoin on three real servers: nothing that only one has is lost, nothing spreads."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from mysqld.operators import operator
from mysqld.trio import Trio

from flotilla.aws.session import client
from flotilla.errors import FlotillaError, HostFailed, Refused
from flotilla.mysql import reports, steps, store, surplus
from flotilla.mysql.operate_rebuild import rebuilding
from flotilla.mysql.rejoin import Rejoining
from flotilla.rules.mysql_report import Loss, Report
from flotilla.wait import until

OURS = "guestbook"


def unseen(_: str) -> Any:
    """Steps that nobody watches."""
    return nullcontext()


@pytest.fixture
def bucket(trio: Trio) -> str:
    """Where surplus goes."""
    name = trio.settings.name_of("backups")
    client(trio.settings, "s3").create_bucket(
        Bucket=name, CreateBucketConfiguration={"LocationConstraint": trio.settings.region}
    )
    return name


@pytest.fixture
def orders(trio: Trio) -> None:
    """A table that everybody has."""
    trio.rows(
        trio.primary.name,
        f"CREATE TABLE {OURS}.orders (id INT PRIMARY KEY, what VARCHAR(20))",
    )
    trio.rows(trio.primary.name, f"INSERT INTO {OURS}.orders VALUES (1, 'first')")
    for replica in trio.replicas:
        until(lambda name=replica.name: ids(trio, name) == [1], seconds=10)


def ids(trio: Trio, name: str) -> list[int]:
    try:
        return [row["id"] for row in trio.rows(name, f"SELECT id FROM {OURS}.orders ORDER BY id")]
    except HostFailed:
        return []


def write_on_its_own(trio: Trio, name: str, *ids_: int) -> None:
    """Rows that no primary ever had, as a server takes them that was left behind."""
    session = trio[name].session()
    session.query("SET GLOBAL super_read_only = OFF")
    for number in ids_:
        session.query(f"INSERT INTO {OURS}.orders VALUES (%s, 'only here')", (number,))
    session.query("SET GLOBAL super_read_only = ON")
    session.close()


def unapplied(trio: Trio, name: str) -> str:
    rows = trio.rows(
        name,
        "SELECT GTID_SUBTRACT(RECEIVED_TRANSACTION_SET, @@GLOBAL.gtid_executed) AS rest"
        " FROM performance_schema.replication_connection_status",
    )
    return str(rows[0]["rest"])


def follows(trio: Trio, name: str) -> bool:
    rows = trio.rows(
        name,
        "SELECT c.HOST AS host, s.SERVICE_STATE AS io, @@GLOBAL.offline_mode AS offline,"
        " @@GLOBAL.super_read_only AS closed"
        " FROM performance_schema.replication_connection_configuration c"
        " JOIN performance_schema.replication_connection_status s USING (CHANNEL_NAME)",
    )
    return rows == [{"host": trio.primary.address, "io": "ON", "offline": 0, "closed": 1}]


def test_a_diverged_host_is_saved_and_becomes_a_copy_that_follows(
    trio: Trio, bucket: str, orders: None, tmp_path: Path
) -> None:
    uuid = trio.rows("mysql-2", "SELECT @@server_uuid AS uuid")
    write_on_its_own(trio, "mysql-2", 7, 8)
    report = Report(
        "failover", 1, "2026-01-02T03:04:05+00:00", "mysql-3", "mysql-2", "mysql-1", "dead", (), (),
        {}, Loss(0, ""), fate="mysql-2 is stopped",
    )  # fmt: skip
    with operator(trio, tmp_path) as (opened, _):
        reports.keep(opened.cluster.server("mysql-1"), report)
        run = rebuilding(opened, "mysql-2")
        plan = run.plan()
        assert (plan.donor.name, plan.primary.name) == ("mysql-3", "mysql-1")
        done = run.apply(unseen)
        kept = reports.read(opened.cluster.server("mysql-1"))[0]
    assert done.surplus
    assert done.surplus.gtids == plan.surplus
    assert done.surplus.rows == {f"{OURS}.orders": {"insert": 2}}
    key = done.surplus.saved_to.removeprefix(f"s3://{bucket}/")
    body = client(trio.settings, "s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    assert b"only here" in gzip.decompress(body)
    assert ids(trio, "mysql-2") == [1]
    assert follows(trio, "mysql-2")
    # What it numbered under the old one is gone, and must not be given out again.
    assert trio.rows("mysql-2", "SELECT @@server_uuid AS uuid") != uuid
    assert kept.surplus == done.surplus
    assert kept.fate == "mysql-2 was rebuilt from mysql-3 and follows mysql-1"
    state = store.records(trio.settings).state()
    assert state
    assert not state.barred
    trio.rows("mysql-1", f"INSERT INTO {OURS}.orders VALUES (9, 'after')")
    until(lambda: ids(trio, "mysql-2") == [1, 9], seconds=10)
    accounts = trio.rows("mysql-1", "SELECT user FROM mysql.user WHERE user LIKE 'flotilla_cl%%'")
    assert accounts == []


def test_when_both_replicas_diverged_and_the_primary_came_back_read_only_one_is_made_anew(
    trio: Trio, bucket: str, orders: None, tmp_path: Path
) -> None:
    """Nobody acknowledges, so the primary is not opened; and to be copied it need not be."""
    write_on_its_own(trio, "mysql-2", 7)
    write_on_its_own(trio, "mysql-3", 8)
    trio["mysql-1"].kill()
    trio["mysql-1"].start()
    until(lambda: answers(trio, "mysql-1"), seconds=30)
    for name in ("mysql-2", "mysql-3"):
        trio.rows(name, "STOP REPLICA")
        trio.rows(name, "SET GLOBAL rpl_semi_sync_replica_enabled = OFF")
    with operator(trio, tmp_path) as (opened, _):
        run = rebuilding(opened, "mysql-2")
        plan = run.plan()
        assert (plan.donor.name, plan.asleep) == ("mysql-1", True)
        with pytest.raises(Refused, match="mysql-1 is the primary"):
            rebuilding(opened, "mysql-1").plan()
        # The servers that this thread starts end with it: what the watcher does is in another one.
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(opened_by_its_watcher, trio, "mysql-1", "mysql-2")
            done = run.apply(unseen)
            opening.result()
        assert done.surplus
        assert done.surplus.rows == {f"{OURS}.orders": {"insert": 1}}
        assert ids(trio, "mysql-2") == [1]
        trio.rows("mysql-1", f"INSERT INTO {OURS}.orders VALUES (9, 'after')")
        until(lambda: ids(trio, "mysql-2") == [1, 9], seconds=10)
        for name in ("mysql-1", "mysql-2"):
            left = trio.rows(name, "SELECT user FROM mysql.user WHERE user LIKE 'flotilla_cl%%'")
            assert left == [], name


def follows_by_now(trio: Trio, name: str) -> bool:
    """A copy ends in a restart, so it may be away."""
    try:
        return follows(trio, name)
    except FlotillaError:
        return False


def answers(trio: Trio, name: str) -> bool:
    try:
        return bool(trio.rows(name, "SELECT 1 AS one"))
    except FlotillaError:
        return False


def opened_by_its_watcher(trio: Trio, name: str, replica: str) -> None:
    """Which does so once somebody acknowledges."""
    until(lambda: follows_by_now(trio, replica), seconds=90)
    record = trio.record
    session = trio[name].session()
    session.query("SET GLOBAL rpl_semi_sync_source_enabled = ON")
    until(lambda: clients(trio, name) == 1, seconds=10)
    session.batch(steps.open_for_writes(record.term, record.uuid), seconds=10)
    session.close()


def clients(trio: Trio, name: str) -> int:
    rows = trio.rows(name, "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_source_clients'")
    return int(rows[0]["Value"])


def test_what_was_received_and_never_applied_is_saved_too(
    trio: Trio, bucket: str, orders: None, tmp_path: Path
) -> None:
    """A replica whose applier stopped holds its newest transactions in the relay log only."""
    trio.rows("mysql-2", "STOP REPLICA SQL_THREAD")
    trio.rows("mysql-1", f"INSERT INTO {OURS}.orders VALUES (2, 'received only')")
    until(lambda: unapplied(trio, "mysql-2"), seconds=10)
    with operator(trio, tmp_path) as (opened, _):
        server = opened.cluster.server("mysql-2")
        behind = unapplied(trio, "mysql-2")
        host = opened.snapshot.host("mysql-2")
        saved = surplus.save(
            trio.settings,
            server,
            lambda command: opened.runner.stream(host, command, sudo=True),
            behind,
            term=1,
        )
    assert saved.rows == {f"{OURS}.orders": {"insert": 1}}


def test_transactions_that_are_in_no_log_any_more_stop_a_rebuild_until_they_are_given_up(
    trio: Trio, bucket: str, orders: None, tmp_path: Path
) -> None:
    write_on_its_own(trio, "mysql-2", 7)
    trio.rows("mysql-2", "FLUSH BINARY LOGS")
    newest = trio.rows("mysql-2", "SHOW BINARY LOGS")[-1]["Log_name"]
    trio.rows("mysql-2", f"PURGE BINARY LOGS TO '{newest}'")
    with operator(trio, tmp_path) as (opened, _):
        with pytest.raises(HostFailed, match="are not in its logs") as failed:
            rebuilding(opened, "mysql-2").apply(unseen)
        assert "--give-up" in failed.value.next
        assert ids(trio, "mysql-2") == [1, 7], "nothing of it was touched"
        done = rebuilding(opened, "mysql-2").apply(unseen, give_up=True)
    assert done.surplus
    assert done.surplus.saved_to == ""
    assert ids(trio, "mysql-2") == [1]
    assert follows(trio, "mysql-2")


def test_a_copy_that_was_cut_off_never_serves_and_is_made_again(
    trio: Trio, bucket: str, orders: None, tmp_path: Path
) -> None:
    """The donor dies in the middle; the half-made copy is restarted by whoever restarts it."""
    trio.rows("mysql-2", "SET GLOBAL clone_max_data_bandwidth = 1")
    # A recipient tries to go on with a lost donor for so many minutes.
    for name in ("mysql-2", "mysql-3"):
        trio.rows(name, "SET GLOBAL clone_donor_timeout_after_network_failure = 0")
    with operator(trio, tmp_path) as (opened, _):
        dying = threading.Thread(target=kill_donor, args=(trio,))
        dying.start()
        with pytest.raises(HostFailed, match="the copy was not completed") as failed:
            rebuilding(opened, "mysql-2").apply(unseen)
        dying.join()
        assert failed.value.next == "fab mysql.rebuild mysql-2"
        trio["mysql-2"].stop()
        trio.start(["mysql-2", "mysql-3"])
        trio.ensure()
        assert ids(trio, "mysql-2") == [], "its tables are gone"
        assert trio.rows("mysql-2", "SELECT @@GLOBAL.gtid_executed AS g") == [{"g": ""}]
        assert trio.rows("mysql-2", "SELECT @@GLOBAL.offline_mode AS off") == [{"off": 1}]
        state = store.records(trio.settings).state()
        assert state
        assert trio["mysql-2"].instance_id in state.barred
        impatient = iter(range(0, 1000, 15)).__next__
        run = Rejoining(trio.settings, opened.cluster, "mysql-2", clock=impatient)
        with store.lock(trio.settings, "a test") as lock, pytest.raises(Refused) as refused:
            run.apply(lock, unseen)
        assert "its data is being replaced" in refused.value.what
        done = rebuilding(opened, "mysql-2").apply(unseen)
    assert done.donor == "mysql-3"
    assert ids(trio, "mysql-2") == [1]
    assert follows(trio, "mysql-2")


def kill_donor(trio: Trio) -> None:
    """As soon as the old data is gone and new data comes."""
    stage = "SELECT STATE AS state FROM performance_schema.clone_progress WHERE STAGE = 'FILE COPY'"
    until(lambda: trio.rows("mysql-2", stage) == [{"state": "In Progress"}], seconds=60, every=0.02)
    trio["mysql-3"].kill()


def test_a_clean_former_primary_rejoins_by_command(
    trio: Trio, orders: None, tmp_path: Path
) -> None:
    trio["mysql-2"].stop()
    trio.start(["mysql-2"])
    with operator(trio, tmp_path) as (opened, _):
        run = Rejoining(trio.settings, opened.cluster, "mysql-2")
        with store.lock(trio.settings, "a test") as lock:
            done = run.apply(lock, unseen)
        assert done
        assert run.plan().do == "nothing"
    assert follows(trio, "mysql-2")


def test_a_diverged_host_does_not_rejoin(trio: Trio, orders: None, tmp_path: Path) -> None:
    trio["mysql-2"].stop()
    trio.start(["mysql-2"])
    write_on_its_own(trio, "mysql-2", 7)
    with (
        operator(trio, tmp_path) as (opened, _),
        pytest.raises(Refused, match="only it holds") as no,
    ):
        Rejoining(trio.settings, opened.cluster, "mysql-2").plan()
    assert no.value.next == "fab mysql.rebuild mysql-2"
