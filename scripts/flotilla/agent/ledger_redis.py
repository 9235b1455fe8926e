"""Write numbered fields to a hash of Redis; see ``flotilla.agent.ledger``."""

from __future__ import annotations

import time
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from flotilla.agent import ledger
from flotilla.agent.ledger import ANSWER_SECONDS, READY_SECONDS, RETRY_SECONDS, NotWrittenError
from flotilla.rules.ledger import Fate

FAILURES = (redis.exceptions.RedisError, OSError)
# A field that every writer's host puts before it begins. With it the hash outlives its other
# fields, and its time is over when nobody came to read it.
READY = "ready"
KEPT_SECONDS = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(ledger.Order):
    """An order for a hash, ``key``. ``wait_replicas``: acknowledged is a write that so many
    replicas have within ``wait_ms`` (WAIT); with 0, one that the primary has. ``authority`` (PEM)
    has to vouch for whoever answers, by the name or address in ``host``.
    """

    program = "flotilla.agent.ledger_redis"
    carry = ("redis", "async_timeout")

    key: str
    authority: str
    wait_replicas: int = 0
    wait_ms: int = 1000


class Way:
    """A connection that lasts; see ``ledger.Way``. ``server`` is the address at its end."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._client: Any = None
        self.server = ""

    def write(self, name: str) -> None:
        """See ``ledger.Way``."""
        order, sent, stored = self._order, False, False
        try:
            if self._client is None:
                self._client = connect(order)
                self.server = at_the_end_of(self._client)
            sent = True
            self._client.hset(order.key, name, self.server)
            stored = True
            if order.wait_replicas:
                have = self._client.wait(order.wait_replicas, order.wait_ms)
                if have < order.wait_replicas:
                    raise NotWrittenError(Fate.UNKNOWN, f"{have} replicas have it")
        except FAILURES as error:
            # Refused to wait (it is a replica by now), it has the write, or had it.
            is_refusal = sent and not stored and is_told(error)
            fate = Fate.UNKNOWN if sent and not is_refusal else Fate.FAILED
            raise NotWrittenError(fate, named(error), is_refusal=is_refusal) from error

    def drop(self) -> None:
        """See ``ledger.Way``."""
        if self._client is not None:
            with suppress(*FAILURES):
                self._client.close()
        self._client, self.server = None, ""


def connect(order: Order) -> Any:
    """A client with one connection, which is there when this returns."""
    return redis.Redis(
        host=order.host,
        port=order.port,
        username=order.user,
        password=order.password,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        single_connection_client=True,
        ssl=True,
        ssl_ca_data=order.authority,
        ssl_check_hostname=True,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )


def at_the_end_of(client: Any) -> str:
    """The address of the server that a client is connected to, whatever is in between."""
    # As the server itself sees the connection: "id=7 addr=... laddr=10.0.1.5:6379 fd=...".
    fields = dict(part.split("=", 1) for part in client.execute_command("CLIENT", "INFO").split())
    return str(fields["laddr"]).rpartition(":")[0]


def is_told(error: BaseException) -> bool:
    """Did the server refuse, so that nothing was written?"""
    # A server that still loads its data says so; to the library that is a broken connection.
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return True
    return isinstance(error, redis.exceptions.ResponseError)


def named(error: BaseException) -> str:
    """An error's kind, with the server's code for it where there is one."""
    # The library makes classes of some codes; of the others it leaves the code in the text.
    code = str(error).partition(" ")[0]
    return f"{type(error).__name__} {code if code.isupper() else ''}".rstrip()


def demand_writes(order: Order) -> None:
    """See that the primary takes a write, for a while. Raises what the last try did."""
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            with closing(connect(order)) as client:
                client.hset(order.key, READY, order.label)
                client.expire(order.key, KEPT_SECONDS)
        except FAILURES:
            if time.monotonic() > end:
                raise
            time.sleep(RETRY_SECONDS)
        else:
            return


if __name__ == "__main__":
    ledger.run(Order, Way, demand_writes)
