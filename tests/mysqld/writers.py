"""Clients that write to whichever server lets them, and remember what they were told.

They are worse than any client behind HAProxy: a server that was deposed gets its writes as soon as
it would take them. What none of them was told OK for proves nothing; what one of them was told OK
for must be on the primary in the end.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import pymysql
from mysqld.server import Mysqld
from mysqld.trio import NAMES, Trio

TABLE = "writes"
_PAUSE_SECONDS = 0.01
# A blocked commit is not given up before a test is over.
_ANSWER_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Write:
    """One row that a server said OK to. Times are monotonic."""

    id: int
    server: str
    at: float


class Writers:
    """``with Writers(trio) as clients:`` they write until ``stop``.

    A client that got no answer for ``answer_seconds`` tries the next server.
    """

    def __init__(
        self, trio: Trio, count: int = 4, *, answer_seconds: float = _ANSWER_SECONDS
    ) -> None:
        self._answer_seconds = answer_seconds
        self._trio = trio
        self._user = trio.settings.mysql.user
        self._password = trio.secrets.passwords[self._user]
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._next = 0
        self.count = count
        self._threads: list[threading.Thread] = []
        self._open: dict[threading.Thread, Any] = {}
        self.acked: list[Write] = []

    def __enter__(self) -> Self:
        primary = self._trio.primary.client(self._user, self._password)
        with primary.cursor() as cursor:
            database = self._trio.settings.mysql.database
            cursor.execute(
                f"CREATE TABLE IF NOT EXISTS {database}.{TABLE}"
                " (id BIGINT PRIMARY KEY, taken_by CHAR(36) NOT NULL)"
            )
            cursor.execute(f"SELECT COALESCE(MAX(id), 0) FROM {database}.{TABLE}")
            self._next = cursor.fetchone()[0]
        primary.close()
        for _ in range(self.count):
            thread = threading.Thread(target=self._write, daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> list[Write]:
        """End the writing. What still waits for an answer then was never told OK."""
        self._stopping.set()
        with self._lock:
            waiting = list(self._open.values())
        for connection in waiting:
            with suppress(OSError, AttributeError):
                connection._sock.shutdown(socket.SHUT_RDWR)  # close() would not wake a reader
        for thread in self._threads:
            thread.join(5)
        return self.acked

    def since(self, moment: float) -> list[Write]:
        """What was told OK after a moment."""
        return [write for write in list(self.acked) if write.at > moment]

    def _write(self) -> None:
        turn = 0
        while not self._stopping.is_set():
            server = self._trio[NAMES[turn % len(NAMES)]]
            turn += 1
            try:
                self._write_to(server)
            except (pymysql.err.MySQLError, OSError, EOFError, AttributeError, ValueError):
                time.sleep(_PAUSE_SECONDS)

    def _write_to(self, server: Mysqld) -> None:
        connection = server.client(
            self._user, self._password, connect_timeout=1, read_timeout=self._answer_seconds
        )
        with self._lock:
            self._open[threading.current_thread()] = connection
        database = self._trio.settings.mysql.database
        with connection.cursor() as cursor:
            while not self._stopping.is_set():
                with self._lock:
                    self._next += 1
                    number = self._next
                cursor.execute(
                    f"INSERT INTO {database}.{TABLE} VALUES (%s, @@server_uuid)", (number,)
                )
                self.acked.append(Write(number, server.name, time.monotonic()))
                time.sleep(_PAUSE_SECONDS)


def held(trio: Trio, name: str) -> set[int]:
    """The rows that a server has."""
    database = trio.settings.mysql.database
    return {row["id"] for row in trio.rows(name, f"SELECT id FROM {database}.{TABLE}")}


def gap_seconds(writes: list[Write], moment: float) -> float:
    """For how long nobody was told OK, around a moment."""
    times = sorted(write.at for write in writes)
    before = max((t for t in times if t <= moment), default=moment)
    return min((t for t in times if t > moment), default=float("inf")) - before
