"""MySQL behind two local ports: one leads to the primary, the other to the replicas.

Which host is behind a port may change at any moment. A statement whose connection breaks, or that
meets a host which no longer takes writes, is tried again on a new connection until the patience is
used up. Only statements that may run twice without harm are given to this module: reads, and
inserts under a unique id chosen by the client.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import pymysql
from pymysql.connections import Connection
from pymysql.cursors import DictCursor

from guestbook.settings import Address, Settings

Row = dict[str, Any]
Result = TypeVar("Result")

CONNECT_SECONDS = 1
# Longer than a healthy statement by two orders of magnitude; a frozen primary is given up after
# this.
ANSWER_SECONDS = 2
RETRY_PAUSE_SECONDS = 0.05

DUPLICATE_KEY = 1062
# The server refuses, and another one (or the same a moment later) will not: too many connections,
# shutting down, --read-only or --super-read-only, transaction read only, offline mode.
REFUSALS = frozenset({1040, 1053, 1290, 1792, 1836, 3032})
# Client side: cannot connect, gone away, lost in the middle.
BREAKS = frozenset({0, 2002, 2003, 2006, 2013, 2014, 2055})


class UnavailableError(Exception):
    """No server answered within the patience.

    Nothing is known about an insert that was under way.
    """


@dataclass(frozen=True, slots=True)
class Stamp:
    """Where a write was acknowledged: the server's UUID and what it had executed by then."""

    server: str
    gtid_executed: str


def is_transient(error: Exception) -> bool:
    """Whether the same statement may succeed on a new connection."""
    if isinstance(error, pymysql.err.InterfaceError | OSError):
        return True
    code = error.args[0] if error.args and isinstance(error.args[0], int) else None
    return isinstance(error, pymysql.err.MySQLError) and code in REFUSALS | BREAKS


def encryption(ca: str | None) -> ssl.SSLContext:
    """TLS to the server.

    With a CA file it has to prove the name it is connected to; without one it is only encrypted.
    """
    context = ssl.create_default_context(cafile=ca)
    context.check_hostname = bool(ca)
    context.verify_mode = ssl.CERT_REQUIRED if ca else ssl.CERT_NONE
    return context


class Database:
    """Connections that all threads share: as many for each port as are needed at the same time.

    One a thread would make the first request of each of them pay for a new one: with 16 threads, a
    tenth of the requests in the seconds after a start.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._tls = encryption(settings.database_ca)
        self._idle: dict[Address, list[Connection[DictCursor]]] = {}
        self._lock = threading.Lock()
        self._clock = clock
        self._sleep = sleep

    def warm(self, connections: int) -> None:
        """Open connections to the primary and a replica before somebody waits for them.

        What does not answer is left for later.
        """
        for address in (self._settings.writer, self._settings.reader):
            for _ in range(connections):
                try:
                    self._put(address, self._open(address))
                except (pymysql.err.MySQLError, OSError):
                    break

    def read(self, sql: str, arguments: Iterable[object] = ()) -> list[Row]:
        """Rows from a replica, or from the primary when no replica answers.

        Raises UnavailableError.
        """
        arguments = tuple(arguments)
        try:
            return self._run(self._settings.reader, sql, arguments, patience=0)
        except UnavailableError:
            return self.read_primary(sql, arguments)

    def read_primary(self, sql: str, arguments: Iterable[object] = ()) -> list[Row]:
        """Rows from the primary: what the caller wrote a moment ago is among them.

        Raises UnavailableError.
        """
        return self._run(
            self._settings.writer, sql, tuple(arguments), patience=self._settings.patience_seconds
        )

    def insert(self, sql: str, arguments: Iterable[object]) -> Stamp:
        """Insert a row under a unique key, once.

        A row that is there already counts as inserted. Raises UnavailableError.
        """
        arguments = tuple(arguments)

        def work(connection: Connection[DictCursor]) -> Stamp:
            with connection.cursor() as cursor:
                try:
                    cursor.execute(sql, arguments)
                except pymysql.err.IntegrityError as error:
                    if error.args[0] != DUPLICATE_KEY:
                        raise
                cursor.execute(
                    "SELECT @@server_uuid AS server, @@global.gtid_executed AS gtid_executed"
                )
                row = cursor.fetchone() or {}
            return Stamp(str(row["server"]), str(row["gtid_executed"]).replace("\n", ""))

        return self._retry(self._settings.writer, work, self._settings.patience_seconds)

    def ping(self, *, primary: bool) -> str | None:
        """None when the port leads to a server that answers, else why not. One try."""
        try:
            self._run(
                self._settings.writer if primary else self._settings.reader,
                "SELECT 1",
                (),
                patience=0,
            )
        except UnavailableError as error:
            return str(error)
        return None

    def _run(
        self, address: Address, sql: str, arguments: tuple[object, ...], *, patience: float
    ) -> list[Row]:
        def work(connection: Connection[DictCursor]) -> list[Row]:
            with connection.cursor() as cursor:
                cursor.execute(sql, arguments)
                return list(cursor.fetchall())

        return self._retry(address, work, patience)

    def _retry(
        self, address: Address, work: Callable[[Connection[DictCursor]], Result], patience: float
    ) -> Result:
        deadline = self._clock() + patience
        fresh = False
        while True:
            connection: Connection[DictCursor] | None = None
            try:
                connection = self._take(address) or self._open(address)
                result = work(connection)
            except Exception as error:
                self._drop(address, connection)
                if not is_transient(error):
                    raise
                # An idle connection may have been cut long ago: the first break is worth one new
                # connection.
                if fresh and self._clock() >= deadline:
                    raise UnavailableError(f"{address.host}:{address.port}: {error}") from error
                if fresh:
                    self._sleep(RETRY_PAUSE_SECONDS)
                fresh = True
            else:
                self._put(address, connection)
                return result

    def _take(self, address: Address) -> Connection[DictCursor] | None:
        """The connection that was used last, so that no more are in use than needed."""
        with self._lock:
            idle = self._idle.get(address)
            return idle.pop() if idle else None

    def _put(self, address: Address, connection: Connection[DictCursor]) -> None:
        with self._lock:
            self._idle.setdefault(address, []).append(connection)

    def _open(self, address: Address) -> Connection[DictCursor]:
        return pymysql.connect(
            host=address.host,
            port=address.port,
            user=self._settings.database_user,
            password=self._settings.database_password,
            database=self._settings.database,
            charset="utf8mb4",
            autocommit=True,
            cursorclass=DictCursor,
            connect_timeout=CONNECT_SECONDS,
            read_timeout=ANSWER_SECONDS,
            write_timeout=ANSWER_SECONDS,
            ssl=self._tls,
        )

    def _drop(self, address: Address, connection: Connection[DictCursor] | None) -> None:
        """Close a connection that broke, and those that wait: whatever cut it has cut them too."""
        with self._lock:
            broken = self._idle.pop(address, [])
        for one in (*broken, *([connection] if connection else [])):
            with contextlib.suppress(pymysql.err.MySQLError, OSError):
                one.close()
