"""Does a host that came back serve as well as the others? Judged by what load balancers counted.

Both sides are compared over the same seconds, so what hurts everybody (a database that fails over)
is nobody's fault. Chance is kept apart from fault by Fisher's exact test, which needs no large
numbers: with little traffic it says nothing until the difference cannot be luck.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

# One or two errors happen to a good release too: a client's connection that dies, a retry.
LEAST_ERRORS = 3
# Below this many answers one unlucky client would be most of a host's traffic.
LEAST_REQUESTS = 5
# The chance to see such a difference between equal hosts. A soak is looked at some 20 times and a
# deploy has tens of hosts: 1 in 10,000 leaves one false alarm in about fifty deploys at the most.
CHANCE = 1e-4
# A difference that is certain can still be too small to matter: at least this share of requests.
EXCESS = 0.01
# With nobody to compare with, a host may fail this share of at least so many requests: others that
# had none yet in the first moment of a soak are soon heard of.
ALONE = 0.1
LEAST_ALONE = 20
# Failed checks: HAProxy's own count before it takes a server out is two. As many on all the others
# together, and a load balancer that is short of time is the likelier reason.
LEAST_FAILED_CHECKS = 2
# Answers on either side before their times are compared; a mean of fewer is one slow page.
LEAST_TIMED = 30
LEAST_PARTS = 2
SLOWER_TIMES = 3.0
SLOWER_MS = 250.0
# HAProxy's `rtime` is a moving average in which each answer has this share (TIME_STATS_SAMPLES).
WINDOW = 512
# The average is a whole number of ms: what is less than this part of it drowns in the rounding.
LEAST_WEIGHT = 0.05


@dataclass(frozen=True, slots=True)
class Sample:
    """What one load balancer counted for one server since its process started.

    ``requests`` includes those that failed; ``time_ms`` is HAProxy's moving average.
    """

    requests: int = 0
    errors: int = 0
    time_ms: float = 0
    failed_checks: int = 0
    downs: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What was counted during a soak. ``time_ms`` is a mean over ``timed`` answers."""

    requests: int = 0
    errors: int = 0
    failed_checks: int = 0
    downs: int = 0
    timed: int = 0
    time_ms: float = 0

    @property
    def share(self) -> float:
        """Errors in one request."""
        return self.errors / self.requests if self.requests else 0.0

    def plus(self, other: Seen) -> Seen:
        """Both together."""
        timed = self.timed + other.timed
        total = self.time_ms * self.timed + other.time_ms * other.timed
        counts = {
            f.name: getattr(self, f.name) + getattr(other, f.name)
            for f in fields(self)
            if f.name != "time_ms"
        }
        return Seen(**counts, time_ms=total / timed if timed else 0.0)

    def as_dict(self) -> dict[str, float | None]:
        """For a report: counts, and the mean time in ms where there were answers enough."""
        return {
            "requests": self.requests,
            "errors": self.errors,
            "failed_checks": self.failed_checks,
            "time_ms": round(self.time_ms, 1) if self.timed else None,
        }


Samples = Mapping[str, Mapping[str, Sample]]


def seen(before: Samples, after: Samples, servers: Iterable[str]) -> Seen:
    """What all load balancers together counted for ``servers``; ``before``/``after`` by balancer.

    A load balancer that was started again counts from zero, so all it has is new.
    """
    total = Seen()
    for name in servers:
        for balancer, now in after.items():
            if name in now:
                then = before.get(balancer, {}).get(name, Sample())
                total = total.plus(increase(then, now[name]))
    return total


def increase(before: Sample, after: Sample) -> Seen:
    """What one load balancer counted for one server between two samples."""
    if after.requests < before.requests or after.downs < before.downs:
        before = Sample()
    requests = after.requests - before.requests
    mean = _mean(before, after, requests)
    return Seen(
        requests=requests,
        errors=max(0, after.errors - before.errors),
        failed_checks=max(0, after.failed_checks - before.failed_checks),
        downs=after.downs - before.downs,
        timed=0 if mean is None else requests,
        time_ms=mean or 0.0,
    )


def why_unfit(name: str, mine: Seen, others: Seen) -> str | None:
    """Why the host should not go on serving; None while nothing speaks against it."""
    if mine.downs > others.downs:
        return f"{name} went down by its health checks while it was watched"
    if mine.failed_checks >= max(LEAST_FAILED_CHECKS, others.failed_checks + 1):
        return f"{name} failed {mine.failed_checks} health checks while it was watched"
    return _too_many_errors(name, mine, others)


def _too_many_errors(name: str, mine: Seen, others: Seen) -> str | None:
    if mine.errors < LEAST_ERRORS or mine.requests < LEAST_REQUESTS:
        return None
    said = f"{name} failed {mine.errors} of {mine.requests} requests"
    if not others.requests:
        bad = mine.requests >= LEAST_ALONE and mine.share > ALONE
        return f"{said}, and no other host served" if bad else None
    if mine.share - others.share < EXCESS:
        return None
    if chance(mine.errors, mine.requests, others.errors, others.requests) > CHANCE:
        return None
    return f"{said}, the other hosts {others.errors} of {others.requests}"


def why_slow(name: str, mine: Sequence[Seen], others: Sequence[Seen]) -> str | None:
    """Why the host answers too slowly: it does in every part of the soak, compared part by part.

    A mean says little where a few requests take long: with three of 8 s among 60 a second, a host
    that served well was ten times as slow as the others over 2 s. Two parts at least must agree.
    """
    pairs = list(zip(mine, others, strict=True))
    if len(pairs) < LEAST_PARTS or not all(_is_slower(own, their) for own, their in pairs):
        return None
    own, their = pairs[-1]
    return f"{name} answers in {own.time_ms:.0f} ms, the other hosts in {their.time_ms:.0f} ms"


def _is_slower(mine: Seen, others: Seen) -> bool:
    if min(mine.timed, others.timed) < LEAST_TIMED:
        return False
    return mine.time_ms > max(others.time_ms * SLOWER_TIMES, others.time_ms + SLOWER_MS)


def chance(errors: int, requests: int, other_errors: int, other_requests: int) -> float:
    """How likely equal hosts differ this much or more: Fisher's exact test, one-sided.

    Of all errors, how likely does so large a part fall on the requests of one side?
    """
    total = errors + other_errors
    whole = _choices(requests + other_requests, total)
    most = min(requests, total)
    tail = (
        math.exp(_choices(requests, k) + _choices(other_requests, total - k) - whole)
        for k in range(errors, most + 1)
        if total - k <= other_requests
    )
    return min(1.0, sum(tail))


def _choices(of: int, take: int) -> float:
    """The logarithm of "``of`` choose ``take``"."""
    return math.lgamma(of + 1) - math.lgamma(take + 1) - math.lgamma(of - take + 1)


def _mean(before: Sample, after: Sample, requests: int) -> float | None:
    """The mean time of the ``requests`` between two values of HAProxy's moving average.

    The smallest one that fits its rounding; None for too few answers (27 in a full window).
    """
    if requests <= 0:
        return None
    # It is a plain mean until the window is full.
    kept = min(before.requests, WINDOW) / min(after.requests, WINDOW)
    kept *= (1 - 1 / WINDOW) ** (after.requests - max(before.requests, min(after.requests, WINDOW)))
    weight = 1 - kept
    if weight < LEAST_WEIGHT:
        return None
    return max(0.0, (after.time_ms - 1 - (before.time_ms) * kept) / weight)
