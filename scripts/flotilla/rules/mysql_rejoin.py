"""Rule on what a member's own watcher does to it: after a start, a heal, or a change of primary.

Invariants:

- A member that could be written to and is not the record's primary closes itself before all else.
- What lets a member acknowledge, follow or take writes happens under the cluster's lease only. One
  that ran out is taken over first: its holder may be asleep in the middle of a failover, and must
  find his fencing number outdated.
- What only this member holds is never applied, never streamed to others and never thrown away.
- A barred member is let in by the record before it is told to acknowledge.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from flotilla.rules.mysql import primary_objection
from flotilla.rules.mysql_gtid import foreign, missing
from flotilla.rules.mysql_state import State, foreign_claim
from flotilla.rules.mysql_topology import Member, Record


class Do(StrEnum):
    """What a watcher does to its own server."""

    NOTHING = "nothing"
    WAIT = "wait"  # something must be known, over, or done by somebody else first
    CLOSE = "close"  # offline_mode, semi-sync source off, super_read_only, in this order
    QUARANTINE = "quarantine"  # bar it, save what only it holds; then a human, or CLONE
    CLONE = "clone"  # it lacks what its primary has purged
    SOURCE_OFF = "source off"
    DETACH = "detach"  # drain, then follow nobody: it is the recorded primary
    FOLLOW = "follow"  # from nothing
    REPOINT = "repoint"  # the applier first, then the stream
    RESUME = "resume"
    ACKNOWLEDGE = "acknowledge"
    REOPEN = "reopen"  # offline_mode off, on a member that is read-only
    GRANT = "grant"


# Each of these lets acknowledgements or writes begin, so it is done under the lease only: whoever
# goes by a look at a free lease may be overtaken by a failover before his statement arrives.
OPENING = frozenset(
    {Do.FOLLOW, Do.REPOINT, Do.RESUME, Do.ACKNOWLEDGE, Do.REOPEN, Do.GRANT, Do.DETACH}
)
# These only take away, so neither a pause nor somebody else's lease stops them.
CLOSING = frozenset({Do.CLOSE, Do.SOURCE_OFF, Do.NOTHING})


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do, and why.

    ``needs_lease``: only under the cluster's lease, after everything was read and ruled on again.
    ``unbar``: first write that the member is no longer barred. ``gtids`` is what only this member
    holds, for QUARANTINE.
    """

    do: Do
    why: str
    needs_lease: bool = False
    unbar: bool = False
    gtids: str = ""


@dataclass(frozen=True, slots=True)
class Peers:
    """What this member knows of the others.

    ``primary`` is the recorded primary as it describes itself, None where it does not answer.
    ``surplus`` is what this member received or executed and the primary has not, ``lacks`` what
    other reachable members, save barred ones, hold and this one does not (asked of the recorded
    primary only).
    ``stranded``: the primary has purged something that this member lacks. ``acknowledgers`` are
    members whose stream comes from here, is ON and acknowledges.
    """

    primary: Member | None
    surplus: str = ""
    lacks: str = ""
    stranded: bool = False
    acknowledgers: Collection[str] = ()


def advise(
    me: Member, state: State | None, peers: Peers, *, holder: str, now: float, wait_for: int = 1
) -> Advice:
    """What this member's watcher, which takes leases as ``holder``, does next.

    ``state`` is None while the record cannot be read. ``me`` must have been looked at before
    ``state`` was read: the record changes before a role does, so a role without its record is old.
    """
    if state is None:
        return Advice(Do.WAIT, "the record cannot be read, so nobody knows whose role it is")
    record = state.record
    if record.instance_id != me.instance_id:
        advice = next(_as_replica(me, state, peers))
    elif record.uuid != me.uuid:
        why = f"the record says {record.uuid}, this server is {me.uuid}: its data was replaced"
        advice = Advice(Do.WAIT if me.super_read_only else Do.CLOSE, why)
    else:
        advice = next(_as_primary(me, record, peers, wait_for))
    return advice if advice.do in CLOSING else _allowed(advice, state, holder, now)


def _allowed(advice: Advice, state: State, holder: str, now: float) -> Advice:
    """The advice, or what it has to wait for."""
    pause = state.paused
    if pause is not None and now < pause.until:
        return Advice(Do.WAIT, f"paused by {pause.by} ({pause.reason}); then: {advice.why}")
    claim = foreign_claim(state, holder, now)
    if claim is not None:
        return Advice(Do.WAIT, f"{claim.holder} is at work ({claim.reason}); then: {advice.why}")
    return replace(advice, needs_lease=advice.do in OPENING or advice.do is Do.QUARANTINE)


