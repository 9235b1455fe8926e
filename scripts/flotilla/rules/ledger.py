"""Rule on what clients of the database saw: when they could not write, and what was lost.

Invariant: a write is lost only if its client was told that it is done. One that broke off in the
middle may be there or not, and either is right.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby, pairwise
from math import inf

# Errors that a server itself sends and that still leave open what became of the write: the server
# goes down, the statement or its connection was killed, the commit broke off.
UNDECIDED = frozenset({1053, 1180, 1317, 1927})
# The client library's own codes: the connection broke, and nobody said anything.
_CLIENT_CODES = range(2000, 3000)


class Fate(StrEnum):
    """What the client was told: done, not done, or nothing."""

    ACKED = "acked"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Entry:
    """One try to write one row. Times are seconds on the clock of the host that wrote.

    ``server`` is the UUID of the server that the writer was connected to, "" when to none.
    """

    id: str
    started: float
    ended: float
    fate: Fate
    error: str = ""
    server: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """The ledger closed: counts of entries, ids that are missing, times in seconds.

    ``gap_started`` is when the longest stretch without an acknowledgement began, None without acks.
    ``servers`` counts rows by the server UUID they were stamped with; ``unknown_there`` the rows
    whose writers were told nothing and that are there.
    """

    acked: int
    failed: int
    unknown: int
    lost: tuple[str, ...]
    write_gap_seconds: float
    gap_started: float | None
    p50_ms: float
    p99_ms: float
    servers: Mapping[str, int]
    errors: Mapping[str, int]
    unknown_there: int = 0


def fate_of(code: int, *, sent: bool) -> Fate:
    """What an error tells about the write: ``code`` is MySQL's number, 0 where there was none.

    ``sent``: the statement may have left. Whoever is not sure must not say that it failed.
    """
    if not sent:
        return Fate.FAILED
    told = code > 0 and code not in _CLIENT_CODES and code not in UNDECIDED
    return Fate.FAILED if told else Fate.UNKNOWN


def summarise(entries: Iterable[Entry], found: Mapping[str, str]) -> Summary:
    """Close the ledger against the rows ``found`` afterwards: id to the UUID of its server."""
    every = sorted(entries, key=lambda entry: entry.ended)
    acked = [entry for entry in every if entry.fate is Fate.ACKED]
    gap, since = longest_gap(every)
    took = sorted(1000 * (entry.ended - entry.started) for entry in acked)
    return Summary(
        acked=len(acked),
        failed=sum(entry.fate is Fate.FAILED for entry in every),
        unknown=sum(entry.fate is Fate.UNKNOWN for entry in every),
        lost=lost(acked, found),
        write_gap_seconds=gap,
        gap_started=since,
        p50_ms=_percentile(took, 0.5),
        p99_ms=_percentile(took, 0.99),
        servers=_count(found.values()),
        errors=_count(entry.error for entry in every if entry.error),
        unknown_there=sum(entry.fate is Fate.UNKNOWN and entry.id in found for entry in every),
    )


def lost(acked: Iterable[Entry], found: Collection[str]) -> tuple[str, ...]:
    """The acknowledged ids that are not there."""
    return tuple(entry.id for entry in acked if entry.id not in found)


def longest_gap(
    entries: Iterable[Entry], begin: float = -inf, end: float = inf
) -> tuple[float, float | None]:
    """The longest time in which nobody's write was acknowledged, and when it began.

    Counted from the first try to the last one's end, so that a database that never comes back does
    not look quick. With ``begin`` and ``end``, the longest that reaches into that time; counted
    whole, for an outage is not shorter because somebody looked away.
    """
    every = list(entries)
    if not every:
        return 0.0, None
    ends = [
        min(entry.started for entry in every),
        *sorted(entry.ended for entry in every if entry.fate is Fate.ACKED),
        max(entry.ended for entry in every),
    ]
    gaps = [(after - since, since) for since, after in pairwise(ends)]
    return max((gap for gap in gaps if gap[1] < end and sum(gap) > begin), default=(0.0, None))


# --- two servers at once --------------------------------------------------------------------------


def writable_spans(entries: Iterable[Entry], apart: float) -> dict[str, list[tuple[float, float]]]:
    """When each server is proven to have taken writes that it then acknowledged.

    A span goes from the start of a write to the start of a later one, both acknowledged by that
    server, with no refusal of it in between and at most ``apart`` seconds from one to the next.
    What counts is when a write began: an answer may be late without anything being wrong.
    """
    spans: dict[str, list[tuple[float, float]]] = {}
    known = sorted((e for e in entries if e.server), key=lambda e: (e.server, e.started))
    for server, own in groupby(known, key=lambda e: e.server):
        found: list[tuple[float, float]] = []
        is_open = False
        for entry in own:
            if entry.fate is not Fate.ACKED:
                is_open = False
            elif is_open and entry.started - found[-1][1] <= apart:
                found[-1] = (found[-1][0], entry.started)
            else:
                found.append((entry.started, entry.started))
                is_open = True
        if found:
            spans[server] = found
    return spans


def dual_seconds(spans: Mapping[str, Sequence[tuple[float, float]]], least: float) -> float:
    """For how long two servers at once took writes and acknowledged them.

    ``least`` is what a single write counts that one server acknowledged in the middle of another's
    span: it proves a moment and not how long it was.
    """
    ordered = [(server, span) for server, found in spans.items() for span in found]
    both: list[tuple[float, float]] = []
    for number, (server, (first, last)) in enumerate(ordered):
        for other, (since, until) in ordered[number + 1 :]:
            begin, end = max(first, since), min(last, until)
            if other != server and begin <= end:
                both.append((begin, max(end, begin + least)))
    return _length(both)


def _length(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds that the spans cover together."""
    covered, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _count(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts
