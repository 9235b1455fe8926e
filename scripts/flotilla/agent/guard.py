"""Hold the cluster's lease for as long as a host's watcher changes something.

A watcher that was frozen must find out by itself: every check looks at the monotonic clock, and
nothing is changed once two thirds of the lease have passed since it was last renewed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from flotilla.aws import lease
from flotilla.aws.items import Value
from flotilla.errors import FlotillaError, Refused, Unreachable
from flotilla.mysql.record import Records

# Three times the slowest statement of a failover; a dead holder is waited for this long, and for
# the skew of clocks.
LEASE_SECONDS = 15.0
RENEW_SECONDS = 3.0
_SAFE_SECONDS = LEASE_SECONDS * 2 / 3


class Guard:
    """``with Guard(records, holder, reason, term=7) as guard:`` takes the lease while the record is
    at that term; raises lease.Held, or Unreachable.

    ``now`` is seconds since the epoch, ``clock`` is monotonic.
    """

    def __init__(
        self,
        records: Records,
        holder: str,
        reason: str,
        *,
        term: int,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._holder = holder
        self._reason = reason
        self._when: Mapping[str, Value] = {"term": {"N": str(term)}}
        self._now = now
        self._clock = clock
        self._lease: lease.Lease | None = None
        self._renewed = 0.0
        self._lost: FlotillaError | None = None
        self._is_kept = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")

    @property
    def term(self) -> int:
        """The fencing number of the lease."""
        return self._lease.term if self._lease else 0

    def __enter__(self) -> Self:
        # By the moment before the request: the lease is never longer than we think.
        before = self._clock()
        self._lease = lease.acquire(
            self._records.table,
            self._records.cluster,
            holder=self._holder,
            reason=self._reason,
            seconds=LEASE_SECONDS,
            now=self._now(),
            when=self._when,
        )
        self._renewed = before
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()
        if self._lease and not self._lost and not self._is_kept:
            # Otherwise it frees itself when its time is over.
            with suppress(FlotillaError):
                lease.release(self._records.table, self._lease, now=self._now())

    def check(self) -> None:
        """Raise Refused unless the lease is surely still ours. Safe for threads."""
        age = self._clock() - self._renewed
        if self._lost or age >= _SAFE_SECONDS:
            why = self._lost.what if self._lost else f"it was not renewed for {age:.1f} s"
            raise Refused(
                f"the lease on {self._records.cluster} is not surely ours any more: {why}",
                "somebody else may be at work on the same cluster",
                "Nothing was changed after that",
                "fab mysql.status",
            )

    def until(self) -> float:
        """When the lease ends as it was last renewed, in seconds since the epoch."""
        return self._lease.expires_at if self._lease else 0.0

    def let_expire(self) -> None:
        """Do not give it back at the end: something done under it may take effect until then."""
        self._is_kept = True

    def _renew(self) -> None:
        while self._lease and not self._stopped.wait(RENEW_SECONDS):
            before = self._clock()
            try:
                self._lease = lease.renew(
                    self._records.table, self._lease, seconds=LEASE_SECONDS, now=self._now()
                )
            except Unreachable:
                continue
            except FlotillaError as error:
                self._lost = error
                return
            self._renewed = before
