"""Replace the data of the whole group by a snapshot that was fetched to this host, its primary.

Runs on that host, so that an operator whose connection ends has not ended it half-way. Order and
reasons:

1. What was fetched is read whole (redis-check-rdb) and has as many keys as its manifest says: until
   here nothing was touched. It lies as the base of an append-only file, for Redis does not look at
   any other snapshot while it has one.
2. The Sentinels are told to wait HOLD_MS for a primary that is away, those that answer, and a
   majority of them. A failover in the middle would bring the old data back. It is a longer time
   and no stop: whatever happens to this host or to this program, after HOLD_MS a replica that has
   the old data takes over.
3. Redis is stopped, its data directory moved aside, the new one put in its place, Redis started. It
   is the primary still, for the Sentinels name it.
4. Redis says how many keys it loaded. Where it does not start or says another number, the old data
   goes back.
5. Replicas see another history and copy everything. The old data stays aside: it is nobody's to
   throw away but the operator's.

The same again after it was cut off begins at 1. Between the two renames of 3 there is no data
directory, and Redis on a host that has none does not start as the primary.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis
import redis_rules as rules
from redis_backup import keys_in
from redis_move import CalledOffError, Places, UnclearError, say
from redis_rebuild import systemctl

# Longer than systemd waits for Redis to end (TimeoutStopSec). A Redis that loads answers already.
HOLD_MS = 120_000
LOAD_SECONDS = 900.0
COPY_SECONDS = 1800.0
POLL_SECONDS = 0.25
ANNOUNCED = "backup.json"
BASE = "appendonlydir/appendonly.aof.1.base.rdb"
_MANIFEST = "appendonlydir/appendonly.aof.manifest"


@contextlib.contextmanager
def alone(home: Path) -> Iterator[None]:
    """One restore at a time: one whose operator was killed goes on here. Raises CalledOffError.

    Who fetches a backup to ``home`` holds the same lock: flotilla.agent.redis_backup.
    """
    handle = os.open(home, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CalledOffError("another restore is at work here; wait until it ends") from None
        yield
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Restored:
    """``keys`` were loaded on ``host``; ``before`` is where its old data is, "" for none."""

    host: str
    backup: str
    keys: int
    before: str
    seconds: float
    away_seconds: float


@dataclass(frozen=True)
class Disk:
    """Where this host's data is; ``own`` gives a file or folder to Redis' user."""

    data: Path
    own: Callable[[Path], None]

    @property
    def new(self) -> Path:
        """Where a backup is fetched to."""
        return self.data.with_name("data.new")

    def aside(self) -> Path:
        """Where the old data will wait; one of that second is never there yet."""
        return self.data.with_name(f"data.before-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")


class Swap:
    """One restore. ``service`` starts and stops Redis; ``say`` gets a line for each step."""

    def __init__(
        self,
        places: Places,
        disk: Disk,
        *,
        named: str,
        wait_ms: str,
        service: Callable[[str], None] = systemctl,
        say: Callable[[str], None] = say,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._places = places
        self._disk = disk
        self._named = named
        self._wait_ms = wait_ms
        self._service = service
        self._say = say
        self._clock = clock
        self._sleep = sleep
        self._me = places.servers[places.me]
        self._others: list[str] = []

    def run(self, backup: str) -> Restored:
        """Do it. Raises CalledOffError where this host has its old data, UnclearError."""
        started = self._clock()
        keys = self._look(backup)
        with self._held():
            stopped = self._clock()
            before = self._replace(keys)
            away = self._clock() - stopped
            self._await_copies()
        return Restored(
            self._places.me,
            backup,
            keys,
            str(before or ""),
            round(self._clock() - started, 1),
            round(away, 2),
        )

    def _look(self, backup: str) -> int:
        """How many keys there will be."""
        me = self._places.addresses[self._places.me]
        if self._named != me:
            raise CalledOffError(f"a majority of the Sentinels names {self._named or 'nobody'}")
        with contextlib.suppress(redis.exceptions.RedisError):
            if self._me.info("replication")["role"] != "master":
                raise CalledOffError(f"{self._places.me} is no primary")
        try:
            found = json.loads((self._disk.new / ANNOUNCED).read_text())
            name, keys = found["id"], int(found["keys"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CalledOffError(f"no backup was fetched to {self._disk.new}: {error}") from error
        if name != backup:
            raise CalledOffError(f"{self._disk.new} has {name}, not {backup}")
        self._others = [n for n in self._places.servers if n != self._places.me and self._hears(n)]
        self._say(f"read {backup}")
        if (there := keys_in(self._disk.new / BASE)) != keys:
            raise CalledOffError(f"{backup} has {there} keys, and its manifest says {keys}")
        return keys

    def _hears(self, name: str) -> bool:
        try:
            self._places.servers[name].ping()
        except redis.exceptions.RedisError:
            return False
        return True

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """No Sentinel fails over for as long as the block lasts, and HOLD_MS at the most."""
        held = [name for name in self._places.sentinels if self._waits(name, str(HOLD_MS))]
        try:
            if len(held) < rules.majority(len(self._places.sentinels)):
                raise CalledOffError(f"only the Sentinels of {', '.join(held) or 'nobody'} answer")
            yield
        finally:
            for name in self._places.sentinels:
                if not self._waits(name, self._wait_ms):
                    self._say(f"the Sentinel of {name} was not told to be quick again")

    def _waits(self, name: str, milliseconds: str) -> bool:
        try:
            self._places.sentinels[name].execute_command(
                "SENTINEL", "SET", self._places.cluster, "down-after-milliseconds", milliseconds
            )
        except redis.exceptions.RedisError:
            return False
        return True

    def _replace(self, keys: int) -> Path | None:
        """Where the old data is now."""
        data, new, aside = self._disk.data, self._disk.new, self._disk.aside()
        manifest = new / _MANIFEST
        try:
            manifest.write_text(f"file {Path(BASE).name} seq 1 type b\n")
            for path in (new, manifest.parent, manifest, new / BASE):
                self._disk.own(path)
            (new / ANNOUNCED).unlink()
            self._say("stop Redis")
            self._service("stop")
        except OSError as error:
            self._try("start")
            raise CalledOffError(f"Redis was not stopped: {error}") from error
        had = rules.has_data(data)
        try:
            if had:
                data.rename(aside)
            else:
                shutil.rmtree(data, ignore_errors=True)
            new.rename(data)
            self._say(f"start with {keys} keys" + (f"; the old data is in {aside}" if had else ""))
            self._service("start")
            self._demand(keys)
        except (OSError, CalledOffError) as error:
            raise self._undone(aside if had else None, error) from error
        return aside if had else None

    def _undone(self, aside: Path | None, error: Exception) -> Exception:
        """Everything as it was; the error to raise."""
        data, new = self._disk.data, self._disk.new
        if aside is None:
            return UnclearError(f"Redis did not load it, and there was no data before: {error}")
        try:
            # A Redis that runs would go on writing into a directory that has another name by then.
            self._service("stop")
            if aside.exists():
                if data.exists():
                    shutil.rmtree(new, ignore_errors=True)
                    data.rename(new)
                aside.rename(data)
            self._service("start")
        except OSError as worse:
            return UnclearError(f"{error}; then, with the old data: {worse}; it is in {aside}")
        return CalledOffError(f"{error}; the old data is served again")

    def _try(self, verb: str) -> None:
        with contextlib.suppress(OSError):
            self._service(verb)

    def _demand(self, keys: int) -> None:
        """Raises CalledOffError unless Redis is the primary and has loaded so many."""
        end = self._clock() + LOAD_SECONDS
        why = "nobody was asked yet"
        while self._clock() < end:
            try:
                info = self._me.info("persistence") | self._me.info("replication")
            except redis.exceptions.RedisError as error:
                why = f"Redis does not answer ({error})"
            else:
                why = rules.unloaded(info, keys)
                if not info["loading"]:
                    break
            self._sleep(POLL_SECONDS)
        if why:
            raise CalledOffError(why)

    def _await_copies(self) -> None:
        """Wait until everybody who was there has copied everything."""
        end = self._clock() + COPY_SECONDS
        self._say(f"wait for the copies of {', '.join(self._others) or 'nobody'}")
        lacking = dict.fromkeys(self._others, "it was not asked yet")
        while lacking and self._clock() < end:
            lacking = {name: why for name in self._others if (why := self._uncopied(name))}
            self._sleep(POLL_SECONDS if lacking else 0.0)
        if lacking:
            why = "; ".join(f"{name}: {why}" for name, why in lacking.items())
            raise UnclearError(f"{self._places.me} serves the backup, but {why}")

    def _uncopied(self, name: str) -> str:
        try:
            mine = self._me.info("replication")["master_replid"]
            theirs = self._places.servers[name]
            info: Mapping[str, Any] = theirs.info("replication") | theirs.info("persistence")
        except redis.exceptions.ConnectionError as error:
            # Whoever is away copies everything when it comes back: nothing of its history fits.
            return "" if "refused" in str(error) else str(error)
        except redis.exceptions.RedisError as error:
            return str(error)
        if info.get("master_replid") != mine:
            return "it has another history"
        return rules.uncopied(info)
