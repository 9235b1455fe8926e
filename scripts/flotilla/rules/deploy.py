"""Which hosts get a release, in which order, how many at a time, and when not to begin at all.

Invariants of a plan: every host is in exactly one batch or skipped with a reason; the first batch
is one host; whatever a batch takes out, as many serving hosts as the floor asks for stay in
rotation, so the last healthy zone never leaves at once. A host counts as serving when one load
balancer gives it requests, and as there for others when every one does.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any

from flotilla.rules.rotation import FULL, Server, Views

_SIZE = re.compile(r"(\d+)(%?)")


@dataclass(frozen=True, slots=True)
class Host:
    """An application host as it is: what runs there, and how each load balancer sees it.

    ``version`` is None before the first deploy; ``stale`` means its settings changed after start.
    ``share`` is the least part of its weight that a load balancer gives it, in percent.
    """

    name: str
    zone: str
    version: str | None
    active: bool
    stale: bool
    views: Views
    share: float = FULL

    @property
    def is_serving(self) -> bool:
        """Whether any load balancer gives it requests: then it is missed when it is taken out."""
        return any(view.is_serving for view in self.views.values())

    @property
    def is_disputed(self) -> bool:
        """Whether one load balancer gives it requests and another one does not."""
        return len({view.is_serving for view in self.views.values()}) > 1

    @property
    def is_out(self) -> bool:
        """Whether any load balancer has it drained or in maintenance."""
        return any(view.is_out for view in self.views.values())


@dataclass(frozen=True, slots=True)
class Options:
    """How to roll. ``batches`` are sizes, the last one repeats: ``("1", "50%")``.

    ``floor_percent`` of the hosts that serve now stay in rotation, one at least. ``adopt`` takes
    hosts that somebody left drained or in maintenance; ``outage`` allows a batch to take all.
    """

    batches: tuple[str, ...] = ("1", "50%")
    floor_percent: int = 50
    adopt: bool = False
    outage: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done. ``previous`` is what each host runs now; None: nothing yet.

    ``floor`` hosts must be in rotation, besides those of a batch, before that batch is begun.
    """

    version: str
    batches: tuple[tuple[str, ...], ...]
    previous: Mapping[str, str | None]
    floor: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def hosts(self) -> list[str]:
        """Every host that is changed, in order."""
        return list(chain.from_iterable(self.batches))

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "version": self.version,
            "batches": [list(batch) for batch in self.batches],
            "previous": dict(self.previous),
            "floor": self.floor,
            "skipped": dict(self.skipped),
        }


def faults(
    hosts: Sequence[Host], balancers: Mapping[str, Mapping[str, Server]], options: Options
) -> list[str]:
    """Why no deploy may begin; empty when it may. ``balancers``: name to its servers by name."""
    return [
        *size_faults(options),
        *_set_faults(hosts, balancers),
        *_rotation_faults(hosts, options),
    ]


def why_unneeded(host: Host, version: str) -> str | None:
    """Why a host can be left alone, None when it has to be changed."""
    everywhere = host.is_serving and not host.is_out and not host.is_disputed
    if host.version != version or not everywhere or host.share < FULL:
        return None
    return None if host.stale else f"runs {version} already"


def plan(hosts: Sequence[Host], version: str, options: Options, needed: int = 0) -> Plan | str:
    """The batches for ``version``, or the reason why the floor cannot be kept.

    ``faults`` must have found nothing. ``needed`` hosts must serve for the load's sake.
    """
    skipped = {h.name: why for h in hosts if (why := why_unneeded(h, version))}
    todo = [host for host in hosts if host.name not in skipped]
    serving = sum(host.is_serving for host in hosts)
    least = 0 if options.outage else max(needed, floor(serving, options.floor_percent))
    spare = serving - least
    in_rotation = [host.name for host in spread(host for host in todo if host.is_serving)]
    elsewhere = [host.name for host in spread(host for host in todo if not host.is_serving)]
    if in_rotation and spare < 1:
        return (
            f"{serving} host(s) serve and {least} must stay in rotation, "
            f"so {in_rotation[0]} cannot be taken out"
        )
    sizes = batch_sizes(options.batches, len(hosts))
    return Plan(
        version=version,
        batches=tuple(_batches(in_rotation, elsewhere, sizes, spare)),
        previous={host.name: host.version for host in todo},
        floor=least,
        skipped=skipped,
    )


def why_too_few(
    seen: Mapping[str, Mapping[str, Server]], batch: Collection[str], least: int
) -> str | None:
    """Why ``batch`` cannot be taken out now; None when enough others are UP everywhere."""
    up = [{s.name for s in servers.values() if s.is_serving} for servers in seen.values()]
    others = (set.intersection(*up) if up else set()) - set(batch)
    if len(others) >= least:
        return None
    names = ", ".join(sorted(others)) or "no host"
    return f"besides {', '.join(batch)} only {names} would serve, and {least} must"


