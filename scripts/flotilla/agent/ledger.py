"""Write numbered rows through this host's own way to the primary, and report what became of each.

Runs on an application host, as the application would. Input: one line of JSON (``Order``), then
"stop" when it is enough. Output: "ready" when the table is there, then one line of JSON an entry.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

import pymysql

from flotilla.rules.ledger import Entry, Fate

# An answer later than this is no answer: the client of a web request would have given up as well.
ANSWER_SECONDS = 5
RETRY_SECONDS = 0.01

# Codes from here on are the client library's: the connection broke, and nobody said what happened.
_CLIENT_ERRORS = 2000


@dataclass(frozen=True, slots=True)
class Order:
    """What to write where. ``pause_seconds`` is a writer's rest between two rows."""

    run: str
    port: int
    user: str
    password: str
    database: str
    table: str
    writers: int
    pause_seconds: float
    limit_seconds: float
    host: str = "127.0.0.1"


class Writer(threading.Thread):
    """One client: a connection of its own, a row at a time, a new connection after each error."""

    def __init__(self, order: Order, number: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.entries: list[Entry] = []
        self._order = order
        self._number = number
        self._stopped = stop
        self._connection: Any = None

    def run(self) -> None:
        """Write until told to stop."""
        count = 0
        while not self._stopped.is_set():
            count += 1
            entry = self._write(f"{self._order.run}-{self._number}-{count}")
            self.entries.append(entry)
            failed = entry.fate is not Fate.ACKED
            self._stopped.wait(RETRY_SECONDS if failed else self._order.pause_seconds)

    def _write(self, name: str) -> Entry:
        started = time.time()
        sent = False
        try:
            if self._connection is None:
                self._connection = connect(self._order)
            sent = True
            with self._connection.cursor() as cursor:
                cursor.execute(
                    f"INSERT INTO `{self._order.table}` (id, server) VALUES (%s, @@server_uuid)",  # noqa: S608
                    (name,),
                )
        except (pymysql.err.MySQLError, OSError, EOFError) as error:
            self._drop()
            code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
            told = 0 < code < _CLIENT_ERRORS
            fate = Fate.FAILED if told or not sent else Fate.UNKNOWN
            return Entry(name, started, time.time(), fate, f"{type(error).__name__} {code}")
        return Entry(name, started, time.time(), Fate.ACKED)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection._force_close()  # noqa: SLF001  close() would wait for a dead server
        self._connection = None


def connect(order: Order) -> Any:
    """A new connection. TLS is used where the server has it, so the password is not readable."""
    return pymysql.connect(
        host=order.host,
        port=order.port,
        user=order.user,
        password=order.password,
        database=order.database,
        autocommit=True,
        connect_timeout=ANSWER_SECONDS,
        read_timeout=ANSWER_SECONDS,
        write_timeout=ANSWER_SECONDS,
    )


def main() -> None:
    """Take the order from stdin, write, and print what became of every row."""
    order = Order(**json.loads(sys.stdin.readline()))
    connection = connect(order)
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE TABLE IF NOT EXISTS `{order.table}` (id VARCHAR(64) PRIMARY KEY,"
            " server CHAR(36) NOT NULL)"
        )
    connection.close()
    stop = threading.Event()
    writers = [Writer(order, number, stop) for number in range(order.writers)]
    for writer in writers:
        writer.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    timer = threading.Timer(order.limit_seconds, stop.set)
    timer.daemon = True
    timer.start()
    sys.stdin.readline()
    stop.set()
    for writer in writers:
        writer.join(2 * ANSWER_SECONDS)
        for entry in list(writer.entries):
            sys.stdout.write(json.dumps(asdict(entry)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
