"""What an operator's commands need of AWS for a cluster: its record, its lock, its passwords."""

from __future__ import annotations

from flotilla.aws import dynamo
from flotilla.aws.session import client, described
from flotilla.errors import Refused
from flotilla.lock import Lock
from flotilla.mysql.accounts import MONITOR, REPLICATION, WATCHER, Secrets
from flotilla.mysql.record import CLUSTER, Records
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
        settings.parameter("mysql", "root_password"): "root",
        settings.parameter("mysql", "app_password"): settings.mysql.user,
        settings.parameter("mysql", "replication_password"): REPLICATION,
        settings.parameter("mysql", "monitor_password"): MONITOR,
        settings.parameter("mysql", "watcher_password"): WATCHER,
    }
    with described(settings, "read the MySQL passwords"):
        answer = client(settings, "ssm").get_parameters(Names=list(wanted), WithDecryption=True)
    found = {wanted[p["Name"]]: p["Value"] for p in answer["Parameters"]}
    missing = sorted(name for name, account in wanted.items() if account not in found)
    if missing:
        raise Refused(
            f"SSM has no parameter {', '.join(missing)}",
            "accounts without a password are not made",
            "Nothing was changed",
            "fab fleet.provision",
        )
    return Secrets(found)
