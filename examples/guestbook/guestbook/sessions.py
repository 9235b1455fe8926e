"""Sessions in Redis: a name and a visit counter.

Without Redis the page is still served, to a stranger.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from guestbook.settings import Settings

LIFETIME_SECONDS = 24 * 3600
CONNECT_SECONDS = 0.5
ANSWER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who is looking at the page. `visits` is None when the session could not be read."""

    session_id: str
    name: str
    visits: int | None


class Sessions:
    """Sessions as hashes `session:<id>` that expire a day after the last visit."""

    def __init__(self, settings: Settings) -> None:
        self._redis: Redis = Redis(
            host=settings.cache.host,
            port=settings.cache.port,
            username=settings.cache_user or None,
            password=settings.cache_password,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=ANSWER_SECONDS,
            decode_responses=True,
            # Whoever answers has to prove the name in CACHE_ADDRESS, wherever that leads.
            ssl=settings.cache_ca is not None,
            ssl_ca_certs=settings.cache_ca,
            ssl_check_hostname=True,
            health_check_interval=15,
            # Three tries over some 0.3 s: enough for a connection cut by a failover, short for a
            # page.
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), 2),
        )

    def visit(self, session_id: str | None) -> Visitor:
        """Count one visit and say whose it is; a new session where there was none."""
        session_id = session_id or secrets.token_urlsafe(16)
        key = f"session:{session_id}"
        try:
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.hincrby(key, "visits", 1)
                pipe.expire(key, LIFETIME_SECONDS)
                pipe.hget(key, "name")
                visits, _, name = pipe.execute()
        except RedisError:
            return Visitor(session_id, "", None)
        return Visitor(session_id, name or "", int(visits))

    def rename(self, session_id: str, name: str) -> None:
        """Keep the visitor's name. Raises RedisError when it could not be kept."""
        self._redis.hset(f"session:{session_id}", "name", name)

    def ping(self) -> str | None:
        """None when Redis takes a write on a host that is primary, else why not."""
        try:
            self._redis.set("session:readyz", "1", px=1000)
        except RedisError as error:
            return str(error)
        return None
