"""One MySQL server at the edge: statements with a time limit each, and one look at all of it.

The protocol is PyMySQL's, over any stream: a channel through SSH to the server's own Unix socket
(root, known by its peer credentials, so no password exists), the socket itself on the host, or TLS
to another host's admin port.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import permutations
from typing import Any, TypeVar

import pymysql
from pymysql.constants import CLIENT
from pymysql.cursors import DictCursor

from flotilla.errors import HostFailed, Unreachable
from flotilla.rules.mysql_settings import NAMES, faults
from flotilla.rules.mysql_topology import Member, Replication, SemiSync

SOCKET = "/run/mysqld/mysqld.sock"
STATEMENT_SECONDS = 5.0
# No such table, no such database.
MISSING = frozenset({1146, 1049})
LOCK_WAIT_TIMEOUT = 1205
SYNTAX_ERROR = 1064
READ_ONLY = 1290
_SEVERAL_ROWS = 1242
# 2003 is a TLS handshake that broke, was not answered, or proved nothing: the stream is open by
# then. Taken for an answer, a server that froze in the middle of one was alive to watchers.
_LOST = frozenset({2003, 2006, 2013, 2014, 2055})
# What socat says, at the other end of an SSH channel, of a server that does not run.
_NOBODY_LISTENS = ("Connection refused", "No such file or directory")

# An error of the server's own, without a procedure: it ends a batch before its next statement.
_IN_TIME = "SELECT IF(UNIX_TIMESTAMP(NOW(6)) < %s, 1, (SELECT 1 UNION ALL SELECT 2)) AS in_time"

K = TypeVar("K", bound=Hashable)
Row = Mapping[str, Any]
Statement = str | tuple[str, Sequence[object]]


class SqlError(HostFailed):
    """A server refused a statement; ``code`` is MySQL's error number."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what)
        self.code = code


class LateError(HostFailed):
    """Statements came to the server after the time until when they were good; none was done."""


class PortClosedError(Unreachable):
    """The host is there, and nobody listens."""


