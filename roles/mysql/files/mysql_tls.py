#!/usr/bin/python3
"""TLS of this host's MySQL server: what it serves, and whether it talks to anybody without.

    mysql_tls.py prepare         before the server starts: have a certificate that is valid
    mysql_tls.py take            have the server serve this host's certificate; connections go on
    mysql_tls.py require on|off  refuse connections without TLS, unless somebody still has one
    mysql_tls.py status          one JSON object: {running, secured, required}

The server gets one file with key, certificate, issuer and root, for all three of ssl_ca, ssl_cert
and ssl_key: replaced by a rename, so it never reads parts that do not belong together. The issuer
is in it because ALTER INSTANCE RELOAD TLS checks the certificate against ssl_ca alone and does not
use what the server sends along (MySQL 9.7: error 3888). It lies in /etc/mysql because Debian's
AppArmor profile lets the server read there.
"""

import argparse
import json
import shutil
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pymysql
import tls_leaf

SERVED = Path("/etc/mysql/tls/server.pem")
REQUIRED = Path("/etc/mysql/mysql.conf.d/zz-flotilla-tls.cnf")
SOCKET = "/run/mysqld/mysqld.sock"
SECONDS = 10
# Clients that connect for each request are seen only while they are connected.
WATCH_SECONDS = 5.0
LOOK_SECONDS = 0.1

_NAMES = ("ssl_ca", "ssl_cert", "ssl_key", "tls_version")
_GLOBALS = f"SELECT {', '.join(f'@@GLOBAL.{name}' for name in _NAMES)}"
_SPAN = """
SELECT VALUE FROM performance_schema.tls_channel_status WHERE CHANNEL = 'mysql_main'
AND PROPERTY IN ('Ssl_server_not_before', 'Ssl_server_not_after') ORDER BY PROPERTY
"""
_PLAIN = """
SELECT DISTINCT PROCESSLIST_USER, PROCESSLIST_HOST FROM performance_schema.threads
WHERE TYPE = 'FOREGROUND' AND CONNECTION_TYPE = 'TCP/IP' AND PROCESSLIST_USER IS NOT NULL
"""
_REQUIRED = """\
# Written by mysql_tls.py when nobody was connected without TLS any more.
[mysqld]
require_secure_transport = ON
"""


class TlsError(Exception):
    """It could not be done; the message says what, and what is so now."""


class Server:
    """This host's MySQL, as root through its socket."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def rows(self, sql: str, args: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of one statement. Raises TlsError."""
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(sql, args or None)
                return list(cursor.fetchall())
        except (pymysql.err.MySQLError, OSError) as error:
            raise TlsError(f"MySQL does not do {' '.join(sql.split()[:3])}: {error}") from error


def connected(path: str = SOCKET) -> Server | None:
    """The running server; None where there is none. Raises TlsError when it lets nobody in."""
    if not Path(path).exists():
        return None
    try:
        connection = pymysql.connect(
            unix_socket=path,
            user="root",
            ssl_disabled=True,
            autocommit=True,
            connect_timeout=SECONDS,
            read_timeout=SECONDS,
            write_timeout=SECONDS,
        )
    except pymysql.err.OperationalError as error:
        # Of what the network says alone; an answer of the server has none.
        reason = getattr(error, "original_exception", None)
        if isinstance(reason, ConnectionRefusedError | FileNotFoundError):
            return None
        raise TlsError(f"MySQL lets root not in through {path}: {error}") from error
    return Server(connection)


def wanted(served: Path) -> dict[str, str]:
    """What these settings of the server have to be."""
    return dict(zip(_NAMES, (*[str(served)] * 3, "TLSv1.3"), strict=True))


def put(home: Path, served: Path) -> bool:
    """Bring the host's certificate to where the server reads it; whether that changed it.

    Raises TlsError; what the server reads is then as it was.
    """
    try:
        with tls_leaf.alone(home):
            return _put(home, served)
    except (tls_leaf.LeafError, OSError, LookupError) as error:
        raise TlsError(f"{served} is as it was: {error}") from error


def _put(home: Path, served: Path) -> bool:
    leaf, root = (home / "leaf.pem").read_bytes(), (home / "authority.pem").read_bytes()
    # A server that starts with half of a pair serves no TLS at all.
    if tls_leaf.whole(leaf) is None or tls_leaf.certificate(home / "authority.pem") is None:
        raise TlsError(
            f"{served} is as it was: {home} has no whole leaf.pem or authority.pem:"
            " systemctl start flotilla-tls"
        )
    group = tls_leaf.load(home).group
    if served.exists() and served.read_bytes() == leaf + root:
        tls_leaf.own(served, group)
        return False
    if not served.parent.is_dir():
        served.parent.mkdir(mode=0o750)
        shutil.chown(served.parent, group=group)
    tls_leaf.put(served, leaf + root, group)
    return True


