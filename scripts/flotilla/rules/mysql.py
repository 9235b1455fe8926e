"""Rule on a MySQL cluster: what is true of it, what would make it whole, who may take over.

Nothing here talks to a server. A ``Topology`` is one look at every member; the set algebra on GTIDs
was done by a server's own functions when the look was taken and is part of it. Invariants:

- A member is made writable only when the record names it under the current term.
- Nobody is granted the role, and nobody follows, while any member holds a transaction that the
  recorded primary lacks: that is for a human, or for a failover, to settle.
- The source side of semi-sync is never on where there is replication to apply: its applier would
  wait for acknowledgements that nobody can send.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from flotilla.rules.mysql_topology import Member, Record, Topology

FIRST_TERM = 1
_LOOK = "fab mysql.status"
# Whom replicas log in as.
REPLICATION = "replication"
_NOBODY: Mapping[str, str] = {}


class Verb(StrEnum):
    """What can be done to a member to make the cluster whole, in the words that people see."""

    RECORD = "record"
    SOURCE_OFF = "source-off"
    DETACH = "detach"
    BOOTSTRAP = "bootstrap"
    FOLLOW = "follow"
    REPOINT = "repoint"
    REOPEN = "reopen"
    RESUME = "resume"
    RENEW = "renew"
    ACKNOWLEDGE = "acknowledge"
    VERIFY = "verify"
    GRANT = "grant"
    ACCOUNTS = "accounts"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do to one member, and why."""

    verb: Verb
    member: str
    why: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing may be done: what was seen, why it matters, what to type next."""

    what: str
    why: str
    next: str


@dataclass(frozen=True, slots=True)
class Repair:
    """What makes the cluster whole; no steps when it is. ``notes`` need a human."""

    term: int
    primary: Member
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Switchover:
    """A change of primary that nothing speaks against; ``followers`` are all but the two."""

    term: int
    old: Member
    new: Member
    followers: tuple[Member, ...]


def repair(
    topology: Topology, record: Record | None, barred: Mapping[str, str] = _NOBODY
) -> Repair | Refusal:
    """What must be done so that the recorded primary serves and everybody follows it.

    Without a record the cluster must be blank: then the lowest name becomes the first primary.
    ``barred`` maps the instance ids of members that the record keeps out to the reason; those are
    left alone, and the others are ruled on without them.
    """
    topology, out = _within(topology, barred)
    refused = _unfit(topology) or _doubtful(topology, record)
    if refused:
        return refused
    if record is None:
        primary = min(topology.members, key=lambda member: member.rank)
        first = Step(Verb.RECORD, primary.name, "no record, and no member holds anything")
        return Repair(FIRST_TERM, primary, (first, *_mend(topology, primary, FIRST_TERM)))
    primary = _recorded(topology, record)
    steps = tuple(_mend(topology, primary, record.term))
    if any(step.verb is Verb.GRANT for step in steps) and not _ackers(topology, primary):
        first_out = out[0] if out else ""
        return Refusal(
            f"{primary.name} would be primary with no replica to acknowledge"
            f" ({'; '.join([*([_absent(topology)] if topology.silent or not out else []), *out])})",
            "every write would wait for ever",
            # Copied from the primary as it is, one that is kept out is the first to acknowledge.
            f"fab mysql.rebuild {first_out.split()[0]}" if first_out else _LOOK,
        )
    return Repair(record.term, primary, steps, (*_notes(topology), *out))


def switchover(
    topology: Topology,
    record: Record | None,
    to: str | None,
    *,
    lag_limit_seconds: float,
    barred: Mapping[str, str] = _NOBODY,
) -> Switchover | Refusal:
    """Whom a planned change of primary would promote, or why there is none.

    Without ``to``, the replica nearest to the primary is taken: least lag, then lowest name.
    ``barred`` as in ``repair``; who is out takes no part.
    """
    topology, _ = _within(topology, barred)
    if record is None:
        return Refusal(
            "there is no record of a primary", "nothing to switch from", "fab mysql.ensure"
        )
    refused = _unfit(topology) or _doubtful(topology, record)
    if refused:
        return refused
    old = _recorded(topology, record)
    unready = primary_objection(old, record)
    if unready:
        return Refusal(unready, "a switchover needs the old primary's help", "fab mysql.ensure")
    reasons = {
        member.name: candidate_objection(member, topology, old, lag_limit_seconds)
        for member in topology.others(old)
    }
    if to is not None and reasons.get(to, "") is not None:
        reason = reasons.get(to) or _unknown(to, topology, old)
        return Refusal(
            f"{to} cannot become primary: {reason}", "writes would stop or be lost", _LOOK
        )
    fit = [m for m in topology.others(old) if reasons[m.name] is None and to in {None, m.name}]
    if not fit:
        table = "; ".join(f"{name}: {reason}" for name, reason in sorted(reasons.items()))
        return Refusal(
            f"no replica can become primary ({table or 'there is no other member'})",
            "writes would stop or be lost",
            _LOOK,
        )
    new = min(fit, key=lambda m: (m.replication.lag_seconds if m.replication else 0.0, m.rank))
    followers = tuple(m for m in topology.others(old) if m.name != new.name)
    return Switchover(record.term + 1, old, new, followers)


def primary_objection(member: Member, record: Record) -> str | None:
    """Why this member does not serve as the primary of the record, or None if it does."""
    if member.instance_id != record.instance_id or member.uuid != record.uuid:
        return f"{member.name} is not the primary of term {record.term}"
    if not member.is_writable:
        return f"{member.name} is primary by the record but read-only"
    if (member.term, member.term_uuid) != (record.term, member.uuid):
        return f"{member.name} shows term {member.term}, the record says {record.term}"
    if member.replication is not None:
        return f"{member.name} is primary by the record but set to follow {member.replication.host}"
    if not member.semi_sync.source or member.semi_sync.replica:
        return f"{member.name} does not wait for acknowledgements (semi-sync source side is off)"
    return None


def follower_objection(member: Member, primary: Member) -> str | None:
    """Why this member does not follow the primary as it should, or None if it does."""
    replication = member.replication
    if member.is_writable or not member.super_read_only:
        return f"{member.name} would accept writes"
    if replication is None or replication.host != primary.address:
        source = replication.host if replication else "nobody"
        return f"{member.name} follows {source}, not {primary.name}"
    if not replication.is_running:
        threads = f"stream {replication.io}, applier {replication.applier}"
        return f"{member.name} does not replicate ({threads}) {replication.error}".rstrip()
    if member.semi_sync.source or not member.semi_sync.replica:
        return f"{member.name} has its semi-sync sides wrong: it must acknowledge and not wait"
    if not member.semi_sync.acknowledging:
        return f"{member.name} replicates but does not acknowledge"
    return None


def candidate_objection(
    member: Member, topology: Topology, old: Member, lag_limit_seconds: float
) -> str | None:
    """Why this member may not take over from ``old``, or None if it may."""
    objection = follower_objection(member, old)
    if objection:
        return objection
    replication = member.replication
    if replication and replication.delay_seconds:
        return f"it is a delayed replica ({replication.delay_seconds} s behind on purpose)"
    if replication and replication.lag_seconds > lag_limit_seconds:
        return f"it lags {replication.lag_seconds:.1f} s, the limit is {lag_limit_seconds:g} s"
    newer = [m.name for m in topology.others(member) if m.version[:2] < member.version[:2]]
    if newer:
        # A source must not be newer than what follows it: replication works upwards only.
        return f"its version {_version(member)} is newer than that of {', '.join(newer)}"
    return None


def divergence(topology: Topology, primary: Member) -> str | None:
    """Which members hold transactions that the primary lacks, or None if nobody does."""
    found = [
        f"{member.name} holds {topology.surplus[member.name, primary.name]}"
        for member in topology.others(primary)
        if (member.name, primary.name) in topology.surplus
    ]
    return "; ".join(found) or None


def _within(topology: Topology, barred: Mapping[str, str]) -> tuple[Topology, tuple[str, ...]]:
    """The topology without the members that are kept out, and a sentence on each of those.

    One that could be written to is never left out of sight.
    """
    primaries = [member.name for member in topology.members if member.is_writable]
    why = {}
    for member in topology.members:
        name, reason = member.name, barred.get(member.instance_id, "")
        if member.is_writable or not (member.closed or reason):
            continue
        if member.closed:
            why[name] = f"{name} is closed because its data is being replaced: fab mysql.rebuild"
        elif any((name, primary) in topology.surplus for primary in primaries):
            own = f"{name} is kept out ({reason}), and what only it has keeps it there"
            why[name] = f"{own}: fab mysql.rebuild"
        else:
            why[name] = f"{name} is kept out ({reason}): fab mysql.rejoin"
    inside = tuple(member for member in topology.members if member.name not in why)
    notes = tuple(f"{sentence} {name}" for name, sentence in sorted(why.items()))
    return replace(topology, members=inside), notes


def _unfit(topology: Topology) -> Refusal | None:
    """Whatever is wrong with single members or their identities, whoever is primary."""
    if not topology.members:
        return Refusal(
            f"no member answers ({_absent(topology)})", "nothing can be known of the cluster", _LOOK
        )
    faults = [
        f"{member.name}: {', '.join(member.faults)}" for member in topology.members if member.faults
    ]
    if faults:
        return Refusal(
            "; ".join(faults),
            "with these settings an acknowledged write can be lost",
            "fab fleet.configure --limit mysql",
        )
    for what, values in (
        ("server_id", [str(member.server_id) for member in topology.members]),
        ("server UUID", [member.uuid for member in topology.members]),
    ):
        twice = {value for value in values if values.count(value) > 1}
        if twice:
            return Refusal(
                f"more than one member has {what} {', '.join(sorted(twice))}",
                "each would take the other's transactions for its own and skip them",
                _LOOK,
            )
    return None


def _doubtful(topology: Topology, record: Record | None) -> Refusal | None:
    """Whatever the record and the members do not agree on."""
    if record is None:
        return _not_blank(topology)
    primary = topology.by_instance(record.instance_id)
    if primary is None:
        return Refusal(
            f"the primary of term {record.term}, {record.instance_id}, does not answer"
            f" ({_absent(topology)})",
            "whether it still takes writes is not known, so nobody else may without a failover",
            "fab mysql.failover",
        )
    contradictions = [
        *(
            f"{m.name} is writable, but the record names {primary.name}"
            for m in topology.others(primary)
            if m.is_writable
        ),
        *(
            f"{m.name} has seen term {m.term}, the record says {record.term}"
            for m in topology.members
            if m.term is not None and m.term > record.term
        ),
    ]
    if primary.uuid != record.uuid:
        contradictions.append(
            f"{primary.name} has server UUID {primary.uuid}, the record says {record.uuid}"
        )
    apart = divergence(topology, primary)
    if apart:
        contradictions.append(f"{apart}, which {primary.name} lacks")
    if primary.term is None and record.term > FIRST_TERM:
        contradictions.append(f"{primary.name} has no ops.term, yet the term is {record.term}")
    if not contradictions:
        return None
    return Refusal(
        "; ".join(contradictions), "going on could lose or overwrite acknowledged writes", _LOOK
    )


def _not_blank(topology: Topology) -> Refusal | None:
    held = [
        f"{m.name}: {'writable' if m.is_writable else 'read-only'}, term {m.term},"
        f" executed {m.executed or 'nothing'}"
        for m in topology.members
        if not m.is_blank or m.is_writable
    ]
    if held:
        return Refusal(
            f"there is no record of a primary, yet members hold data ({'; '.join(held)})",
            "which copy is the right one is not for a program to guess",
            _LOOK,
        )
    if topology.silent:
        return Refusal(
            f"there is no record of a primary and not every member answers ({_absent(topology)})",
            "a silent member may hold data",
            _LOOK,
        )
    return None


def _mend(topology: Topology, primary: Member, term: int) -> Iterator[Step]:
    """The steps in the only safe order: nobody waits wrongly, everybody follows, then writes."""
    followers = [m for m in topology.others(primary) if m.name not in topology.stranded]
    for member in followers:
        if member.semi_sync.source:
            yield Step(Verb.SOURCE_OFF, member.name, "a replica must not wait for acknowledgements")
    yield from _ready(primary, topology.unusable)
    renewed = [m for m in followers if m.name in topology.outdated and _is_renewable(m)]
    # Refused with what it holds, it cannot follow at all; a stream that runs can wait until the
    # primary is seen to let the new password in.
    lets_in = REPLICATION not in topology.unusable or not primary.is_writable
    refused = [m for m in renewed if not _streams(m) and lets_in]
    for member in followers:
        if member in refused:
            yield _renew(member)
        yield from _follow(member, primary)
    objection = primary_objection(primary, Record(term, primary.instance_id, primary.uuid))
    if objection:
        yield Step(Verb.GRANT, primary.name, objection)
    if topology.unusable or primary.term is None:
        names = ", ".join(sorted(topology.unusable)) or "all"
        yield Step(Verb.ACCOUNTS, primary.name, f"accounts to create or correct: {names}")
    yield from (_renew(member) for member in renewed if member not in refused)


def _ready(primary: Member, unusable: frozenset[str]) -> Iterator[Step]:
    """What must be so before anybody can follow it."""
    if primary.replication is not None:
        yield Step(
            Verb.DETACH, primary.name, f"it is primary but set to follow {primary.replication.host}"
        )
    if primary.term is None:
        yield Step(Verb.BOOTSTRAP, primary.name, "it has no ops schema yet")
    elif REPLICATION in unusable and not primary.is_writable:
        # Its data came from elsewhere, with passwords of there: after a lost region SSM has others.
        why = "replicas could not log in with the password of now; it stays read-only"
        yield Step(Verb.BOOTSTRAP, primary.name, why)
    if primary.is_shut:
        why = "nobody can follow it while it is offline; it stays read-only"
        yield Step(Verb.REOPEN, primary.name, why)


def _follow(member: Member, primary: Member) -> Iterator[Step]:
    replication = member.replication
    if replication is None:
        yield Step(Verb.FOLLOW, member.name, f"it follows nobody; the primary is {primary.name}")
    elif replication.host != primary.address:
        why = f"it follows {replication.host}; the primary is {primary.name}"
        yield Step(Verb.REPOINT, member.name, why)
    elif not member.semi_sync.replica:
        yield Step(Verb.ACKNOWLEDGE, member.name, "it does not acknowledge")
    elif not (replication.is_running or replication.is_stuck):
        threads = f"stream {replication.io}, applier {replication.applier}"
        yield Step(Verb.RESUME, member.name, f"{threads} {replication.error}".rstrip())
    elif primary.authority and member.authority not in {"", replication.authority}:
        # A source without a certificate of the fleet's could prove nothing.
        why = f"it follows whoever answers at {replication.host}, and {primary.name} can prove that"
        yield Step(Verb.VERIFY, member.name, why)


def _is_renewable(member: Member) -> bool:
    """With its applier stopped for good, a change would throw away what it has received."""
    return member.replication is not None and not member.replication.is_stuck


def _streams(member: Member) -> bool:
    return member.replication is not None and member.replication.io == "ON"


def _renew(member: Member) -> Step:
    return Step(Verb.RENEW, member.name, "it logs in to its source with an outdated password")


def _ackers(topology: Topology, primary: Member) -> Sequence[Member]:
    return [m for m in topology.others(primary) if m.name not in topology.stranded]


def _notes(topology: Topology) -> Iterator[str]:
    for name, reason in sorted(topology.silent.items()):
        yield f"{name} does not answer: {reason}"
    for name in sorted(topology.stranded):
        yield f"{name} lacks transactions the primary has purged: fab mysql.rebuild {name}"
    for member in topology.members:
        if member.replication and member.replication.is_stuck:
            name, why = member.name, member.replication.error[-200:]
            yield f"{name} cannot apply what it received, fab mysql.rebuild {name}: {why}"


def _recorded(topology: Topology, record: Record) -> Member:
    found = topology.by_instance(record.instance_id)
    if found is None:
        raise ValueError(f"{record.instance_id} is not in the topology; _doubtful refuses that")
    return found


def _unknown(name: str, topology: Topology, old: Member) -> str:
    if name == old.name:
        return "it is the primary already"
    if name in topology.silent:
        return f"it does not answer: {topology.silent[name]}"
    return f"there is no such member; there are {', '.join(m.name for m in topology.members)}"


def _absent(topology: Topology) -> str:
    return (
        "; ".join(f"{n}: {why}" for n, why in sorted(topology.silent.items())) or "nobody is silent"
    )


def _version(member: Member) -> str:
    return ".".join(map(str, member.version))
