"""What a drill of a store with one primary must show, whom its faults strike, and its figures.

Clients decide: writers on application hosts, each through its own HAProxy, and a probe beside every
server that asks it alone for a write. A figure is of one run; over all runs counts are added, and
seconds have a median and a worst.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from flotilla.rules.drill import spread
from flotilla.rules.drill_fault import Aim, Bar, Ends, Fault, beyond_median
from flotilla.rules.ledger import (
    Entry,
    Fate,
    dual_seconds,
    longest_gap,
    summarise,
    writable_spans,
)

# Two acknowledged writes of one server farther apart than this say nothing about the time between.
APART_SECONDS = 1.0
# A shorter time without an acknowledgement is a busy moment and no outage.
OUTAGE_SECONDS = 0.25
# Where acknowledged writes may be lost, it is those that a primary took just before it fell silent,
# or while it could not know yet that it is none any more: it refuses them when it has heard of no
# replica for 3 s, which it looks at once a second.
LOST_BEFORE_SECONDS, LOST_AFTER_SECONDS = 2.0, 6.0


_OF_REPLICAS: Mapping[str, Callable[[str, list[str]], Aim]] = {
    "partition-replicas-only": lambda primary, others: Aim(primary, {"from": ",".join(others)}),
    "switchover": lambda _, others: Aim(others[0]),
}


def aim(
    fault: Fault, primary: str, members: Mapping[str, str], clients: Mapping[str, str]
) -> Aim | str:
    """Whom to strike, or why that cannot be done. Both mappings give a host's zone by its name."""
    if fault.name in _OF_REPLICAS:
        others = sorted(set(members) - {primary})
        return _OF_REPLICAS[fault.name](primary, others) if others else f"{primary} has no replica"
    if fault.name != "zone":
        return Aim(primary)
    zone = members[primary]
    if all(other == zone for name, other in members.items() if name != primary):
        return f"every member is in {zone}: nobody would be left"
    cut_off = frozenset(name for name, other in clients.items() if other == zone)
    if cut_off == set(clients):
        return f"every application host is in {zone}: nobody would be left to write"
    return Aim(zone, cut_off=cut_off)


