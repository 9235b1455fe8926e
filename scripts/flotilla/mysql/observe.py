"""Rule on the primary from an operator's machine: it is looked at for some seconds through SSH.

An operator is no member: that the bastion cannot reach the primary proves nothing, so the replicas'
own streams decide, as they do for a watcher.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flotilla.errors import FlotillaError
from flotilla.hosts.mysql import Server
from flotilla.hosts.mysql_glimpse import Glimpse, Regard, glimpse
from flotilla.mysql.cluster import Cluster, Seat
from flotilla.rules.mysql_state import Place
from flotilla.rules.mysql_verdict import LIMITS, Kind, Look, Reach, Stream, Verdict, judge

# Longer than silence must last to count.
WATCH_SECONDS = LIMITS.silent + 1.5
LOOK_SECONDS = 1.0
PAUSE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Seen:
    """A verdict, how the primary was met last, and the names of the members that answered.

    ``alone``: how the primary acknowledged without a replica, "" if it was not seen to.
    """

    verdict: Verdict
    reach: Reach
    reachable: frozenset[str]
    alone: str = ""


def observe(
    cluster: Cluster,
    places: Sequence[Place],
    primary: Place,
    eye: Server | None,
    *,
    me: str,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Seen:
    """Look until the verdict is one to act on, or WATCH_SECONDS are over.

    ``eye`` is a session on the primary that nobody else uses, None where its host does not run.
    """
    regard = Regard(eye, clock) if eye else None
    start = clock()
    while True:
        look = regard.look(seconds=LOOK_SECONDS, waiting=True) if regard else _stopped(start, clock)
        streams, unreached = _hear(cluster, places, primary)
        verdict = judge(
            me, primary.name, [p.name for p in places], look, streams, unreached=unreached
        )
        settled = verdict.kind is Kind.ALIVE or verdict.is_actionable
        if settled or clock() - start >= _patience(verdict):
            break
        sleep(PAUSE_SECONDS)
    reachable = {stream.member for stream in streams}
    if look.reach is Reach.ANSWERS:
        reachable.add(primary.name)
    return Seen(verdict, look.reach, frozenset(reachable), look.alone)


def _patience(verdict: Verdict) -> float:
    """A primary that answers and commits nothing is given longer: its replicas may come back."""
    blocked = verdict.kind is Kind.BLOCKED
    return (max(LIMITS.blocked, LIMITS.stalled) if blocked else 0.0) + WATCH_SECONDS


def _stopped(start: float, clock: Callable[[], float]) -> Look:
    return Look(Reach.SILENT, clock() - start, failures=1, text="EC2 says that its host is stopped")


def _hear(
    cluster: Cluster, places: Sequence[Place], primary: Place
) -> tuple[list[Stream], Mapping[str, str]]:
    others = [place.name for place in places if place.name != primary.name]
    answers = cluster.each([name for name in others if name in cluster.seats], _ask)
    sources = {place.address: place.name for place in places}
    streams = [
        seen.stream(name, sources.get(seen.follows or "", seen.follows or ""), seconds, None)
        for name, (seen, seconds) in answers.items()
        if isinstance(seen, Glimpse)
    ]
    unreached = {name: "its host does not run" for name in others if name not in cluster.seats}
    unreached |= {name: seen for name, (seen, _) in answers.items() if isinstance(seen, str)}
    return streams, unreached


def _ask(seat: Seat) -> tuple[Glimpse | str, float]:
    start = time.monotonic()
    try:
        return glimpse(seat.server, seconds=LOOK_SECONDS), time.monotonic() - start
    except FlotillaError as error:
        return error.what, time.monotonic() - start
