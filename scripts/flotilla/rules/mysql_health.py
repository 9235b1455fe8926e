"""Rule on what a MySQL host tells those who ask: send writes here, send reads here, or neither.

Invariant: a host that does not know says no. Anything that could not be read is a reason for 503.
"""

from __future__ import annotations

from dataclasses import dataclass

# Where every member's own endpoint answers.
HEALTH_PORT = 3380


@dataclass(frozen=True, slots=True)
class Health:
    """What one short look at the local server showed. ``io`` and ``applier`` are None on a primary.

    ``term_uuid`` belongs to the newest row of ops.term that this server has.
    """

    uuid: str
    read_only: bool
    offline: bool
    term: int | None = None
    term_uuid: str | None = None
    io: str | None = None
    applier: str | None = None
    lag_seconds: float = 0.0


def primary_objection(health: Health) -> str | None:
    """Why no write may be sent here, or None if this is the primary of the newest term."""
    if health.offline:
        return "the server is in offline mode"
    if health.read_only:
        return "the server is read-only"
    if health.term is None:
        return "the server has seen no term"
    if health.term_uuid != health.uuid:
        return f"term {health.term} belongs to {health.term_uuid}"
    if health.io is not None:
        return "the server is set to follow another one"
    return None


def replica_objection(health: Health, lag_limit_seconds: float) -> str | None:
    """Why no read may be sent here, or None if this replica is near enough to its source."""
    if health.offline:
        return "the server is in offline mode"
    if health.io is None:
        return "the server follows nobody"
    if health.io != "ON" or health.applier != "ON":
        return f"replication is broken: stream {health.io}, applier {health.applier}"
    if health.lag_seconds > lag_limit_seconds:
        return f"the replica lags {health.lag_seconds:.1f} s, the limit is {lag_limit_seconds:g} s"
    return None
