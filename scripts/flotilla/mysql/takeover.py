"""What a failover does to servers, each step with its own time limit and read back.

The order of statements inside a step is measured on 9.7 and is what keeps acknowledged writes; each
comment names the loss it avoids. Every step may be done again, from any state a kill left behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from flotilla.errors import HostFailed, Unreachable
from flotilla.hosts.mysql import Server, Statement
from flotilla.mysql.steps import PORT, REPOINT, clients, open_for_writes
from flotilla.wait import DeadlineError, until

REVOKE_SECONDS = 3.0
FENCE_SECONDS = 6.0
LOCK_WAIT_SECONDS = 5
PROMOTE_SECONDS = 10.0
ACKNOWLEDGER_SECONDS = 10.0
OPEN_SECONDS = 10.0
# Nobody listens there: a stream that connects to it runs, yet can bring and acknowledge nothing.
DEAD_PORT = 1

# Clients are cut first: a waiting commit then ends in a lost connection, never in an OK. Only then
# may commits stop waiting (the other way round, each waiting client gets an OK for a row that
# exists nowhere else). Read-only comes last: it would wait for the waiting commits, and everybody
# else behind it.
FENCE = (
    "SET GLOBAL offline_mode = ON",
    "SET GLOBAL rpl_semi_sync_source_enabled = OFF",
    "SET GLOBAL super_read_only = ON",
)

# Never on a replica: its applier would wait for acknowledgements that nobody can send.
_AS_SOURCE = (
    "SET GLOBAL rpl_semi_sync_replica_enabled = OFF",
    "SET GLOBAL rpl_semi_sync_source_enabled = ON",
)
_STREAM = """
SELECT s.SERVICE_STATE AS io, a.SERVICE_STATE AS applier, c.HOST AS host, c.PORT AS port,
  ac.DESIRED_DELAY AS delay, @@GLOBAL.rpl_semi_sync_replica_enabled AS acknowledges
FROM performance_schema.replication_connection_configuration c
JOIN performance_schema.replication_connection_status s USING (CHANNEL_NAME)
JOIN performance_schema.replication_applier_configuration ac USING (CHANNEL_NAME)
JOIN performance_schema.replication_applier_status a USING (CHANNEL_NAME)
WHERE c.CHANNEL_NAME = ''
"""
_FENCED = """
SELECT @@GLOBAL.offline_mode AND @@GLOBAL.super_read_only
  AND NOT @@GLOBAL.rpl_semi_sync_source_enabled AS fenced
"""
_APPLIED = "SELECT WAIT_FOR_EXECUTED_GTID_SET(%s, %s) AS late"
_APPLIER_ERROR = """
SELECT CONCAT_WS('; ', NULLIF(co.LAST_ERROR_MESSAGE, ''),
  (SELECT MAX(NULLIF(w.LAST_ERROR_MESSAGE, ''))
     FROM performance_schema.replication_applier_status_by_worker w WHERE w.CHANNEL_NAME = '')
) AS error
FROM performance_schema.replication_applier_status_by_coordinator co WHERE co.CHANNEL_NAME = ''
"""


def revoke(server: Server) -> None:
    """Acknowledge nothing from now on; the applier goes on. Raises where that is not certain.

    The variable alone would count only for the next stream, and a stopped stream alone could be
    started again by a source that comes back: both, and a stream that is merely CONNECTING is not
    stopped.
    """
    try:
        server.batch(
            ["SET GLOBAL rpl_semi_sync_replica_enabled = OFF", "STOP REPLICA IO_THREAD"],
            seconds=REVOKE_SECONDS,
        )
    except Unreachable:
        # A stream in the middle of connecting to a lost host stops only when that gives up.
        _await_stopped(server)
    state = _stream(server)
    if state and (state["io"] != "OFF" or state["acknowledges"]):
        raise HostFailed(
            f"{server.name}: it may still acknowledge (stream {state['io']})",
            "the old primary could tell a client OK for a write that is lost",
        )


def fence(server: Server, order: tuple[str, ...] = FENCE) -> None:
    """Close a primary that answers: no client is told OK any more, and nobody writes."""
    server.query(f"SET SESSION lock_wait_timeout = {LOCK_WAIT_SECONDS}")
    for statement in order:
        server.query(statement, seconds=FENCE_SECONDS)
    if not server.query(_FENCED)[0]["fenced"]:
        raise HostFailed(
            f"{server.name}: it was closed, and is not",
            "somebody else changes it at the same time",
            next="fab mysql.status",
        )


def undelay(server: Server) -> None:
    """Apply at once what a delayed replica holds back, and keep all of it.

    CHANGE REPLICATION SOURCE empties the relay log when both threads are stopped, so the stream
    runs meanwhile, towards a port where nobody is. The host is changed with the port: whoever finds
    a run that ended here sees that the member follows nobody who exists.
    """
    server.batch(
        [
            "STOP REPLICA IO_THREAD",
            "START REPLICA SQL_THREAD",
            f"CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {DEAD_PORT}",
            "START REPLICA IO_THREAD",
            "STOP REPLICA SQL_THREAD",
            "CHANGE REPLICATION SOURCE TO SOURCE_DELAY = 0",
            "START REPLICA SQL_THREAD",
            "STOP REPLICA IO_THREAD",
        ],
        seconds=PROMOTE_SECONDS,
    )
    state = _stream(server)
    if state is None or state["delay"]:
        raise HostFailed(f"{server.name}: it is still delayed", next="fab mysql.status")


def drain(server: Server, received: str, *, seconds: float) -> None:
    """Apply all of ``received``. Raises HostFailed, with the applier's error, where that ends."""
    stop = time.monotonic() + seconds
    server.query("START REPLICA SQL_THREAD")
    while True:
        left = stop - time.monotonic()
        # In short waits: an applier that has stopped is seen at once, not at the time limit. Never
        # 0, which the server takes for ever.
        rows = server.query(_APPLIED, (received, min(max(left, 0.01), 0.5)), seconds=5.0)
        if not rows[0]["late"]:
            return
        state = _stream(server)
        if state is None or state["applier"] != "ON":
            raise _stuck(server, "its applier has stopped")
        if left <= 0:
            raise _stuck(server, f"it needs more than {seconds:g} s")