# --- one run --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """What was measured in one run, in epoch seconds on the hosts' clocks.

    ``clients`` and ``probes`` are entries by host, ``missing`` the hosts whose entries could not be
    fetched and why. ``struck``, ``healed`` and ``ended`` are when the fault began, when it had been
    undone for a while, and when all was as before; ``converged`` when the cluster was seen to be in
    order again, None for never. ``found`` are the rows that are there, id to the server that took
    it, by which ``names`` has its member's name. ``fate`` is what became of the old primary, word
    by word.
    """

    clients: Mapping[str, Sequence[Entry]]
    probes: Mapping[str, Sequence[Entry]]
    found: Mapping[str, str]
    struck: float
    healed: float
    ended: float
    converged: float | None
    old: str
    new: str
    fate: Sequence[str]
    names: Mapping[str, str]
    term: int = 0
    cut_off: frozenset[str] = frozenset()
    missing: Mapping[str, str] = field(default_factory=dict)
    probe_seconds: float = 0.05


def figures(seen: Seen) -> dict[str, Any]:
    """One run, in JSON types."""
    clients = [entry for one in seen.clients.values() for entry in one]
    every = clients + [entry for one in seen.probes.values() for entry in one]
    total, asked = summarise(every, seen.found), summarise(clients, seen.found)
    spans = writable_spans(every, APART_SECONDS)
    return {
        **_times(seen),
        "acked": total.acked,
        "failed": asked.failed,
        "errors_beyond_gap": sum(
            _errors_beyond(one, seen.struck, seen.healed) for one in _by_writer(seen.clients)
        ),
        "unknown": total.unknown,
        "unknown_there": total.unknown_there,
        "lost": len(total.lost),
        "lost_ids": list(total.lost[:10]),
        "lost_beyond": _lost_beyond(seen, every, total.lost),
        "dual_writable_seconds": round(dual_seconds(spans, seen.probe_seconds), 3),
        "writable": {
            seen.names.get(server, server): [
                [round(begin - seen.struck, 3), round(end - seen.struck, 3)] for begin, end in found
            ]
            for server, found in spans.items()
        },
        "old": seen.old,
        "new": seen.new,
        "term": seen.term,
        "old_primary": ", ".join(seen.fate),
        "p50_ms": round(asked.p50_ms, 2),
        "cut_off": sorted(seen.cut_off),
        "not_fetched": dict(seen.missing),
        "errors": dict(asked.errors),
    }


def _times(seen: Seen) -> dict[str, Any]:
    """What took how long. Gaps are of the host, or the writer, that waited longest."""
    heard = {name: one for name, one in seen.clients.items() if name not in seen.cut_off}
    gap, since = _worst_gap(heard.values(), seen.struck, seen.healed)
    alone, _ = _worst_gap(_by_writer(heard), seen.struck, seen.healed)
    mending, _ = _worst_gap(heard.values(), seen.healed, seen.ended)
    converged = seen.converged
    if converged is not None and since is not None and gap >= OUTAGE_SECONDS:
        # In order is not enough: clients must write again, too.
        converged = max(converged, since + gap)
    return {
        "write_gap_seconds": round(gap, 3),
        "gap_began_after_seconds": None if since is None else round(since - seen.struck, 3),
        "writer_gap_seconds": round(alone, 3),
        "mending_gap_seconds": round(mending, 3),
        "converged_seconds": _after(converged, seen.struck),
        "ended_seconds": _after(seen.ended, seen.struck),
    }


def _worst_gap(
    groups: Iterable[Sequence[Entry]], begin: float, end: float
) -> tuple[float, float | None]:
    gaps = [longest_gap(one, begin, end) for one in groups]
    return max(gaps, key=lambda gap: gap[0], default=(0.0, None))


def _lost_beyond(seen: Seen, every: Iterable[Entry], lost: Collection[str]) -> int:
    """How many of the lost ones no silence of the primary explains."""
    heard = [one for name, one in seen.clients.items() if name not in seen.cut_off]
    _, since = _worst_gap(heard, seen.struck, seen.healed)
    silent = seen.struck if since is None else since
    first, last = silent - LOST_BEFORE_SECONDS, silent + LOST_AFTER_SECONDS
    gone = set(lost)
    return sum(entry.id in gone and not first <= entry.ended <= last for entry in every)


def _errors_beyond(own: Sequence[Entry], begin: float, end: float) -> int:
    """Tries of one writer that came to nothing, but for those in the gap that it had to wait.

    Of the gaps that reach into that time it is the one with most of them. The longest may be
    another: once a disk held a writer up for 0.6 s without an error, 6 s after a switchover that
    had taken 0.4 s.
    """
    beyond = forgiven = bad = 0
    since = -inf
    for entry in [*sorted(own, key=lambda one: one.ended), None]:
        if entry and entry.fate is not Fate.ACKED:
            bad += 1
            continue
        until = entry.ended if entry else inf
        if since < end and until > begin:
            forgiven = max(forgiven, bad)
        beyond, bad, since = beyond + bad, 0, until
    return beyond - forgiven


def _by_writer(clients: Mapping[str, Sequence[Entry]]) -> list[list[Entry]]:
    writers: dict[str, list[Entry]] = {}
    for entries in clients.values():
        for entry in entries:
            writers.setdefault(entry.id.rpartition("-")[0], []).append(entry)
    return list(writers.values())


def _after(moment: float | None, struck: float) -> float | None:
    return None if moment is None else round(moment - struck, 2)


# --- over all runs --------------------------------------------------------------------------------

_COUNTED = ("acked", "failed", "errors_beyond_gap", "unknown", "unknown_there", "lost")
_MEASURED = (
    "write_gap_seconds",
    "writer_gap_seconds",
    "mending_gap_seconds",
    "dual_writable_seconds",
    "converged_seconds",
    "ended_seconds",
)


def over_all(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of what is counted, median and worst of what is measured, fates with their number."""
    fates: dict[str, int] = {}
    for run in each:
        fates[run["old_primary"]] = fates.get(run["old_primary"], 0) + 1
    return {
        **{key: sum(run[key] for run in each) for key in _COUNTED},
        **{key: spread(run[key] for run in each) for key in _MEASURED},
        "old_primary": fates,
    }


def broken(run: Mapping[str, Any], fault: Fault) -> list[str]:
    """The promises that one run broke, as sentences; empty when it kept them all."""
    told = [] if run["acked"] else ["no write was acknowledged at all"]
    if run["lost"] and not fault.may_lose:
        told.append(f"{run['lost']} acknowledged writes are gone, such as {run['lost_ids'][0]}")
    elif run.get("lost_beyond"):
        told.append(
            f"{run['lost_beyond']} acknowledged writes are gone that the primary took long before"
            " it fell silent, or long after"
        )
    if run["dual_writable_seconds"]:
        told.append(f"two servers took writes at once for {run['dual_writable_seconds']:g} s")
    if fault.ends is Ends.MOVED and run["new"] == run["old"]:
        told.append(f"{run['old']} is still primary")
    if fault.ends is Ends.STAYED and run["new"] != run["old"]:
        told.append(f"{run['new']} took over from {run['old']}, which was alive")
    if run["converged_seconds"] is None:
        told.append("the cluster did not get over it by itself")
    told += _beyond_bar(run, fault.bar) if fault.bar else []
    if run.get("not_mended"):
        told.append(f"not everything could be put back: {run['not_mended']}")
    told += [f"what {host} saw is not known: {why}" for host, why in run["not_fetched"].items()]
    return told


def _beyond_bar(run: Mapping[str, Any], bar: Bar) -> Iterator[str]:
    if run["write_gap_seconds"] > bar.worst:
        yield (
            f"clients had no write acknowledged for {run['write_gap_seconds']:.2f} s, "
            f"the worst may be {bar.worst:g} s"
        )
    if bar.is_clean and run["errors_beyond_gap"]:
        yield f"clients were told of {run['errors_beyond_gap']} errors beyond that gap"


def broken_by_all(told: Mapping[str, Any], fault: Fault, runs: int) -> list[str]:
    """The promise that only all runs together can break."""
    return beyond_median("write gap", told["write_gap_seconds"]["median"], runs, fault.bar)
