"""What a drill of the load balancer pair must show, and its figures.

Clients decide: how long none of them was answered at the fleet's address. A figure is of one run;
over all runs counts are added, and seconds have a median and a worst.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flotilla.rules.drill import spread
from flotilla.rules.drill_fault import Aim, Bar, Ends, Fault, Power, beyond_median

# In the lab, where the address is moved at once; on AWS the move itself takes 5 to 6 s.
_BAR = Bar(2.0, 4.0)
# There, and back when the fault is over. Each cuts all connections, and two that take the address
# from each other do so every 5 s.
MOST_MOVES = 2
FAULTS = {
    fault.name: fault
    for fault in (
        # As long as it takes the address service to look twice: only then is it known who stays.
        Fault(
            "haproxy-kill",
            "SIGKILL to every HAProxy process",
            Power.SHELL,
            Ends.EITHER,
            _BAR,
            12.0,
        ),
        Fault(
            "haproxy-freeze",
            "SIGSTOP to every HAProxy process, SIGCONT after the move",
            Power.SHELL,
            Ends.MOVED,
            _BAR,
            5.0,
        ),
        Fault("keepalived-kill", "SIGKILL to keepalived", Power.SHELL, Ends.EITHER, _BAR, 12.0),
        Fault(
            "freeze", "the whole host is frozen, and thawed", Power.OUTSIDE, Ends.MOVED, _BAR, 10.0
        ),
        Fault(
            "stop-instance", "EC2 stops the instance, by force", Power.API, Ends.MOVED, _BAR, 3.0
        ),
        Fault(
            "zone", "its zone reaches nothing outside of it", Power.OUTSIDE, Ends.MOVED, _BAR, 10.0
        ),
        Fault(
            "partition",
            "the host reaches nobody and nobody reaches it",
            Power.OUTSIDE,
            Ends.MOVED,
            _BAR,
            10.0,
        ),
        Fault(
            "both-claim",
            "the two do not hear each other: both are VRRP masters, and both claim the address",
            Power.OUTSIDE,
            Ends.EITHER,
            _BAR,
            10.0,
        ),
        Fault(
            "moved-by-hand",
            "somebody gives the address to the other one, which does not expect it",
            Power.API,
            Ends.EITHER,
            _BAR,
            12.0,
        ),
        Fault(
            "failover",
            "nothing breaks: the address is moved, as an operator does it",
            Power.OPERATOR,
            Ends.MOVED,
            _BAR,
        ),
    )
}


def aim(fault: Fault, active: str, zones: Mapping[str, str]) -> Aim | str:
    """Whom to strike, or why that cannot be done. ``zones`` is by name of every load balancer."""
    others = sorted(set(zones) - {active})
    if not others:
        return f"{active} has no other load balancer beside it"
    if fault.name == "both-claim":
        return Aim(active, {"from": ",".join(others)})
    if fault.name in {"moved-by-hand", "failover"}:
        return Aim(others[0])
    if fault.name != "zone":
        return Aim(active)
    if all(zones[other] == zones[active] for other in others):
        return f"every load balancer is in {zones[active]}: nobody would be left"
    return Aim(zones[active])


@dataclass(frozen=True, slots=True)
class Told:
    """What a load balancer says of itself: its VRRP state, and whether that is news; ``why`` it
    could not be asked.
    """

    vrrp: str = ""
    is_fresh: bool = False
    why: str = ""


def disorder(owners: Sequence[str], told: Mapping[str, Told], *, but: str = "") -> str:
    """What is not as it should be; "" for nothing. ``but`` is a load balancer that may be away.

    The address is with exactly one, that one is the only VRRP master, and everybody else is ready
    to take over. ``owners`` are names, "" for a host that is none of ours.
    """
    if len(owners) != 1 or owners[0] not in told:
        return f"the address is with {', '.join(map(repr, owners)) or 'nobody'}"
    if owners[0] == but:
        return f"the address is with {but}"
    found = {n: _wrong(one, owner=n == owners[0]) for n, one in sorted(told.items()) if n != but}
    return "; ".join(f"{name} {why}" for name, why in found.items() if why)


def _wrong(one: Told, *, owner: bool) -> str:
    if one.why:
        return f"cannot be asked: {one.why}"
    if not one.is_fresh:
        return "has an address service that has nothing new to tell"
    if one.vrrp != ("MASTER" if owner else "BACKUP"):
        return f"{'has the address' if owner else 'has not the address'} and is {one.vrrp}"
    return ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was measured in one run. ``traffic`` is the clients' report; moments are epoch seconds.

    ``converged`` is when all was in order again without the one that was struck, None for never;
    ``moves`` are the owners of the address in the order in which they were seen.
    """

    traffic: Mapping[str, Any]
    struck: float
    ended: float
    converged: float | None
    old: str
    new: str
    rate: float
    patience_seconds: float
    moves: Sequence[str] = field(default_factory=tuple)


def figures(seen: Seen) -> dict[str, Any]:
    """One run, in JSON types."""
    traffic = seen.traffic
    converged = None if seen.converged is None else round(seen.converged - seen.struck, 2)
    # The fault cuts clients off once, and its end may a second time; whoever asked in that time, or
    # waited for an answer when it began, may fail.
    excused = 2 * seen.rate * (traffic["gap_seconds"] + seen.patience_seconds)
    return {
        "outage_seconds": traffic["gap_seconds"],
        "failed_beyond": max(0, math.floor(traffic["failed"] - excused)),
        "served": traffic["served"],
        "failed": traffic["failed"],
        "retried": traffic["retried"],
        "failures": dict(traffic["failures"]),
        "converged_seconds": converged,
        "ended_seconds": round(seen.ended - seen.struck, 2),
        "old": seen.old,
        "new": seen.new,
        "moves": list(seen.moves),
    }


def broken(run: Mapping[str, Any], fault: Fault) -> list[str]:
    """The promises that one run broke, as sentences."""
    told = [] if run["served"] else ["no request was served at all"]
    if fault.bar and run["outage_seconds"] > fault.bar.worst:
        told.append(
            f"nobody was served for {run['outage_seconds']:.2f} s, "
            f"the worst may be {fault.bar.worst:g} s"
        )
    if run["failed_beyond"]:
        told.append(f"{run['failed_beyond']} requests failed beyond what the outage can explain")
    if run["converged_seconds"] is None:
        told.append("the pair did not get over it by itself")
    if len(run["moves"]) > 1 + MOST_MOVES:
        told.append(f"the address went {' -> '.join(run['moves'])}")
    if fault.ends is Ends.MOVED and run["new"] == run["old"]:
        told.append(f"the address is still with {run['old']}")
    if run["not_mended"]:
        told.append(f"not everything could be put back: {run['not_mended']}")
    return told


_COUNTED = ("served", "failed", "failed_beyond", "retried")


def over_all(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of what is counted, median and worst of what is measured."""
    return {
        **{key: sum(run[key] for run in each) for key in _COUNTED},
        **{
            key: spread(run[key] for run in each)
            for key in ("outage_seconds", "converged_seconds", "ended_seconds")
        },
        "most_moves": max((len(run["moves"]) - 1 for run in each), default=0),
    }


def broken_by_all(told: Mapping[str, Any], fault: Fault, runs: int) -> list[str]:
    """The promise that only all runs together can break."""
    return beyond_median("outage", told["outage_seconds"]["median"], runs, fault.bar)
