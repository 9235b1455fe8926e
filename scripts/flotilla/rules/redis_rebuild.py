"""Rule on throwing a replica's data away.

Invariant: it is never the primary's, and never the last but one: another replica keeps up with the
primary meanwhile, so that writes go on and everything exists twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flotilla.rules.redis import Member, primary, problems


@dataclass(frozen=True, slots=True)
class Rebuild:
    """A rebuild that may begin, by names; ``others`` follow meanwhile, ``wrong`` is what is wrong
    with ``host`` now.
    """

    host: str
    primary: str
    others: tuple[str, ...]
    wrong: tuple[str, ...]


def rebuild_of(members: Sequence[Member], silent: Mapping[str, str], host: str) -> Rebuild | str:
    """How to rebuild ``host``, or why not now."""
    chosen = primary(members)
    if host in silent:
        return f"{host} cannot be asked: {silent[host]}"
    if chosen is None:
        return "; ".join(problems(members, silent)[:1]) or "there is no Redis host"
    if chosen.name == host:
        return f"{host} is the primary; move the role first (fab redis.switchover)"
    others = [one for one in members if one.name not in {host, chosen.name}]
    good = tuple(one.name for one in others if _follows(one, chosen))
    me = next(one for one in members if one.name == host)
    # The primary's own count has this host in it while that is linked, whatever it holds.
    counted = (chosen.good_replicas or 0) - bool(_follows(me, chosen))
    if not good or counted < 1:
        return f"no other replica keeps up with {chosen.name}: it would refuse writes meanwhile"
    found = [one for one in problems(members, silent) if one.startswith(f"{host}: ")]
    wrong = tuple(one.removeprefix(f"{host}: ") for one in found)
    return Rebuild(host, chosen.name, good, wrong)


def _follows(member: Member, chosen: Member) -> bool:
    follows = member.role == "replica" and member.primary_address == chosen.address
    return follows and bool(member.is_linked) and not member.is_syncing
