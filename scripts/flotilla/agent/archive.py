"""The service on every database host that keeps the archive of binary logs: one host at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from flotilla.aws.lean import Metric
from flotilla.backup.archiver import Archiver, parts_of
from flotilla.backup.bucket import Bucket
from flotilla.backup.sealed import Ring
from flotilla.backup.shared import Archiving
from flotilla.errors import FlotillaError, Unreachable
from flotilla.hosts.mysql import MISSING, Server, SqlError
from flotilla.rules.archive import Stream, Tenure, union
from flotilla.rules.archive_duty import Act, Progress, act, is_due
from flotilla.rules.gtid import GtidSet
from flotilla.rules.mysql_topology import Record

TURN_SECONDS = 0.5
IDLE_SECONDS = 1.0
# The item is renewed, and the record read again, so often.
SAY_SECONDS = 2.0
# A key that was rotated is in use after this.
RING_SECONDS = 300.0

log = logging.getLogger("flotilla.archive")

_STANDING = """
SELECT @@GLOBAL.server_uuid AS uuid, t.term AS term,
  CAST(UNIX_TIMESTAMP(t.granted_at) * 1000000 AS UNSIGNED) AS began,
  @@GLOBAL.gtid_purged AS purged, @@GLOBAL.gtid_executed AS executed
FROM ops.term t ORDER BY t.term DESC LIMIT 1
"""


class Records(Protocol):
    """Where the record of who is primary is read."""

    def read(self) -> Record | None:
        """The record now. Raises FlotillaError."""


class Service:
    """``run`` for ever; ``turn`` is one step of it and returns seconds until the next."""

    def __init__(
        self,
        *,
        host: str,
        instance_id: str,
        server: Server,
        index: Path,
        records: Records,
        archiving: Archiving,
        bucket: Bucket,
        ring: Callable[[], Ring],
        measured: Callable[[Mapping[str, Metric]], bool] = lambda _: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._instance_id = instance_id
        self._server = server
        self._index = index
        self._records = records
        self._archiving = archiving
        self._bucket = bucket
        self._ring = ring
        self._measured = measured
        self._clock = clock
        self._archiver: Archiver | None = None
        self._looked_at = 0.0
        self._ring_at = 0.0
        self._measured_at = 0.0
        self._measured_as = 0.0
        self._caught_up_at = 0.0
        self._said = ""
        self._purged = ""
        self._executed = ""

    def run(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Never returns."""
        while True:
            try:
                wait = self.turn()
                self._tell("")
            except FlotillaError as error:
                wait = IDLE_SECONDS
                self._tell(error.what)
            sleep(wait)

    def turn(self) -> float:
        """Look who is to archive; if it is this host, send what there is. Raises FlotillaError."""
        now = self._clock()
        if now >= self._looked_at + SAY_SECONDS or self._archiver is None:
            self._look(now)
        if self._archiver is None:
            return IDLE_SECONDS
        more = self._archiver.turn()
        if not self._archiver.behind:
            self._caught_up_at = now
        return 0.0 if more else TURN_SECONDS

    def _look(self, now: float) -> None:
        """Agree with the others; and when nobody can be asked, go on as before."""
        try:
            record = self._records.read()
            lease, progress = self._archiving.read()
        except Unreachable:
            self._looked_at = now
            raise
        tenure = self._tenure(record)
        is_primary = record is not None and record.instance_id == self._instance_id
        wanted = act(
            lease, me=self._archiving.me, is_primary=is_primary and tenure is not None, now=now
        )
        if tenure is None or not (wanted == "archive" or self._taken(wanted, now)):
            self._archiver = None
            return
        if self._archiver is None or self._archiver.tenure != tenure:
            self._archiver = self._started(tenure, progress)
            self._caught_up_at = progress.caught_up_at if progress else now
            self._ring_at = now
            log.info("archiving as %s", tenure.stream.prefix)
        elif now >= self._ring_at + RING_SECONDS:
            self._archiver.ring = self._ring()
            self._ring_at = now
        self._looked_at = now
        said = Progress(
            self._host,
            self._caught_up_at,
            str(self._archiver.archived),
            str(self._archiver.missing),
        )
        behind = max(0.0, now - self._caught_up_at)
        if not self._archiving.say(said, now):
            self._archiver = None
        elif is_due(behind, self._measured_as, now - self._measured_at):
            self._measured_at = now
            if self._measured({"ArchiveBehindSeconds": (behind, "Seconds")}):
                self._measured_as = behind

    def _taken(self, wanted: Act, now: float) -> bool:
        return wanted == "take" and self._archiving.take(now)

    def _started(self, tenure: Tenure, progress: Progress | None) -> Archiver:
        ring = self._ring()
        if progress:
            archived, missing = GtidSet.parse(progress.gtids), GtidSet.parse(progress.missing)
        else:
            parts = list(parts_of(self._bucket, ring))
            sent = union(part.gtids for part in parts)
            archived = sent | union(part.previous or GtidSet() for part in parts)
            missing = archived - sent
        # What a former primary alone had was never acknowledged. It was archived, and would be
        # looked for long after its stream is deleted.
        executed = GtidSet.parse(self._executed)
        return Archiver(
            self._bucket,
            ring,
            self._index,
            tenure,
            archived & executed,
            missing=missing & executed,
            purged=GtidSet.parse(self._purged),
        )

    def _tenure(self, record: Record | None) -> Tenure | None:
        """The stream that this server would write: None before it has seen any term."""
        if record is None:
            return None
        try:
            rows = self._server.query(_STANDING)
        except SqlError as error:
            if error.code in MISSING:
                return None
            raise
        if not rows or rows[0]["term"] != record.term:
            return None
        self._purged, self._executed = rows[0]["purged"], rows[0]["executed"]
        return Tenure(Stream(int(rows[0]["term"]), rows[0]["uuid"]), int(rows[0]["began"]))

    def _tell(self, trouble: str) -> None:
        if trouble != self._said:
            log.info("%s", trouble or "archiving goes on")
            self._said = trouble
