"""Full backups, the archive of binary logs, and the way back, on real servers and a real S3 API."""

from __future__ import annotations

import logging
import random
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import boto3
import pytest
from mysqld.agents import Agents
from mysqld.server import Mysqld
from mysqld.trio import Trio

from flotilla.agent.archive import Service
from flotilla.aws import dynamo
from flotilla.aws.items import Table
from flotilla.backup import full, restore
from flotilla.backup.bucket import Bucket
from flotilla.backup.restore import Wanted
from flotilla.backup.sealed import Ring
from flotilla.backup.shared import ARCHIVE, Archiving, parsed
from flotilla.errors import FlotillaError
from flotilla.hosts.mysql import Server
from flotilla.rules.archive_duty import Progress
from flotilla.rules.backup import Manifest
from flotilla.rules.gtid import GtidSet
from flotilla.wait import until

log = logging.getLogger(__name__)

RING = Ring.parse("a-key-of-backups-that-is-long-enough")


@pytest.fixture
def bucket(api: str) -> Bucket:
    s3 = boto3.client("s3", endpoint_url=api, region_name="eu-central-1")
    s3.create_bucket(
        Bucket="backups", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    return Bucket(s3, "backups")


def launcher(member: Mysqld) -> restore.Launch:
    """Another server from the same programs and settings."""

    def launch(_: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*member._argv(), *options], stdin=subprocess.DEVNULL)

    return launch


def micro() -> int:
    return time.time_ns() // 1000


class Over(BaseException):
    """Ends what runs for ever."""


class Archives:
    """``with Archives(trio, bucket) as archives:`` the service of every host, a thread each."""

    def __init__(self, trio: Trio, bucket: Bucket) -> None:
        self._over = threading.Event()
        self.services = {
            server.name: Service(
                host=server.name,
                instance_id=server.instance_id,
                server=server.session(),
                index=server.data / "binlog.index",
                records=trio.records,
                archiving=Archiving(dynamo.clusters(trio.settings), server.name),
                bucket=bucket,
                ring=lambda: RING,
            )
            for server in trio.servers.values()
        }
        self._threads = [
            threading.Thread(target=self._run, args=(one,), daemon=True)
            for one in self.services.values()
        ]

    def _run(self, service: Service) -> None:
        def sleep(seconds: float) -> None:
            if self._over.wait(seconds):
                raise Over

        with suppress(Over):
            service.run(sleep)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)


def table_of(trio: Trio) -> Table:
    return dynamo.clusters(trio.settings)


def progress(trio: Trio) -> Progress:
    item = table_of(trio).get(ARCHIVE)
    assert item is not None
    found = parsed(table_of(trio), item)[1]
    assert found is not None
    return found


def archived(trio: Trio, name: str) -> None:
    """Wait until all that a server has executed is in the archive."""
    executed = GtidSet.parse(trio.rows(name, "SELECT @@GLOBAL.gtid_executed AS e")[0]["e"])
    until(
        lambda: ARCHIVE and executed <= GtidSet.parse(progress(trio).gtids), seconds=30, every=0.1
    )


def backed_up(trio: Trio, bucket: Bucket, name: str) -> Manifest:
    """A full backup, taken on one server."""
    folder = trio.folder / f"copy-{name}"
    session = trio[name].session()
    copy = full.copy(session, folder, utc)
    session.close()
    upload = full.Upload(bucket, RING, folder, copy, cluster="mysql", host=name, now=utc, workers=2)
    made = upload.run()
    full.forget(folder)
    return made


def utc() -> datetime:
    return datetime.now(UTC)


@contextmanager
def restored(trio: Trio, bucket: Bucket, wanted: Wanted, name: str = "mysql-1") -> Iterator[Server]:
    """A server on what a restore made."""
    way = restore.find(bucket, RING, wanted, now=micro())
    folder = trio.folder / f"restored-{time.time_ns()}"
    launch = launcher(trio[name])
    data = restore.restore(bucket, RING, way, folder, launch, said=log.info)
    options = [f"--datadir={data}", "--skip-networking=ON"]
    with restore.running(folder, options, launch) as server:
        yield server


def ids(server: Server, table: str) -> list[int]:
    return [row["id"] for row in server.query(f"SELECT id FROM {table} ORDER BY id")]


def insert(trio: Trio, name: str, table: str, number: int) -> int:
    """Write a row; the moment after it."""
    trio.rows(name, f"INSERT INTO {table} VALUES ({number})")
    return micro()


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
    assert full.verify(bucket, RING, manifest) == []
    for number in (2, 19, 20, 39):
        with restored(trio, bucket, Wanted(until=moments[number])) as server:
            assert ids(server, table) == [*range(number + 1)]
    with restored(trio, bucket, Wanted()) as server:
        assert ids(server, table) == [*range(40)]


class Client:
    """One writer that goes wherever the primary is; it stops for a moment to look at the clock."""

    def __init__(self, trio: Trio, table: str) -> None:
        self._trio = trio
        self._table = table
        self.sent = 0
        self.acked: set[int] = set()

    def write(self, count: int) -> int:
        """Write so many rows; the moment after the last one."""
        for _ in range(count):
            self.sent += 1
            with suppress(FlotillaError):
                session = self._trio.primary.session()
                try:
                    sql = f"INSERT INTO {self._table} VALUES ({self.sent})"
                    session.query(sql, seconds=3)
                    self.acked.add(self.sent)
                finally:
                    session.close()
        return micro()


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
