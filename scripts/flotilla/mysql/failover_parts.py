"""What a failover acts with, whoever runs it: its lease, the record, its journal, its audience.

The operator's command and the watcher on a database host bring their own; tests bring real ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from flotilla.hosts.mysql import Server
from flotilla.rules.mysql_state import State
from flotilla.rules.mysql_topology import Record


class Guard(Protocol):
    """The lease under which a run acts."""

    @property
    def term(self) -> int:
        """Its fencing number."""

    def check(self) -> None:
        """Raises Refused unless the lease is surely still ours."""

    def until(self) -> float:
        """When it ends, in seconds since the epoch: no statement may take effect after that."""

    def let_expire(self) -> None:
        """Not to be given back early: something done under it may take effect until it ends."""


class Book(Protocol):
    """The record of who is primary."""

    def state(self) -> State | None:
        """All of it, now."""

    def write(
        self,
        record: Record,
        *,
        fence: int,
        barred: Mapping[str, str] | None = None,
        baseline: str | None = None,
    ) -> None:
        """Make this the record, if the lease is ``fence`` and its term the next one.

        Returns also when it had been written before; raises Unreachable when that is not known.
        """


class Log(Protocol):
    """Where steps are noted. A line is durable when ``write`` returns."""

    def write(self, event: str, **fields: Any) -> None:
        """Add a line."""


class Announcer(Protocol):
    """Tells clients where writes go. What it does is a courtesy: health checks decide."""

    def tell(self, old: str, new: str) -> None:
        """Writes have moved, from one member to another."""


class Nobody:
    """Leaves it to the health checks."""

    def tell(self, old: str, new: str) -> None:
        """Nobody to tell."""


@contextmanager
def under(guard: Guard, servers: Iterable[Server]) -> Iterator[None]:
    """Statements on these sessions take effect before the lease ends, or never.

    Whoever slept between his look at the lease and his statement does nothing with it. After a
    statement of which it is not known whether it took effect, the lease is left to run out.
    """
    mine = list(servers)
    for server in mine:
        server.until = guard.until
    try:
        yield
    finally:
        if any(server.is_unsettled for server in mine):
            guard.let_expire()
        for server in mine:
            server.until, server.is_unsettled = None, False


@dataclass(frozen=True, slots=True)
class Done:
    """A change of primary that took effect. ``seconds`` is step to seconds, in order.

    ``revoked`` had stopped acknowledging when positions were read. ``fenced`` says how the old
    primary was verified to be closed, "" while that is not known. ``gap_seconds`` is by the
    servers' clocks, from the last write or heartbeat that came to the first write on the new
    primary; None where nothing had been received. ``given_up`` are GTIDs that an operator chose
    to lose. ``left_out`` are members that do not follow, or were not closed, with the reason.
    """

    term: int
    old: str
    new: str
    seconds: Mapping[str, float]
    revoked: tuple[str, ...] = ()
    proof: str = ""
    fenced: str = ""
    gap_seconds: float | None = None
    given_up: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