class Server:
    """A session on one server. Not for use by two threads at once.

    ``open_stream`` gives a connected socket or a paramiko channel; PyMySQL needs nothing else. With
    ``tls`` it must be a socket, no word of ours is sent in the clear, and whoever is there has to
    prove ``proves``, where ``tls`` compares names.
    After a statement ran out of time the session is gone: whether it took effect is not known until
    a new session has looked.

    ``password`` is asked whenever a session is opened: it may have been changed since the last one.

    ``until`` gives seconds since the epoch after which no statement may take effect any more: the
    server itself compares its clock, so that what was sent before a manager was frozen, or waits in
    the socket of a frozen server, does nothing when they go on. ``is_unsettled`` once such a
    statement was sent and not answered.
    """

    def __init__(
        self,
        name: str,
        open_stream: Callable[[], Any],
        user: str = "root",
        *,
        password: Callable[[], str] = str,
        tls: ssl.SSLContext | None = None,
        proves: str = "",
    ) -> None:
        self.name = name
        self._open = open_stream
        self._user = user
        self._password = password
        self._tls = tls
        self._proves = proves
        self._stream: Any = None
        self._connection: Any = None  # a pymysql Connection
        self.until: Callable[[], float] | None = None
        self.is_unsettled = False

    def query(
        self, sql: str, args: Sequence[object] = (), *, seconds: float = STATEMENT_SECONDS
    ) -> list[Row]:
        """Rows of one statement. Raises SqlError, or Unreachable when the limit has passed."""
        return self.batch([(sql, args)], seconds=seconds)[0]

    def batch(
        self, statements: Iterable[Statement], *, seconds: float = STATEMENT_SECONDS
    ) -> list[list[Row]]:
        """Rows of each statement, all in one round trip; the first error stops the rest."""
        connection = self._connected(seconds)
        until = self.until
        limit: list[Statement] = [(_IN_TIME, (until(),))] if until else []
        pairs = [(s, ()) if isinstance(s, str) else s for s in (*limit, *statements)]
        answers: list[list[Row]] = []
        try:
            with connection.cursor() as cursor:
                text = ";\n".join(
                    cursor.mogrify(sql, tuple(args)) if args else sql for sql, args in pairs
                )
                cursor.execute(text)
                answers.append(list(cursor.fetchall()))
                while cursor.nextset():
                    answers.append(list(cursor.fetchall()))
                return answers[len(limit) :]
        except (pymysql.err.MySQLError, OSError, EOFError) as error:
            described = self._described(error, pairs[len(answers)][0], seconds)
            if (
                limit
                and not answers
                and isinstance(described, SqlError)
                and described.code == _SEVERAL_ROWS
            ):
                raise _late(self.name) from None
            self.is_unsettled |= bool(limit) and isinstance(described, Unreachable)
            raise described from None

    def ping(self, *, seconds: float = STATEMENT_SECONDS) -> None:
        """Have the server say that it is there; there are no columns and rows to unpack.

        Raises SqlError, or Unreachable when the limit has passed.
        """
        connection = self._connected(seconds)
        try:
            connection.ping(reconnect=False)
        except (pymysql.err.MySQLError, OSError, EOFError) as error:
            raise self._described(error, "ping", seconds) from None

    @property
    def socket(self) -> Any:
        """What to select on for the end of an idle session, None where there is no session."""
        return None if self._connection is None else self._stream

    def close(self) -> None:
        """End the session; safe to call twice."""
        if self._connection is not None:
            self._connection._force_close()  # noqa: SLF001  close() would ask a frozen server
        elif self._stream is not None:
            with suppress(OSError):
                self._stream.close()
        self._connection = self._stream = None

    def _connected(self, seconds: float) -> Any:
        try:
            if self._connection is None:
                self._connect(seconds)
            if self._tls:
                _forget_errors(self._tls)
            self._stream.settimeout(seconds)
        except (pymysql.err.MySQLError, OSError, EOFError) as error:
            raise self._described(error, "connect", seconds) from None
        return self._connection

    def _connect(self, seconds: float) -> None:
        self._stream = self._open()
        self._stream.settimeout(seconds)
        connection: Any = pymysql.connections.Connection(
            host=self._proves or None,  # only compared: the stream is ours
            user=self._user,
            password=self._password(),
            ssl=self._tls,
            ssl_disabled=self._tls is None,  # the stream is local, or inside SSH
            read_timeout=seconds,
            write_timeout=seconds,
            cursorclass=DictCursor,
            autocommit=True,
            client_flag=CLIENT.MULTI_STATEMENTS,
            defer_connect=True,
        )
        connection.connect(self._stream if self._tls else _Limited(self._stream))
        if self._tls:
            # PyMySQL has wrapped the socket. It would set its own limit before each part that it
            # reads, some 30 calls a look.
            self._stream = connection._sock  # noqa: SLF001
            connection._sock = _Limited(self._stream)  # noqa: SLF001
        self._connection = connection

    def _described(self, error: Exception, sql: str, seconds: float) -> Exception:
        code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
        verb = " ".join(sql.split()[:3])  # never more: what follows may be a secret
        if isinstance(error, pymysql.err.MySQLError) and code and code not in _LOST:
            # A syntax error quotes what follows it, which may be a password.
            text = "syntax error" if code == SYNTAX_ERROR else error.args[-1]
            return SqlError(f"{self.name}: {verb}: {text} ({code})", code)
        said = _complaint(self._stream) or str(error.args[-1] if error.args else error)
        self.close()
        if self._tls:
            _forget_errors(self._tls)
        closed = isinstance(error, ConnectionRefusedError) or said.endswith(_NOBODY_LISTENS)
        kind = PortClosedError if closed else Unreachable
        return kind(
            f"{self.name}: MySQL did not answer {verb} (limit {seconds:g} s): {said}",
            next=f"fab fleet.logs {self.name}",
        )


def _forget_errors(tls: ssl.SSLContext) -> None:
    """Clear what OpenSSL remembers of this thread's last failure; 0.1 ms.

    With Python 3.13.5 and OpenSSL 3.5 a broken pipe on one session stays in the thread's error
    queue, and every other session of the thread then fails with it as soon as it would have to
    wait: when the primary was killed, the failover lost its sessions on the replicas. A new
    SSL object is the only thing in the standard library that empties the queue.
    """
    tls.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())


def _late(name: str) -> LateError:
    return LateError(
        f"{name}: a statement came after the end of the lease under which it was sent",
        "somebody else may be at work on the same cluster",
        "The server has not done it",
        "fab mysql.status",
    )


