"""Count what clients saw: served, failed by reason, retried, how long it took, the longest gap."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Count:
    """One kind of request, or one phase. Times are seconds on one monotonic clock."""

    latencies: list[float] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    first_served: float | None = None
    last_served: float | None = None
    gap: float = 0.0

    def served(self, at: float, seconds: float, retries: int) -> None:
        """A request was answered at ``at``, ``seconds`` after it was due."""
        self.latencies.append(seconds)
        self.retried += retries
        if self.last_served is not None:
            self.gap = max(self.gap, at - self.last_served)
        self.first_served = at if self.first_served is None else min(self.first_served, at)
        self.last_served = at if self.last_served is None else max(at, self.last_served)

    def failed(self, reason: str, retries: int) -> None:
        """A request was given up."""
        self.failures[reason] += 1
        self.retried += retries

    def longest_gap(self, begun: float, ended: float) -> float:
        """The longest time without an answer, from ``begun`` to ``ended``: an outage that lasts to
        the end is one, too.
        """
        if self.first_served is None or self.last_served is None:
            return max(0.0, ended - begun)
        return max(self.gap, self.first_served - begun, ended - self.last_served)

    def as_dict(self) -> dict[str, Any]:
        """The figures; times in milliseconds, ``gap_seconds`` between two answers.

        ``late_ms``: 99 of 100 requests were sent at most so long after they were due. It is part of
        every latency, so a ``p99_ms`` that is not far above it tells of the sender, not the fleet.
        """
        return {
            "served": len(self.latencies),
            "failed": sum(self.failures.values()),
            "retried": self.retried,
            "p50_ms": milliseconds(percentile(self.latencies, 50)),
            "p99_ms": milliseconds(percentile(self.latencies, 99)),
            "late_ms": milliseconds(percentile(self.lateness, 99)),
            "gap_seconds": round(self.gap, 3),
        }


class Tally:
    """All counts of one run. ``mark`` begins a new phase; requests belong to the one they began in.

    Not safe for threads: one event loop owns it.
    """

    def __init__(self, kinds: Iterable[str], started: float) -> None:
        self.kinds = {kind: Count() for kind in kinds}
        self.phases: dict[str, Count] = {}
        self.cells: dict[tuple[str, str], Count] = {}
        self._begun: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self.total = Count()
        self.started = started
        self.phase = ""
        self.mark("start", started)

    def mark(self, phase: str, at: float) -> None:
        """End the phase that runs and begin another; a name used before goes on counting there."""
        if self.phase:
            self._ended[self.phase] = at
        self.phase = phase
        self.phases.setdefault(phase, Count())
        self._begun.setdefault(phase, at)

    def sent(self, kind: str, phase: str, late: float) -> None:
        """Note that a request was sent ``late`` seconds after it was due."""
        for count in self._of(kind, phase):
            count.lateness.append(late)

    def served(self, kind: str, phase: str, at: float, seconds: float, retries: int = 0) -> None:
        """Count an answer."""
        for count in self._of(kind, phase):
            count.served(at, seconds, retries)

    def failed(self, kind: str, phase: str, reason: str, retries: int = 0) -> None:
        """Count a request whose client did not get what it asked for."""
        for count in self._of(kind, phase):
            count.failed(reason, retries)

    def _of(self, kind: str, phase: str) -> tuple[Count, ...]:
        cell = self.cells.setdefault((phase, kind), Count())
        return (self.total, self.kinds[kind], self.phases[phase], cell)

    def report(self, now: float) -> dict[str, Any]:
        """Everything as JSON types; every phase has its ``failures`` and its ``kinds`` too."""
        phases = {
            name: count.as_dict()
            | {
                "seconds": round(self._ended.get(name, now) - self._begun[name], 3),
                "failures": dict(count.failures.most_common()),
                "kinds": {k: c.as_dict() for (phase, k), c in self.cells.items() if phase == name},
            }
            for name, count in self.phases.items()
        }
        return {
            "seconds": round(now - self.started, 3),
            **self.total.as_dict(),
            "gap_seconds": round(self.total.longest_gap(self.started, now), 3),
            "failures": dict(self.total.failures.most_common()),
            "kinds": {name: count.as_dict() for name, count in self.kinds.items()},
            "phases": phases,
        }


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that at least ``percent`` of all are not above; None without values."""
    if not values:
        return None
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[max(rank, 1) - 1]


def milliseconds(seconds: float | None) -> float | None:
    """Seconds as milliseconds with one decimal."""
    return None if seconds is None else round(seconds * 1000, 1)


def schedule(mix: dict[str, int], length: int) -> list[str]:
    """``length`` kinds in the proportions of ``mix``, spread evenly: never a burst of one kind."""
    total = sum(mix.values())
    credit = dict.fromkeys(mix, 0)
    order = []
    for _ in range(length):
        for kind, weight in mix.items():
            credit[kind] += weight
        chosen = max(credit, key=lambda kind: credit[kind])
        credit[chosen] -= total
        order.append(chosen)
    return order
