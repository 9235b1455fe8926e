"""Which hosts an operator means: a host, a role, a zone, ``all``, or several, comma between."""

from __future__ import annotations

import difflib

from flotilla.errors import BadOption, Refused, Unreachable
from flotilla.snapshot import Host, Snapshot

ALL = "all"


def hosts(snapshot: Snapshot, wanted: str) -> list[Host]:
    """The running hosts that ``wanted`` names, each once, in the fleet's order.

    Raises BadOption with the valid choices for a word that is none, and for no word at all,
    Unreachable for a named host that does not run, Refused when nothing is left.
    """
    if not snapshot.hosts:
        raise Refused(
            "the fleet has no hosts",
            untouched="Nothing was changed",
            next="fab fleet.provision",
        )
    words = [part.strip() for part in wanted.split(",") if part.strip()]
    if not words:
        # An unset variable in somebody's script: it must not come to mean every host.
        raise _unknown(snapshot, wanted)
    found = {host.instance_id for word in words for host in _named(snapshot, word)}
    chosen = [host for host in snapshot.hosts if host.instance_id in found]
    if not chosen:
        raise Refused(
            f"no host runs that {wanted!r} means",
            untouched="Nothing was changed",
            next="fab fleet.status",
        )
    return chosen


def one(snapshot: Snapshot, wanted: str) -> Host:
    """The one running host that ``wanted`` names. Raises what ``hosts`` raises, and BadOption."""
    found = hosts(snapshot, wanted)
    if len(found) > 1:
        raise BadOption(
            f"{wanted!r} means {len(found)} hosts; choose one: "
            + _some([host.name for host in found]),
            untouched="Nothing was changed",
        )
    return found[0]


def _named(snapshot: Snapshot, word: str) -> list[Host]:
    single = [host for host in snapshot.hosts if word in {host.name, host.instance_id}]
    if single and not single[0].is_active:
        raise Unreachable(
            f"{single[0].name} is {single[0].state}",
            untouched="Nothing was changed",
            next="fab fleet.status",
        )
    many = [h for h in snapshot.hosts if word in {ALL, h.role, h.zone}]
    if single or many:
        return single or [host for host in many if host.is_active]
    raise _unknown(snapshot, word)


def _unknown(snapshot: Snapshot, word: str) -> BadOption:
    kinds = {
        "roles": list(dict.fromkeys(host.role for host in snapshot.hosts)),
        "zones": sorted({host.zone for host in snapshot.hosts}),
        "hosts": [host.name for host in snapshot.hosts],
    }
    known = [name for names in kinds.values() for name in names]
    close = difflib.get_close_matches(word, known, n=1)
    lists = "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds.items() if names)
    return BadOption(
        f"there is no host, role or zone {word!r}"
        + (f"; did you mean {close[0]!r}" if close else "")
        + f"; there are {ALL}; {lists}",
        untouched="Nothing was changed",
        next="fab fleet.status",
    )


def _some(names: list[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")
