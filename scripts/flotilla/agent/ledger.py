"""Write numbered entries by one way to the primary, and keep what became of each.

Runs on an application host, as the application would, or beside a server, to see whether that one
takes writes. It goes on when whoever started it is gone or cannot reach it any more, for that is
when clients matter most: entries are kept in a folder of this host until they are fetched.

``run`` is what a program of this kind does, with its own ``Way`` to a store. Input: one line of
JSON (its ``Order``). Output: "ready" once the writers write. The folder, given as the argument,
then has ``pid``, ``entries`` (a line of JSON each, as it happened), and after a file ``stop``
appeared, ``done``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar, Protocol, TypeVar

from flotilla.rules.ledger import Entry, Fate

# An answer later than this is no answer: the client of a web request would have given up as well.
ANSWER_SECONDS = 5
RETRY_SECONDS = 0.01
# A proxy may take so long to follow a planned move of the primary.
READY_SECONDS = 8.0
STOP_POLL_SECONDS = 0.05
# Nobody fetched the entries for so long: nobody will.
FORGOTTEN_SECONDS = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to write where. ``pause_seconds`` is a writer's rest between two writes.

    ``label`` tells this place from others of the same run in the entries' ids. ``is_probe``: it
    asks one server, which mostly refuses, whether it takes writes; so it makes nothing ready and
    does not give up a connection because of a refusal. A kind of store adds what it needs to know,
    and names the module that writes (``program``) and the libraries that it brings along.
    """

    program: ClassVar[str]
    carry: ClassVar[tuple[str, ...]]

    run: str
    port: int
    user: str
    password: str
    writers: int
    pause_seconds: float
    limit_seconds: float
    host: str = "127.0.0.1"
    label: str = "w"
    is_probe: bool = False


AnOrder = TypeVar("AnOrder", bound=Order)


class NotWrittenError(Exception):
    """A write that was not acknowledged; ``fate`` is what its client knows, the text its error.

    ``is_refusal``: the server itself said so, and the connection is as good as before.
    """

    def __init__(self, fate: Fate, said: str, *, is_refusal: bool = False) -> None:
        super().__init__(said)
        self.fate, self.is_refusal = fate, is_refusal


class Way(Protocol):
    """One client's way to a store. It connects when it has to write."""

    server: str

    def write(self, name: str) -> None:
        """Write one entry, and note in ``server`` who took it. Raises NotWrittenError."""

    def drop(self) -> None:
        """Give up the connection, if there is one; without a word, and without waiting."""


class Book:
    """The file of entries. A line is with the kernel before the next write begins; while the disk
    has no room, in memory.
    """

    def __init__(self, path: Path) -> None:
        # Unbuffered: what a full disk refused must not be written a second time later.
        self._file: IO[bytes] = path.open("ab", buffering=0)
        self._lock = threading.Lock()
        self._rest = b""

    def add(self, entry: Entry) -> None:
        """Keep one entry."""
        line = json.dumps(
            [entry.id, entry.started, entry.ended, entry.fate, entry.error, entry.server]
        )
        with self._lock:
            self._rest += line.encode() + b"\n"
            with suppress(OSError):
                self._rest = self._rest[self._file.write(self._rest) :]

    def flush(self) -> None:
        """Write what there was no room for. Raises OSError where there is none still."""
        with self._lock:
            while self._rest:
                self._rest = self._rest[self._file.write(self._rest) :]


class Writer(threading.Thread):
    """One client: one write at a time, a new connection after each error."""

    def __init__(
        self, order: Order, way: Way, number: int, book: Book, stop: threading.Event
    ) -> None:
        super().__init__(daemon=True)
        self._order, self._way = order, way
        self._name = f"{order.run}-{order.label}.{number}"
        self._book = book
        self._stopped = stop

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
        way, started = self._way, time.time()
        try:
            way.write(name)
        except NotWrittenError as error:
            entry = Entry(name, started, time.time(), error.fate, str(error), way.server)
            if not (self._order.is_probe and error.is_refusal):
                way.drop()
            return entry
        return Entry(name, started, time.time(), Fate.ACKED, server=way.server)


def run(
    kind: Callable[..., AnOrder], way: Callable[[AnOrder], Way], ready: Callable[[AnOrder], None]
) -> None:
    """Take the order from stdin, see that it can be carried out, and go on in the background.

    ``ready`` makes whatever the writes need; it raises where they cannot be made.
    """
    folder = Path(sys.argv[1])
    try:
        order = kind(**json.loads(sys.stdin.readline()))
        if not order.is_probe:
            ready(order)
        if not _detached(folder):
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            return
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    with suppress(FileNotFoundError):  # fetched before the last writer gave up waiting
        _work(order, [way(order) for _ in range(order.writers)], folder)
    os._exit(0)


def _work(order: Order, ways: list[Way], folder: Path) -> None:
    """Write until the folder has a file ``stop`` or the time is over."""
    stop = threading.Event()
    book = Book(folder / "entries")
    writers = [Writer(order, way, number, book, stop) for number, way in enumerate(ways)]
    for writer in writers:
        writer.start()
    end = time.monotonic() + order.limit_seconds
    # No folder any more: whoever started us gave up, and wants nothing written.
    while time.monotonic() < end and folder.exists() and not (folder / "stop").exists():
        time.sleep(STOP_POLL_SECONDS)
    stop.set()
    for writer in writers:
        writer.join(2 * ANSWER_SECONDS)
    book.flush()
    (folder / "done").touch()
    end = time.monotonic() + FORGOTTEN_SECONDS
    while folder.exists() and time.monotonic() < end:
        time.sleep(1.0)
    shutil.rmtree(folder, ignore_errors=True)


def _detached(folder: Path) -> bool:
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
