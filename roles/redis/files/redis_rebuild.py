"""Throw the data of a replica away and copy the primary's: the data or its file is broken.

Runs on that host, so that an operator whose connection ends has not ended it half-way. Order and
reasons:

1. A majority of the Sentinels names another host, that host says it is the primary, and another
   replica keeps up with it: writes go on, and nothing exists here only.
2. Redis is stopped, and the data directory moved aside: until the copy is whole, it is not thrown
   away. One that is aside already is from a rebuild that was cut off, and what came after it is
   half a copy.
3. Redis is started with priority 0: Sentinel never makes a host primary that holds half of the
   data. It stays so for as long as the copy is not whole, whatever happens to this program.
4. The copy is whole when the link is up and the append-only file was written anew with all of it.
5. The usual priority, and only then the old data goes.

What Sentinel owns stays as it is.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import redis_rules as rules
from redis_move import USUAL, CalledOffError, Places, UnclearError, say, told

NEVER = "0"
# A copy of everything, and its append-only file.
COPY_SECONDS = 1800.0
POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Rebuilt:
    """``primary`` is whom it follows, ``keys`` how many the copy has."""

    host: str
    primary: str
    keys: int
    seconds: float


@dataclass(frozen=True)
class Disk:
    """Where this host's data and Redis' own file are, and how that file is written."""

    data: Path
    own: Path
    put: Callable[[Path, str], None]

    @property
    def aside(self) -> Path:
        """Where the old data waits."""
        return self.data.with_name("data.before")

    def free(self) -> int:
        """Bytes that are free beside the data."""
        return shutil.disk_usage(self.data.parent).free


def systemctl(verb: str) -> None:
    """Start or stop Redis. Raises OSError."""
    done = subprocess.run(
        ["systemctl", verb, "redis-server.service"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        # The lines after the first are advice.
        said = done.stderr.splitlines() or [f"systemctl {verb}: exit {done.returncode}"]
        raise OSError(said[0].strip())


class Rebuild:
    """One rebuild. ``service`` starts and stops Redis; ``say`` gets a line for each step."""

    def __init__(
        self,
        places: Places,
        disk: Disk,
        *,
        named: str,
        service: Callable[[str], None] = systemctl,
        say: Callable[[str], None] = say,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._places = places
        self._disk = disk
        self._named = named
        self._service = service
        self._say = say
        self._clock = clock
        self._sleep = sleep
        self._me = places.servers[places.me]

    def run(self) -> Rebuilt:
        """Do it. Raises CalledOffError with nothing changed, UnclearError."""
        started = self._clock()
        primary = self._look()
        self._say(f"stop, and move the old data to {self._disk.aside}")
        self._empty()
        self._say(f"copy everything from {primary}")
        self._await_copy()
        keys, follows = self._finish()
        return Rebuilt(self._places.me, follows, keys, round(self._clock() - started, 1))

    def _look(self) -> str:
        """The primary's name. Raises CalledOffError."""
        addresses = self._places.addresses
        name = next((n for n, address in addresses.items() if address == self._named), "")
        if not name:
            raise CalledOffError("no majority of the Sentinels names a primary")
        with told(name):
            info = self._places.servers[name].info("replication")
            wanted = self._places.servers[name].info("memory")["used_memory"]
        why = rules.keep_data(info, named=self._named, me=addresses[self._places.me])
        if why:
            raise CalledOffError(why)
        if self._disk.free() < wanted:
            raise CalledOffError(
                f"{self._disk.free()} bytes are free and the copy may need {wanted}; the old data"
                " is kept until it is whole"
            )
        return name

    def _empty(self) -> None:
        try:
            self._service("stop")
            if self._disk.data.exists() and not self._disk.aside.exists():
                self._disk.data.rename(self._disk.aside)
            else:
                shutil.rmtree(self._disk.data, ignore_errors=True)
            text = self._disk.own.read_text() if self._disk.own.exists() else ""
            self._disk.put(self._disk.own, f"{text.rstrip()}\nreplica-priority {NEVER}\n")
        except OSError as error:
            with contextlib.suppress(OSError):
                self._service("start")
            raise UnclearError(f"the data could not be moved aside: {error}") from error
        try:
            self._service("start")
        except OSError as error:
            raise UnclearError(f"Redis did not start: {error}; {self._kept()}") from error

    def _await_copy(self) -> None:
        end = self._clock() + COPY_SECONDS
        why = "nobody was asked yet"
        while self._clock() < end:
            why = self._uncopied()
            if not why:
                return
            self._sleep(POLL_SECONDS)
        raise UnclearError(f"{why} after {COPY_SECONDS:g} s; {self._kept()}")

    def _uncopied(self) -> str:
        try:
            # What it follows, and what is on its disk.
            info: Mapping[str, Any] = self._me.info("replication") | self._me.info("persistence")
        except redis.exceptions.RedisError as error:
            return f"Redis does not answer ({error})"
        return rules.uncopied(info)

    def _finish(self) -> tuple[int, str]:
        """How many keys there are, and whose they are."""
        try:
            self._me.config_set("replica-priority", USUAL)
            self._me.config_rewrite()
            keys = sum(db["keys"] for db in self._me.info("keyspace").values())
            host = self._me.info("replication")["master_host"]
        except redis.exceptions.RedisError as error:
            raise UnclearError(f"the copy is whole, then: {error}; {self._kept()}") from error
        shutil.rmtree(self._disk.aside, ignore_errors=True)
        return keys, next((n for n, a in self._places.addresses.items() if a == host), host)

    def _kept(self) -> str:
        return f"the old data is in {self._disk.aside}"
