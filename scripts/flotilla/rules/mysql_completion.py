"""What is left of a change of primary once the record names the new one.

From there on there is only forward: whoever comes next does these steps, and may do them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flotilla.rules.mysql import Refusal, primary_objection
from flotilla.rules.mysql_failover import Act, Step, behind
from flotilla.rules.mysql_gtid import missing
from flotilla.rules.mysql_state import State
from flotilla.rules.mysql_topology import Member, Topology

_LOOK = "fab mysql.status"


@dataclass(frozen=True, slots=True)
class Completion:
    """What is left once the record names the new primary; ``left_out`` need more, with why.

    ``waits`` says why it cannot take writes yet, "" where GRANT is among the steps or done.
    """

    term: int
    new: Member
    steps: tuple[Step, ...]
    left_out: Mapping[str, str]
    waits: str = ""


def completion(state: State, topology: Topology, *, wait_for: int = 1) -> Completion | Refusal:
    """What is left to do for the primary that the record names. Done again, it does no harm."""
    record = state.record
    new = topology.by_instance(record.instance_id)
    if new is None or new.uuid != record.uuid:
        return Refusal(
            f"the primary of term {record.term}, {record.instance_id}, does not answer as"
            f" {record.uuid}",
            "nobody else may be opened under this term",
            "start that host, or fab mysql.failover",
        )
    objection = primary_objection(new, record)
    apart = {m.name: _apart(topology, m, new) for m in topology.others(new)}
    barred = {m.name: state.barred.get(m.instance_id, "") for m in topology.others(new)}
    ahead = "; ".join(f"{name} {apart[name]}" for name in apart if apart[name] and not barred[name])
    if objection and ahead:
        return Refusal(
            f"{ahead}; {new.name} is primary of term {record.term} but does not take writes",
            "with it as primary, acknowledged writes would be lost",
            _LOOK,
        )
    out = {name: barred[name] or apart[name] for name in apart}
    left_out = {**topology.silent, **{name: why for name, why in out.items() if why}}
    followers = [m for m in topology.others(new) if m.name not in left_out]
    steps = [step for member in followers for step in behind(member, new)]
    if new.replication is not None:
        why = f"term {record.term} is its own, but it is set to follow {new.replication.host}"
        steps = [Step(Act.DRAIN, new.name, why), Step(Act.DETACH, new.name, why), *steps]
    waits = ""
    if objection and len(followers) < wait_for:
        waits = f"{new.name} takes no writes before {wait_for} members acknowledge to it"
    elif objection:
        steps.append(Step(Act.GRANT, new.name, objection))
    return Completion(record.term, new, tuple(steps), left_out, waits)


def _apart(topology: Topology, member: Member, new: Member) -> str:
    ahead = missing(topology.surplus.get((member.name, new.name), ""), new)
    return f"holds {ahead}, which {new.name} lacks" if ahead else ""