def floor(serving: int, percent: int) -> int:
    """How many of ``serving`` hosts must stay in rotation: the share, rounded up, one at least."""
    return max(1, math.ceil(serving * percent / 100)) if serving else 0


def lowered_floor(
    least: int, seen: Mapping[str, Mapping[str, Server]], lost: Collection[str]
) -> int:
    """The floor for going back after hosts were lost.

    They cannot come back now, so where the floor no longer leaves room for a single host, one may
    still go: staying on two versions is worse than serving with one host less for a while.
    """
    if not lost or not least:
        return least
    up = [{s.name for s in servers.values() if s.is_serving} for servers in seen.values()]
    serving = len(set.intersection(*up)) if up else 0
    return min(least, max(1, serving - 1))


def batch_sizes(batches: Sequence[str], hosts: int) -> Iterator[int]:
    """Sizes for one batch after another; the last one repeats for ever. Shares are rounded down."""
    for text in chain(batches, iter(lambda: batches[-1], None)):
        number, percent = (_SIZE.fullmatch(str(text)) or _never(text)).groups()
        yield max(1, hosts * int(number) // 100 if percent else int(number))


def spread(hosts: Iterable[Host]) -> list[Host]:
    """Hosts in an order that takes zones in turn, the fullest first: a batch thins every zone."""
    zones: defaultdict[str, list[Host]] = defaultdict(list)
    for host in sorted(hosts, key=lambda one: _natural(one.name)):
        zones[host.zone].append(host)
    fullest = sorted(zones.values(), key=lambda group: (-len(group), group[0].zone))
    return [host for turn in zip_longest(*fullest) for host in turn if host]


def undo(done: Sequence[str], largest: int) -> list[tuple[str, ...]]:
    """Batches that bring finished hosts back, the last one first, never more than were allowed."""
    backwards = list(reversed(done))
    size = max(1, largest)
    return [tuple(backwards[i : i + size]) for i in range(0, len(backwards), size)]


def _batches(
    in_rotation: list[str], elsewhere: list[str], sizes: Iterator[int], spare: int
) -> Iterator[tuple[str, ...]]:
    """The canary is a host that serves, if any does: one that does not proves little."""
    serving, idle = list(in_rotation), list(elsewhere)
    canary = (serving or idle)[:1]
    if not canary:
        return
    next(sizes)
    (serving or idle).pop(0)
    yield tuple(canary)
    while serving or idle:
        taken = min(next(sizes), spare) if serving else 0
        # Hosts that serve nothing cost nothing to change: all of them in the next batch.
        yield (*serving[:taken], *idle)
        serving, idle = serving[taken:], []


def size_faults(options: Options) -> Iterator[str]:
    """What is wrong with the sizes themselves, whatever the fleet is like."""
    wrong = []
    for text in options.batches:
        match = _SIZE.fullmatch(str(text))
        if match is None or int(match[1]) < 1 or (match[2] and int(match[1]) > 100):
            wrong.append(text)
            yield f"batch size {text!r} is neither a number of hosts nor a share such as 50%"
    if not options.batches:
        yield "no batch size is given"
    elif str(options.batches[0]) != "1" and options.batches[0] not in wrong:
        yield f"the first batch is {options.batches[0]!r}; it must be 1, the canary"
    if not 1 <= options.floor_percent <= 99:
        yield f"the floor is {options.floor_percent}%; it must be 1 to 99"


def _set_faults(
    hosts: Sequence[Host], balancers: Mapping[str, Mapping[str, Server]]
) -> Iterator[str]:
    if not hosts:
        yield "there is no running application host"
    if not balancers:
        yield "there is no running load balancer"
    names = {host.name for host in hosts}
    for balancer, servers in sorted(balancers.items()):
        for missing in sorted(names - set(servers)):
            yield f"{balancer} does not know {missing}"
        for unknown in sorted(set(servers) - names):
            yield f"{balancer} has the server {unknown}, which is no running host"


def _rotation_faults(hosts: Sequence[Host], options: Options) -> Iterator[str]:
    for host in hosts:
        seen = ", ".join(f"{view.status} on {lb}" for lb, view in sorted(host.views.items()))
        if host.is_out and not options.adopt:
            yield f"{host.name} was taken out of rotation ({seen}) and nobody brought it back"
        elif host.is_disputed and not host.is_out:
            yield f"{host.name} is {seen}: the load balancers disagree"


def _natural(name: str) -> tuple[object, ...]:
    """app-10 after app-9."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))


def _never(text: str) -> re.Match[str]:
    raise ValueError(f"batch size {text!r}: faults() was not asked")
