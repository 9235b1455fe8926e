"""Replace the two load balancers, the one without the address first: what to do next.

As in ``rules.replace``, the next step follows from the hosts that exist. Invariants: the holder of
the address is never ended, and a host goes only while two others are fit; so at every moment one
serves and another one could take over. The address moves once, to a new host that is fit. A host of
a zone comes back under the name of the one it replaces, in the same zone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PAIR = 2


@dataclass(frozen=True, slots=True)
class Balancer:
    """One load balancer. ``fit``: its peers know it, it has servers in rotation, and it takes part
    in VRRP; ``owner``: EC2 says the Elastic IP is with it.
    """

    name: str
    instance_id: str
    zone: str
    image_id: str
    fit: bool
    owner: bool


@dataclass(frozen=True, slots=True)
class Launch:
    """Start one more load balancer: ``name`` is free, ``zone`` is where it is to stand."""

    name: str
    zone: str


@dataclass(frozen=True, slots=True)
class Configure:
    """Make every load balancer know the others; ``unfit`` are those that wait for it."""

    unfit: tuple[Balancer, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """Move the address away from ``source``."""

    source: Balancer


@dataclass(frozen=True, slots=True)
class End:
    """Terminate one."""

    host: Balancer


@dataclass(frozen=True, slots=True)
class Rename:
    """Give a host the name of the one it has replaced."""

    host: Balancer
    name: str


@dataclass(frozen=True, slots=True)
class Done:
    """Two of the wanted image, both fit, under the names they belong to."""


Step = Launch | Configure | Move | End | Rename | Done


def step(hosts: Sequence[Balancer], image_id: str, zones: Sequence[str]) -> Step:
    """What to do next; ``zones`` are the fleet's, in order."""
    return next(_steps(hosts, image_id, zones), Done())


def _steps(hosts: Sequence[Balancer], image_id: str, zones: Sequence[str]) -> Iterator[Step]:
    old = [host for host in hosts if host.image_id != image_id]
    new = [host for host in hosts if host.image_id == image_id]
    yield from _ends(hosts, old)
    if unfit := [host for host in new if not host.fit]:
        yield Configure(tuple(unfit))
    if len(hosts) <= PAIR:
        yield from _renames(hosts, zones)
        yield from _launches(hosts, old, new, zones)
    owner = next((host for host in old if host.owner), None)
    if owner and any(host.fit for host in new):
        yield Move(owner)
    # Only a run that was cut off leaves one too many.
    if not old:
        yield from _ends(hosts, sorted(new, key=lambda host: -number(host.name)))


def _ends(hosts: Sequence[Balancer], leaving: Sequence[Balancer]) -> Iterator[Step]:
    """Those that the pair can do without: unfit ones first."""
    for host in sorted(leaving, key=lambda host: host.fit):
        others = [one for one in hosts if one.fit and one != host]
        if not host.owner and len(others) >= PAIR:
            yield End(host)


def _launches(
    hosts: Sequence[Balancer],
    old: Sequence[Balancer],
    new: Sequence[Balancer],
    zones: Sequence[str],
) -> Iterator[Step]:
    """One for an old one that is passive, for the only one that is fit, or for one that is gone."""
    leaving = [host for host in old if not host.owner]
    if leaving or not any(host.fit for host in new) or len(hosts) < PAIR:
        yield Launch(free_name(hosts), missing_zone(new, [*(h.zone for h in leaving)], zones))


def _renames(hosts: Sequence[Balancer], zones: Sequence[str]) -> Iterator[Step]:
    """The name that belongs to a zone is given to the host that stands there."""
    taken = {host.name for host in hosts}
    for host in hosts:
        own = {f"lb-{n}" for n in range(1, PAIR + 1) if zones[(n - 1) % len(zones)] == host.zone}
        wanted = sorted(own - taken)
        if number(host.name) > PAIR and wanted:
            yield Rename(host, wanted[0])


def number(name: str) -> int:
    """The number of ``lb-<n>``; 0 for any other name."""
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0


def free_name(hosts: Sequence[Balancer]) -> str:
    """The lowest name beyond the pair's own that nobody has."""
    taken = {host.name for host in hosts}
    return next(name for n in range(PAIR + 1, 100) if (name := f"lb-{n}") not in taken)


def missing_zone(new: Sequence[Balancer], leaving: Sequence[str], zones: Sequence[str]) -> str:
    """A zone of the pair in which no new one stands; best that of one that leaves."""
    stand = {host.zone for host in new}
    own = [zones[n % len(zones)] for n in range(PAIR)]
    missing = [zone for zone in own if zone not in stand] or own
    return next((zone for zone in missing if zone in leaving), missing[0])


def faults(hosts: Sequence[Balancer]) -> list[str]:
    """Why no exchange may begin; empty when it may."""
    found = []
    if len(hosts) != PAIR:
        names = ", ".join(host.name for host in hosts) or "none"
        found.append(f"there must be {PAIR} load balancers and there are {len(hosts)} ({names})")
    found += [f"{host.name} could not serve now" for host in hosts if not host.fit]
    owners = [host.name for host in hosts if host.owner]
    if len(owners) != 1:
        found.append("no load balancer has the Elastic IP" if not owners else "two have it")
    return found
