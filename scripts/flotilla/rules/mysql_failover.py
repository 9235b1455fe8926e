"""Rule on an unplanned change of primary: may it begin, who takes over, in which order.

It is decided twice, because positions mean something only once nobody acknowledges any more:
``opening`` says whom to cut from the old primary, and ``promotion`` rules on what was found then.
Whoever resumes a run decides again from the beginning under the same term, until the record names
the new primary; after that only ``mysql_completion`` is left. Invariants:

- Nobody is promoted before so many members were cut off that the rest are too few to acknowledge a
  write. The same count proves that every acknowledged write is on a member that was asked.
- Where that count is given up (``accept_loss``), nobody is promoted before the old primary is
  verified to be closed or stopped.
- The new primary holds all that anybody asked received, but for what no primary wrote, and all that
  the old one held when its term began: its followers may not have caught up with that yet.
- The record is changed before any member is told to follow or to acknowledge to the new primary,
  and by the same write all who are not known to be whole are barred.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from flotilla.rules.mysql import Refusal
from flotilla.rules.mysql_candidate import Found, best, objections
from flotilla.rules.mysql_state import Place, State, foreign_claim
from flotilla.rules.mysql_topology import Member, Record
from flotilla.rules.mysql_verdict import Kind, Verdict

__all__ = ["Found"]

_LOOK = "fab mysql.status"
# How a member is barred that was away when the primary changed. It holds nothing that is known to
# be wrong, so its own watcher lets it in again as soon as it follows the primary.
_UNPROVED = "not known to be whole when"


class Act(StrEnum):
    """What a failover does, in the words that journals and people see."""

    REVOKE = "revoke"  # acknowledge to the old primary no more
    FENCE = "fence"  # begin to close or stop the old primary; nobody waits for it here
    POSITIONS = "positions"
    FENCED = "verify fence"
    UNDELAY = "undelay"
    DRAIN = "drain"
    RECORD = "record"
    DETACH = "detach"  # of a drained member: follow nobody
    FOLLOW = "follow"  # from nothing
    REPOINT = "repoint"  # the stream only; its applier goes on
    GRANT = "grant"
    VERIFY = "verify"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do to one member, and why. Neighbours with the same act may run at once."""

    act: Act
    member: str
    why: str


class How(StrEnum):
    """How the old primary is closed: by its own server where it answers, else by EC2."""

    SERVER = "server"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Opening:
    """Whom to cut off, and how many of them must succeed; ``evidence`` is why at all.

    ``steps`` are REVOKE, FENCE, POSITIONS in this order; FENCE only once ``shortfall`` is None, so
    that a failover which cannot end does not stop a primary that may still serve somebody.
    ``barred_to`` is ``to`` where it is barred: it proves nothing, and an operator takes it because
    nobody else is left. ``returning`` are barred and answer: they prove nothing either, but are let
    in behind a new primary by their own watchers, and then acknowledge to it.
    """

    term: int
    old: Place
    places: tuple[Place, ...]
    ackers: tuple[str, ...]
    needed: int
    how: How
    evidence: tuple[str, ...]
    steps: tuple[Step, ...]
    accept_loss: bool = False
    to: str | None = None
    barred_to: str = ""
    wait_for: int = 1
    returning: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """Who may be cut off, asked and promoted."""
        return (*self.ackers, *([self.barred_to] if self.barred_to else []))


@dataclass(frozen=True, slots=True)
class Promotion:
    """Who takes over. ``table`` has a line for each member asked: name and why not, "" for fit.

    ``proof`` says why the old primary can acknowledge nothing; without it, the first step waits for
    the fence. ``barred`` is written with the record. ``given_up`` are GTIDs that an operator chose
    to lose.
    """

    term: int
    old: Place
    new: Member
    followers: tuple[Member, ...]
    proof: str
    table: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
    barred: Mapping[str, str]
    notes: tuple[str, ...] = ()
    given_up: str = ""

    @property
    def record(self) -> Record:
        """What the record becomes."""
        return Record(self.term, self.new.instance_id, self.new.uuid)

    @property
    def baseline(self) -> str:
        """All that the new primary holds, applied or received, as a GTID set."""
        received = self.new.replication.received if self.new.replication else ""
        return ",".join(part for part in (self.new.executed, received) if part)


def opening(
    places: Collection[Place],
    state: State,
    verdict: Verdict,
    reachable: Collection[str],
    *,
    me: str,
    now: float,
    wait_for: int = 1,
    accept_loss: bool = False,
    manual: bool = False,
    to: str | None = None,
    degraded: str = "",
) -> Opening | Refusal:
    """May a failover begin, and with what.

    ``reachable`` are the names that answer, the old primary's among them if it does. ``me`` is the
    lease's holder as the record writes it; ``now`` is epoch seconds. ``manual``: an operator asked
    for it, so a suspicion is enough; a living primary is never replaced. ``to`` is whom an operator
    wants. ``degraded`` says how the old primary was seen to acknowledge writes that nobody else
    had ("" for never): then no count of members proves anything.
    """
    old = next((p for p in places if p.instance_id == state.record.instance_id), None)
    if old is None:
        return _unknown(state)
    ackers = [p for p in places if p is not old and p.instance_id not in state.barred]
    reached = sorted((p for p in ackers if p.name in reachable), key=lambda p: p.rank)
    out = [p for p in places if p not in (old, *ackers) and p.name in reachable]
    chosen = [p for p in out if p.name == to] if accept_loss and not reached else []
    opened = Opening(
        term=state.record.term + 1,
        old=old,
        places=tuple(sorted(places, key=lambda p: p.rank)),
        ackers=tuple(p.name for p in sorted(ackers, key=lambda p: p.rank)),
        needed=max(1, len(ackers) - wait_for + 1),
        how=How.SERVER if old.name in reachable else How.HOST,
        evidence=verdict.evidence,
        steps=tuple(_open(old, reached or chosen)),
        accept_loss=accept_loss,
        to=to,
        barred_to=chosen[0].name if chosen else "",
        wait_for=wait_for,
        returning=() if old.name in reachable else tuple(_returning(out, state)),
    )
    silent = {p.name: "it does not answer" for p in ackers if p not in reached}
    return (
        _premature(state, old, verdict, me, now, manual=manual)
        or (_alone(old, degraded) if degraded and not accept_loss else None)
        or (_only_barred(old, out, state) if out and not (reached or chosen) else None)
        or shortfall(opened, {p.name for p in reached or chosen}, silent)
        or opened
    )


def shortfall(opened: Opening, cut_off: Collection[str], kept: Mapping[str, str]) -> Refusal | None:
    """Why too few members are, or can be, cut off from the old primary; None when enough are.

    With ``accept_loss`` one is enough: then the fence must be proved instead. Without it, so many
    must be left behind the new primary, or come back to it, that it can take writes: where not, the
    old one is not closed for nothing (a primary with one replica in order was, and stayed closed).
    """
    done = [name for name in opened.asked if name in cut_off]
    if opened.accept_loss and done:
        return None
    if len(done) >= opened.needed:
        return _unfollowed(opened, " or ".join(done), len(done) - 1)
    missing = "; ".join(f"{n}: {kept.get(n, 'not known')}" for n in opened.ackers if n not in done)
    return Refusal(
        f"only {len(done)} of {len(opened.ackers)} members that may acknowledge to"
        f" {opened.old.name} can be cut off from it, {opened.needed} must be ({missing})",
        "another one may hold the only copy of an acknowledged write, or go on to acknowledge",
        "start the missing host, or fab mysql.failover --accept-loss",
    )


def promotion(opened: Opening, state: State, found: Found) -> Promotion | Refusal:
    """Who takes over, or why nobody may."""
    asked = tuple(m for m in found.topology.members if m.name in found.revoked & {*opened.asked})
    names = {m.name for m in asked}
    proving = names & {*opened.ackers}
    short = shortfall(opened, names, {**found.topology.silent, **found.kept})
    if short:
        return short
    gives_up = opened.to if opened.accept_loss else None
    reasons = objections(asked, found, opened.places, gives_up=gives_up)
    table = tuple(reasons.items())
    fit = [m for m in asked if not reasons[m.name] and opened.to in {None, m.name}]
    if not fit:
        return _nobody(opened, table)
    new = best(fit, found, opened.places)
    followers = tuple(
        m for m in asked if m.name != new.name and (m.name, new.name) not in found.topology.surplus
    )
    lonely = None if opened.accept_loss else _unfollowed(opened, new.name, len(followers))
    if lonely:
        return lonely
    proof = _proof(opened, found, proving)
    return Promotion(
        term=opened.term,
        old=opened.old,
        new=new,
        followers=followers,
        proof=proof,
        table=table,
        steps=tuple(_promote(opened, new, followers, proof, found)),
        barred=_barred(opened, state, new, followers),
        notes=tuple(_notes(new, followers, opened.wait_for, found)),
        given_up=_given_up(new, found, is_short=len(proving) < opened.needed),
    )


def _unknown(state: State) -> Refusal:
    record = state.record
    return Refusal(
        f"the primary of term {record.term}, {record.instance_id}, is not in the inventory",
        "what is not known to exist cannot be shown to be stopped",
        "fab fleet.status",
    )


def _alone(old: Place, degraded: str) -> Refusal:
    return Refusal(
        f"{old.name} acknowledged writes on its own: {degraded}",
        "they are on no other member",
        f"start {old.name}, or fab mysql.failover --accept-loss",
    )


def _only_barred(old: Place, out: Sequence[Place], state: State) -> Refusal:
    told = "; ".join(f"{p.name}: {state.barred[p.instance_id]}" for p in out)
    return Refusal(
        f"nobody who answers may have acknowledged to {old.name}: all are kept out ({told})",
        "whoever is kept out may lack any write, or hold what nobody should have written",
        f"start {old.name} or another host; to give up what one of them lacks:"
        f" fab mysql.failover --to {out[0].name} --accept-loss",
    )


def _premature(
    state: State, old: Place, verdict: Verdict, me: str, now: float, *, manual: bool
) -> Refusal | None:
    claim = foreign_claim(state, me, now)
    if claim is not None:
        return Refusal(
            f"{claim.holder} is changing the cluster: {claim.reason}",
            "two changes at once could make two primaries",
            _LOOK,
        )
    evidence = "; ".join(verdict.evidence)
    if verdict.kind is Kind.ALIVE or (verdict.alive_for and verdict.kind is not Kind.BLOCKED):
        return Refusal(
            f"{old.name} is alive: {evidence}",
            "a living primary gives its role away with its own help, and loses nothing",
            "fab mysql.switchover",
        )
    if not manual and not verdict.is_actionable:
        return Refusal(
            f"{old.name} is not shown to be dead ({verdict.kind}): {evidence}",
            "a failover without need is an outage",
            _LOOK,
        )
    return None


def _open(old: Place, reached: Collection[Place]) -> Iterator[Step]:
    for place in reached:
        yield Step(Act.REVOKE, place.name, f"acknowledge nothing to {old.name} any more")
    yield Step(Act.FENCE, old.name, "it must not take writes again, whenever it comes back")
    yield Step(Act.POSITIONS, "", "what each of them received, now that it cannot grow")


def _nobody(opened: Opening, table: tuple[tuple[str, str], ...]) -> Refusal:
    said = "; ".join(f"{name}: {why or 'fit'}" for name, why in table)
    wanted = f"{opened.to} cannot" if opened.to else "no member can"
    return Refusal(
        f"{wanted} take over from {opened.old.name} ({said})",
        "acknowledged writes would be lost, or what nobody should have written would spread",
        "fab mysql.status; to give up what one of them lacks:"
        " fab mysql.failover --to NAME --accept-loss",
    )


def _returning(out: Collection[Place], state: State) -> Iterator[str]:
    """Of the barred that answer, who may be in order behind another primary."""
    for place in out:
        if state.barred[place.instance_id].startswith(_UNPROVED):
            yield place.name


def _unfollowed(opened: Opening, new: str, followers: int) -> Refusal | None:
    """Why writes would hang behind this one; None where enough can acknowledge them.

    ``followers`` are cut off from the old primary and fit to follow.
    """
    if followers + len(opened.returning) >= opened.wait_for:
        return None
    return Refusal(
        f"{new} may hold everything, but {followers} members could acknowledge to it,"
        f" {opened.wait_for} must",
        "every write would wait for ever",
        f"start {opened.old.name}, or fab mysql.failover --accept-loss",
    )


def _given_up(new: Member, found: Found, *, is_short: bool) -> str:
    """What is lost with this one; ``is_short``: members that were not asked may have had more."""
    surplus = found.topology.surplus
    lacks = [gtids for (_, lacking), gtids in surplus.items() if lacking == new.name]
    lost = found.lost if is_short else ""
    return ",".join(filter(None, [*lacks, found.owed.get(new.name, ""), lost]))


def _proof(opened: Opening, found: Found, cut_off: Collection[str]) -> str:
    if len(cut_off) >= opened.needed:
        return (
            f"{', '.join(sorted(cut_off))} acknowledge nothing to {opened.old.name} any more,"
            f" {opened.needed} of {len(opened.ackers)} had to"
        )
    return found.fenced


def _promote(
    opened: Opening, new: Member, followers: Collection[Member], proof: str, found: Found
) -> Iterator[Step]:
    old = opened.old.name
    verify = Step(Act.FENCED, old, "it is proved that it cannot take writes")
    if not proof:
        yield verify
    if new.replication and new.replication.delay_seconds:
        yield Step(Act.UNDELAY, new.name, f"it is {new.replication.delay_seconds} s behind")
    if new.replication:
        yield Step(Act.DRAIN, new.name, "all it received was or may have been acknowledged")
    yield Step(Act.RECORD, new.name, f"primary of term {opened.term}")
    if new.replication:
        yield Step(Act.DETACH, new.name, f"it followed {new.replication.host}")
    for member in followers:
        yield from behind(member, new)
    yield Step(Act.GRANT, new.name, "it holds everything, and others acknowledge to it")
    yield Step(Act.VERIFY, new.name, "it takes writes, and the others follow")
    if proof and not found.fenced:
        yield verify


def behind(member: Member, new: Member) -> Iterator[Step]:
    """What makes a member follow the new primary and acknowledge to it."""
    follows = member.replication
    if follows is None:
        yield Step(Act.FOLLOW, member.name, f"it follows nobody; the primary is {new.name}")
    elif follows.host != new.address or follows.io != "ON" or not member.semi_sync.replica:
        yield Step(Act.REPOINT, member.name, f"acknowledge to {new.name}")


def _barred(
    opened: Opening, state: State, new: Member, followers: Collection[Member]
) -> dict[str, str]:
    kept = {new.instance_id, *(m.instance_id for m in followers)}
    because = f"{_UNPROVED} {new.name} became primary of term {opened.term}"
    return {
        place.instance_id: state.barred.get(place.instance_id, because)
        for place in opened.places
        if place.instance_id not in kept
    }


def _notes(
    new: Member, followers: Collection[Member], wait_for: int, found: Found
) -> Iterator[str]:
    if len(followers) < wait_for:
        yield f"{new.name} takes no writes before {wait_for} members acknowledge to it"
    for name, gtids in sorted(found.errant.items()):
        yield f"{name} holds what no primary wrote ({gtids}): rebuild it by CLONE"
    for name, why in sorted(found.kept.items()):
        yield f"{name} was not asked: {why}"
