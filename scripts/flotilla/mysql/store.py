"""What an operator's commands need of AWS for a cluster: its record, its lock, its passwords."""

from __future__ import annotations

from flotilla.aws import dynamo
from flotilla.aws.secrets import held as held_of
from flotilla.errors import Refused
from flotilla.lock import Lock
from flotilla.mysql.accounts import MONITOR, REPLICATION, WATCHER, Secrets
from flotilla.mysql.record import CLUSTER, Records
from flotilla.rules.secrets import accepted
from flotilla.settings import Settings


def records(settings: Settings, cluster: str = CLUSTER) -> Records:
    """The record of one of the fleet's clusters."""
    return Records(dynamo.clusters(settings), cluster)


# A switchover that is killed between two hosts leaves a cluster without writes, and neither a
# watcher nor `fab mysql.ensure` may mend it before its lease is over. Every use of it is short.
LEASE_SECONDS = 15.0
_WAIT = f"the same command again; the lease of a dead run ends after {LEASE_SECONDS:g} s by itself"


def lock(settings: Settings, reason: str) -> Lock:
    """The lease on the MySQL cluster, the same that watchers take."""
    table = dynamo.clusters(settings)
    return Lock(settings, CLUSTER, reason=reason, table=table, seconds=LEASE_SECONDS, wait=_WAIT)


def secrets(settings: Settings) -> Secrets:
    """The passwords of this fleet's accounts, from SSM. Raises Refused naming what is missing."""
    wanted = {
        "root_password": "root",
        "app_password": settings.mysql.user,
        "replication_password": REPLICATION,
        "monitor_password": MONITOR,
        "watcher_password": WATCHER,
    }
    found = {wanted[name]: held for name, held in held_of(settings, "mysql", wanted).items()}
    missing = sorted(
        settings.parameter("mysql", name)
        for name, account in wanted.items()
        if account not in found
    )
    if missing:
        raise Refused(
            f"SSM has no parameter {', '.join(missing)}",
            "accounts without a password are not made",
            "Nothing was changed",
            "fab fleet.provision",
        )
    passwords = {account: held.current for account, held in found.items()}
    taken = {account: accepted(held) for account, held in found.items()}
    return Secrets(passwords, {name: both for name, both in taken.items() if len(both) > 1})
