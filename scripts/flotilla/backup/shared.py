"""Items beside the cluster's record: who archives and how far, who takes a full backup or
rehearses a restore."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from flotilla.aws import lease
from flotilla.aws.items import Change, ChangedError, Item, Table, Value
from flotilla.errors import FlotillaError, Refused
from flotilla.rules.archive_duty import Lease, Progress

ARCHIVE = "mysql-archive"
BACKUP, DRILL = "mysql-backup", "mysql-drill"
REDIS_BACKUP = "redis-backup"
LEASE_SECONDS = 10.0
TAKING_SECONDS = 120.0


class Archiving:
    """The item of the archive: a lease that is taken over freely, and the holder's progress.

    ``me`` is this host as holder.
    """

    def __init__(self, table: Table, me: str) -> None:
        self._table = table
        self.me = me

    def read(self) -> tuple[Lease | None, Progress | None]:
        """Raises Refused without the table, Unreachable without an answer."""
        return read(self._table)

    def take(self, now: float) -> bool:
        """Become the holder; False when somebody else did in this moment."""
        try:
            lease.acquire(
                self._table,
                ARCHIVE,
                holder=self.me,
                reason="archive binary logs",
                seconds=LEASE_SECONDS,
                now=now,
                take_over=True,
            )
        except lease.Held:
            return False
        return True

    def say(self, progress: Progress, now: float) -> bool:
        """Renew, and say how far; False when the lease is somebody else's."""
        sets: dict[str, Value] = {
            "expires_at": {"N": repr(now + LEASE_SECONDS)},
            "host": {"S": progress.host},
            "caught_up_at": {"N": repr(progress.caught_up_at)},
            "archived": {"S": progress.gtids},
            "missing": {"S": progress.missing},
        }
        when: Mapping[str, Value | None] = {"holder": {"S": self.me}}
        with suppress(ChangedError):
            self._table.update(ARCHIVE, Change(sets, when))
            return True
        return False


def read(table: Table) -> tuple[Lease | None, Progress | None]:
    """Who archives, and how far. Raises Refused without the table, Unreachable."""
    item = table.get(ARCHIVE)
    return _parsed(table, item) if item else (None, None)


def _parsed(table: Table, item: Item) -> tuple[Lease | None, Progress | None]:
    """Raises Refused for an item that cannot be read."""
    try:
        held = lease.parsed(table, item)
        progress = None
        if "caught_up_at" in item:
            progress = Progress(
                item["host"]["S"],
                float(item["caught_up_at"]["N"]),
                item["archived"]["S"],
                item["missing"]["S"],
            )
    except (KeyError, ValueError) as error:
        raise Refused(
            f"the item {ARCHIVE} of table {table.name} cannot be read: {error!r}",
            untouched="Nothing was changed",
            next="fab backup.list",
        ) from error
    return (Lease(held.holder, held.expires_at) if held else None), progress


@contextmanager
def taking(
    table: Table,
    me: str,
    now: Callable[[], float] = time.time,
    *,
    item: str = BACKUP,
    reason: str = "take a full backup",
) -> Iterator[None]:
    """Be the one host that takes a full backup, or rehearses a restore. Raises lease.Held naming
    who does.

    Two at once would cost work and spoil nothing, so a lease that could not be renewed ends no run.
    """
    mine = lease.acquire(
        table,
        item,
        holder=me,
        reason=reason,
        seconds=TAKING_SECONDS,
        now=now(),
    )
    stopped = threading.Event()

    def renew() -> None:
        while not stopped.wait(TAKING_SECONDS / 4):
            with suppress(FlotillaError):
                lease.renew(table, mine, seconds=TAKING_SECONDS, now=now())

    thread = threading.Thread(target=renew, daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        with suppress(FlotillaError):
            lease.release(table, mine, now=now())
