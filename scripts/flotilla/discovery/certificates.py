"""How long this load balancer's certificates last: for the board, and as a metric to watch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from flotilla.errors import FlotillaError
from flotilla.hosts.haproxy import Runtime
from flotilla.rules import lb_certificate as rules
from flotilla.rules.lb_certificate import Certificate

# A metric that is looked at for a day or more, and is missing after some minutes without us.
EVERY_SECONDS = 300.0
METRIC = "CertificateDaysLeft"

# Stores a metric: name, value. May raise anything.
Put = Callable[[str, float], None]

log = logging.getLogger("flotilla.discovery")


class Certificates:
    """Looks every few minutes. ``clock`` is monotonic, ``now`` in seconds since the epoch."""

    def __init__(
        self,
        runtime: Runtime,
        put: Put,
        *,
        every: float = EVERY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._runtime, self._put, self._every = runtime, put, every
        self._clock, self._now = clock, now
        self._due = clock()
        self._found: tuple[Certificate, ...] = ()
        # Nobody waits for CloudWatch: servers' states are saved meanwhile.
        self._pool = ThreadPoolExecutor(1, "cloudwatch")
        self._sent: Future[None] | None = None

    def look(self) -> tuple[Certificate, ...]:
        """Those in use, as they were at the last look. Raises nothing of ours."""
        if self._clock() < self._due:
            return self._found
        self._due = self._clock() + self._every
        try:
            self._found = self._runtime.certificates()
        except FlotillaError as error:
            log.warning("HAProxy does not say which certificates it has: %s", error.what)
            return self._found
        days = rules.days_left(self._found, self._now())
        if days is not None and (self._sent is None or self._sent.done()):
            self._sent = self._pool.submit(self._tell, days)
        return self._found

    def _tell(self, days: float) -> None:
        try:
            self._put(METRIC, round(days, 2))
        except Exception as error:  # the metric is missing then, which an alarm is told
            log.warning("%s was not stored: %s", METRIC, error)