def serve(server: Server, served: Path, *, is_new: bool) -> str:
    """Have a running server serve it, and read back; what was done, empty for nothing.

    Connections go on, and so does the old certificate when the new one is refused. What the server
    has is known by its dates; two that were made in one second look the same, so ``is_new`` says
    that the file has just changed. Raises TlsError.
    """
    before = dict(zip(_NAMES, server.rows(_GLOBALS)[0], strict=True))
    if not is_new and before == wanted(served) and _span(server) == _span_of(served):
        return ""
    try:
        _set(server, wanted(served))
        server.rows("ALTER INSTANCE RELOAD TLS")
    except TlsError as error:
        # What is said here decides whether others verify; it must be what is done.
        _set(server, before)
        raise TlsError(f"{error}; the server goes on with the certificate it has") from error
    if _span(server) != _span_of(served):
        raise TlsError("the server took the certificate and serves another one")
    end = datetime.fromtimestamp(_span(server)[0], UTC)
    return f"MySQL serves the certificate until {end:%Y-%m-%d %H:%M} UTC"


def _set(server: Server, values: dict[str, str]) -> None:
    for name, value in values.items():
        server.rows(f"SET GLOBAL {name} = %s", (value,))


def _span(server: Server) -> tuple[float, ...]:
    """End and beginning of what is served, in seconds since the epoch; nothing for nothing."""
    return tuple(ssl.cert_time_to_seconds(value) for (value,) in server.rows(_SPAN) if value)


def _span_of(served: Path) -> tuple[float, ...]:
    found = tls_leaf.certificate(served)
    if found is None:
        raise TlsError(f"{served} holds no certificate")
    return (found.not_valid_after_utc.timestamp(), found.not_valid_before_utc.timestamp())


def plain(
    server: Server,
    seconds: float = WATCH_SECONDS,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Who has been connected without TLS within so long: "account from address"."""
    seen: set[str] = set()
    end = clock() + seconds
    while True:
        found = server.rows(_PLAIN)
        seen |= {f"{user} from {str(host or '?').partition(':')[0]}" for user, host in found}
        if seen or clock() >= end:
            return sorted(seen)
        sleep(LOOK_SECONDS)


def is_required(server: Server) -> bool:
    """Whether the server refuses who speaks no TLS."""
    return bool(server.rows("SELECT @@GLOBAL.require_secure_transport")[0][0])


def require(
    server: Server, file: Path, served: Path, *, seconds: float = WATCH_SECONDS
) -> list[str]:
    """Refuse connections without TLS from now on, also after a restart; who still has one.

    With anybody in that list nothing was changed. Raises TlsError.
    """
    if server.rows(_GLOBALS)[0][0] != str(served):
        raise TlsError("the server has no certificate of this host yet: fab fleet.configure")
    if not is_required(server) and (left := plain(server, seconds)):
        return left
    if _write(file):
        sys.stderr.write(f"new: {file}\n")
    if not is_required(server):
        server.rows("SET GLOBAL require_secure_transport = ON")
        sys.stderr.write("new: connections without TLS are refused\n")
    return []


def _write(file: Path) -> bool:
    """Have the server refuse them from its next start on, too; whether that was new."""
    try:
        if file.exists() and file.read_bytes() == _REQUIRED.encode():
            return False
        draft = file.with_suffix(".new")
        draft.write_text(_REQUIRED)
        draft.chmod(0o644)
        draft.rename(file)
    except OSError as error:
        raise TlsError(
            f"{file} cannot be written: {error}; who may connect is as it was"
        ) from error
    return True


def allow(server: Server, file: Path) -> None:
    """Take connections without TLS again. Raises TlsError."""
    if file.exists():
        try:
            file.unlink()
        except OSError as error:
            raise TlsError(f"{file} stays: {error}; who may connect is as it was") from error
        sys.stderr.write(f"gone: {file}\n")
    if is_required(server):
        server.rows("SET GLOBAL require_secure_transport = OFF")
        sys.stderr.write("new: connections without TLS are taken\n")


# --- commands -------------------------------------------------------------------------------------


def prepare(now: datetime) -> int:
    """A host that was off for a week has no certificate that is valid; the server would start with
    the old one all the same, and nobody would believe it.
    """
    failed = tls_leaf.renew(tls_leaf.HOME, now, tell=False)
    put(tls_leaf.HOME, SERVED)
    return failed


def take() -> int:
    """For the timer, every hour, and for the playbook."""
    if is_new := put(tls_leaf.HOME, SERVED):
        sys.stderr.write(f"new: {SERVED}\n")
    server = connected()
    done = serve(server, SERVED, is_new=is_new) if server else ""
    if done:
        sys.stderr.write(f"new: {done}\n")
    return 0


def status() -> int:
    """For the playbook."""
    server = connected()
    found = {"running": server is not None, "secured": False, "required": False}
    if server is not None:
        found["secured"] = server.rows(_GLOBALS)[0][0] == str(SERVED)
        found["required"] = is_required(server)
    json.dump(found, sys.stdout)
    return 0


def turn(*, on: bool) -> int:
    """``{"left": [who is connected without TLS]}`` on stdout; with somebody there, nothing was
    changed.
    """
    server = connected()
    if server is None:
        raise TlsError("MySQL does not run: fab mysql.status")
    left: list[str] = []
    if on:
        left = require(server, REQUIRED, SERVED)
    else:
        allow(server, REQUIRED)
    json.dump({"left": left}, sys.stdout)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description="TLS of this host's MySQL server")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "take", "status"):
        commands.add_parser(name)
    commands.add_parser("require").add_argument("state", choices=("on", "off"))
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "prepare":
            return prepare(datetime.now(UTC))
        if chosen.command == "require":
            return turn(on=chosen.state == "on")
        return take() if chosen.command == "take" else status()
    except TlsError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
