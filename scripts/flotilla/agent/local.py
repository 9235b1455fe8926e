"""What this host's own server was like a moment ago, for all who ask."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from flotilla.errors import FlotillaError
from flotilla.hosts.mysql import Server
from flotilla.hosts.mysql_glimpse import Glimpse, glimpse, stirs

PERIOD_SECONDS = 0.25
# A server that died says so at once, by the end of its sessions. One that is slow may only be busy,
# and HAProxy cuts every session of a primary that says no, so it is waited for; nobody takes over
# from a silent one before 2.5 s.
PROBE_SECONDS = 1.5
# A look is as old as this at the most while looking works.
FRESH_SECONDS = PERIOD_SECONDS + PROBE_SECONDS + 0.25
HURRY_SECONDS = 0.02
# For so long, this process or its server may have slept without anybody taking over meanwhile.
AWAY_SECONDS = 2.0
# How often to try for the own session again; the spare one is TLS, and takes a third more time.
SPARED_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest look, ``at`` a monotonic time; ``why`` says why there is no ``glimpse``."""

    glimpse: Glimpse | None
    why: str
    at: float


class Local:
    """Looks at one server again and again. ``seen`` and ``gap_at`` are for any thread.

    ``pace`` says, from the newest look, when to look next: PERIOD_SECONDS or less.
    """

    def __init__(self, server: Server, clock: Callable[[], float] = time.monotonic) -> None:
        self._own = self._server = server
        self._spare: Callable[[], Server | None] = lambda: None
        self._spared_at = 0.0
        self.pace: Callable[[Glimpse | None], float] = lambda _: PERIOD_SECONDS
        self._clock = clock
        self.gap_at = clock()
        self._seen = Seen(None, "the server was not looked at yet", clock())
        # Readable while somebody waits for a look.
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def seen(self) -> Seen:
        """The newest look; one that is too old says so and has no glimpse."""
        seen = self._seen
        age = self._clock() - seen.at
        if age > FRESH_SECONDS:
            return Seen(None, f"MySQL gave no answer for {age:.1f} s", seen.at)
        return seen

    def turn_to(self, spare: Callable[[], Server | None]) -> None:
        """Where our own session ends, or cannot be had, use the one that ``spare`` makes, if any,
        until that ends or ours is there again.
        """
        self._spare = spare

    def run(self) -> None:
        """Look for ever."""
        self.look()
        while True:
            self.turn()

    def hurry(self) -> None:
        """Have the server looked at now, from any thread; does not wait for it."""
        os.eventfd_write(self._bell, 1)

    def turn(self) -> None:
        """Wait for the next look, for the end of the server, or for somebody in a hurry; look."""
        start = self._clock()
        stirs(self._server, self.pace(self._seen.glimpse), self._bell)
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)
            # Nobody who is in a hurry makes it look more often.
            time.sleep(max(0.0, self._seen.at + HURRY_SECONDS - self._clock()))
        if self._clock() - start > PERIOD_SECONDS + AWAY_SECONDS:
            self.gap_at = self._clock()
        self.look()

    def look(self) -> None:
        """Look now."""
        self._go_back()
        start = self._clock()
        try:
            found, why = glimpse(self._server, seconds=PROBE_SECONDS), ""
        except FlotillaError as error:
            found, why = None, error.what
            self._server.close()
            # The admin port has room when clients hold every connection.
            spare = self._spare() if self._server is self._own else None
            self._server = spare or self._own
            self._spared_at = start
        now = self._clock()
        if found is None or now - start > AWAY_SECONDS:
            self.gap_at = now
        self._seen = Seen(found, why, now)

    def _go_back(self) -> None:
        """Leave the spare session, once the own one has shown all that a look needs."""
        if self._server is self._own or self._clock() - self._spared_at < SPARED_SECONDS:
            return
        self._spared_at = self._clock()
        try:
            glimpse(self._own, seconds=PERIOD_SECONDS)
        except FlotillaError:
            self._own.close()
        else:
            self._server.close()
            self._server = self._own
