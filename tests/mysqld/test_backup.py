"""Full backups, the archive of binary logs, and the way back."""

from __future__ import annotations

import random
import time

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

from flotilla.backup import stored
from flotilla.backup.bucket import Bucket
from flotilla.backup.restore import Wanted
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
        known = len(GtidSet.parse(progress(trio).gtids))
        for replica in ("mysql-2", "mysql-3"):
            # Cut off first: what waits in the socket of a frozen server is received after all.
            trio.rows(replica, "STOP REPLICA IO_THREAD")
            trio[replica].freeze()
        lonely = Commit(trio, trio["mysql-1"], 2)
        until(lambda: len(GtidSet.parse(progress(trio).gtids)) == known + 1, seconds=10, every=0.1)
        trio["mysql-1"].kill()
        during = micro()
        for replica in ("mysql-2", "mysql-3"):
            trio[replica].thaw()
        new = agents.await_primary("mysql-1", seconds=60)
        assert lonely.wait(10) != "OK"
        after = insert(trio, new, table, 3)
        archived(trio, new)
        assert [row["id"] for row in trio.rows(new, f"SELECT id FROM {table}")] == [0, 1, 3]
    for moment, rows in ((before, [0, 1]), (during, [0, 1]), (after, [0, 1, 3]), (None, [0, 1, 3])):
        with restored(trio, bucket, Wanted(until=moment)) as server:
            assert ids(server, table) == rows
