"""Write numbered rows to MySQL; see ``flotilla.agent.ledger``."""

from __future__ import annotations

import ssl
import time
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pymysql

from flotilla.agent import ledger
from flotilla.agent.ledger import ANSWER_SECONDS, READY_SECONDS, RETRY_SECONDS, NotWrittenError
from flotilla.rules.ledger import Fate, fate_of

FAILURES = (pymysql.err.MySQLError, OSError, EOFError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(ledger.Order):
    """An order for a table of a database."""

    program = "flotilla.agent.ledger_mysql"
    carry = ("pymysql",)

    database: str
    table: str
    # Whom the server has to prove ``host`` by (PEM).
    authority: str


class Way:
    """A connection that lasts; see ``ledger.Way``. ``server`` is the UUID of who is at its end."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._connection: Any = None
        self.server = ""

    def write(self, name: str) -> None:
        """See ``ledger.Way``."""
        sent = False
        try:
            if self._connection is None:
                self._connection, self.server = connect(self._order)
            sent = True
            with self._connection.cursor() as cursor:
                cursor.execute(
                    f"INSERT INTO `{self._order.table}` (id, server) VALUES (%s, @@server_uuid)",  # noqa: S608
                    (name,),
                )
        except FAILURES as error:
            code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
            fate = fate_of(code, sent=sent)
            said = f"{type(error).__name__} {code}"
            is_refusal = sent and fate is Fate.FAILED
            raise NotWrittenError(fate, said, is_refusal=is_refusal) from error

    def drop(self) -> None:
        """See ``ledger.Way``."""
        if self._connection is not None:
            self._connection._force_close()  # noqa: SLF001  close() would wait for a dead server
        self._connection, self.server = None, ""


def connect(order: Order) -> tuple[Any, str]:
    """A new connection, and the UUID of the server at its end.

    The server has to prove the order's ``host`` before it is told the password.
    """
    connection: Any = pymysql.connect(
        host=order.host,
        port=order.port,
        ssl=_context(order.authority),
        user=order.user,
        password=order.password,
        database=order.database,
        autocommit=True,
        connect_timeout=ANSWER_SECONDS,
        read_timeout=ANSWER_SECONDS,
        write_timeout=ANSWER_SECONDS,
    )
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@server_uuid")
            (uuid,) = cursor.fetchone()
    except BaseException:
        connection._force_close()  # noqa: SLF001
        raise
    return connection, str(uuid)


@lru_cache(maxsize=2)
def _context(authority: str) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority)


def create_table(order: Order) -> None:
    """Have the table that the rows go to.

    Asked again for a while, as every client of a database does: just after a switchover a proxy may
    still lead to the server that gave the role away, which hangs up. Raises what the last try did.
    """
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            connection, _ = connect(order)
            with closing(connection), connection.cursor() as cursor:
                cursor.execute(
                    f"CREATE TABLE IF NOT EXISTS `{order.table}` (id VARCHAR(64) PRIMARY KEY,"
                    " server CHAR(36) NOT NULL)"
                )
        except FAILURES:
            if time.monotonic() > end:
                raise
            time.sleep(RETRY_SECONDS)
        else:
            return


if __name__ == "__main__":
    ledger.run(Order, Way, create_table)
