"""The ledger's fields in Redis: what to write there, and what is there afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from flotilla.agent.bundle import loaded
from flotilla.agent.ledger_redis import Order
from flotilla.aws import secrets
from flotilla.aws.secrets import CERTIFICATE
from flotilla.errors import HostFailed
from flotilla.hosts.ssh import Runner
from flotilla.settings import Settings
from flotilla.snapshot import Host

# Role redis lets the application use these keys whatever else it may use.
KEYS = "flotilla_ledger"
PORT = 6379
USER = "app"
READ_BACK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Access:
    """What an application needs to reach Redis: the password of its account, the name that Redis
    has to prove, and the authority (PEM) that has to vouch for it.
    """

    password: str
    name: str
    authority: str


def access(settings: Settings) -> Access:
    """As the application's account. Raises Refused, Unreachable."""
    names = [settings.parameter("redis", "app_password"), settings.parameter(*CERTIFICATE)]
    found = secrets.named(settings, names, are_ours=True)
    return Access(found[names[0]], settings.zone("redis"), found[names[1]])


def order(
    known: Access,
    *,
    run: str,
    label: str,
    writers: int,
    pause_seconds: float,
    limit_seconds: float,
    wait_replicas: int,
) -> Order:
    """Fields of ``run`` as the application's own user, through the HAProxy of the writer's host."""
    return Order(
        run=run,
        port=PORT,
        host=known.name,
        user=USER,
        password=known.password,
        authority=known.authority,
        writers=writers,
        pause_seconds=pause_seconds,
        limit_seconds=limit_seconds,
        label=label,
        key=f"{KEYS}:{run}",
        wait_replicas=wait_replicas,
    )


def taken(runner: Runner, reader: Host, primary: str, wanted: Order) -> Mapping[str, str]:
    """What a run left on the server of address ``primary``: id to who took it. Then it is gone.

    Read by the application host ``reader``, for Redis is open to those. Raises HostFailed,
    Unreachable.
    """
    there = replace(wanted, host=primary)
    command, package = loaded("flotilla.agent.redis_rows", wanted.carry)
    stdin = f"{package}\n{json.dumps(asdict(there))}\n"
    said = runner.run(reader, command, stdin=stdin, seconds=READ_BACK_SECONDS).stdout
    try:
        return dict(json.loads(said))
    except ValueError as error:
        raise HostFailed(
            f"{reader.name}: what is in Redis cannot be read: {said[:200]!r}"
        ) from error
