"""Full backups, the archive of binary logs, and the way back."""

from __future__ import annotations

import random
import re
import subprocess
import threading
import time

import pytest
from mysqld.agents import Agents
from mysqld.backups import (
    RING,
    Archives,
    Client,
    archived,
    backed_up,
    ids,
    insert,
    micro,
    progress,
    restored,
)
from mysqld.commits import Commit
from mysqld.trio import Trio

from flotilla.backup import archiver, stored
from flotilla.backup.archiver import parts_of
from flotilla.backup.bucket import Bucket
from flotilla.backup.contents import contents
from flotilla.backup.restore import Wanted
from flotilla.hosts.mysql import Server
from flotilla.rules.binlog import Reader
from flotilla.rules.gtid import GtidSet
from flotilla.wait import until


def test_a_cluster_is_restored_to_any_moment(trio: Trio, table: str, bucket: Bucket) -> None:
    with Archives(trio, bucket):
        insert(trio, "mysql-1", table, 1)
        manifest = backed_up(trio, bucket, "mysql-2")
        moments = {}
        for number in range(2, 40):
            moments[number] = insert(trio, "mysql-1", table, number)
            if number % 10 == 0:
                trio.rows("mysql-1", "FLUSH BINARY LOGS")
            time.sleep(0.002)
        archived(trio, "mysql-1")
    assert stored.verify(bucket, RING, manifest) == []
    for number in (2, 19, 20, 39):
        with restored(trio, bucket, Wanted(until=moments[number])) as server:
            assert ids(server, table) == [*range(number + 1)]
    with restored(trio, bucket, Wanted()) as server:
        assert ids(server, table) == [*range(40)]


def test_ten_moments_across_two_failovers_are_row_exact(
    trio: Trio, table: str, api: str, bucket: Bucket
) -> None:
    client = Client(trio, table)
    moments: list[tuple[int, int]] = []
    with Agents(trio, api) as agents, Archives(trio, bucket):
        primary = agents.await_whole("mysql-1", seconds=60)
        backed_up(trio, bucket, "mysql-3")

        def some(rounds: int) -> None:
            for _ in range(rounds):
                moment = client.write(random.randint(5, 40))
                moments.append((moment, client.sent))
                time.sleep(0.01)

        some(5)
        for _ in range(2):
            old = primary
            # What it writes now is acknowledged by nobody, and may be archived all the same.
            trio[old].kill()
            primary = agents.await_primary(old)
            some(4)
            trio[old].start()
            agents.await_whole(primary, seconds=60)
            until(trio.records.acknowledge, seconds=20, every=0.2)  # else there is no second one
            some(3)
        archived(trio, primary)
        truth = {row["id"] for row in trio.rows(primary, f"SELECT id FROM {table}")}
    assert client.acked <= truth
    for moment, sent in random.sample(moments, 10):
        expected = sorted(one for one in truth if one <= sent)
        with restored(trio, bucket, Wanted(until=moment)) as server:
            assert ids(server, table) == expected


def test_what_nobody_acknowledged_is_in_the_archive_and_never_restored(
    trio: Trio, table: str, api: str, bucket: Bucket
) -> None:
    with Agents(trio, api) as agents, Archives(trio, bucket):
        agents.await_whole("mysql-1", seconds=60)
        backed_up(trio, bucket, "mysql-2")
        before = insert(trio, "mysql-1", table, 1)
        archived(trio, "mysql-1")
        known = GtidSet.parse(progress(trio).gtids)
        for replica in ("mysql-2", "mysql-3"):
            # Cut off first: what waits in the socket of a frozen server is received after all.
            trio.rows(replica, "STOP REPLICA IO_THREAD")
            trio[replica].freeze()
        lonely = Commit(trio, trio["mysql-1"], 2)
        until(lambda: len(GtidSet.parse(progress(trio).gtids) - known) == 1, seconds=10, every=0.1)
        alone = GtidSet.parse(progress(trio).gtids) - known
        trio["mysql-1"].kill()
        during = micro()
        for replica in ("mysql-2", "mysql-3"):
            trio[replica].thaw()
        new = agents.await_primary("mysql-1", seconds=60)
        assert lonely.wait(10) != "OK"
        after = insert(trio, new, table, 3)
        archived(trio, new)
        assert [row["id"] for row in trio.rows(new, f"SELECT id FROM {table}")] == [0, 1, 3]
        # Looked for, it would be missed as soon as the old stream is deleted.
        assert not alone & GtidSet.parse(progress(trio).gtids)
    for moment, rows in ((before, [0, 1]), (during, [0, 1]), (after, [0, 1, 3]), (None, [0, 1, 3])):
        with restored(trio, bucket, Wanted(until=moment)) as server:
            assert ids(server, table) == rows


