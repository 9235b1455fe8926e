"""The ledger's fields in Redis: what to write there, and what is there afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace

from flotilla.agent.bundle import loaded
from flotilla.agent.ledger_redis import Order
from flotilla.aws import secrets
from flotilla.errors import HostFailed
from flotilla.hosts.ssh import Runner
from flotilla.settings import Settings
from flotilla.snapshot import Host

# Role redis lets the application use these keys whatever else it may use.
KEYS = "flotilla_ledger"
PORT = 6379
USER = "app"
READ_BACK_SECONDS = 30.0


def password(settings: Settings) -> str:
    """Of the application's account. Raises Refused, Unreachable."""
    name = settings.parameter("redis", "app_password")
    return secrets.named(settings, [name])[name]


def order(
    known: str,
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
        user=USER,
        password=known,
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
