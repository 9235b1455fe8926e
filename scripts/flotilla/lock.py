"""Hold a lease for as long as a run takes: renewed behind its back, checked before every change.

Two runs never change anything at the same time. Without the AWS API a run goes on for what is left
of its lease, and nobody can take that over before. With it, whoever takes a lock over from a run
that may live waits until that run must have noticed: it looks at the lease before a change when it
has not for CONFIRM_SECONDS, and one change takes CHANGE_SECONDS at the most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from flotilla import audit
from flotilla.aws import dynamo, lease
from flotilla.aws.items import Table
from flotilla.errors import FlotillaError, Refused, Unreachable
from flotilla.settings import Settings
from flotilla.who import has_ended, holder

__all__ = ["Lock", "demand_free", "holder"]

# A killed run frees its lock after this; with the API away, a run may go on for as long.
LEASE_SECONDS = 60.0
RENEW_SECONDS = 10.0
CONFIRM_SECONDS = 2.0
ANSWER_SECONDS = 2.0
CHANGE_SECONDS = 5.0


_WAIT = "wait for it, or if that run is dead: --take-over"


def demand_free(settings: Settings, name: str, *, clock: Callable[[], float] = time.time) -> None:
    """Raise lease.Held, naming who is at work, where a Lock would not be had now.

    For the beginning of a run: what its plan finds wrong may be the work of that other run.
    """
    found = lease.read(dynamo.locks(settings), name)
    mine = lease.Lease(name, 0, holder(), "", 0.0, 0.0)
    why = lease.decide(found, "acquire", mine, now=clock())
    if isinstance(why, str):
        raise lease.Held(found or mine, why, _WAIT)


def take_from_dead(
    settings: Settings,
    name: str,
    *,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Free a lock that a killed run of this machine left; who that was, "" for nobody.

    Only for a fleet that no other machine can reach, as the lab's: a machine of the same name
    elsewhere would be taken for this one.
    """
    try:
        found = lease.read(dynamo.locks(settings), name)
    except Refused:
        return ""  # there is no fleet yet
    if found is None or found.is_free(clock()) or not has_ended(found.holder):
        return ""
    why = f"{found.holder} was killed"
    with Lock(settings, name, reason=why, take_over=True, clock=clock, sleep=sleep):
        return found.holder


class Lock:
    """``with Lock(settings, "deploy", reason="..."):``; raises lease.Held when it is taken.

    ``check`` is called before each change and raises Refused once the lease is lost or over;
    ``term`` is the fencing token. With ``take_over`` it is taken from whoever holds it, which the
    audit file is told; ``taken_from`` is that lease. Without ``table`` it is one of the fleet's
    locks. A killed run's lock frees itself after ``seconds``; ``wait`` is what whoever finds it
    taken is told to do.
    """

    taken_from: lease.Lease | None = None

    def __init__(
        self,
        settings: Settings,
        name: str,
        *,
        reason: str,
        take_over: bool = False,
        table: Table | None = None,
        seconds: float = LEASE_SECONDS,
        wait: str = _WAIT,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._table = table or dynamo.locks(settings)
        self._name = name
        self._reason = reason
        self._take_over = take_over
        self._seconds = seconds
        self._wait = wait
        self._clock = clock
        self._sleep = sleep
        self._looking = threading.Lock()
        self._looked = 0.0
        self._reader: threading.Thread | None = None
        self._stopped = threading.Event()
        self._lost: FlotillaError | None = None
        self._is_kept = False
        self._lease: lease.Lease | None = None
        self._thread = threading.Thread(target=self._renew, daemon=True)

    @property
    def term(self) -> int:
        """The fencing token; it grows with every new holder."""
        return self._lease.term if self._lease else 0

    def __enter__(self) -> Self:
        before = lease.read(self._table, self._name) if self._take_over else None
        try:
            self._lease = lease.acquire(
                self._table,
                self._name,
                holder=holder(),
                reason=self._reason,
                seconds=self._seconds,
                now=self._clock(),
                take_over=self._take_over,
            )
        except lease.Held as error:
            error.next = error.next or self._wait
            raise
        self._looked = self._clock()
        self._thread.start()
        if before and not before.is_free(self._clock()):
            self._taken(before)
        return self

    def _taken(self, before: lease.Lease) -> None:
        self.taken_from = before
        # Without S3 the line is in the local file, and is sent with the next one.
        with suppress(FlotillaError):
            audit.record(
                self._settings,
                f"take over the lock {self._name}",
                f"term {self.term}",
                why=self._reason,
                taken_from=before.holder,
                held_for=before.reason,
                held_since=before.acquired_at,
            )
        self._sleep(CONFIRM_SECONDS + CHANGE_SECONDS)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()
        if self._lease is None or self._lost or self._is_kept:
            return
        try:
            lease.release(self._table, self._lease, now=self._clock())
        except (lease.Held, Unreachable):
            # It frees itself when its time is over; what was done under it stands.
            return

    def check(self) -> None:
        """Raise Refused unless the lease is surely still ours. Safe for threads."""
        self._look()
        if self._lost:
            raise Refused(
                f"the lock {self._name} is no longer ours: {self._lost.what}",
                why="somebody else may be at work on the same hosts",
                next="fab fleet.status",
            )
        if self._lease is None or self._clock() >= self._lease.expires_at:
            raise Refused(
                f"the lock {self._name} could not be renewed for {self._seconds:g} s",
                why="the AWS API does not answer, and the lock frees itself",
                next=self._settings.aws.hint,
            )

    def until(self) -> float:
        """When the lease ends as it was last renewed, in seconds since the epoch."""
        return self._lease.expires_at if self._lease else 0.0

    def let_expire(self) -> None:
        """Do not give it back at the end: something done under it may take effect until then."""
        self._is_kept = True

    def _look(self) -> None:
        """Read the lease again, if nobody has for a while."""
        with self._looking:
            if self._lost or not self._lease or self._clock() - self._looked < CONFIRM_SECONDS:
                return
            # Also when the API does not answer: asking it before every change would hold all up.
            self._looked = self._clock()
            if not (self._reader and self._reader.is_alive()):
                self._reader = threading.Thread(target=self._read, daemon=True)
                self._reader.start()
            # A slow answer counts when it comes.
            self._reader.join(ANSWER_SECONDS)

    def _read(self) -> None:
        with suppress(Unreachable):
            found = lease.read(self._table, self._name)
            mine = self._lease
            if mine and (found is None or (found.holder, found.term) != (mine.holder, mine.term)):
                self._lost = lease.lost(mine, found)

    def _renew(self) -> None:
        while self._lease and not self._stopped.wait(RENEW_SECONDS * self._seconds / LEASE_SECONDS):
            try:
                self._lease = lease.renew(
                    self._table,
                    self._lease,
                    seconds=self._seconds,
                    now=self._clock(),
                )
            except Unreachable:
                continue
            except FlotillaError as error:
                self._lost = error
                return
