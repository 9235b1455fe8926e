"""The ledger's rows in MySQL: what to write there, and what is there afterwards."""

from __future__ import annotations

from collections.abc import Mapping

from flotilla import ledger
from flotilla.agent.ledger_mysql import Order
from flotilla.aws.secrets import authority
from flotilla.hosts.mysql import Server
from flotilla.ledger import LIMIT_SECONDS, Execute, new_run
from flotilla.mysql.accounts import Secrets
from flotilla.rules.ledger import Summary, summarise
from flotilla.settings import Settings

TABLE = "flotilla_ledger"
WRITER_PORT = 3306
READ_BACK_SECONDS = 30.0


class Ledger(ledger.Ledger):
    """Writers of rows at work on one host."""

    def __init__(self, host: str, execute: Execute, wanted: Order) -> None:
        super().__init__(host, execute, wanted)
        self._wanted = wanted

    def close_against(self, primary: Server) -> Summary:
        """Stop, read back from the primary what is there, compare, and take the rows away."""
        told = self.stop()
        found = rows(primary, self._wanted)
        forget(primary, self._wanted)
        return summarise(told, found)


def order(
    settings: Settings,
    known: Secrets,
    *,
    writers: int = 4,
    pause_seconds: float = 0.02,
    run: str = "",
    label: str = "w",
    is_probe: bool = False,
    limit_seconds: float = LIMIT_SECONDS,
    host: str = "",
) -> Order:
    """Rows of a new ``run`` in the application's own database, as the application's own user.

    Through the HAProxy of an application host, or to the server at address ``host``.
    """
    return Order(
        run=run or new_run(),
        host=host or settings.zone("mysql"),
        port=WRITER_PORT,
        authority=authority(settings),
        user=settings.mysql.user,
        password=known.passwords[settings.mysql.user],
        database=settings.mysql.database,
        table=TABLE,
        writers=writers,
        pause_seconds=pause_seconds,
        limit_seconds=limit_seconds,
        label=label,
        is_probe=is_probe,
    )


def rows(primary: Server, wanted: Order) -> Mapping[str, str]:
    """The rows of the order's run that are there: id to the UUID of the server that took it."""
    found = primary.query(
        f"SELECT id, server FROM {_table(wanted)} WHERE id LIKE %s",  # noqa: S608
        (f"{wanted.run}-%",),
        seconds=READ_BACK_SECONDS,
    )
    return {row["id"]: row["server"] for row in found}


def forget(primary: Server, wanted: Order) -> None:
    """Take the rows of the order's run away."""
    primary.query(
        f"DELETE FROM {_table(wanted)} WHERE id LIKE %s",  # noqa: S608
        (f"{wanted.run}-%",),
        seconds=READ_BACK_SECONDS,
    )


def _table(wanted: Order) -> str:
    return f"`{wanted.database}`.`{wanted.table}`"
