"""What the record of a cluster holds besides who is primary, in one DynamoDB item.

The lease is held by whoever changes the cluster at the moment: an operator's command or a watcher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flotilla.rules.lease import Lease
from flotilla.rules.mysql_topology import Record


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing happens by itself until ``until`` (seconds since the epoch)."""

    by: str
    reason: str
    until: float


@dataclass(frozen=True, slots=True)
class Failover:
    """One change of primary that was not planned. Times are seconds since the epoch.

    ``acknowledged_at`` is when a human had looked at it, 0 for not yet.
    """

    term: int
    old: str
    new: str
    at: float
    why: str
    acknowledged_at: float = 0.0


@dataclass(frozen=True, slots=True)
class State:
    """All of the item. ``past`` maps the server UUID of a former primary to the GTIDs that were
    known when it was replaced: whatever it holds beyond them was never acknowledged.

    ``failovers`` are the newest few, newest first.
    """

    record: Record | None = None
    lease: Lease | None = None
    paused: Pause | None = None
    failovers: tuple[Failover, ...] = ()
    past: Mapping[str, str] = field(default_factory=dict)

    def pause_now(self, now: float) -> Pause | None:
        """The pause that holds at ``now``."""
        return self.paused if self.paused and now < self.paused.until else None

    def holder_now(self, now: float) -> str:
        """Who is at work on the cluster at ``now``, "" when nobody is."""
        return "" if self.lease is None or self.lease.is_free(now) else self.lease.holder
