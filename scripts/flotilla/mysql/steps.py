"""What each step does to a server, and how it is read back. Every one may be done again.

Order inside a step matters and is measured: relay logs are never thrown away, a replica restarts
its stream after it was told to acknowledge, and the source side of semi-sync is on only where
nothing is left to apply.
"""

from __future__ import annotations

import hashlib

from flotilla.errors import HostFailed
from flotilla.hosts.mysql import Server, Statement, look, trusted
from flotilla.mysql.accounts import REPLICATION, Secrets
from flotilla.rules.mysql import follower_objection
from flotilla.rules.mysql_topology import Member
from flotilla.wait import DeadlineError, until

PORT = 3306
DRAIN_SECONDS = 30.0
CONNECT_SECONDS = 15.0
GRANT_SECONDS = 10.0

# A heartbeat a second: a frozen source is noticed, and a living one is not taken for dead. Every
# CHANGE that names a source or its account must say so again: without it, the period becomes half
# of replica_net_timeout, whatever it was before.
_FOLLOW = """
CHANGE REPLICATION SOURCE TO SOURCE_HOST = %s, SOURCE_PORT = %s, SOURCE_USER = %s,
  SOURCE_PASSWORD = %s, SOURCE_AUTO_POSITION = 1, SOURCE_SSL = 1, SOURCE_SSL_CA = %s,
  SOURCE_SSL_VERIFY_SERVER_CERT = %s,
  SOURCE_HEARTBEAT_PERIOD = 1, SOURCE_CONNECT_RETRY = 1, SOURCE_RETRY_COUNT = 86400
"""
_RENEW = """
CHANGE REPLICATION SOURCE TO SOURCE_USER = %s, SOURCE_PASSWORD = %s, SOURCE_HEARTBEAT_PERIOD = 1
"""
REPOINT = (
    "CHANGE REPLICATION SOURCE TO SOURCE_HOST = %s, SOURCE_PORT = %s, SOURCE_HEARTBEAT_PERIOD = 1"
)
# The source has to prove the address in SOURCE_HOST; these stay through every REPOINT.
TRUST = (
    "CHANGE REPLICATION SOURCE TO SOURCE_SSL_CA = %s, SOURCE_SSL_VERIFY_SERVER_CERT = %s,"
    " SOURCE_HEARTBEAT_PERIOD = 1"
)
_DIGEST = (
    "SELECT SHA2(User_password, 256) AS digest FROM mysql.slave_master_info"
    " WHERE Channel_name = '' AND Host <> ''"
)
_APPLIER = (
    "SELECT SERVICE_STATE AS applier FROM performance_schema.replication_applier_status"
    " WHERE CHANNEL_NAME = ''"
)
_TERM = """
INSERT INTO ops.term (term, uuid, granted_at) VALUES (%s, %s, NOW(6)) AS new
ON DUPLICATE KEY UPDATE granted_at = IF(term.uuid = new.uuid, new.granted_at, NULL)
"""


def source_off(server: Server) -> None:
    """Let a replica stop waiting: what it applies was acknowledged before it came here."""
    server.query("SET GLOBAL rpl_semi_sync_source_enabled = OFF")


def follow(server: Server, source: str, known: Secrets) -> None:
    """Follow ``source`` from nothing: for a member that has no source, and so no relay log."""
    authority = believed(server)
    password = known.passwords[REPLICATION]
    server.batch(
        [
            "SET GLOBAL rpl_semi_sync_replica_enabled = ON",
            (_FOLLOW, (source, PORT, REPLICATION, password, authority, int(bool(authority)))),
            "START REPLICA",
        ],
        seconds=DRAIN_SECONDS,
    )


def believed(server: Server) -> str:
    """The file by which this server believes others; empty before role mysql gave it one."""
    return trusted(server.query("SELECT @@GLOBAL.ssl_ca AS authority")[0]["authority"])


def verify(server: Server, primary: Member) -> None:
    """Have a replica follow nobody who cannot prove the primary's address.

    Raises HostFailed where the primary cannot; the replica then follows it as before.
    """

    def turn(authority: str) -> None:
        change = (TRUST, (authority, int(bool(authority))))
        server.batch(
            ["STOP REPLICA IO_THREAD", change, "START REPLICA IO_THREAD"], seconds=DRAIN_SECONDS
        )

    turn(believed(server))
    try:
        await_following(server, primary)
    except HostFailed:
        turn("")
        raise


def repoint(server: Server, source: str) -> None:
    """Follow another source and keep every received transaction.

    With the applier stopped, CHANGE would empty the relay log; so it runs, and catches up, first.
    """
    drain(server)
    server.batch(stream_to(source), seconds=DRAIN_SECONDS)


def stream_to(source: str) -> list[Statement]:
    """Point a running replica's stream elsewhere; its applier does not stop."""
    return [
        "STOP REPLICA IO_THREAD",
        (REPOINT, (source, PORT)),
        "SET GLOBAL rpl_semi_sync_replica_enabled = ON",
        "START REPLICA IO_THREAD",
    ]


def acknowledge(server: Server) -> None:
    """Acknowledge what is received from now on: the switch counts only for a new stream."""
    server.batch(
        [
            "SET GLOBAL rpl_semi_sync_replica_enabled = ON",
            "STOP REPLICA IO_THREAD",
            "START REPLICA",
        ],
        seconds=DRAIN_SECONDS,
    )


