"""Write numbered rows by one way to the primary, and keep what became of each.

Runs on an application host, as the application would, or beside a server, to see whether that one
takes writes. It goes on when whoever started it is gone or cannot reach it any more, for that is
when clients matter most: entries are kept in a folder of this host until they are fetched.

Input: one line of JSON (``Order``). Output: "ready" once the writers write. The folder, given as
the argument, then has ``pid``, ``entries`` (a line of JSON each, as it happened), and after a file
``stop`` appeared, ``done``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pymysql

from flotilla.rules.ledger import Entry, Fate, fate_of

# An answer later than this is no answer: the client of a web request would have given up as well.
ANSWER_SECONDS = 5
RETRY_SECONDS = 0.01
TABLE_SECONDS = 8.0
STOP_POLL_SECONDS = 0.05
# Nobody fetched the entries for so long: nobody will.
FORGOTTEN_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Order:
    """What to write where. ``pause_seconds`` is a writer's rest between two rows.

    ``label`` tells this place from others of the same run in the rows' ids. ``is_probe``: it asks
    one server, which mostly refuses, whether it takes writes; so it neither creates the table nor
    gives up a connection because of a refusal.
    """

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
    label: str = "w"
    is_probe: bool = False


class Book:
    """The file of entries. A line is with the kernel before the next write begins."""

    def __init__(self, path: Path) -> None:
        self._file: IO[str] = path.open("a", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()

    def add(self, entry: Entry) -> None:
        """Keep one entry."""
        line = json.dumps(
            [entry.id, entry.started, entry.ended, entry.fate, entry.error, entry.server]
        )
        with self._lock:
            self._file.write(line + "\n")


class Writer(threading.Thread):
    """One client: a connection of its own, a row at a time, a new connection after each error."""

    def __init__(self, order: Order, number: int, book: Book, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._order = order
        self._name = f"{order.run}-{order.label}.{number}"
        self._book = book
        self._stopped = stop
        self._connection: Any = None
        self._server = ""

    def run(self) -> None:
        """Write until told to stop."""
        count = 0
        while not self._stopped.is_set():
            count += 1
            entry = self._write(f"{self._name}-{count}")
            self._book.add(entry)
            hurries = entry.fate is not Fate.ACKED and not self._order.is_probe
            self._stopped.wait(RETRY_SECONDS if hurries else self._order.pause_seconds)

    def _write(self, name: str) -> Entry:
        started = time.time()
        sent = False
        try:
            if self._connection is None:
                self._connection, self._server = connect(self._order)
            sent = True
            with self._connection.cursor() as cursor:
                cursor.execute(
                    f"INSERT INTO `{self._order.table}` (id, server) VALUES (%s, @@server_uuid)",  # noqa: S608
                    (name,),
                )
        except (pymysql.err.MySQLError, OSError, EOFError) as error:
            code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
            fate, said = fate_of(code, sent=sent), f"{type(error).__name__} {code}"
            entry = Entry(name, started, time.time(), fate, said, self._server)
            if not (self._order.is_probe and sent and fate is Fate.FAILED):
                self._drop()
            return entry
        return Entry(name, started, time.time(), Fate.ACKED, server=self._server)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection._force_close()  # noqa: SLF001  close() would wait for a dead server
        self._connection, self._server = None, ""


def connect(order: Order) -> tuple[Any, str]:
    """A new connection, and the UUID of the server at its end.

    TLS is used where the server has it, so the password is not readable.
    """
    connection: Any = pymysql.connect(
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
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@server_uuid")
            (uuid,) = cursor.fetchone()
    except BaseException:
        connection._force_close()  # noqa: SLF001
        raise
    return connection, str(uuid)


def create_table(order: Order) -> None:
    """Have the table that the rows go to.

    Asked again for a while, as every client of a database does: just after a switchover a proxy may
    still lead to the server that gave the role away, which hangs up. Raises what the last try did.
    """
    end = time.monotonic() + TABLE_SECONDS
    while True:
        try:
            connection, _ = connect(order)
            with closing(connection), connection.cursor() as cursor:
                cursor.execute(
                    f"CREATE TABLE IF NOT EXISTS `{order.table}` (id VARCHAR(64) PRIMARY KEY,"
                    " server CHAR(36) NOT NULL)"
                )
        except (pymysql.err.MySQLError, OSError, EOFError):
            if time.monotonic() > end:
                raise
            time.sleep(RETRY_SECONDS)
        else:
            return


def work(order: Order, folder: Path) -> None:
    """Write until the folder has a file ``stop`` or the time is over."""
    stop = threading.Event()
    book = Book(folder / "entries")
    writers = [Writer(order, number, book, stop) for number in range(order.writers)]
    for writer in writers:
        writer.start()
    end = time.monotonic() + order.limit_seconds
    while time.monotonic() < end and not (folder / "stop").exists():
        time.sleep(STOP_POLL_SECONDS)
    stop.set()
    for writer in writers:
        writer.join(2 * ANSWER_SECONDS)
    (folder / "done").touch()
    end = time.monotonic() + FORGOTTEN_SECONDS
    while folder.exists() and time.monotonic() < end:
        time.sleep(1.0)
    shutil.rmtree(folder, ignore_errors=True)


def detach(folder: Path) -> bool:
    """Go on without whoever started this. True in the process that goes on."""
    pid = os.fork()
    if pid:
        (folder / "pid").write_text(str(pid))
        return False
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    return True


def main() -> None:
    """Take the order from stdin, see that it can be carried out, and go on in the background."""
    folder = Path(sys.argv[1])
    try:
        order = Order(**json.loads(sys.stdin.readline()))
        if not order.is_probe:
            create_table(order)
        if not detach(folder):
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            return
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    with suppress(FileNotFoundError):  # fetched before the last writer gave up waiting
        work(order, folder)
    os._exit(0)


if __name__ == "__main__":
    main()