def test_tags_and_transactions_larger_than_a_part(
    trio: Trio, table: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiver, "WINDOW", 64 << 10)
    name = f"{trio.settings.mysql.database}.large"
    backed_up(trio, bucket, "mysql-2")
    with Archives(trio, bucket, ["mysql-1"]):
        trio.rows("mysql-1", f"CREATE TABLE {name} (id INT PRIMARY KEY, text LONGTEXT)")
        session = trio["mysql-1"].session()
        session.query("SET gtid_next = 'AUTOMATIC:blue'")
        session.query(f"INSERT INTO {table} VALUES (1)")
        session.query(f"INSERT INTO {name} VALUES (1, REPEAT('x', 1000000))", seconds=20)
        moment = micro()
        session.query("SET gtid_next = 'AUTOMATIC'")
        session.query(f"INSERT INTO {table} VALUES (2)")
        session.close()
        archived(trio, "mysql-1")
    executed = GtidSet.parse(trio.rows("mysql-1", "SELECT @@gtid_executed AS e")[0]["e"])
    assert any(tag == "blue" for _, tag in executed.sources)
    parts = list(parts_of(bucket, RING))
    assert len(parts) > 10
    for wanted, rows in ((Wanted(until=moment), [0, 1]), (Wanted(), [0, 1, 2])):
        with restored(trio, bucket, wanted) as server:
            assert ids(server, table) == rows
            assert server.query(f"SELECT LENGTH(text) AS n FROM {name}")[0]["n"] == 1000000


def test_what_is_read_of_a_log_is_what_mysqlbinlog_prints(trio: Trio, table: str) -> None:
    for number in range(1, 6):
        insert(trio, "mysql-1", table, number)
    trio.rows("mysql-1", "FLUSH BINARY LOGS")
    log = trio["mysql-1"].data / "binlog.000002"
    printed = subprocess.run(
        trio["mysql-1"].binaries.argv("usr/bin/mysqlbinlog", "--no-defaults", "-vv", str(log)),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = re.findall(r"GTID_NEXT= '([0-9a-f-]{36}):(\d+)'", printed)
    times = [int(one) for one in re.findall(r"# original_commit_timestamp=(\d+)", printed)]
    for size in (1, 7, 100, 10**9):
        data, reader, found = log.read_bytes(), Reader(), []
        for start in range(0, len(data), size):
            found += reader.feed(data[start : start + size])
        assert [(one.source[0], str(one.number)) for one in found] == names
        assert [one.committed for one in found] == times
        assert (reader.at, reader.whole, reader.is_over) == (len(data), len(data), True)


def test_two_servers_are_compared_while_one_is_written_to(
    trio: Trio, table: str, bucket: Bucket
) -> None:
    backed_up(trio, bucket, "mysql-2")
    client = Client(trio, table)
    with Archives(trio, bucket, ["mysql-1"]):
        writes = threading.Thread(target=client.write, args=(150,))
        writes.start()
        until(lambda: client.sent > 50, seconds=20, every=0.01)
        holds = contents(trio["mysql-3"].session)
        writes.join()
        archived(trio, "mysql-1")
    assert len(GtidSet.parse(holds.gtids)) >= 50
    wanted = Wanted(gtids=GtidSet.parse(holds.gtids))
    with restored(trio, bucket, wanted) as server:
        made = contents(lambda: Server("restored", server._open))
    assert made == holds
    assert made != contents(trio["mysql-1"].session)


def test_a_primary_that_was_made_from_a_copy_has_all_that_came_before(
    trio: Trio, table: str, bucket: Bucket
) -> None:
    """Its logs begin with nothing, as after CLONE or a restore; what it holds is much more."""
    insert(trio, "mysql-1", table, 1)
    backed_up(trio, bucket, "mysql-2")
    executed = trio.rows("mysql-1", "SELECT @@GLOBAL.gtid_executed AS e")[0]["e"]
    session = trio["mysql-1"].session()
    session.batch(["RESET BINARY LOGS AND GTIDS", ("SET GLOBAL gtid_purged = %s", (executed,))])
    session.close()
    for replica in ("mysql-2", "mysql-3"):  # their streams were in the logs that are gone
        trio.rows(replica, "STOP REPLICA IO_THREAD")
        trio.rows(replica, "START REPLICA IO_THREAD")
    with Archives(trio, bucket, ["mysql-1"]):
        moment = insert(trio, "mysql-1", table, 2)
        insert(trio, "mysql-1", table, 3)
        archived(trio, "mysql-1")
    for wanted, rows in ((Wanted(until=moment), [0, 1, 2]), (Wanted(), [0, 1, 2, 3])):
        with restored(trio, bucket, wanted) as server:
            assert ids(server, table) == rows
