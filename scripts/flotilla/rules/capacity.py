"""How many hosts the load needs, from what the load balancers have counted.

A server takes ``maxconn`` requests at a time, more of them wait in a queue. The hosts that stay
while a batch is changed must hold ``headroom_percent`` of the most requests that were in flight at
once, so that the deploy begins no queue that was not there before.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Load:
    """What one load balancer says of the application's backend since its process started.

    ``sessions`` are requests in flight now, ``most_sessions`` the most there ever were; rates are
    in requests a second. ``limits``: server to its maxconn, 0 when it has none.
    """

    sessions: int = 0
    most_sessions: int = 0
    rate: int = 0
    most_rate: int = 0
    uptime_seconds: int = 0
    limits: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Need:
    """What the load asks for: ``hosts`` must serve to hold ``sessions``, of ``peak`` with headroom.

    ``hosts`` is one more than serve when all of them together could not.
    """

    hosts: int
    sessions: int
    peak: int
    rate: int
    most_rate: int
    seconds: int
    headroom_percent: int

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {name: getattr(self, name) for name in self.__slots__}


def peak(loads: Mapping[str, Load]) -> int:
    """The most requests that were in flight at once.

    One load balancer of the pair has the address, so their peaks are not of the same moment; what
    both have in flight now is.
    """
    now = sum(load.sessions for load in loads.values())
    return max([now, *(load.most_sessions for load in loads.values())])


def need(loads: Mapping[str, Load], serving: Collection[str], headroom_percent: int) -> Need:
    """What must stay in rotation of the ``serving`` hosts."""
    most = peak(loads)
    wanted = math.ceil(most * headroom_percent / 100)
    return Need(
        hosts=max((_hosts(load, serving, wanted) for load in loads.values()), default=0),
        sessions=wanted,
        peak=most,
        rate=sum(load.rate for load in loads.values()),
        most_rate=max((load.most_rate for load in loads.values()), default=0),
        seconds=max((load.uptime_seconds for load in loads.values()), default=0),
        headroom_percent=headroom_percent,
    )


def room(loads: Mapping[str, Load], hosts: Collection[str]) -> int | None:
    """How many requests ``hosts`` take at once, by the load balancer that lets through least.

    None: there is no limit.
    """
    rooms = []
    for load in loads.values():
        limits = [(load.limits or {}).get(host, 0) for host in hosts]
        if all(limits):
            rooms.append(sum(limits))
    return min(rooms, default=None)


def at_each_step(
    loads: Mapping[str, Load], serving: Collection[str], batches: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """For each batch: how many hosts serve meanwhile, and how many requests those take at once."""
    steps = []
    for batch in batches:
        left = sorted(set(serving) - set(batch))
        steps.append({"serving": len(left), "sessions": room(loads, left)})
    return steps


def why_too_small(wanted: Need, loads: Mapping[str, Load], serving: Collection[str]) -> str | None:
    """Why not even one of the ``serving`` hosts can be taken out; None when one can.

    With a single host there is nothing to compute: whoever deploys to it accepts an outage.
    """
    if len(serving) < 2 or wanted.hosts < len(serving):
        return None
    left = min(room(loads, set(serving) - {host}) or 0 for host in serving)
    since = f"{wanted.seconds // 60} min" if wanted.seconds >= 120 else f"{wanted.seconds} s"
    return (
        f"{len(serving)} hosts serve and take {room(loads, serving)} requests at once; with one "
        f"out, {left} are left and {wanted.sessions} are needed: {wanted.headroom_percent}% of "
        f"{wanted.peak}, the most in flight in the last {since} (now {wanted.rate} requests/s, at "
        f"most {wanted.most_rate})"
    )


def _hosts(load: Load, serving: Collection[str], wanted: int) -> int:
    """The fewest hosts that always suffice: those that take least are assumed to be left."""
    limits = sorted((load.limits or {}).get(host, 0) or math.inf for host in serving)
    total: float = 0
    for count, limit in enumerate(limits):
        if total >= wanted:
            return count
        total += limit
    return len(limits) if total >= wanted else len(limits) + 1