def promote(server: Server) -> None:
    """Stop following, and wait for acknowledgements from now on; still read-only.

    Only after ``drain``: RESET throws away whatever was received and not applied.
    """
    server.batch(["STOP REPLICA", "RESET REPLICA ALL", *_AS_SOURCE], seconds=PROMOTE_SECONDS)


def turn(server: Server, address: str, port: int = PORT, *, held_there: bool = False) -> str:
    """Follow another source and acknowledge to it; nothing received is thrown away.

    The applier must run while the source is changed: with both threads stopped the relay log goes.
    One that has stopped for an error is turned only if the source is known to hold all that the
    member received (``held_there``): it fetches and acknowledges, and a human mends its applier.
    That error is returned, "" where the applier runs.
    """
    state = _stream(server)
    if state is None:
        raise HostFailed(f"{server.name}: it follows nobody", next="fab mysql.status")
    error = _applier_error(server) if state["applier"] == "OFF" else ""
    if error and not held_there and (address, port) != _source(state):
        raise _stuck(server, "its applier has stopped")
    if state["applier"] == "OFF" and not error:
        server.query("START REPLICA SQL_THREAD")
    # Left out where it would change nothing: then it cannot throw anything away either.
    moves: list[Statement] = (
        [(REPOINT, (address, port))] if (address, port) != _source(state) else []
    )
    statements: list[Statement] = [
        "STOP REPLICA IO_THREAD",
        *moves,
        "SET GLOBAL rpl_semi_sync_replica_enabled = ON",
        "START REPLICA IO_THREAD",
    ]
    server.batch(statements, seconds=PROMOTE_SECONDS)
    return error


def grant(server: Server, term: int, uuid: str, check: Callable[[], object] = lambda: None) -> None:
    """Take writes under this term, proved by a commit that somebody acknowledged.

    ``check`` raises when the lease is lost: the wait before may have been long. Raises HostFailed
    while still read-only when nobody would acknowledge.
    """
    server.batch(_AS_SOURCE)
    try:
        until(lambda: clients(server), seconds=ACKNOWLEDGER_SECONDS, every=0.01)
    except DeadlineError:
        raise HostFailed(
            f"{server.name}: no replica acknowledged within {ACKNOWLEDGER_SECONDS:g} s",
            "every write would wait for ever",
            "It is still read-only, and no write is lost",
            "fab mysql.status",
        ) from None
    check()
    server.batch(open_for_writes(term, uuid), seconds=OPEN_SECONDS)


def _await_stopped(server: Server, clock: Callable[[], float] = time.monotonic) -> None:
    def stopped() -> bool:
        state = _stream(server)
        return state is None or state["io"] == "OFF"

    try:
        until(stopped, seconds=REVOKE_SECONDS, every=0.1, clock=clock)
    except DeadlineError:
        raise HostFailed(
            f"{server.name}: its stream did not stop within {2 * REVOKE_SECONDS:g} s",
            "it may still acknowledge",
            next="fab mysql.status",
        ) from None


def _stuck(server: Server, how: str) -> HostFailed:
    said = _applier_error(server) or "no error is shown"
    return HostFailed(
        f"{server.name}: it does not apply what it received: {how} ({said})",
        "turning it now would throw away transactions it has acknowledged",
        "Its relay log was left as it is",
        "fab mysql.status",
    )


def _applier_error(server: Server) -> str:
    rows = server.query(_APPLIER_ERROR)
    return str(rows[0]["error"] or "") if rows else ""


def _source(state: Mapping[str, object]) -> tuple[object, object]:
    return state["host"], state["port"]


def _stream(server: Server) -> dict[str, object] | None:
    rows = server.query(_STREAM)
    return dict(rows[0]) if rows else None
