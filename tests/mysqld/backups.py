"""Archives of every host, full backups, restores and a client, on real servers."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from mysqld.server import Mysqld
from mysqld.trio import NAMES, Trio

from flotilla.agent.archive import Service
from flotilla.aws import dynamo
from flotilla.backup import full, restore, shared
from flotilla.backup.bucket import Bucket
from flotilla.backup.restore import Wanted
from flotilla.backup.sealed import Ring
from flotilla.backup.shared import Archiving
from flotilla.errors import FlotillaError
from flotilla.hosts.mysql import Server
from flotilla.rules.archive_duty import Progress
from flotilla.rules.backup import Manifest
from flotilla.rules.gtid import GtidSet
from flotilla.wait import until

log = logging.getLogger(__name__)

RING = Ring.parse("a-key-of-backups-that-is-long-enough")


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

    def __init__(self, trio: Trio, bucket: Bucket, names: Sequence[str] = NAMES) -> None:
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
            if server.name in names
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


def progress(trio: Trio) -> Progress:
    return shared.read(dynamo.clusters(trio.settings))[1] or Progress("", 0.0)


def archived(trio: Trio, name: str, seconds: float = 30.0) -> None:
    """Wait until all that a server has executed is in the archive."""
    executed = GtidSet.parse(trio.rows(name, "SELECT @@GLOBAL.gtid_executed AS e")[0]["e"])
    until(lambda: executed <= GtidSet.parse(progress(trio).gtids), seconds=seconds, every=0.1)


def backed_up(trio: Trio, bucket: Bucket, name: str, ring: Ring = RING) -> Manifest:
    """A full backup, taken on one server."""
    folder = trio.folder / f"copy-{name}"
    session = trio[name].session()
    copy = full.copy(session, folder, utc)
    session.close()
    upload = full.Upload(bucket, ring, folder, copy, cluster="mysql", host=name, now=utc, workers=2)
    made = upload.run()
    full.forget(folder)
    return made


def utc() -> datetime:
    return datetime.now(UTC)


@contextmanager
def restored(trio: Trio, bucket: Bucket, wanted: Wanted, name: str = "mysql-1") -> Iterator[Server]:
    """A server on what a restore made."""
    promised = GtidSet.parse(progress(trio).gtids)
    way = restore.find(bucket, RING, wanted, now=micro(), promised=promised)
    folder = trio.folder / f"restored-{time.time_ns()}"
    launch = launcher(trio[name])
    restore.restore(bucket, RING, way, folder, launch, said=log.info)
    with restore.serving(folder, launch) as server:
        yield server


def ids(server: Server, table: str) -> list[int]:
    return [row["id"] for row in server.query(f"SELECT id FROM {table} ORDER BY id")]


def insert(trio: Trio, name: str, table: str, number: int) -> int:
    """Write a row; the moment after it."""
    trio.rows(name, f"INSERT INTO {table} VALUES ({number})")
    return micro()


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
