"""The accounts of a cluster: made on the primary only, so that they replicate to everybody.

Passwords come from SSM and travel inside the MySQL protocol, through SSH: never in an argument.
Whether an account is as it should be is told by two digests in ops.account: of the statements that
made it (keyed by the root secret, so that a password cannot be guessed from it), and of what the
server then stored. A rotated secret, a changed grant and a change by hand all show.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flotilla.hosts.mysql import MISSING, Server, SqlError, Statement
from flotilla.rules import mysql as rules

if TYPE_CHECKING:  # a database host has this module and not what reads fleet.yml
    from flotilla.settings import Settings

AGENT = "flotilla_agent"
AGENT_OS_USER = "flotilla-mysql"
REPLICATION = rules.REPLICATION
MONITOR = "monitor"
WATCHER = "flotilla_watcher"
BACKUP = "flotilla_backup"
BACKUP_OS_USER = "mysql"

# All that an application and its migrations may do, in its own database only.
_APPLICATION = (
    "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX, REFERENCES, CREATE VIEW,"
    " SHOW VIEW, TRIGGER, CREATE TEMPORARY TABLES, LOCK TABLES, EXECUTE, CREATE ROUTINE,"
    " ALTER ROUTINE"
)
# Enough to move the primary's role and nothing of the data: it sees no table but our own.
_WATCH = (
    # The admin port, which answers when clients hold every connection; and past offline_mode.
    "SERVICE_CONNECTION_ADMIN, CONNECTION_ADMIN, "
    # super_read_only, offline_mode and the two sides of semi-sync.
    "SYSTEM_VARIABLES_ADMIN, "
    # CHANGE REPLICATION SOURCE, START and STOP REPLICA; RESET REPLICA asks for RELOAD as well.
    "REPLICATION_SLAVE_ADMIN, REPLICATION CLIENT, RELOAD"
)
# What the server keeps of an account, in the words of mysql.user.
_KEPT = (
    "SHA2(CONCAT_WS('/', plugin, HEX(authentication_string), ssl_type, account_locked,"
    # The second password, of which CONCAT_WS leaves no trace where there is none.
    " HEX(User_attributes->>'$.additional_password')), 256)"
)
_REMEMBERED = f"""
SELECT a.name, a.digest FROM ops.account a JOIN mysql.user u ON u.user = a.name
WHERE a.kept = {_KEPT}
"""  # noqa: S608  nothing but the constant above
_REMEMBER = f"""
REPLACE INTO ops.account (name, digest, kept)
SELECT user, %s, {_KEPT} FROM mysql.user WHERE user = %s AND host = %s
"""  # noqa: S608  nothing but the constant above


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """Account to password, and "root" to the key of digests. No repr: it must not be logged.

    ``accepted`` has the accounts whose secret is being rotated: what servers take, newest first.
    """

    passwords: Mapping[str, str]
    accepted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, repr=False)
class Account:
    """An account and the statements that make it what it should be, from any state."""

    name: str
    host: str
    statements: tuple[Statement, ...]

    def digest(self, key: str) -> str:
        """Changes with every statement and every password; keyed, 64 hexadecimal digits."""
        return hmac.new(key.encode(), repr(self.statements).encode(), hashlib.sha256).hexdigest()


def schema() -> Iterator[Statement]:
    """Our own tables: whose term it is, and how the accounts were made."""
    yield "CREATE DATABASE IF NOT EXISTS ops"
    yield (
        "CREATE TABLE IF NOT EXISTS ops.term (term BIGINT UNSIGNED PRIMARY KEY,"
        " uuid CHAR(36) NOT NULL, granted_at TIMESTAMP(6) NOT NULL)"
    )
    yield (
        "CREATE TABLE IF NOT EXISTS ops.account (name VARCHAR(32) PRIMARY KEY,"
        " digest CHAR(64) NOT NULL, kept CHAR(64) NOT NULL)"
    )


def replication(known: Secrets) -> Account:
    """Whom replicas log in as."""
    return _account(REPLICATION, known, "REQUIRE SSL", "GRANT REPLICATION SLAVE ON *.* TO {}")


def accounts(settings: Settings, known: Secrets) -> tuple[Account, ...]:
    """Every account a cluster should have."""
    database, user = settings.mysql.database, settings.mysql.user
    return (
        replication(known),
        _local(
            AGENT,
            AGENT_OS_USER,
            "GRANT REPLICATION CLIENT ON *.* TO {}",
            "GRANT SELECT ON performance_schema.* TO {}",
            "GRANT SELECT ON ops.term TO {}",
        ),
        # It copies the files that its operating system user owns anyhow, and sees no table of them.
        _local(
            BACKUP,
            BACKUP_OS_USER,
            "GRANT BACKUP_ADMIN, REPLICATION CLIENT ON *.* TO {}",
            "GRANT SELECT ON performance_schema.* TO {}",
            "GRANT SELECT ON ops.term TO {}",
        ),
        _account(
            MONITOR,
            known,
            "REQUIRE SSL",
            "GRANT PROCESS, REPLICATION CLIENT ON *.* TO {}",
            "GRANT SELECT ON performance_schema.* TO {}",
        ),
        _account(
            WATCHER,
            known,
            "REQUIRE SSL",
            f"GRANT {_WATCH} ON *.* TO {{}}",
            "GRANT SELECT ON performance_schema.* TO {}",
            "GRANT SELECT, INSERT, UPDATE ON ops.term TO {}",
            "GRANT CREATE, SELECT, INSERT, DELETE ON ops.report TO {}",
        ),
        _account(
            user,
            known,
            "REQUIRE NONE",
            f"CREATE DATABASE IF NOT EXISTS `{database}`",
            f"GRANT {_APPLICATION} ON `{database}`.* TO {{}}",
        ),
    )


def unusable(server: Server, wanted: Iterable[Account], known: Secrets) -> frozenset[str]:
    """The accounts that are missing on this server, or not as they should be."""
    try:
        rows = server.query(_REMEMBERED)
    except SqlError as error:
        if error.code not in MISSING:
            raise
        rows = []
    right = {row["name"]: row["digest"] for row in rows}
    key = known.passwords["root"]
    return frozenset(one.name for one in wanted if right.get(one.name) != one.digest(key))


def make(account: Account, known: Secrets) -> Iterator[Statement]:
    """Statements that make the account and then remember how."""
    yield from account.statements
    yield _REMEMBER, (account.digest(known.passwords["root"]), account.name, account.host)


def _local(name: str, os_user: str, *grants: str) -> Account:
    """Somebody on the host itself, known by the operating system user; there is no password."""
    who = f"'{name}'@'localhost'"
    return Account(
        name,
        "localhost",
        (
            f"CREATE USER IF NOT EXISTS {who} IDENTIFIED WITH auth_socket AS '{os_user}'",
            f"ALTER USER {who} IDENTIFIED WITH auth_socket AS '{os_user}'",
            *(grant.format(who) for grant in grants),
        ),
    )


def _account(name: str, known: Secrets, requires: str, *grants: str) -> Account:
    who = f"'{name}'@'%%'"
    newest, *older = known.accepted.get(name, (known.passwords[name],))
    base = (older[0] if older else newest,)
    # Run again, each list refuses the newest password for a moment at most where there are two,
    # and clients are given that one only after the account is as it should be.
    second: Statement = (
        (f"ALTER USER {who} IDENTIFIED BY %s RETAIN CURRENT PASSWORD", (newest,))
        if older
        else f"ALTER USER {who.replace('%%', '%')} DISCARD OLD PASSWORD"
    )
    return Account(
        name,
        "%",
        (
            (f"CREATE USER IF NOT EXISTS {who} IDENTIFIED BY %s {requires}", base),
            (f"ALTER USER {who} IDENTIFIED BY %s {requires} ACCOUNT UNLOCK", base),
            second,
            *(grant.format(who.replace("%%", "%")) for grant in grants),
        ),
    )
