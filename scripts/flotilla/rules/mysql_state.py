"""The words for what is decided about a MySQL cluster and kept outside of it, in one item.

Plain values. Two of them carry the safety of a failover:

- ``barred`` names the members that must not acknowledge. Everybody else may be the one other holder
  of an acknowledged write, so everybody else must be reached before anybody is promoted. A member
  is barred by the same write that makes another one primary, and is let in again by a write that
  comes before it is told to acknowledge.
- ``baseline`` is all that the primary held when it was given its term. Whatever a member holds
  beyond it, and not under the primary's own UUID, was written where nobody should have written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flotilla.rules.mysql_topology import Record


@dataclass(frozen=True, slots=True)
class Claim:
    """Who may change the cluster now. ``fence`` grows with every new holder; times are epoch s."""

    holder: str
    fence: int
    expires_at: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """No automatic action until then (seconds since the epoch), by whom and why."""

    by: str
    reason: str
    until: float


@dataclass(frozen=True, slots=True)
class Past:
    """The last automatic failover: when, from whom to whom, and whether a human has seen it."""

    at: float
    term: int
    old: str
    new: str
    acknowledged: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """The whole item. ``barred`` maps instance ids to why they are out; ``past`` is newest last.

    ``fence`` is the newest fencing number ever given out, held or not. ``baseline`` is "" where
    nobody wrote one.
    """

    record: Record
    fence: int = 0
    claim: Claim | None = None
    paused: Pause | None = None
    barred: Mapping[str, str] = field(default_factory=dict)
    baseline: str = ""
    past: tuple[Past, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """A member of the cluster as the inventory has it, whether it answers or not.

    ``rule`` is how much it is wanted as primary: prefer, neutral, prefer_not or must_not.
    """

    name: str
    instance_id: str
    address: str
    zone: str = ""
    rule: str = "neutral"

    @property
    def rank(self) -> tuple[int, str]:
        """Order of names: mysql-2 before mysql-10."""
        digits = self.name.rpartition("-")[2]
        return (int(digits) if digits.isdecimal() else 0, self.name)


def foreign_claim(state: State, me: str, now: float) -> Claim | None:
    """The claim of somebody else whose time is not up, or None."""
    claim = state.claim
    if claim is None or not claim.holder or claim.holder == me or now > claim.expires_at:
        return None
    return claim


def absence(name: str, state: str, barred: str) -> str:
    """What it means that a member's host is in this ``state`` of EC2's; ``barred`` is why it is out
    of the cluster, "" where it is not.
    """
    if barred:
        return f"{name}'s host is {state}; it is kept out: {barred}"
    return (
        f"{name}'s host is {state}: it may hold the last writes, so without it nobody takes over"
        " from a primary that dies"
    )
