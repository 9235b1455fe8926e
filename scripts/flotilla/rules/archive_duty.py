"""Who archives the binary logs now.

One host does, under a lease. The primary knows every transaction first, so it takes the lease from
whoever has it; a replica only steps in when nobody renewed it for a while, and gives way again. It
would do no harm if two archived at once: their objects have different names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flotilla.rules.gtid import GtidSet

# A primary that is restarted, or moved, is back before.
STEP_IN_SECONDS = 10.0
# The recovery point may be so old before somebody is to be woken.
ALARM_SECONDS = 60.0
# How often it is measured; once it is beyond the limit, at once.
MEASURE_SECONDS = 60.0

Act = Literal["archive", "take", "wait"]


@dataclass(frozen=True, slots=True)
class Lease:
    """Whose it is ("" nobody's), and until when; seconds since the epoch."""

    holder: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class Progress:
    """What the holder last said: until when all was archived, what for ever is missing.

    ``caught_up_at`` is in seconds since the epoch.
    """

    host: str
    caught_up_at: float
    gtids: str = ""
    missing: str = ""


def act(lease: Lease | None, *, me: str, is_primary: bool, now: float) -> Act:
    """What this host is to do next. Only a primary begins an archive."""
    if lease is None:
        return "take" if is_primary else "wait"
    if lease.holder == me and now <= lease.expires_at:
        return "archive"
    if is_primary or now > lease.expires_at + STEP_IN_SECONDS:
        return "take"
    return "wait"


def objection(progress: Progress | None, backed_up: GtidSet, now: float) -> str:
    """Why the recovery point is not what it should be; "" when it is.

    ``backed_up`` is what the newest full backup holds: a gap before it does no harm.
    """
    if progress is None:
        return "the binary logs were never archived"
    gap = GtidSet.parse(progress.missing) - backed_up
    if gap:
        return f"the archive will never have {gap}: only a full backup closes that gap"
    age = now - progress.caught_up_at
    if age > ALARM_SECONDS:
        return f"the archive of binary logs is {age:.0f} s behind (limit {ALARM_SECONDS:.0f} s)"
    return ""


def is_due(behind: float, told: float, since: float) -> bool:
    """Whether to tell that the archive is ``behind`` seconds; ``told`` was ``since`` seconds ago.

    Once a minute, and at once when it passes the limit: else whoever is to be woken after a minute
    is woken after up to two.
    """
    return since >= MEASURE_SECONDS or behind > ALARM_SECONDS >= told
