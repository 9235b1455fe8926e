"""Rule on work that takes one load balancer at a time away: who needs it, and whose turn it is.

Invariants: nobody is taken away unless another one is fit; the one with the address is worked on
only after the address has left it, so clients are cut off once, and never meet a restart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flotilla.rules.packages import upgrades
from flotilla.rules.replace_pair import Balancer

# What a host prints before a line about a process that runs what is no longer on the disk.
STALE = "stale"


@dataclass(frozen=True, slots=True)
class Need:
    """What one load balancer needs: reasons, as sentences, and whether apt has anything to do."""

    reasons: tuple[str, ...]
    upgrades: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose turn it is; ``gives_away``: the address has to leave it first."""

    host: Balancer
    gives_away: bool


def need(surveyed: Iterable[str], *, anyway: bool = False) -> Need | None:
    """What a host needs, None for nothing.

    ``surveyed``: what apt would do, as it says it, and ``stale <process> <file>`` for each file
    that was replaced under a running process.
    """
    lines = list(surveyed)
    planned = upgrades(lines)
    reasons = [str(one) for one in planned]
    words = [line.split() for line in lines]
    stale = sorted({tuple(found[1:]) for found in words if found[:1] == [STALE]})
    reasons += [f"{process} runs {path}, which was replaced" for process, path in stale]
    if anyway and not reasons:
        reasons.append("a restart was asked for")
    return Need(tuple(reasons), bool(planned)) if reasons else None


def disorder(hosts: Sequence[Balancer]) -> list[str]:
    """Why nobody may be taken away; empty when somebody may."""
    found = []
    if len(hosts) < 2:
        names = ", ".join(host.name for host in hosts) or "none"
        found.append(f"there must be two load balancers, and there is {names}")
    owners = [host.name for host in hosts if host.owner]
    if len(owners) != 1:
        found.append(f"the address is with {' and '.join(owners) or 'none of them'}")
    found += [f"{host.name} could not serve now" for host in hosts if not host.fit]
    return found


def turn(hosts: Sequence[Balancer], left: Collection[str]) -> Turn:
    """Who of ``left`` is next: whoever has not got the address, by name.

    For hosts in order; raises ValueError where they are not.
    """
    if found := disorder(hosts):
        raise ValueError("; ".join(found))
    waiting = sorted((h for h in hosts if h.name in left), key=lambda h: (h.owner, h.name))
    return Turn(waiting[0], waiting[0].owner)


def steps(hosts: Sequence[Balancer], reasons: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The plan in words."""
    left = set(reasons)
    for host in sorted((h for h in hosts if h.name in left), key=lambda h: (h.owner, h.name)):
        if host.owner:
            yield f"{host.name}: move the address away, which cuts open connections, then the same"
        else:
            yield f"{host.name}: upgrade and restart, wait until it could serve"
        yield from (f"  {why}" for why in reasons[host.name])
