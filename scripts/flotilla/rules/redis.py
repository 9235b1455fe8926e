"""What is wrong with a group of Redis hosts, in sentences.

Invariant of the group: exactly one host says it is the primary, every Sentinel names that host, and
every other host follows it. Each departure is one sentence that names the hosts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

# The host makes the next one when a third is left, and looks every hour: this is hours later.
LATE = 0.28
# Any `fab fleet.provision` made the next one when eight months were left.
ISSUER_DAYS = 90.0
# Of maxmemory.
NEARLY_FULL = 0.9


@dataclass(frozen=True, slots=True)
class Lasts:
    """How long a host's certificate lasts: what is served has ``hours_left``, and was to last
    ``hours``.
    """

    hours_left: float | None
    hours: float | None
    issuer_days_left: float | None


@dataclass(frozen=True, slots=True)
class Member:
    """One host as it describes itself. Sizes are bytes, ``uptime_seconds`` since Redis started.

    ``role`` is what it says it is, primary or replica, None while Redis does not answer (``error``
    says why). ``names`` is whom each Sentinel names, by host, as heard from this host; None for one
    that did not answer. ``unseen`` is what this host's own Sentinel takes to be down, None where it
    was not asked. ``held`` is how many milliseconds its Sentinel waits for a primary that is away
    where that is not what its settings say, ``keys`` how many there are. ``is_barred``: Sentinel
    is not to make it the primary, as for a rebuild.
    """

    name: str
    instance_id: str
    address: str
    role: str | None
    error: str | None
    primary_address: str | None
    is_linked: bool | None
    replicas: int | None
    good_replicas: int | None
    offset: int | None
    used_bytes: int | None
    max_bytes: int | None
    is_persisting: bool | None
    version: str | None
    uptime_seconds: int | None
    clients: int | None
    names: Mapping[str, str | None]
    quorum_error: str | None
    is_syncing: bool = False
    unseen: tuple[str, ...] | None = None
    keys: int | None = None
    held: int | None = None
    certificate: Lasts | None = None
    is_barred: bool = False


def primary(members: Sequence[Member]) -> Member | None:
    """The one host that clients are sent to: it says so, and a majority of the Sentinels names it.

    The word of the Sentinels is taken as the host itself hears it, as its health endpoint does.
    """
    found = [member for member in members if member.role == "primary" and _is_named(member)]
    return found[0] if len(found) == 1 else None


def problems(members: Sequence[Member], silent: Mapping[str, str]) -> list[str]:
    """Sentences, worst first; ``silent`` is why a host could not be asked, by name."""
    chosen = primary(members)
    found = []
    if chosen is None and members:
        claims = [member.name for member in members if member.role == "primary"]
        found.append(
            "no host is the primary: "
            + (f"{', '.join(claims)} says so without a majority" if claims else "none says so")
        )
    others = [m.name for m in members if m.role == "primary" and m is not chosen]
    if chosen is not None and others:
        found.append(f"{', '.join(others)} also says it is the primary; clients are not sent there")
    found += [f"{name}: {why}" for name, why in sorted(silent.items())]
    found += [f"{m.name}: Redis does not answer ({m.error})" for m in members if m.role is None]
    for member in members:
        found += [f"{member.name}: {sentence}" for sentence in _member(member, chosen)]
        if member.is_barred and not member.is_syncing:
            why = f"its rebuild goes on or was cut off: fab redis.rebuild {member.name}"
            found.append(f"{member.name}: Sentinel does not make it the primary, for {why}")
        if member.held:
            wait = f"{member.held / 1000:g} s for a primary that is away"
            found.append(f"{member.name}: its Sentinel waits {wait}, as a restore told it to")
    heard = {member.name for member in members if member.role is not None}
    return found + (_dissent(chosen, heard) if chosen else [])


def fullness(members: Sequence[Member]) -> list[str]:
    """Whose memory is nearly full, in sentences. It keeps nobody from working on the hosts: giving
    them more is such work.
    """
    return [
        f"{one.name}: {100 * one.used_bytes / one.max_bytes:.0f} % of its memory is in use; when it"
        " is full, writes are refused"
        for one in members
        if one.used_bytes and one.max_bytes and one.used_bytes > NEARLY_FULL * one.max_bytes
    ]


def certificates(members: Sequence[Member]) -> list[str]:
    """What was not renewed in time, in sentences. It keeps nobody from working on the hosts."""
    found = []
    for member in members:
        lasts = member.certificate
        if lasts is None:
            continue
        if lasts.hours_left is not None and lasts.hours:
            if lasts.hours_left <= 0:
                found.append(f"{member.name}: its certificate has ended: clients refuse it")
            elif lasts.hours_left < lasts.hours * LATE:
                left = f"{lasts.hours_left:.0f} h"
                found.append(f"{member.name}: its certificate ends in {left} and was not renewed")
    return found


def issuers(members: Sequence[Member]) -> list[str]:
    """What hosts make certificates with and ends, in sentences. Told of as ``certificates`` are."""
    found = []
    for member in members:
        lasts = member.certificate
        days = lasts.issuer_days_left if lasts else None
        if days is not None and days < ISSUER_DAYS:
            found.append(
                f"{member.name}: what it signs certificates with ends in"
                f" {days:.0f} days: fab fleet.provision, then fab fleet.configure"
            )
    return found


def _dissent(chosen: Member, heard: Collection[str]) -> list[str]:
    """Sentinels that do not name the primary, as it hears them itself; of hosts that do not answer
    at all enough was said.
    """
    asked = {name: said for name, said in chosen.names.items() if name in heard}
    return [
        f"{name}: its Sentinel {f'names {said}' if said else 'does not answer'}"
        for name, said in sorted(asked.items())
        if said != chosen.address
    ]


@dataclass(frozen=True, slots=True)
class Next:
    """A planned move, by names; ``new`` is ``old`` where it has the role already."""

    old: str
    new: str


def following(members: Sequence[Member], silent: Mapping[str, str], to: str | None) -> Next | str:
    """Who is to be primary after a planned move: ``to``, or the replica that lacks least; or why
    there can be none. Everything has to be in order before.
    """
    wrong = problems(members, silent)
    chosen = primary(members)
    if wrong or chosen is None:
        return "; ".join(wrong) or "there is no Redis host"
    others = [one for one in members if one is not chosen]
    if to is not None:
        return Next(chosen.name, to)
    if not others:
        return f"{chosen.name} has no replica"
    nearest = max(others, key=lambda one: (one.offset or 0, one.name))
    return Next(chosen.name, nearest.name)


@dataclass(frozen=True, slots=True)
class Forced:
    """A failover that is asked for: away from ``old``, to whoever of ``heirs`` Sentinel finds to
    lack least. ``teller`` is the host whose Sentinel is told. All by name.
    """

    old: str
    heirs: tuple[str, ...]
    teller: str


def forced(
    members: Sequence[Member], silent: Mapping[str, str], addresses: Mapping[str, str]
) -> Forced | str:
    """The failover away from the primary, in whatever state that is; or why there can be none.

    ``addresses`` are all hosts' own, by name. Without a majority of the Sentinels nobody would
    follow the new one.
    """
    words = [one.names.get(one.name) for one in members]
    named = next((word for word in words if word and words.count(word) * 2 > len(addresses)), None)
    old = next((name for name, address in addresses.items() if address == named), None)
    if named is None or old is None:
        heard = ", ".join(sorted({word for word in words if word})) or "nobody"
        return (
            f"no majority of the {len(addresses)} Sentinels names one primary (named: {heard}; "
            f"silent: {', '.join(sorted(silent)) or 'none'})"
        )
    heirs = [
        one
        for one in members
        if one.role == "replica"
        and one.primary_address == named
        and not one.is_syncing
        and not one.is_barred
    ]
    tellers = [one for one in heirs if one.names.get(one.name) == named]
    if not tellers:
        return f"no replica of {old} answers, has a whole copy and may become the primary"
    teller = max(tellers, key=lambda one: (one.offset or 0, one.name))
    return Forced(old, tuple(sorted(one.name for one in heirs)), teller.name)


def _is_named(member: Member) -> bool:
    votes = sum(name == member.address for name in member.names.values())
    return votes >= len(member.names) // 2 + 1


def _member(member: Member, chosen: Member | None) -> list[str]:
    found = []
    if member.role == "replica" and chosen is not None:
        if member.primary_address != chosen.address:
            found.append(f"follows {member.primary_address}, not {chosen.name} ({chosen.address})")
        elif not member.is_linked:
            found.append(f"its link to {chosen.name} is down")
    if member is chosen and not member.good_replicas:
        found.append("no replica keeps up, so it refuses writes")
    if member.is_persisting is False:
        found.append("its append-only file is not being written")
    if member.quorum_error:
        found.append(f"its Sentinel could not agree on a failover ({member.quorum_error})")
    return found
