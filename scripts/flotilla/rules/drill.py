"""What a drill of deploys must show, and its figures: per run, and over all runs.

The clients' own count decides. What load balancers counted is told beside it: a connection that
nobody accepted is in no load balancer's count.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BEFORE, DURING, AFTER = "before", "during", "after"
# Seconds that may pass from the first sign that a release is bad until every host is back.
BACK_SECONDS = 30.0


# Half of the requests of a fleet that keeps up take 10 ms; of one that does not, seconds.
KEEPS_UP_MS = 250.0


def overload(seen: Mapping[str, Any]) -> str | None:
    """Why clients were too many for a fleet on which nothing was done; None for a fleet that keeps
    up. A drill under them would show that, and not what it is for.
    """
    sent, failed, half = seen["served"] + seen["failed"], seen["failed"], seen["p50_ms"]
    if failed:
        return f"{failed} of {sent} requests failed"
    if half is None or half > KEEPS_UP_MS:
        return f"half of {sent} requests took longer than {half} ms"
    return None


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault: how a deploy may end under it, and whether clients may notice.

    ``ends`` are results of a deploy. ``is_felt``: the fault itself takes requests along, as one
    that ends a process with requests in it must, whatever a deploy does; they are counted and told.
    """

    name: str
    about: str
    ends: frozenset[str] = frozenset({"done"})
    is_felt: bool = False

    @property
    def is_bad_release(self) -> bool:
        """Whether the release itself is bad: its canary only may ever run it."""
        return self.ends == BACK


BACK = frozenset({"rolled back"})
FAULTS = {
    fault.name: fault
    for fault in (
        Fault("lb-reload", "every load balancer reloads while a host is out"),
        Fault("lb-restart", "the load balancer that serves is restarted meanwhile", is_felt=True),
        Fault("lb-failover", "the address moves to the other load balancer", is_felt=True),
        Fault("app-kill-in-drain", "the application is killed while its host drains", is_felt=True),
        Fault("app-crash", "the application is killed on a host that serves", is_felt=True),
        Fault("slow-boot", "the release listens late and then answers 500 for a while"),
        Fault("never-healthy", "the release never gets healthy", BACK),
        Fault("wrong-version", "the release names another version", BACK),
        Fault("errors-after-soak", "the release answers 500 once clients come", BACK, is_felt=True),
        Fault("operator-kill", "the deploy is killed with SIGKILL and resumed"),
        Fault("api-down", "the AWS API answers nobody while hosts are changed"),
        Fault(
            "host-unreachable",
            "a host stops answering SSH once it is out of rotation",
            frozenset({"stopped", "rolled back"}),
        ),
    )
}


def figures(
    seen: Mapping[str, Any], ended: Mapping[str, Any], wall_seconds: float
) -> dict[str, Any]:
    """One run: the clients' report with its three phases, and the deploy's outcome."""
    phases = {name: seen["phases"].get(name, {}) for name in (BEFORE, DURING, AFTER)}
    return {
        "version": ended["version"],
        "result": ended["result"],
        "reason": ended.get("reason", ""),
        "served": seen["served"],
        "failed": seen["failed"],
        "retried": seen["retried"],
        "failures": dict(seen["failures"]),
        "acked": seen["acked"],
        "lost": seen.get("lost", 0),
        "seconds": ended["seconds"],
        "wall_seconds": round(wall_seconds, 2),
        **{
            key: {name: phase.get(key) for name, phase in phases.items()}
            for key in ("p50_ms", "p99_ms", "late_ms", "gap_seconds")
        },
        "failed_in": {name: phase.get("failed", 0) for name, phase in phases.items()},
        "kinds": {
            kind: {
                "served": counts["served"],
                "failed": counts["failed"],
                "retried": counts["retried"],
                "p99_ms": {
                    name: phase.get("kinds", {}).get(kind, {}).get("p99_ms")
                    for name, phase in phases.items()
                },
            }
            for kind, counts in seen["kinds"].items()
        },
        "cookies": seen.get("cookies", {}),
        "balancers": {
            key: ended.get(key) for key in ("served", "failed", "retried", "redispatched")
        },
        "touched": sorted(ended.get("steps", {})),
    }


def over_all(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of what is counted, median and worst of what is measured."""
    counted = ("served", "failed", "retried", "acked", "lost")
    return {
        **{key: sum(one[key] for one in each) for key in counted},
        "failures": _added(one["failures"] for one in each),
        "seconds": spread(one["seconds"] for one in each),
        "p99_ms": {
            phase: spread(one["p99_ms"].get(phase) for one in each) for phase in (BEFORE, DURING)
        },
        "p99_ratio": spread(ratio(one["p99_ms"]) for one in each),
        "late_ms": {
            phase: spread(one["late_ms"].get(phase) for one in each) for phase in (BEFORE, DURING)
        },
    }


def spread(values: Iterable[float | None]) -> dict[str, float | None]:
    """Median and worst (largest); None where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return {"median": None, "worst": None}
    return {"median": round(statistics.median(known), 2), "worst": round(max(known), 2)}


def ratio(p99_ms: Mapping[str, float | None]) -> float | None:
    """How many times slower the slowest hundredth was during the deploy than before it."""
    before, during = p99_ms.get(BEFORE), p99_ms.get(DURING)
    return round(during / before, 2) if before and during else None


def broken(run: Mapping[str, Any], fault: Fault | None) -> list[str]:
    """The promises that one run broke, as sentences; empty when it kept them all."""
    ends = fault.ends if fault else frozenset({"done"})
    told = []
    if run["result"] not in ends:
        told.append(f"it ended {run['result']!r}, not {' or '.join(sorted(ends))}: {run['reason']}")
    if run["lost"]:
        told.append(f"{run['lost']} acknowledged entries are gone")
    if run["failed"] and not (fault and fault.is_felt):
        reasons = ", ".join(f"{count} x {why}" for why, count in run["failures"].items())
        told.append(f"{run['failed']} requests failed ({reasons})")
    if fault and fault.is_bad_release:
        told += _badly_taken_back(run)
    return told


def _badly_taken_back(run: Mapping[str, Any]) -> list[str]:
    told = []
    if len(run["touched"]) > 1:
        told.append(f"a bad release got to {', '.join(run['touched'])}: more than the canary")
    if run["seconds"] > BACK_SECONDS:
        told.append(f"going back took {run['seconds']:.0f} s, not {BACK_SECONDS:.0f}")
    return told


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for reason, number in one.items():
            total[reason] = total.get(reason, 0) + number
    return total
