"""Rule on whether a host may say that it is the primary, by what it knows of the record.

A server that was cut off, frozen or restarted still holds its old term and may be writable; nobody
routes to it, because its host must have heard since then that the term is still the newest one.
Invariant: a host that does not know says no.
"""

from __future__ import annotations

from dataclasses import dataclass

from flotilla.rules.mysql_health import Health, primary_objection
from flotilla.rules.mysql_topology import Record

# A primary that hears neither from the record nor from any other member for so long says no: its
# replicas are away, so it could acknowledge nothing, and somebody else may be primary by now.
ALONE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Standing:
    """What this host knows. Ages are seconds by its own monotonic clock, None for never.

    ``heard_age`` is since the record was read, or a member was seen to follow this one under the
    same term. ``gap_age`` is since this host or its server was last found to have been away:
    what was heard before does not count.
    """

    instance_id: str
    record: Record | None = None
    heard_age: float | None = None
    gap_age: float | None = None


@dataclass(frozen=True, slots=True)
class Glance:
    """The little of a server that tells whether it is where it belongs; see ``Glimpse``."""

    health: Health
    super_read_only: bool
    waits: bool
    acknowledges: bool
    follows: str | None


def is_in_place(seen: Glance, record: Record, *, is_primary: bool, source: str) -> bool:
    """Whether a server has the role that the record gives it, so that a full look may wait.

    ``source`` is the address of the recorded primary.
    """
    health = seen.health
    if is_primary:
        role = (seen.waits, seen.acknowledges) == (True, False)
        return role and health.term == record.term and primary_objection(health) is None
    role = (seen.waits, seen.acknowledges, seen.super_read_only) == (False, True, True)
    streams = (seen.follows, health.io, health.applier) == (source, "ON", "ON")
    return role and streams and not health.offline


def standing_objection(health: Health, standing: Standing) -> str | None:
    """Why no write may be sent here, or None if this is the primary of the current term."""
    objection = primary_objection(health)
    if objection:
        return objection
    record, heard = standing.record, standing.heard_age
    if record is None or heard is None:
        return "the record has not been read yet"
    return _not_mine(health, record, standing.instance_id) or _stale(heard, standing.gap_age)


def _not_mine(health: Health, record: Record, instance_id: str) -> str | None:
    if record.instance_id != instance_id:
        return f"term {record.term} belongs to {record.instance_id}"
    if record.uuid != health.uuid:
        return f"term {record.term} belongs to server {record.uuid}, this one is {health.uuid}"
    if record.term != health.term:
        return f"the server shows term {health.term}, the record says {record.term}"
    return None


def _stale(heard: float, gap: float | None) -> str | None:
    if gap is not None and heard >= gap:
        return f"it was away {gap:.1f} s ago, and has not heard of its term since"
    if heard > ALONE_SECONDS:
        return f"neither the record nor another member was heard of for {heard:.1f} s"
    return None
