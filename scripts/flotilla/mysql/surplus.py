"""Save the transactions that only one host has, before they are given up: binary log text in S3.

What is kept can be read (decoded rows as comments) and replayed (the events themselves). It is read
back before anybody may rely on it: every wanted transaction is in the file, or nothing is said to
be saved.
"""

from __future__ import annotations

import gzip
import io
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Any

from flotilla.aws.session import client, described
from flotilla.errors import HostFailed, Unreachable
from flotilla.hosts.mysql import Server
from flotilla.rules.mysql_report import Surplus, count
from flotilla.rules.mysql_surplus import Contents, contents
from flotilla.settings import Settings

FOLDER = "mysql/surplus"
READ_SECONDS = 600.0
_LIST_SECONDS = 30.0
_CHUNK = 1 << 16
# Up to here a file is kept in memory.
_SPOOL = 1 << 24

_LOGS = """
SELECT @@GLOBAL.log_bin_basename AS binary_logs, @@GLOBAL.relay_log_basename AS relay_logs,
  @@GLOBAL.gtid_executed AS executed, GTID_SUBTRACT(%s, @@GLOBAL.gtid_executed) AS received
"""

# Given a shell command, a connected channel to it, running as root on the host.
Open = Callable[[str], Any]


def save(
    settings: Settings,
    server: Server,
    run: Open,
    gtids: str,
    *,
    term: int,
    now: datetime | None = None,
) -> Surplus:
    """Put these transactions of a host into the backups bucket; where, and which rows they touch.

    Raises HostFailed when its logs do not have all of them, Unreachable.
    """
    with _read(server, run, gtids) as file:
        found = _contents(file)
        _demand_all(server, gtids, found)
        file.seek(0)
        uri = _upload(settings, server.name, file, term=term, now=now or datetime.now(UTC))
    return Surplus(server.name, gtids, uri, found.rows)


@contextmanager
def _read(server: Server, run: Open, gtids: str) -> Iterator[IO[bytes]]:
    """The events as mysqlbinlog prints them, compressed on the host."""
    paths = " ".join(_files(server, gtids))
    command = f"mysqlbinlog --no-defaults -vv --include-gtids={shlex.quote(gtids)} {paths}"
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL) as file:
        channel = run(f"{command} | gzip -c")
        channel.settimeout(READ_SECONDS)
        try:
            while block := channel.recv(_CHUNK):
                file.write(block)
        except OSError as error:
            raise Unreachable(
                f"{server.name}: its binary logs could not be read ({error})",
                "transactions that exist nowhere else would be lost",
                "They are still on that host",
            ) from error
        finally:
            channel.close()
        file.seek(0)
        yield file


def _files(server: Server, gtids: str) -> list[str]:
    """The logs that hold any of these transactions, as a shell reads their paths, oldest first.

    Each binary log begins with the set of all before it, so what is in one is the difference to the
    next. What was received and never applied is in the relay logs.
    """
    here = server.query(_LOGS, (gtids,))[0]
    folder = str(here["binary_logs"]).rpartition("/")[0]
    names = [row["Log_name"] for row in server.query("SHOW BINARY LOGS", seconds=_LIST_SECONDS)]
    before = [_previous(server, name) for name in names]
    found = []
    for name, start, end in zip(names, before, [*before[1:], here["executed"]], strict=True):
        row = server.query(
            # What of the wanted is new in this log: wanted minus (wanted minus (end minus start)).
            "SELECT GTID_SUBTRACT(%s, GTID_SUBTRACT(%s, GTID_SUBTRACT(%s, %s))) AS inside",
            (gtids, gtids, end, start),
        )[0]
        if row["inside"]:
            found.append(shlex.quote(f"{folder}/{name}"))
    if here["received"]:
        found.append(shlex.quote(str(here["relay_logs"])) + ".[0-9]*")
    if not found:
        raise _gone(server, gtids)
    return found


def _previous(server: Server, name: str) -> str:
    rows = server.query(f"SHOW BINLOG EVENTS IN '{name}' LIMIT 2", seconds=_LIST_SECONDS)
    return next((row["Info"] for row in rows if row["Event_type"] == "Previous_gtids"), "")


def _contents(file: IO[bytes]) -> Contents:
    with gzip.open(file, "rb") as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8", errors="replace")
        try:
            return contents(text)
        except (EOFError, gzip.BadGzipFile):
            return Contents((), {})


def _demand_all(server: Server, gtids: str, found: Contents) -> None:
    rows = server.query(
        "SELECT GTID_SUBTRACT(%s, %s) AS missing", (gtids, ",".join(found.gtids) or "")
    )
    if rows[0]["missing"]:
        raise _gone(server, rows[0]["missing"])


def _gone(server: Server, gtids: str) -> HostFailed:
    return HostFailed(
        f"{server.name}: {count(gtids)} transactions that only it has are not in its logs: {gtids}",
        "they cannot be saved, and a rebuild would end them",
        f"{server.name} keeps all it has, and stays closed",
        f"dump what matters from {server.name}, then fab mysql.rebuild {server.name} --give-up",
    )


def _upload(settings: Settings, host: str, file: IO[bytes], *, term: int, now: datetime) -> str:
    bucket = settings.name_of("backups")
    key = f"{FOLDER}/{host}/{now:%Y%m%dT%H%M%S}-term-{term}.sql.gz"
    with described(settings, f"save the transactions that only {host} has"):
        client(settings, "s3").upload_fileobj(file, bucket, key)
    return f"s3://{bucket}/{key}"
