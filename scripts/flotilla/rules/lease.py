"""A lease with a fencing token: who may act now, and since which term.

``decide`` is the whole rule; ``flotilla.aws.lease`` writes what it decided on condition that the
item is still the one it decided about, so of two callers one wins.

Invariants: the term grows by one with every new holder and never shrinks (an item is emptied, never
deleted); a holder renews or releases its own term only. Whoever acts under a lease passes the term
along, and the receiver refuses a smaller one than it has seen: that is what stops a holder who
slept through its expiry.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

# Clocks of operators differ; nobody takes over before a lease is this long past its end.
SKEW_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Lease:
    """The item as it is. ``holder`` "" means free. Times are seconds since the epoch."""

    key: str
    term: int
    holder: str
    reason: str
    acquired_at: float
    expires_at: float

    def is_free(self, now: float) -> bool:
        """Whether anybody may take it: released, or its time and the clocks' skew are over."""
        return not self.holder or now > self.expires_at + SKEW_SECONDS


Action = Literal["acquire", "renew", "release", "take over"]


def decide(
    found: Lease | None,
    action: Action,
    mine: Lease,
    *,
    now: float,
) -> Lease | str:
    """The item to write, or the reason why not.

    ``mine`` carries key, holder, reason and the wanted ``expires_at``; for renew and release also
    the term that was acquired. Only "take over" ignores a holder whose time is not up.
    """
    if action in {"renew", "release"}:
        if found is None or (found.holder, found.term) != (mine.holder, mine.term):
            return lost(mine, found)
        if action == "release":
            return replace(found, holder="", expires_at=now)
        return replace(found, expires_at=max(found.expires_at, mine.expires_at))
    if action == "acquire" and found is not None and not found.is_free(now):
        return f"{mine.key} is taken: {who(found)}"
    term = (found.term if found else 0) + 1
    return replace(mine, term=term, acquired_at=now)


def lost(mine: Lease, found: Lease | None) -> str:
    """That a lease is not its holder's any more, and whose it is."""
    return f"{mine.holder} no longer holds {mine.key} (term {mine.term}): {who(found)}"


def who(lease: Lease | None) -> str:
    """Who has a lease, since when and until when."""
    if lease is None:
        return "nobody ever held it"
    if not lease.holder:
        return f"it is free since term {lease.term}"
    since = datetime.fromtimestamp(lease.acquired_at, UTC)
    until = datetime.fromtimestamp(lease.expires_at, UTC)
    return (
        f"held by {lease.holder} in term {lease.term} since {since:%Y-%m-%d %H:%M:%S} UTC, until "
        f"{until:%Y-%m-%d %H:%M:%S} UTC unless it is renewed"
    )
