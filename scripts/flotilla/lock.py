"""Hold a lease for as long as a run takes: renewed behind its back, checked before every change."""

from __future__ import annotations

import getpass
import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from flotilla.aws import lease
from flotilla.errors import FlotillaError, Refused, Unreachable
from flotilla.settings import Settings

# A killed run frees its lock after this; with the API away, a run may go on for as long.
LEASE_SECONDS = 60.0
RENEW_SECONDS = 10.0


def holder() -> str:
    """Who holds a lock: user, machine and process, so that two runs of one person differ."""
    return f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}"


class Lock:
    """``with Lock(settings, "deploy", reason="..."):``; raises lease.Held when it is taken.

    ``check`` is called before each change and raises Refused once the lease is lost or over;
    ``term`` is the fencing token.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        *,
        reason: str,
        take_over: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._table = settings.name_of("locks")
        self._name = name
        self._reason = reason
        self._take_over = take_over
        self._clock = clock
        self._stopped = threading.Event()
        self._lost: FlotillaError | None = None
        self._lease: lease.Lease | None = None
        self._thread = threading.Thread(target=self._renew, daemon=True)

    @property
    def term(self) -> int:
        """The fencing token; it grows with every new holder."""
        return self._lease.term if self._lease else 0

    def __enter__(self) -> Self:
        try:
            self._lease = lease.acquire(
                self._settings,
                self._table,
                self._name,
                holder=holder(),
                reason=self._reason,
                seconds=LEASE_SECONDS,
                now=self._clock(),
                take_over=self._take_over,
            )
        except lease.Held as error:
            error.next = error.next or "wait for it, or if that run is dead: --take-over"
            raise
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
        if self._lease is None or self._lost:
            return
        try:
            lease.release(self._settings, self._table, self._lease, now=self._clock())
        except (lease.Held, Unreachable):
            # It frees itself when its time is over; what was done under it stands.
            return

    def check(self) -> None:
        """Raise Refused unless the lease is surely still ours."""
        if self._lost:
            raise Refused(
                f"the lock {self._name} is no longer ours: {self._lost.what}",
                why="somebody else may be at work on the same hosts",
                next="fab fleet.status",
            )
        if self._lease is None or self._clock() >= self._lease.expires_at:
            raise Refused(
                f"the lock {self._name} could not be renewed for {LEASE_SECONDS:g} s",
                why="the AWS API does not answer, and the lock frees itself",
                next=self._settings.aws.hint,
            )

    def _renew(self) -> None:
        while self._lease and not self._stopped.wait(RENEW_SECONDS):
            try:
                self._lease = lease.renew(
                    self._settings,
                    self._table,
                    self._lease,
                    seconds=LEASE_SECONDS,
                    now=self._clock(),
                )
            except Unreachable:
                continue
            except FlotillaError as error:
                self._lost = error
                return
