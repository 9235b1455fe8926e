"""Rule on work that takes one Redis host at a time away: what needs it, and who is next.

Invariants: the server of the primary is never stopped, its role is moved first; no host is taken
away unless everything is in order, another replica keeps up meanwhile, and the Sentinels that are
left are a majority; who is next is decided by how things are then, not by how they were at first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flotilla.rules.packages import Upgrade, upgrades
from flotilla.rules.redis import Member, primary, problems

SERVER, SENTINEL = "redis-server", "redis-sentinel"
# What a planned move allows a replica to lack, too: some milliseconds of a network.
BEHIND_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Need:
    """What one host needs: reasons, as sentences, the upgrades among them, what is restarted."""

    name: str
    reasons: tuple[str, ...]
    upgrades: tuple[Upgrade, ...]
    services: tuple[str, ...]

    @property
    def stops_server(self) -> bool:
        """Whether Redis itself goes away; else only its Sentinel does."""
        return SERVER in self.services


@dataclass(frozen=True, slots=True)
class Step:
    """The host that is next; with ``moves``, the primary's role has to leave it first."""

    name: str
    moves: bool


def need(name: str, lines: Iterable[str], *, anyway: bool = False) -> Need | None:
    """What a host needs, None for nothing, from a survey of it.

    Its lines are apt's own ("Inst ..."), ``newer SERVICE PATH`` for a file that changed after the
    service was started, and ``unread NAME`` for a setting that the running Redis does not have.
    """
    found = list(lines)
    planned = upgrades(found)
    words = [line.split() for line in found]
    newer = [(line[1], line[2]) for line in words if len(line) == 3 and line[0] == "newer"]
    unread = [line[1] for line in words if len(line) == 2 and line[0] == "unread"]
    reasons = [str(one) for one in planned]
    reasons += [f"{path} changed after {service} was started" for service, path in newer]
    reasons += [f"the running Redis does not have {setting} as it is set" for setting in unread]
    if anyway and not reasons:
        reasons.append("a restart was asked for")
    services = {service for service, _ in newer} | ({SERVER} if unread else set())
    if planned or anyway:
        services = {SERVER, SENTINEL}
    chosen = tuple(one for one in (SERVER, SENTINEL) if one in services)
    return Need(name, tuple(reasons), planned, chosen) if chosen else None


def other_series(needed: Iterable[Need]) -> list[str]:
    """The upgrades that are not for a rolling restart: an older Redis cannot read what a newer one
    sends, so there would be no way back.
    """
    found = {one for need in needed for one in need.upgrades}
    return sorted(
        str(one) for one in found if one.package.startswith("redis") and one.changes_series
    )


def objections(members: Sequence[Member], silent: Mapping[str, str]) -> list[str]:
    """What is not in order, more strictly than ``problems``: nobody else may be missing while a
    host is away, and no Sentinel either.
    """
    chosen = primary(members)
    found = problems(members, silent)
    if chosen is None:
        return found or ["there is no Redis host"]
    for member in members:
        found += [f"{member.name}: {sentence}" for sentence in _strictly(member, chosen)]
    others = len(members) - 1
    if chosen.good_replicas is not None and 0 < chosen.good_replicas < others:
        found.append(f"{chosen.name}: {chosen.good_replicas} of {others} replicas keep up")
    return found


def next_step(
    members: Sequence[Member], silent: Mapping[str, str], pending: Mapping[str, Need]
) -> Step | str:
    """Who of ``pending`` is next, replicas first; or why nobody may be taken away now."""
    wrong = objections(members, silent)
    chosen = primary(members)
    if wrong or chosen is None:
        return "; ".join(wrong)
    if (chosen.good_replicas or 0) < 2:
        return (
            f"{chosen.name} has {chosen.good_replicas or 0} replica: with that away, writes would"
            " be refused"
        )
    name = next((one.name for one in members if one.name in pending and one != chosen), None)
    if name is not None:
        return Step(name, moves=False)
    return Step(chosen.name, moves=pending[chosen.name].stops_server)


def plan(members: Sequence[Member], pending: Mapping[str, Need]) -> Iterator[str]:
    """The steps in words, as they will be unless the primary changes meanwhile."""
    chosen = primary(members)
    for member in sorted(members, key=lambda one: one is chosen):
        if member.name not in pending:
            continue
        wanted = pending[member.name]
        first = "move its role, then " if member is chosen and wanted.stops_server else ""
        act = "upgrade and restart" if wanted.upgrades else "restart"
        yield f"{member.name}: {first}{act} {' and '.join(wanted.services)}, wait until all is well"
        yield from (f"  {reason}" for reason in wanted.reasons)


def _strictly(member: Member, chosen: Member) -> list[str]:
    found = []
    named = member.names.get(member.name)
    if named != chosen.address:
        found.append(f"its Sentinel names {named or 'nobody'}, not {chosen.name}")
    if member.unseen is None and not member.quorum_error:
        found.append("it does not tell what its Sentinel sees (fab fleet.configure --limit redis)")
    if member.unseen:
        found.append(f"its Sentinel does not see the {', the '.join(member.unseen)}")
    behind = (chosen.offset or 0) - (member.offset or 0)
    if member is not chosen and member.is_linked and behind > BEHIND_BYTES:
        found.append(f"it is {behind} bytes behind {chosen.name}")
    return found
