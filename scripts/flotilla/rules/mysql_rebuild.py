"""Rule on copying a member's data anew from another one: may it be, and from whom.

Invariants: the recorded primary is never copied over; nothing is copied from a member that holds a
transaction which the primary lacks; what only the member to be rebuilt holds is named, so that it
is saved first.
"""

from __future__ import annotations

from dataclasses import dataclass

from flotilla.rules.mysql import Refusal, follower_objection, primary_objection
from flotilla.rules.mysql_topology import Member, Record, Topology

_LOOK = "fab mysql.status"


@dataclass(frozen=True, slots=True)
class Rebuild:
    """``member`` becomes a copy of ``donor`` and then follows ``primary``, under ``term``.

    ``surplus`` are the transactions that only ``member`` holds, as a GTID set. ``asleep``: the
    primary serves nobody until somebody acknowledges to it, and ``member`` is to be the first.
    """

    term: int
    member: Member
    donor: Member
    primary: Member
    surplus: str
    asleep: bool = False


def rebuild(topology: Topology, record: Record | None, name: str) -> Rebuild | Refusal:
    """Whom ``name`` is copied from, or why it must not be touched."""
    if record is None:
        return Refusal("there is no record of a primary", "nobody knows whose data is right", _LOOK)
    if name in topology.silent:
        return Refusal(
            f"{name} does not answer: {topology.silent[name]}",
            "a running server receives the copy; what only it holds could not be saved either",
            f"fab fleet.logs {name} --unit mysql",
        )
    primary = topology.by_instance(record.instance_id)
    if primary is None:
        return Refusal(
            f"the primary of term {record.term}, {record.instance_id}, does not answer",
            "whether a copy is complete can only be told by comparison with it",
            "fab mysql.failover",
        )
    asleep = _asleep(topology, primary, record)
    refused = None if asleep and primary.name != name else _unled(primary, record, name)
    if refused:
        return refused
    member = topology.named(name)
    if member is None:
        known = ", ".join(one.name for one in topology.members)
        return Refusal(f"there is no member {name}; there are {known}", "", _LOOK)
    return Rebuild(
        record.term,
        member,
        _donor(topology, member, primary),
        primary,
        topology.surplus.get((name, primary.name), ""),
        asleep,
    )


def _asleep(topology: Topology, primary: Member, record: Record) -> bool:
    """Whether the primary is whole and read-only, and nobody is left to acknowledge to it: every
    other member is to be made anew, and the first one from this server as it is.

    It may have served in its term and have come back closed, or never have served in it: whoever
    is promoted takes the term's row, its first write, when somebody can acknowledge that. What
    others hold of older primaries was given up when it was promoted. But one that lacks writes of
    its own, which others have, lost its tail (a disk of before), and is nobody's source.
    """
    lacks = any(
        record.uuid in gtids for (_, to), gtids in topology.surplus.items() if to == primary.name
    )
    served = (primary.term, primary.term_uuid) == (record.term, primary.uuid)
    never = primary.term is not None and primary.term < record.term
    whole = (
        primary.uuid == record.uuid
        and not lacks
        and (served or never)
        and primary.replication is None
        and primary.super_read_only
        and not primary.closed
    )
    return whole and not _fit(topology, primary)


def _unled(primary: Member, record: Record, name: str) -> Refusal | None:
    """Why there is nobody whom a copy could be compared with and follow."""
    if primary.name == name:
        return Refusal(
            f"{name} is the primary of term {record.term}",
            "its data is what the others are copied from",
            "fab mysql.switchover",
        )
    objection = primary_objection(primary, record)
    if objection:
        return Refusal(objection, "a copy would have nobody to follow", "fab mysql.ensure")
    return None


def _donor(topology: Topology, member: Member, primary: Member) -> Member:
    """The replica that is nearest to the primary, to spare the primary; else the primary."""
    fit = [
        one
        for one in _fit(topology, primary)
        if one.name != member.name
        # A copy can be made within one series only.
        and one.version[:2] == member.version[:2]
    ]
    return min(fit, key=lambda one: (_lag(one), one.rank), default=primary)


def _fit(topology: Topology, primary: Member) -> list[Member]:
    """The members that follow the primary as they should and hold nothing else."""
    return [
        one
        for one in topology.others(primary)
        if follower_objection(one, primary) is None
        and (one.name, primary.name) not in topology.surplus
    ]


def _lag(member: Member) -> float:
    return member.replication.lag_seconds if member.replication else 0.0
