"""Rule on what a member's own watcher does to it: after a start, a heal, or a change of primary.

Invariants:

- A member that could be written to and is not the record's primary closes itself before all else.
- Nothing that lets a member acknowledge, follow or take writes happens while somebody else holds
  the cluster's lease, nor under a lease that ran out and was not taken over.
- What only this member holds is never applied, never streamed to others and never thrown away.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from flotilla.rules.mysql_state import State
from flotilla.rules.mysql_topology import Member


class Do(StrEnum):
    """What a watcher does to its own server."""

    NOTHING = "nothing"
    WAIT = "wait"  # something must be known or over first
    CLOSE = "close"  # offline_mode, semi-sync source off, super_read_only, in this order
    QUARANTINE = "quarantine"  # nothing runs, what only it holds is saved; then a human or CLONE
    CLONE = "clone"  # it lacks what its primary has purged
    SOURCE_OFF = "source off"
    DETACH = "detach"  # the recorded primary must follow nobody
    FOLLOW = "follow"  # from nothing
    REPOINT = "repoint"  # the applier first, then the stream
    RESUME = "resume"
    ACKNOWLEDGE = "acknowledge"
    GRANT = "grant"


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do, and why. ``needs_lease``: only under the cluster's lease, read again under it.

    ``gtids`` is what only this member holds, for QUARANTINE.
    """

    do: Do
    why: str
    needs_lease: bool = False
    gtids: str = ""


@dataclass(frozen=True, slots=True)
class Peers:
    """What this member knows of the others.

    ``primary`` is the recorded primary as it describes itself, None where it does not answer.
    ``surplus`` is what this member received or executed and the primary has not; ``lacks`` is what
    any other reachable member holds and this one does not (asked only of the recorded primary).
    ``stranded``: the primary has purged something that this member lacks. ``acknowledgers`` are
    members whose stream comes from here and acknowledges.
    """

    primary: Member | None
    surplus: str = ""
    lacks: str = ""
    stranded: bool = False
    acknowledgers: Collection[str] = ()
    reachable: Collection[str] = ()


def advise(me: Member, state: State | None, peers: Peers, *, holder: str, now: float) -> Advice:
    """What this member's watcher does next; ``state`` is None while the record cannot be read."""
    raise NotImplementedError
