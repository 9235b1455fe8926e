"""Single writes and what their clients were told; what replicas received; appliers held back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pymysql
from mysqld.server import Mysqld
from mysqld.trio import Trio

from flotilla.hosts.mysql import SqlError
from flotilla.mysql import takeover

_ID = "SELECT id FROM {} ORDER BY id"


class Commit:
    """One INSERT by an application, on a thread: what was it told?"""

    def __init__(self, trio: Trio, server: Mysqld, number: int) -> None:
        user = trio.settings.mysql.user
        self._table = f"{trio.settings.mysql.database}.t"
        self._connection = server.client(user, trio.secrets.passwords[user])
        self._number = number
        self.said = "nothing yet"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(f"INSERT INTO {self._table} VALUES (%s)", (self._number,))
            self.said = "OK"
        except (pymysql.err.MySQLError, OSError, EOFError) as error:
            self.said = f"error {error.args[0]}"

    def wait(self, seconds: float) -> str:
        """What it was told within that time."""
        self._thread.join(seconds)
        return self.said


def ids(trio: Trio, name: str, table: str) -> list[int]:
    with suppress(SqlError):
        return [row["id"] for row in trio.rows(name, _ID.format(table))]
    return []


def on(server: Mysqld, work: Callable[[Any], None]) -> None:
    """Do one of our steps on a session of its own."""
    session = server.session()
    try:
        work(session)
    finally:
        session.close()


def revoke_all(trio: Trio) -> None:
    for replica in trio.replicas:
        on(replica, takeover.revoke)


def received(trio: Trio, name: str) -> str:
    rows = trio.rows(
        name,
        "SELECT RECEIVED_TRANSACTION_SET AS gtids"
        " FROM performance_schema.replication_connection_status WHERE CHANNEL_NAME = ''",
    )
    return "".join(rows[0]["gtids"].split())


@contextmanager
def held_applier(trio: Trio, replica: Mysqld, table: str) -> Iterator[None]:
    """The replica receives and acknowledges, and cannot apply to the table meanwhile."""
    session = replica.session()
    session.query(f"LOCK TABLES {table} READ")
    try:
        yield
    finally:
        session.close()


def io_state(trio: Trio, replica: Mysqld) -> str:
    rows = trio.rows(
        replica.name,
        "SELECT SERVICE_STATE AS io FROM performance_schema.replication_connection_status"
        " WHERE CHANNEL_NAME = ''",
    )
    return str(rows[0]["io"])
