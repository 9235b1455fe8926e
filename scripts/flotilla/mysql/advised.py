"""Do to one member what the rule advises, for its own watcher and for an operator's command."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flotilla.hosts.mysql import Server
from flotilla.mysql import steps, takeover
from flotilla.mysql.accounts import Secrets
from flotilla.mysql.record import Records
from flotilla.rules.mysql_rejoin import Advice, Do, Peers
from flotilla.rules.mysql_state import State
from flotilla.rules.mysql_topology import Member, Topology


def peers(topology: Topology, me: Member, state: State) -> Peers:
    """What the rule asks about the others, from a look at them."""
    primary = topology.by_instance(state.record.instance_id)
    if primary is None or primary.name != me.name:
        return Peers(
            primary,
            surplus=topology.surplus.get((me.name, primary.name), "") if primary else "",
            stranded=me.name in topology.stranded,
        )
    others = [one for one in topology.others(me) if one.instance_id not in state.barred]
    lacks = [topology.surplus.get((one.name, me.name), "") for one in others]
    acknowledgers = [
        one.name
        for one in others
        if one.replication
        and (one.replication.host, one.replication.io) == (me.address, "ON")
        and one.semi_sync.replica
    ]
    return Peers(me, lacks=",".join(filter(None, lacks)), acknowledgers=acknowledgers)


def carry_out(
    advice: Advice,
    server: Server,
    me: Member,
    state: State,
    *,
    source: str,
    known: Secrets,
    records: Records,
    fence: int = 0,
    check: Callable[[], object] = lambda: None,
) -> None:
    """Do it; ``source`` is the primary's address. What opens needs the lease: ``fence`` is its
    term, ``check`` raises when it is lost.

    Who is let in again is written before the member is told to acknowledge. Not for QUARANTINE and
    CLONE, which end in a rebuild.
    """
    term = state.record.term
    if advice.unbar:
        left = {one: why for one, why in state.barred.items() if one != me.instance_id}
        records.bar(left, term=term, fence=fence)
    actions: Mapping[Do, Callable[[], object]] = {
        Do.CLOSE: lambda: takeover.fence(server),
        Do.SOURCE_OFF: lambda: steps.source_off(server),
        Do.DETACH: lambda: steps.detach(server),
        Do.FOLLOW: lambda: steps.follow(server, source, known),
        Do.REPOINT: lambda: takeover.turn(server, source),
        Do.RESUME: lambda: steps.resume(server),
        Do.ACKNOWLEDGE: lambda: steps.acknowledge(server),
        Do.REOPEN: lambda: server.query("SET GLOBAL offline_mode = OFF"),
        Do.GRANT: lambda: takeover.grant(server, term, me.uuid, check),
    }
    actions[advice.do]()
