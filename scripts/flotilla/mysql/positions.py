"""What the members hold, read after they stopped acknowledging: the ground on which to promote.

All set algebra is done by a server's own functions, in one statement where nobody is ahead of
anybody, which is the common case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from flotilla.errors import FlotillaError
from flotilla.hosts.mysql import Server, differences, look, position
from flotilla.mysql.cluster import Cluster, Seat
from flotilla.rules.mysql_gtid import foreign
from flotilla.rules.mysql_topology import Member, Topology


@dataclass(frozen=True, slots=True)
class Positions:
    """One look at some members.

    ``topology.surplus`` leaves out what is in ``errant``: transactions that a member holds, that
    not everybody holds, and that no primary is known to have written. ``unapplied`` is what a
    member received and has not executed. ``owed`` is what a member lacks of the record's baseline.
    ``held`` is all that anybody holds.
    """

    topology: Topology
    errant: Mapping[str, str] = field(default_factory=dict)
    unapplied: Mapping[str, str] = field(default_factory=dict)
    owed: Mapping[str, str] = field(default_factory=dict)
    held: str = ""


def read(cluster: Cluster, names: Iterable[str], primary_uuid: str, baseline: str) -> Positions:
    """Look at members; ``primary_uuid`` and ``baseline`` are those of the record."""
    members: list[Member] = []
    silent: dict[str, str] = {}
    for name, answer in cluster.each(names, _try_look).items():
        if isinstance(answer, Member):
            members.append(answer)
        else:
            silent[name] = answer
    topology = Topology(tuple(sorted(members, key=lambda m: m.rank)), silent)
    if not members:
        return Positions(topology)
    return _compared(cluster.server(topology.members[0].name), topology, primary_uuid, baseline)


def _compared(server: Server, topology: Topology, primary_uuid: str, baseline: str) -> Positions:
    held = {member.name: position(member) for member in topology.members}
    wanted: dict[tuple[str, str], tuple[str, str]] = {
        (a, b): (held[a], held[b]) for a in held for b in held if a != b
    }
    for member in topology.members:
        received = member.replication.received if member.replication else ""
        wanted[member.name, ""] = (received, member.executed)
        wanted["", member.name] = (baseline, held[member.name])
    found = differences(server, wanted)
    unapplied = {name: gtids for (name, other), gtids in found.items() if not other}
    owed = {name: gtids for (other, name), gtids in found.items() if not other}
    surplus = {pair: gtids for pair, gtids in found.items() if all(pair)}
    errant = _errant(server, surplus, primary_uuid, baseline)
    if errant:
        surplus = differences(
            server, {(a, b): (gtids, errant.get(a, "")) for (a, b), gtids in surplus.items()}
        )
    everything = ",".join(filter(None, held.values()))
    return Positions(replace(topology, surplus=surplus), errant, unapplied, owed, everything)


def _errant(
    server: Server,
    surplus: Mapping[tuple[str, str], str],
    primary_uuid: str,
    baseline: str,
) -> dict[str, str]:
    """What some hold and others do not, and no primary wrote.

    What everybody holds is left out: it does no harm, and nobody would be left to promote.
    """
    ahead: dict[str, str] = {}
    for (name, _), gtids in surplus.items():
        strange = foreign(gtids, primary_uuid)
        if strange:
            ahead[name] = ",".join(filter(None, (ahead.get(name, ""), strange)))
    return differences(server, {name: (gtids, baseline) for name, gtids in ahead.items()})


def _try_look(seat: Seat) -> Member | str:
    try:
        return look(seat.server, instance_id=seat.instance_id, address=seat.address)[0]
    except FlotillaError as error:
        return error.what