def reopen(server: Server) -> None:
    """Let clients and replicas in again, to read."""
    server.query("SET GLOBAL offline_mode = OFF", seconds=GRANT_SECONDS)


def resume(server: Server) -> None:
    """Start what is stopped, both halves."""
    server.query("START REPLICA", seconds=DRAIN_SECONDS)


def holds_password(server: Server, known: Secrets) -> bool:
    """Whether a member would log in to its source with the password as it is now.

    True for one without a source. The server keeps the password itself; its digest travels.
    """
    rows = server.query(_DIGEST)
    wanted = hashlib.sha256(known.passwords[REPLICATION].encode()).hexdigest()
    return all(row["digest"] == wanted for row in rows)


def renew_password(server: Server, known: Secrets) -> None:
    """Log in to the source with the password as it is now.

    The applier runs meanwhile: with both halves stopped, CHANGE would empty the relay log. Commits
    wait on the source for the moment in which nobody acknowledges to it: one member at a time.
    """
    rows = server.query(_APPLIER)
    if not rows or rows[0]["applier"] != "ON":
        drain(server)
    server.batch(
        [
            "STOP REPLICA IO_THREAD",
            (
                _RENEW,
                (REPLICATION, known.passwords[REPLICATION]),
            ),
            "START REPLICA IO_THREAD",
        ],
        seconds=DRAIN_SECONDS,
    )


def drain(server: Server) -> None:
    """Apply everything received. Raises HostFailed when that does not end."""
    server.query("START REPLICA SQL_THREAD")
    rows = server.query(
        "SELECT WAIT_FOR_EXECUTED_GTID_SET(RECEIVED_TRANSACTION_SET, %s) AS late"
        " FROM performance_schema.replication_connection_status WHERE CHANNEL_NAME = ''",
        (DRAIN_SECONDS,),
        seconds=DRAIN_SECONDS + 3,
    )
    if rows and rows[0]["late"]:
        raise HostFailed(
            f"{server.name}: it did not apply all it received within {DRAIN_SECONDS:g} s",
            "turning it now would throw away transactions it has acknowledged",
            "Its replication was left as it is",
            "fab mysql.status",
        )


def detach(server: Server) -> None:
    """Follow nobody any more, after everything received is applied."""
    drain(server)
    server.batch(["STOP REPLICA", "RESET REPLICA ALL"], seconds=DRAIN_SECONDS)


def grant(server: Server, term: int, uuid: str) -> None:
    """Take writes as the primary of ``term``; the row that says so proves that commits are safe.

    Raises HostFailed while still read-only when nobody acknowledges.
    """
    server.batch(
        [
            "SET GLOBAL rpl_semi_sync_replica_enabled = OFF",
            "SET GLOBAL rpl_semi_sync_source_enabled = ON",
        ]
    )
    await_acknowledger(server)
    server.batch(open_for_writes(term, uuid), seconds=GRANT_SECONDS)


def open_for_writes(term: int, uuid: str) -> list[Statement]:
    """Writable, then the term's row. Granting the same term to another server is an error."""
    return [
        "SET GLOBAL super_read_only = OFF",
        "SET GLOBAL read_only = OFF",
        "SET GLOBAL offline_mode = OFF",
        (_TERM, (term, uuid)),
    ]


def await_acknowledger(server: Server, *, every: float = 0.05) -> None:
    """Wait until a replica acknowledges to this server. Raises HostFailed."""
    try:
        until(lambda: clients(server) >= 1, seconds=CONNECT_SECONDS, every=every)
    except DeadlineError:
        raise HostFailed(
            f"{server.name}: no replica acknowledged within {CONNECT_SECONDS:g} s",
            "every write would wait for ever",
            "It is still read-only",
            "fab mysql.status",
        ) from None


def await_following(server: Server, primary: Member) -> None:
    """Wait until a member follows and acknowledges. Raises HostFailed with what is missing."""
    objection = ""

    def follows() -> bool:
        nonlocal objection
        member, _ = look(server, instance_id="", address="")
        objection = follower_objection(member, primary) or ""
        return not objection

    try:
        until(follows, seconds=CONNECT_SECONDS)
    except DeadlineError:
        raise HostFailed(
            f"after {CONNECT_SECONDS:g} s {objection}", next=f"fab fleet.logs {server.name}"
        ) from None


def await_spare(primary: Server, name: str) -> None:
    """Wait until somebody beside this replica acknowledges. Raises HostFailed."""
    try:
        until(lambda: clients(primary) > 1, seconds=CONNECT_SECONDS)
    except DeadlineError:
        raise HostFailed(
            f"{name} is the only replica that acknowledges to {primary.name}",
            "every write would wait while it logs in again",
            f"{name} follows as before",
            "fab mysql.status",
        ) from None


def clients(server: Server) -> int:
    """How many replicas acknowledge to this server."""
    rows = server.query(
        "SELECT VARIABLE_VALUE AS clients FROM performance_schema.global_status"
        " WHERE VARIABLE_NAME = 'Rpl_semi_sync_source_clients'"
    )
    return int(rows[0]["clients"]) if rows else 0
