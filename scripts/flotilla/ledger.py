"""A ledger of writes kept by a client: on an application host, through its own HAProxy.

What the writers were told is compared with what is there afterwards: that, and nothing a server
says about itself, is how long an outage was and whether anything was lost.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from flotilla.agent.bundle import bundle
from flotilla.agent.ledger import Order
from flotilla.errors import HostFailed, Unreachable
from flotilla.hosts.mysql import Server
from flotilla.mysql.accounts import Secrets
from flotilla.rules.ledger import Entry, Fate, Summary, summarise
from flotilla.settings import Settings

TABLE = "flotilla_ledger"
WRITER_PORT = 3306
START_SECONDS = 20.0
STOP_SECONDS = 30.0
# Nobody may forget a ledger that writes for ever.
LIMIT_SECONDS = 1800.0

# Everything it needs comes through its input: nothing is installed and nothing is left behind. The
# password comes that way as well, never in an argument.
_LOADER = (
    "import base64, os, runpy, sys, tempfile\n"
    "folder = tempfile.TemporaryDirectory()\n"
    "path = os.path.join(folder.name, 'ledger.zip')\n"
    "open(path, 'wb').write(base64.b64decode(sys.stdin.readline()))\n"
    "sys.path.insert(0, path)\n"
    "runpy.run_module('flotilla.agent.ledger', run_name='__main__')\n"
)


def order(
    settings: Settings, known: Secrets, *, writers: int = 4, pause_seconds: float = 0.02
) -> Order:
    """Rows of a new run in the application's own database, as the application's own user."""
    return Order(
        run=uuid.uuid4().hex[:12],
        port=WRITER_PORT,
        user=settings.mysql.user,
        password=known.passwords[settings.mysql.user],
        database=settings.mysql.database,
        table=TABLE,
        writers=writers,
        pause_seconds=pause_seconds,
        limit_seconds=LIMIT_SECONDS,
    )


class Ledger:
    """Writers at work, from ``with`` until ``stop``. ``channel`` runs ``COMMAND`` on the host."""

    def __init__(self, host: str, open_channel: Callable[[str], Any], wanted: Order) -> None:
        self.host = host
        self._open = open_channel
        self._order = wanted
        self._channel: Any = None
        self._lines: Any = None
        self._entries: list[Entry] | None = None

    def __enter__(self) -> Self:
        """Start the writers; returns when they write. Raises HostFailed, Unreachable."""
        package = base64.b64encode(bundle("flotilla.agent.ledger", carry=("pymysql",)))
        self._channel = self._open(f"exec python3 -c {_quoted(_LOADER)}")
        self._channel.settimeout(START_SECONDS)
        self._lines = self._channel.makefile("rb")
        try:
            self._channel.sendall(
                package + b"\n" + json.dumps(asdict(self._order)).encode() + b"\n"
            )
            first = self._lines.readline().decode(errors="replace").strip()
        except OSError as error:
            raise Unreachable(
                f"{self.host}: the ledger's writers did not start ({error})"
            ) from error
        if first != "ready":
            complaint = self._channel.recv_stderr(4096).decode(errors="replace").strip()
            raise HostFailed(
                f"{self.host}: the ledger's writers did not start:"
                f" {(complaint or first or 'no output').splitlines()[-1]}",
                "without them nobody sees what a client sees",
                next="fab mysql.status",
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._channel is not None:
            self._channel.close()

    def stop(self) -> list[Entry]:
        """End the writing; every try of every writer. May be called again."""
        if self._entries is None:
            self._channel.settimeout(STOP_SECONDS)
            try:
                self._channel.sendall(b"stop\n")
                self._entries = [_entry(json.loads(line)) for line in self._lines]
            except OSError as error:
                raise Unreachable(f"{self.host}: the ledger was not returned ({error})") from error
        return self._entries

    def close_against(self, primary: Server) -> Summary:
        """Stop, read back from the primary what is there, compare, and take the rows away."""
        entries = self.stop()
        table = f"`{self._order.database}`.`{self._order.table}`"
        pattern = f"{self._order.run}-%"
        rows = primary.query(
            f"SELECT id, server FROM {table} WHERE id LIKE %s",  # noqa: S608
            (pattern,),
            seconds=STOP_SECONDS,
        )
        primary.query(
            f"DELETE FROM {table} WHERE id LIKE %s",  # noqa: S608
            (pattern,),
            seconds=STOP_SECONDS,
        )
        return summarise(entries, {row["id"]: row["server"] for row in rows})


def _entry(values: Mapping[str, Any]) -> Entry:
    return Entry(**{**values, "fate": Fate(values["fate"])})


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"