def _complaint(stream: Any) -> str:
    """What the program at the other end of an SSH channel said last before it gave up."""
    ready = getattr(stream, "recv_stderr_ready", None)
    lines = (
        stream.recv_stderr(4096).decode(errors="replace").split("\n") if ready and ready() else []
    )
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class _Limited:
    """A stream whose time limit is the caller's: PyMySQL's own is for a whole connection."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.sendall = stream.sendall
        self.makefile = stream.makefile
        self.close = stream.close

    def settimeout(self, seconds: float | None) -> None:
        """Leave the limit of the statement in place."""


_IDENTITY = """
SELECT @@GLOBAL.server_uuid AS uuid, @@GLOBAL.server_id AS server_id, @@GLOBAL.version AS version,
  @@GLOBAL.read_only AS read_only, @@GLOBAL.super_read_only AS super_read_only,
  @@GLOBAL.offline_mode AS offline, @@GLOBAL.gtid_executed AS executed,
  @@GLOBAL.gtid_purged AS purged, @@GLOBAL.ssl_ca AS authority,
  @@GLOBAL.require_secure_transport AS requires_tls,
  (SELECT GROUP_CONCAT(VALUE ORDER BY PROPERTY DESC) FROM performance_schema.tls_channel_status
   WHERE CHANNEL = 'mysql_main' AND PROPERTY IN ('Ssl_server_not_before', 'Ssl_server_not_after')
     AND VALUE <> '') AS certificate
"""
# Lag is the age of the oldest transaction on its way through the applier, or of the newest received
# one where nobody has picked it up yet; it is 0 when all that was received is applied. An idle
# source therefore shows 0.
_REPLICATION = """
SELECT c.HOST AS host, c.SSL_CA_FILE AS authority,
  c.SSL_VERIFY_SERVER_CERTIFICATE AS verifies, s.SERVICE_STATE AS io, a.SERVICE_STATE AS applier,
  s.RECEIVED_TRANSACTION_SET AS received, ac.DESIRED_DELAY AS delay,
  CONCAT_WS('; ', NULLIF(s.LAST_ERROR_MESSAGE, ''), NULLIF(co.LAST_ERROR_MESSAGE, ''),
    (SELECT MAX(NULLIF(w.LAST_ERROR_MESSAGE, ''))
       FROM performance_schema.replication_applier_status_by_worker w WHERE w.CHANNEL_NAME = '')
  ) AS error,
  IF(GTID_SUBSET(s.RECEIVED_TRANSACTION_SET, @@GLOBAL.gtid_executed), 0,
    GREATEST(0, TIMESTAMPDIFF(MICROSECOND, LEAST(
      COALESCE((SELECT MIN(w.APPLYING_TRANSACTION_ORIGINAL_COMMIT_TIMESTAMP)
         FROM performance_schema.replication_applier_status_by_worker w
         WHERE w.CHANNEL_NAME = '' AND w.APPLYING_TRANSACTION <> ''), NOW(6)),
      IF(co.PROCESSING_TRANSACTION <> '',
        co.PROCESSING_TRANSACTION_ORIGINAL_COMMIT_TIMESTAMP, NOW(6)),
      IF(s.LAST_QUEUED_TRANSACTION <> '',
        s.LAST_QUEUED_TRANSACTION_ORIGINAL_COMMIT_TIMESTAMP, NOW(6))
    ), NOW(6))) / 1e6) AS lag_seconds
FROM performance_schema.replication_connection_configuration c
JOIN performance_schema.replication_connection_status s USING (CHANNEL_NAME)
JOIN performance_schema.replication_applier_configuration ac USING (CHANNEL_NAME)
JOIN performance_schema.replication_applier_status a USING (CHANNEL_NAME)
LEFT JOIN performance_schema.replication_applier_status_by_coordinator co USING (CHANNEL_NAME)
WHERE c.CHANNEL_NAME = ''
"""
_SETTINGS = """
SELECT VARIABLE_NAME AS name, VARIABLE_VALUE AS value FROM performance_schema.global_variables
WHERE VARIABLE_NAME IN %s OR VARIABLE_NAME LIKE 'rpl_semi_sync_%%_enabled'
"""
_STATUS = """
SELECT VARIABLE_NAME AS name, VARIABLE_VALUE AS value FROM performance_schema.global_status
WHERE VARIABLE_NAME IN ('Rpl_semi_sync_source_clients', 'Rpl_semi_sync_replica_status')
"""
_PERSISTED = """
SELECT VARIABLE_NAME AS name, VARIABLE_VALUE AS value FROM performance_schema.persisted_variables
WHERE VARIABLE_NAME IN ('read_only', 'super_read_only', 'rpl_semi_sync_source_enabled',
  'rpl_semi_sync_replica_enabled', 'skip_replica_start', 'offline_mode')
