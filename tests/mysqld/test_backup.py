"""Full backups, the archive of binary logs, and the way back, on real servers and a real S3 API."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest
from mysqld.server import Mysqld
from mysqld.trio import Trio

from flotilla.backup import full, restore
from flotilla.backup.archiver import Archiver
from flotilla.backup.bucket import Bucket
from flotilla.backup.restore import Wanted
from flotilla.backup.sealed import Ring
from flotilla.rules.archive import Stream, Tenure
from flotilla.rules.gtid import GtidSet

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


def archiver(bucket: Bucket, member: Mysqld, term: int, archived: GtidSet) -> Archiver:
    with_uuid = member.session()
    row = with_uuid.query(
        "SELECT @@server_uuid AS uuid, CAST(UNIX_TIMESTAMP(granted_at) * 1000000 AS UNSIGNED)"
        " AS began FROM ops.term ORDER BY term DESC LIMIT 1"
    )[0]
    with_uuid.close()
    tenure = Tenure(Stream(term, row["uuid"]), int(row["began"]))
    return Archiver(bucket, RING, member.data / "binlog.index", tenure, archived)


def send_all(one: Archiver) -> None:
    while one.turn():
        pass
    assert not one.behind


def test_a_cluster_is_restored_to_any_moment(
    trio: Trio, table: str, bucket: Bucket, tmp_path: Path
) -> None:
    mysql = trio["mysql-1"]
    sends = archiver(bucket, mysql, 1, GtidSet())
    trio.rows("mysql-1", f"INSERT INTO {table} VALUES (1)")
    replica = trio["mysql-2"].session()
    folder = trio.folder / "copy"
    copy = full.copy(replica, folder, lambda: datetime.now(UTC))
    upload = full.Upload(
        bucket, RING, folder, copy, cluster="mysql", host="mysql-2", now=lambda: datetime.now(UTC)
    )
    manifest = upload.run()
    assert full.verify(bucket, RING, manifest) == []
    moments = []
    for number in range(2, 30):
        trio.rows("mysql-1", f"INSERT INTO {table} VALUES ({number})")
        moments.append((number, micro()))
        if number % 10 == 0:
            send_all(sends)
            trio.rows("mysql-1", "FLUSH BINARY LOGS")
        time.sleep(0.002)
    send_all(sends)
    for number, moment in (moments[3], moments[17], moments[-1]):
        way = restore.find(bucket, RING, Wanted(until=moment), now=micro())
        data = restore.restore(
            bucket, RING, way, trio.folder / f"to-{number}", launcher(mysql), said=print
        )
        with restore.running(
            data.parent, [f"--datadir={data}", "--skip-networking=ON"], launcher(mysql)
        ) as server:
            rows = server.query(f"SELECT id FROM {table} ORDER BY id")
            assert [row["id"] for row in rows] == list(range(number + 1))
