"""Rule on who may take over from a primary that is gone, and who should.

Invariant: whoever is fit holds everything that any other member asked received, and everything that
the primary which is gone began its term with, save what no primary ever wrote; and it holds nothing
of that kind itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from flotilla.rules.mysql_state import Place
from flotilla.rules.mysql_topology import Member, Topology

_RULES = ("prefer", "neutral", "prefer_not", "must_not")


@dataclass(frozen=True, slots=True)
class Found:
    """What is known once the steps of an opening were done.

    ``revoked`` have confirmed to be cut off, and positions were read after that; ``kept`` maps the
    others to the reason. ``fenced`` says how the old primary was verified to be closed, "" while it
    is not. ``topology`` is everybody who answered; its ``surplus`` leaves out what is in
    ``errant``, which maps members to the GTIDs that no primary wrote. ``unapplied`` is what a
    member received and has not executed. ``owed`` is what it lacks of the record's baseline: what
    was acknowledged in earlier terms may be on no other member yet than the primary that is gone.
    ``unable`` were tried in this run and failed.
    ``lost`` is what the old primary was last seen to hold and nobody asked has.
    """

    revoked: frozenset[str]
    kept: Mapping[str, str]
    fenced: str
    topology: Topology
    errant: Mapping[str, str] = field(default_factory=dict)
    unapplied: Mapping[str, str] = field(default_factory=dict)
    owed: Mapping[str, str] = field(default_factory=dict)
    unable: Mapping[str, str] = field(default_factory=dict)
    lost: str = ""


def objections(
    asked: Collection[Member],
    found: Found,
    places: Collection[Place],
    *,
    gives_up: str | None = None,
) -> dict[str, str]:
    """For each member asked, why it may not take over; "" for fit.

    ``gives_up`` is the one with whom an operator chose to lose what it lacks.
    """
    rules = {place.name: place.rule for place in places}
    return {
        member.name: next(
            _objections(member, asked, found, rules[member.name], lossy=gives_up == member.name),
            "",
        )
        for member in asked
    }


def best(fit: Collection[Member], found: Found, places: Collection[Place]) -> Member:
    """Wanted by its setting, then without delay, then with little left to apply, then by name."""
    rules = {place.name: _RULES.index(place.rule) for place in places}

    def order(member: Member) -> tuple[int, bool, bool, float, tuple[int, str]]:
        follows = member.replication
        return (
            rules[member.name],
            bool(follows and follows.delay_seconds),
            member.name in found.unapplied,
            follows.lag_seconds if follows else 0.0,
            member.rank,
        )

    return min(fit, key=order)


def _objections(
    member: Member, asked: Collection[Member], found: Found, rule: str, *, lossy: bool
) -> Iterator[str]:
    if member.name in found.unable:
        yield found.unable[member.name]
    yield from _unserviceable(member, found)
    lacks = _lacks(member, asked, found)
    if lacks and not lossy:
        yield f"it lacks {', '.join(lacks)}"
    if rule == "must_not":
        yield "it must not be primary by its own setting"
    if member.faults and not lossy:
        yield ", ".join(member.faults)
    newer = [other.name for other in asked if other.version[:2] < member.version[:2]]
    if newer:
        # A source must not be newer than what follows it: replication works upwards only.
        yield f"its version {'.'.join(map(str, member.version))} is newer than {', '.join(newer)}"
    follows = member.replication
    if follows and follows.error and follows.applier != "ON" and member.name in found.unapplied:
        yield f"its applier stopped before {found.unapplied[member.name]}: {follows.error}"


def _unserviceable(member: Member, found: Found) -> Iterator[str]:
    """What no operator can choose to live with: there is no data, or it is not ours."""
    if member.closed or not member.executed:
        # Cut off in the middle of a copy, or new.
        yield "its data is not there: it was being replaced, or it is new"
    if member.name in found.errant:
        yield f"it holds what no primary wrote: {found.errant[member.name]}"


def _lacks(member: Member, asked: Collection[Member], found: Found) -> list[str]:
    surplus = found.topology.surplus
    lacks = [
        f"{surplus[other.name, member.name]} of {other.name}"
        for other in asked
        if (other.name, member.name) in surplus
    ]
    owed = found.owed.get(member.name)
    return [*lacks, f"{owed} of earlier terms"] if owed else lacks
