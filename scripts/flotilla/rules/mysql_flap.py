"""Rule on whether the watchers may act by themselves now.

Invariant: after one automatic failover there is no second one before a human has seen the first, or
an hour has passed. What an operator starts is not held up by any of this.
"""

from __future__ import annotations

from flotilla.rules.mysql_state import State, foreign_claim

# orchestrator's and MHA's habit: a cluster that loses two primaries in an hour has a cause that a
# third one would meet too.
BLOCK_SECONDS = 3600.0
# After a failover that was refused or broke off, whoever tried leaves the next try to the others.
RETRY_SECONDS = 5.0


def hold(
    state: State,
    me: str,
    now: float,
    *,
    failed_at: float | None = None,
    block_seconds: float = BLOCK_SECONDS,
) -> str | None:
    """Why no automatic failover may be started by ``me`` at ``now`` (epoch s), or None.

    ``me`` is a lease's holder; ``failed_at`` is when this watcher's own last try failed.
    """
    pause = state.paused
    if pause is not None and now < pause.until:
        return f"paused by {pause.by} for {pause.until - now:.0f} s more: {pause.reason}"
    claim = foreign_claim(state, me, now)
    if claim is not None:
        return f"{claim.holder} is at work: {claim.reason}"
    if failed_at is not None and now - failed_at < RETRY_SECONDS:
        return f"the last try failed {now - failed_at:.1f} s ago"
    until = blocked_until(state, now, block_seconds)
    if until is None:
        return None
    last = max(state.past, key=lambda one: one.term)
    return (
        f"{last.new} took over from {last.old} in term {last.term}, {now - last.at:.0f} s ago:"
        f" blocked for {until - now:.0f} s more,"
        " or until fab mysql.history --acknowledge"
    )


def blocked_until(state: State, now: float, block_seconds: float = BLOCK_SECONDS) -> float | None:
    """Until when (epoch s) the newest failover keeps watchers from another one, None if not."""
    newest = max(state.past, key=lambda one: one.term, default=None)
    if newest is None or newest.acknowledged or now >= newest.at + block_seconds:
        return None
    return newest.at + block_seconds
