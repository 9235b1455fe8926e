"""Close an old primary behind the back of a failover, and say once that is verified.

A failover begins it and goes on: that nobody can acknowledge to the old primary any more is proof
enough to promote. Only where that proof cannot be had, it waits for this one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from flotilla.errors import FlotillaError
from flotilla.hosts.mysql import Server
from flotilla.mysql import takeover

ASK_SECONDS = 1.0


class Fence(Protocol):
    """One old primary to be closed."""

    @property
    def committed_before(self) -> str:
        """What it had committed when it was asked, as a GTID set; "" where it did not say."""

    @property
    def failure(self) -> str:
        """Why it could not be closed, "" when that is not known."""

    def begin(self) -> None:
        """Start closing it, and return at once. Nothing happens when it has begun already."""

    def verified(self, seconds: float) -> str:
        """How it was found to be closed, "" when that is not so within ``seconds``."""


class Fencing:
    """Does ``work`` on a thread; what it returns is the proof."""

    def __init__(self, work: Callable[[], str]) -> None:
        self._work = work
        self._proof = ""
        self._failure = ""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def committed_before(self) -> str:
        """Nothing: it was not asked."""
        return ""

    @property
    def failure(self) -> str:
        """Why it could not be closed, "" when that is not known."""
        return self._failure

    def begin(self) -> None:
        """Start closing it, and return at once. Nothing happens when it has begun already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="fence")
            self._thread.start()

    def verified(self, seconds: float) -> str:
        """How it was found to be closed, "" when that is not so within ``seconds``."""
        self._ended.wait(seconds)
        return self._proof

    def _run(self) -> None:
        try:
            self._proof = self._work()
        except FlotillaError as error:
            self._failure = error.what
        finally:
            self._ended.set()


class ServerFence(Fencing):
    """Closes a primary that answers, through its own server. The session must be nobody else's."""

    def __init__(self, server: Server) -> None:
        super().__init__(self._close)
        self._server = server
        self._asked = threading.Event()
        self._committed = ""

    @property
    def committed_before(self) -> str:
        """What it had committed when it was asked, as a GTID set; "" where it did not say."""
        self._asked.wait(ASK_SECONDS)
        return self._committed

    def _close(self) -> str:
        try:
            rows = self._server.query("SELECT @@GLOBAL.gtid_executed AS executed")
            self._committed = "".join(rows[0]["executed"].split())
        finally:
            self._asked.set()
        takeover.fence(self._server)
        return f"{self._server.name} is offline and read-only and waits for no acknowledgement"
