"""Which hosts a fleet should have, where each goes, and what an Auto Scaling host is called.

Nothing here talks to AWS. Invariants: host ``<role>-<n>`` always belongs in the same zone, so that
a replaced host comes back where its peers do not stand; a name is never held by two hosts; the
hosts of a tier differ by at most one between any two zones.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

PUBLIC = frozenset(
    {"bastion", "lb"}
)  # these have a public address; all others are reached through the bastion
STATEFUL = frozenset({"mysql", "redis"})  # taking away a host takes away a copy of the data
SCALED = frozenset({"app"})  # hosts come and go with an Auto Scaling group


@dataclass(frozen=True, slots=True)
class Place:
    """One host as it should be launched."""

    name: str  # <role>-<number>
    role: str
    number: int  # from 1
    zone: str
    public: bool  # in a public subnet, with a public address


@dataclass(frozen=True, slots=True)
class Difference:
    """What to do so that a tier has the hosts it should have."""

    launch: tuple[Place, ...]
    surplus: tuple[str, ...]  # names, highest number first


def place(role: str, number: int, zones: Sequence[str]) -> Place:
    """Where host ``number`` (from 1) of ``role`` belongs: zones in turn, the first host in the
    first zone.
    """
    return Place(f"{role}-{number}", role, number, zones[(number - 1) % len(zones)], role in PUBLIC)


def difference(role: str, size: int, zones: Sequence[str], existing: Collection[str]) -> Difference:
    """Compare a tier of ``size`` hosts with the names that exist.

    Gaps are filled (a lost ``mysql-2`` comes back as ``mysql-2``); hosts numbered above ``size``
    are surplus.
    """
    wanted = [place(role, number, zones) for number in range(1, size + 1)]
    names = {host.name for host in wanted}
    surplus = sorted(set(existing) - names, key=_number, reverse=True)
    return Difference(tuple(host for host in wanted if host.name not in existing), tuple(surplus))


def why_not_shrink(
    role: str, surplus: Sequence[str], *, allowed: bool, primary: str | None
) -> str | None:
    """Why ``surplus`` must not be terminated, or None when it may.

    ``allowed``: the operator asked for it in words. ``primary``: name of the host the record says
    is primary.
    """
    if not surplus or role not in STATEFUL:
        return None
    if primary in surplus:
        return f"{primary} is the primary of {role}; hand over to a host that stays, then shrink"
    if not allowed:
        return f"{', '.join(surplus)} hold copies of the data of {role}"
    return None


def names(role: str, hosts: Mapping[str, str], order: Sequence[str]) -> dict[str, str]:
    """Names for the hosts of a scaled tier that have none: ``{instance id: name}``.

    ``hosts`` maps each instance id to its name ("" for none yet), ``order`` lists the ids, oldest
    first. A host keeps a good name; of two with the same name the older keeps it; free numbers are
    given from the lowest.
    """
    taken: set[str] = set()
    nameless: list[str] = []
    for host in order:
        name = hosts[host]
        if _is_name(role, name) and name not in taken:
            taken.add(name)
        else:
            nameless.append(host)
    free = (f"{role}-{n}" for n in count(1) if f"{role}-{n}" not in taken)
    return dict(zip(nameless, free, strict=False))


def _is_name(role: str, name: str) -> bool:
    return re.fullmatch(rf"{re.escape(role)}-[1-9]\d*", name) is not None


def _number(name: str) -> int:
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0