"""
_TERM = "SELECT term, uuid FROM ops.term ORDER BY term DESC LIMIT 1"


def look(server: Server, *, instance_id: str, address: str) -> tuple[Member, str]:
    """The member as it is now, and its gtid_purged; one round trip, two where it has a term."""
    identity, replication, settings, status, persisted = server.batch(
        [_IDENTITY, _REPLICATION, (_SETTINGS, (NAMES,)), _STATUS, _PERSISTED]
    )
    me = identity[0]
    variables, kept = _pairs(settings), _pairs(persisted)
    closed = kept.pop("offline_mode", "OFF") == "ON"
    term = _term(server)
    member = Member(
        name=server.name,
        instance_id=instance_id,
        address=address,
        uuid=me["uuid"],
        server_id=int(me["server_id"]),
        version=_version(me["version"]),
        read_only=bool(me["read_only"]),
        super_read_only=bool(me["super_read_only"]),
        offline=bool(me["offline"]),
        closed=closed,
        executed=_flat(me["executed"]),
        term=term["term"] if term else None,
        term_uuid=term["uuid"] if term else None,
        replication=_replication(replication[0]) if replication else None,
        semi_sync=_semi_sync(variables, _pairs(status)),
        faults=tuple(faults(variables, kept)),
        authority=trusted(me["authority"]),
        requires_tls=bool(me["requires_tls"]),
        certificate=_span(me["certificate"]),
    )
    return member, _flat(me["purged"])


def trusted(authority: str | None) -> str:
    """The file of the fleet's authority, by a server's ssl_ca; empty where it still has a
    certificate of its own making, whose file is relative to its data.
    """
    return authority if authority and authority.startswith("/") else ""


def _span(text: str | None) -> tuple[float, float] | None:
    first, _, last = (text or "").partition(",")
    if not last:
        return None
    return float(ssl.cert_time_to_seconds(first)), float(ssl.cert_time_to_seconds(last))


def differences(server: Server, pairs: Mapping[K, tuple[str, str]]) -> dict[K, str]:
    """For each pair of GTID sets what the first has and the second has not; empty ones left out.

    The algebra is the server's own: tagged GTIDs have forms that no regular expression should read.
    """
    if not pairs:
        return {}
    columns = ", ".join(f"GTID_SUBTRACT(%s, %s) AS p{n}" for n in range(len(pairs)))
    args = [gtids for pair in pairs.values() for gtids in pair]
    row = server.query(f"SELECT {columns}", args)[0]
    found = {key: _flat(row[f"p{n}"]) for n, key in enumerate(pairs)}
    return {key: gtids for key, gtids in found.items() if gtids}


def subtract(server: Server, sets: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """For each pair of names, what the first GTID set has and the second has not; none empty."""
    return differences(server, {(a, b): (sets[a], sets[b]) for a, b in permutations(sets, 2)})


def position(member: Member) -> str:
    """All that a member holds, applied or only received, as one GTID set."""
    received = member.replication.received if member.replication else ""
    return ",".join(part for part in (member.executed, received) if part)


def _term(server: Server) -> Row | None:
    try:
        rows = server.query(_TERM)
    except SqlError as error:
        if error.code in MISSING:
            return None
        raise
    return rows[0] if rows else None


def _replication(row: Row) -> Replication:
    return Replication(
        host=row["host"],
        io=row["io"],
        applier=row["applier"],
        received=_flat(row["received"]),
        error=row["error"] or "",
        lag_seconds=float(row["lag_seconds"] or 0),
        delay_seconds=int(row["delay"]),
        authority=row["authority"] if row["verifies"] == "YES" else "",
    )


def _semi_sync(variables: Mapping[str, str], status: Mapping[str, str]) -> SemiSync:
    return SemiSync(
        source=variables.get("rpl_semi_sync_source_enabled") == "ON",
        replica=variables.get("rpl_semi_sync_replica_enabled") == "ON",
        acknowledging=status.get("Rpl_semi_sync_replica_status") == "ON",
        clients=int(status.get("Rpl_semi_sync_source_clients", 0)),
    )


def _pairs(rows: Iterable[Row]) -> dict[str, str]:
    return {row["name"]: row["value"] for row in rows}


def _version(text: str) -> tuple[int, int, int]:
    major, minor, patch = (int(part) for part in text.partition("-")[0].split(".")[:3])
    return major, minor, patch


def _flat(gtids: str) -> str:
    """A GTID set on one line: the server breaks long ones."""
    return "".join(gtids.split())