def _as_primary(me: Member, record: Record, peers: Peers, wait_for: int) -> Iterator[Advice]:
    objection = primary_objection(me, record)
    if objection is None:
        yield Advice(Do.NOTHING, f"it is primary of term {record.term}")
    lost = missing(peers.lacks, me)
    if lost:
        yield Advice(Do.WAIT, f"others hold {lost}, which it lacks: a human must look")
    if me.replication is not None:
        yield Advice(Do.DETACH, f"primary by the record, yet it follows {me.replication.host}")
    alone = me.is_writable and not me.semi_sync.source
    if len(peers.acknowledgers) < wait_for and not alone:
        if me.is_shut:
            # Closed for a failover that came to nothing: whoever is to acknowledge is turned away.
            yield Advice(Do.REOPEN, "nobody can follow it while it is offline; it stays read-only")
        count = len(peers.acknowledgers)
        yield Advice(Do.WAIT, f"{count} members acknowledge to it, a commit waits for {wait_for}")
    # One that tells OK for what nobody else has is made to wait at once, whoever is there.
    yield Advice(Do.GRANT, objection or "")


def _as_replica(me: Member, state: State, peers: Peers) -> Iterator[Advice]:
    term, barred = state.record.term, state.barred.get(me.instance_id, "")
    if me.closed and me.read_only:
        # Cut off in the middle of a copy, a server has no tables and looks like a new one.
        yield Advice(Do.WAIT, f"its data is being replaced: fab mysql.rebuild {me.name}")
    if not (me.read_only and me.super_read_only):
        yield Advice(Do.CLOSE, f"it could be written to, and term {term} is not its own")
    if me.semi_sync.source:
        yield Advice(Do.SOURCE_OFF, "a replica must not wait for acknowledgements")
    if peers.primary is None:
        yield Advice(Do.WAIT, f"the primary of term {term} does not answer")
        return
    yield from _apart(me, state, peers, peers.primary)
    for advice in _follow(me, peers.primary, barred):
        yield replace(advice, unbar=bool(barred))
    if me.offline:
        yield Advice(Do.REOPEN, "it follows and acknowledges, so it may serve reads")
    yield Advice(Do.NOTHING, f"it follows {peers.primary.name}")


def _apart(me: Member, state: State, peers: Peers, primary: Member) -> Iterator[Advice]:
    if _diverged(me, state, peers):
        why = f"only it holds {peers.surplus}, which {primary.name} has not"
        if state.barred.get(me.instance_id) == why:
            yield Advice(Do.WAIT, f"{why}: fab mysql.rebuild {me.name}")
        yield Advice(Do.QUARANTINE, why, gtids=peers.surplus)
    if peers.stranded:
        yield Advice(Do.CLONE, f"{primary.name} has purged transactions that it lacks")


def _diverged(me: Member, state: State, peers: Peers) -> bool:
    """Whether what only this member holds is more than what its live stream is ahead by.

    A replica has a transaction before its source commits it; that one has the source's own UUID.
    """
    if not peers.surplus or peers.primary is None:
        return bool(peers.surplus)
    streams = me.replication is not None and me.replication.host == peers.primary.address
    in_flight = streams and me.instance_id not in state.barred
    return not in_flight or bool(foreign(peers.surplus, state.record.uuid))


def _follow(me: Member, primary: Member, barred: str) -> Iterator[Advice]:
    follows = me.replication
    if follows is None:
        yield Advice(Do.FOLLOW, f"it follows nobody, the primary is {primary.name}")
        return
    if follows.host != primary.address:
        yield Advice(Do.REPOINT, f"it follows {follows.host}, the primary is {primary.name}")
    if follows.is_stuck:
        yield Advice(Do.WAIT, f"its applier stopped: {follows.error}")
    if follows.io == "OFF" or follows.applier != "ON":
        threads = f"stream {follows.io}, applier {follows.applier}"
        yield Advice(Do.RESUME, f"{threads} {follows.error}".rstrip())
    if not me.semi_sync.replica or (follows.io == "ON" and not me.semi_sync.acknowledging):
        yield Advice(Do.ACKNOWLEDGE, "it does not acknowledge")
    if follows.io != "ON":
        yield Advice(Do.WAIT, f"its stream is connecting {follows.error}".rstrip())
    if barred:
        yield Advice(Do.ACKNOWLEDGE, f"it is whole again, and was out: {barred}")
