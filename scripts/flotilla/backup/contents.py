"""What a server's tables hold at one GTID set: a checksum each, to compare two servers by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flotilla.hosts.mysql import Server

LOCK_SECONDS = 10
SUM_SECONDS = 6 * 3600.0
_TABLES = """
SELECT CONCAT('`', TABLE_SCHEMA, '`.`', TABLE_NAME, '`') AS name FROM information_schema.TABLES
WHERE TABLE_TYPE = 'BASE TABLE'
  AND TABLE_SCHEMA NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema')
ORDER BY name
"""


@dataclass(frozen=True, slots=True)
class Contents:
    """``sums`` is table to checksum, None for a table that could not be read."""

    gtids: str
    sums: dict[str, int | None]


def contents(session: Callable[[], Server]) -> Contents:
    """Read all tables of a running server as they are at one moment.

    Nothing may commit while the snapshot is taken, some milliseconds: a replica's applier waits,
    and nobody else. Raises SqlError when a statement holds that up for LOCK_SECONDS.
    """
    lock, reader = session(), session()
    try:
        lock.batch(
            [
                ("SET SESSION lock_wait_timeout = %s", (LOCK_SECONDS,)),
                "FLUSH TABLES WITH READ LOCK",
            ],
            seconds=2.0 * LOCK_SECONDS,
        )
        try:
            reader.batch(
                [
                    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
                    "START TRANSACTION WITH CONSISTENT SNAPSHOT",
                ]
            )
            row = lock.query("SELECT @@GLOBAL.gtid_executed AS gtids")[0]
        finally:
            lock.query("UNLOCK TABLES")
        sums = {}
        for table in reader.query(_TABLES, seconds=60):
            found = reader.query(f"CHECKSUM TABLE {table['name']}", seconds=SUM_SECONDS)
            sums[table["name"]] = found[0]["Checksum"]
        return Contents("".join(row["gtids"].split()), sums)
    finally:
        lock.close()
        reader.close()
