"""Which full backups to keep, and from where on binary logs are needed.

Kept are the newest ``last``, the newest of each of the last ``days`` days, ``weeks`` weeks and
``months`` months that have one. Days and weeks are those of UTC, weeks begin on Mondays.
Invariants: the newest backup is always kept; nothing newer than the oldest kept one goes without a
reason of its own; a binary log is dropped only when every kept backup already holds all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from flotilla.rules.archive import Known, Part
from flotilla.rules.gtid import GtidSet


@dataclass(frozen=True, slots=True)
class Policy:
    """How many of each are kept."""

    last: int = 3
    days: int = 14
    weeks: int = 8
    months: int = 12


@dataclass(frozen=True, slots=True)
class Verdict:
    """A backup, and why it is kept; "" when it may go."""

    backup: str
    why: str


def verdicts(backups: Mapping[str, datetime], policy: Policy) -> list[Verdict]:
    """Rule on every backup, newest first. ``backups`` are ids and when they were taken."""
    newest_first = sorted(backups, key=lambda one: (backups[one], one), reverse=True)
    why: dict[str, str] = {}
    for number, one in enumerate(newest_first[: max(1, policy.last)], 1):
        why[one] = "the newest" if number == 1 else f"one of the newest {policy.last}"
    spans: list[tuple[str, int, Callable[[datetime], object]]] = [
        ("day", policy.days, lambda at: at.date()),
        ("week", policy.weeks, lambda at: at.isocalendar()[:2]),
        ("month", policy.months, lambda at: (at.year, at.month)),
    ]
    for name, count, span in spans:
        seen: dict[object, str] = {}
        for one in newest_first:
            seen.setdefault(span(backups[one]), one)
        for one in list(seen.values())[:count]:
            why.setdefault(one, f"the newest of its {name}")
    return [Verdict(one, why.get(one, "")) for one in newest_first]


def droppable(streams: Iterable[Known], kept: Iterable[GtidSet]) -> list[Part]:
    """Parts of binary logs that no kept backup needs, by whole files: those whose transactions, and
    everything before them, each of the backups holds. Without a backup nothing is.
    """
    sets = list(kept)
    if not sets:
        return []
    found: list[Part] = []
    for known in streams:
        by_file: dict[str, list[Part]] = {}
        for part in known.parts:
            by_file.setdefault(part.place.file, []).append(part)
        # The last file of a stream stays: it says how far the stream came.
        for file in list(by_file)[:-1]:
            if not all(part.gtids <= one for part in by_file[file] for one in sets):
                break
            found += by_file[file]
    return found
