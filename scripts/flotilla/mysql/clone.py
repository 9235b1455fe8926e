"""Make one server a copy of another by the clone plugin, and never let a half-made copy serve.

A copy begins by dropping what the server had; cut off after that, the server starts again without
its tables and its GTID set, and whoever let it follow would replay all of history onto what is left
(measured on 9.7 by killing the donor). So before the copy begins the
server is closed by a persisted offline_mode: it stays closed through restarts, whoever starts it,
until the copy has been compared with the primary. Clients, health checks and replicas are turned
away; administrators are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from flotilla.errors import FlotillaError, HostFailed, Unreachable
from flotilla.hosts.mysql import PortClosedError, Server, SqlError, Statement
from flotilla.mysql.steps import PORT
from flotilla.wait import DeadlineError, until

ACCOUNT = "flotilla_clone"
# A terabyte at 100 MB/s is three hours; the copy itself says when it fails.
COPY_SECONDS = 6 * 3600.0
BACK_SECONDS = 120.0
CLOSE_SECONDS = 5
_NO_SUPERVISOR = 3707
_LOOK_SECONDS = 0.25
# Looks at a closed port before it is started from here: systemd waits a second.
_PATIENCE = 16

# What it says of an earlier copy is told apart by when that began.
_STATUS = """
SELECT STATE AS state, CAST(BEGIN_TIME AS CHAR) AS begun, ERROR_MESSAGE AS message,
  @@GLOBAL.server_uuid AS uuid, @@GLOBAL.gtid_executed AS executed
FROM performance_schema.clone_status
"""
_STATE = """
SELECT @@GLOBAL.offline_mode AS offline, @@GLOBAL.super_read_only AS closed,
  (SELECT COUNT(*) FROM performance_schema.persisted_variables
   WHERE VARIABLE_NAME = 'offline_mode' AND VARIABLE_VALUE = 'ON') AS persisted
"""


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy that was made: the server's own UUID (not the donor's), and what it holds."""

    uuid: str
    executed: str


def close(server: Server) -> None:
    """Turn clients away from a server for good, and stop it from changing. Raises HostFailed.

    In this order: a commit that still waits for an acknowledgement is cut off before it is
    released, so that no client is told it succeeded.
    """
    server.batch(
        [
            "SET PERSIST offline_mode = ON",
            "SET GLOBAL rpl_semi_sync_source_enabled = OFF",
            ("SET SESSION lock_wait_timeout = %s", (CLOSE_SECONDS,)),
            "SET GLOBAL super_read_only = ON",
            "STOP REPLICA",
        ],
        seconds=30 + CLOSE_SECONDS,
    )
    state = server.query(_STATE)[0]
    if not (state["offline"] and state["closed"] and state["persisted"]):
        raise HostFailed(
            f"{server.name} could not be closed: {dict(state)}", next="fab mysql.status"
        )


def reopen(server: Server) -> None:
    """Let a closed server serve again. Its role is still a replica's: it stays read-only."""
    server.batch(["RESET PERSIST IF EXISTS offline_mode", "SET GLOBAL offline_mode = OFF"])
    state = server.query(_STATE)[0]
    if state["offline"] or state["persisted"] or not state["closed"]:
        raise HostFailed(
            f"{server.name} is not as a replica should be: {dict(state)}", next="fab mysql.status"
        )


_GONE = f"DROP USER IF EXISTS '{ACCOUNT}'@'%'"


def admit(primary: Server, donor: Server, password: str) -> None:
    """Make the account that a copy is fetched with, and wait until the donor has it too."""
    primary.batch(_account(password), seconds=10)
    executed = primary.query("SELECT @@GLOBAL.gtid_executed AS executed")[0]["executed"]
    rows = donor.query("SELECT WAIT_FOR_EXECUTED_GTID_SET(%s, 30) AS late", (executed,), seconds=33)
    if rows[0]["late"]:
        raise HostFailed(f"{donor.name} did not catch up within 30 s", next="fab mysql.status")


def expel(primary: Server) -> None:
    """Take that account away again."""
    primary.query(_GONE, seconds=10)


def admit_here(server: Server, password: str) -> None:
    """The same on one server that takes no writes: of no GTID, so it waits for nobody."""
    _unlogged(server, _account(password))


def expel_here(server: Server) -> None:
    """Take it away again, from that server or from its copy."""
    _unlogged(server, [_GONE])


def _account(password: str) -> list[Statement]:
    who = f"'{ACCOUNT}'@'%%'"
    return [
        _GONE,
        (f"CREATE USER {who} IDENTIFIED BY %s REQUIRE SSL", (password,)),
        f"GRANT BACKUP_ADMIN ON *.* TO '{ACCOUNT}'@'%'",
    ]


def _unlogged(server: Server, statements: Sequence[Statement]) -> None:
    """To be called under the lease: nobody else opens or closes the server meanwhile."""
    closed = server.query("SELECT @@GLOBAL.super_read_only AS closed")[0]["closed"]
    try:
        server.batch(
            [
                # read_only stays on: nobody but root is let in meanwhile.
                *(["SET GLOBAL super_read_only = OFF"] if closed else []),
                "SET SESSION sql_log_bin = 0",
                *statements,
                "SET SESSION sql_log_bin = 1",
            ],
            seconds=10,
        )
    finally:
        server.close()
        # One that serves by now goes on serving.
        if closed:
            server.query("SET GLOBAL super_read_only = ON", seconds=10)


def copy(
    server: Server,
    donor: str,
    password: str,
    *,
    port: int = PORT,
    start: Callable[[], None],
    seconds: float = COPY_SECONDS,
) -> Copy:
    """Replace all data of a closed server by that at address ``donor``; it restarts by itself.

    ``start`` starts the server where its supervisor did not. Raises HostFailed when the copy was
    not completed: the server stays closed, and what it had before may be gone.
    """
    before = [row["begun"] for row in server.query(_STATUS)]
    try:
        server.batch(
            [
                # It refuses to be replaced while nobody at all may write; clients may not anyhow.
                "SET GLOBAL super_read_only = OFF",
                # The donor has to be known to the fleet's authority, once there is one here.
                "SET GLOBAL clone_ssl_ca = IF(LEFT(@@GLOBAL.ssl_ca, 1) = '/', @@GLOBAL.ssl_ca, '')",
                ("SET GLOBAL clone_valid_donor_list = %s", (f"{donor}:{port}",)),
                (
                    "CLONE INSTANCE FROM %s@%s:%s IDENTIFIED BY %s REQUIRE SSL",
                    (ACCOUNT, donor, port, password),
                ),
            ],
            seconds=seconds,
        )
    except SqlError as error:
        if error.code != _NO_SUPERVISOR:
            with suppress(FlotillaError):
                server.query("SET GLOBAL super_read_only = ON")
            raise _failed(server, error.what) from None
        server.close()
    except Unreachable:
        pass  # it restarts: that ends the session
    return _completed(server, before, start)


def _completed(server: Server, before: list[str], start: Callable[[], None]) -> Copy:
    why, closed = "", 0

    def ended() -> Copy | None:
        nonlocal why, closed
        try:
            rows = server.query(_STATUS)
        except FlotillaError as error:
            why = error.what
            server.close()
            closed += isinstance(error, PortClosedError)
            if closed == _PATIENCE:
                # Whoever supervises it has not started it again: it ended in order.
                start()
            return None
        if not rows or rows[0]["begun"] in before:
            why = "no copy was begun"
            return None
        why = f"{rows[0]['state']} {rows[0]['message']}".strip()
        if rows[0]["state"] == "Failed":
            raise _failed(server, why)
        done = rows[0]["state"] == "Completed"
        return Copy(rows[0]["uuid"], "".join(rows[0]["executed"].split())) if done else None

    try:
        return until(ended, seconds=BACK_SECONDS, every=_LOOK_SECONDS)
    except DeadlineError:
        raise _failed(server, why) from None


def _failed(server: Server, why: str) -> HostFailed:
    return HostFailed(
        f"{server.name}: the copy was not completed: {why}",
        "what it had before may be gone, so it must not serve",
        f"{server.name} stays closed (offline_mode); the others serve as before",
        f"fab mysql.rebuild {server.name}",
    )
