"""Rule on what clients of the database saw: when they could not write, and what was lost.

Invariant: a write is lost only if its client was told that it is done. One that broke off in the
middle may be there or not, and either is right.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise


class Fate(StrEnum):
    """What the client was told: done, not done, or nothing."""

    ACKED = "acked"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Entry:
    """One try to write one row. Times are seconds on the clock of the host that wrote."""

    id: str
    started: float
    ended: float
    fate: Fate
    error: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """The ledger closed: counts of entries, ids that are missing, times in seconds.

    ``gap_started`` is when the longest stretch without an acknowledgement began, None without acks.
    ``servers`` counts rows by the server UUID they were stamped with.
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


def summarise(entries: Iterable[Entry], found: Mapping[str, str]) -> Summary:
    """Close the ledger against the rows ``found`` afterwards: id to the UUID of its server."""
    every = sorted(entries, key=lambda entry: entry.ended)
    acked = [entry for entry in every if entry.fate is Fate.ACKED]
    gap, since = longest_gap(every, acked)
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
    )


def lost(acked: Iterable[Entry], found: Collection[str]) -> tuple[str, ...]:
    """The acknowledged ids that are not there."""
    return tuple(entry.id for entry in acked if entry.id not in found)


def longest_gap(every: Sequence[Entry], acked: Sequence[Entry]) -> tuple[float, float | None]:
    """The longest time in which no client's write was acknowledged, and when it began.

    Counted from the first try to the last one's end, so that a database that never comes back does
    not look quick.
    """
    if not every:
        return 0.0, None
    ends = [
        min(entry.started for entry in every),
        *sorted(entry.ended for entry in acked),
        max(entry.ended for entry in every),
    ]
    gaps = [(after - before, before) for before, after in pairwise(ends)]
    return max(gaps)


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _count(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts
