"""What a cluster looks like, as one object: for a board, for programs, for people at night."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any

from flotilla.mysql.cluster import Cluster
from flotilla.mysql.record import Records
from flotilla.rules.mysql import (
    Refusal,
    follower_objection,
    primary_objection,
    repair,
)
from flotilla.rules.mysql_flap import blocked_until
from flotilla.rules.mysql_state import State, absence, foreign_claim
from flotilla.rules.mysql_topology import Member, Record, Topology
from flotilla.snapshot import Host
from flotilla.words import minute


def status(
    cluster: Cluster,
    records: Records,
    *,
    stopped: Collection[Host] = (),
    clock: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """``term``, ``primary`` (a name or None), ``members``, ``problems`` (sentences), ``next``,
    ``paused`` ({by, reason, until}), ``blocked_until`` (epoch seconds; the newest failover keeps
    watchers from another one) and ``holder`` (who is changing the cluster), None where not so.

    ``stopped`` are members whose hosts do not run. JSON types only. Raises Unreachable when the
    record cannot be read.
    """
    state = records.state()
    record, barred = (state.record, state.barred) if state else (None, {})
    topology = cluster.look(record)
    decision = repair(topology, record, barred)
    primary = topology.by_instance(record.instance_id) if record else None
    if isinstance(decision, Refusal):
        problems, after = [f"{decision.what}: {decision.why}"], decision.next
    else:
        problems = [_named(step.member, step.why) for step in decision.steps]
        problems += decision.notes
        after = "fab mysql.ensure" if decision.steps else ""
    away = {host.name: f"its host is {host.state}" for host in stopped}
    problems += [absence(h.name, h.state, barred.get(h.instance_id, "")) for h in stopped]
    after = after or next((f"fab mysql.rejoin {name}" for name in away), "")
    paused = _paused(state, clock())
    if paused:
        problems.append(
            f"automatic failover is paused by {paused['by']} until {minute(paused['until'])}:"
            f" {paused['reason']}"
        )
        after = after or "fab mysql.unpause"
    blocked = blocked_until(state, clock()) if state else None
    if blocked and not problems:
        after = after or "fab mysql.history --acknowledge"
    return {
        "term": record.term if record else None,
        "primary": primary.name if primary else None,
        "members": [
            *(_member(member, topology, primary, record, barred) for member in topology.members),
            *({"name": n, "role": "silent", "why": why} for n, why in topology.silent.items()),
            *({"name": n, "role": "silent", "why": why} for n, why in away.items()),
        ],
        "problems": problems,
        "next": after,
        "paused": paused,
        "blocked_until": blocked,
        "holder": _holder(state, clock()),
    }


def _named(member: str, why: str) -> str:
    """A reason as a sentence that names the member, once."""
    return why if why.startswith(f"{member} ") else f"{member}: {why}"


def _paused(state: State | None, now: float) -> dict[str, Any] | None:
    pause = state.paused if state else None
    return asdict(pause) if pause and now < pause.until else None


def _holder(state: State | None, now: float) -> str | None:
    claim = foreign_claim(state, "", now) if state else None
    return f"{claim.holder}: {claim.reason}" if claim else None


def _member(
    member: Member,
    topology: Topology,
    primary: Member | None,
    record: Record | None,
    barred: Mapping[str, str],
) -> dict[str, Any]:
    replication, semi_sync = member.replication, member.semi_sync
    is_primary = primary is not None and member.name == primary.name
    if primary is None or record is None:
        objection: str | None = "there is no primary"
    elif is_primary:
        objection = primary_objection(member, record)
    else:
        out = barred.get(member.instance_id)
        objection = f"kept out: {out}" if out else follower_objection(member, primary)
    return {
        "name": member.name,
        "role": "primary" if is_primary else "replica",
        "why": objection or "",
        "instance_id": member.instance_id,
        "address": member.address,
        "uuid": member.uuid,
        "version": ".".join(map(str, member.version)),
        "writable": member.is_writable,
        "term": member.term,
        "source": replication.host if replication else None,
        "stream": replication.io if replication else None,
        "applier": replication.applier if replication else None,
        "lag_seconds": replication.lag_seconds if replication else None,
        "semi_sync": "source" if semi_sync.source else "replica" if semi_sync.replica else "off",
        "acknowledging_replicas": semi_sync.clients if semi_sync.source else None,
        "executed": member.executed,
        "surplus": topology.surplus.get((member.name, primary.name), "") if primary else "",
        "faults": list(member.faults),
        "requires_tls": member.requires_tls,
        "certificate": member.certificate,
    }
