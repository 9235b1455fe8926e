"""Rule on giving Redis hosts another instance type, one at a time, and on the memory they get.

Invariants: nobody is taken away for a type that its host cannot have, or that is too small for the
data; memory for data is lowered before a host gets smaller, and raised when all are larger; of a
run that was cut off at most one host is away, and that one comes back before any other goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flotilla.rules.redis import NEARLY_FULL, Member, primary
from flotilla.rules.redis_maintain import SENTINEL, SERVER, Need

MIB = 1 << 20
# Of a host's memory, for data: as much again is copied on write while the file is rewritten.
SHARE = 0.5
FEWEST = 3
RUNNING, COMING = "running", {"pending", "running"}


@dataclass(frozen=True, slots=True)
class Size:
    """An instance type: its memory in MiB, what it can run, and the zones that have it."""

    name: str
    memory_mb: int
    architectures: frozenset[str]
    zones: frozenset[str]

    @property
    def most_mb(self) -> int:
        """The most that may be memory for data, in MiB."""
        return int(self.memory_mb * SHARE)


@dataclass(frozen=True, slots=True)
class Machine:
    """A host as EC2 has it now."""

    name: str
    instance_id: str
    type: str
    state: str
    zone: str
    architecture: str


@dataclass(frozen=True, slots=True)
class Resize:
    """What is to be done: ``returning`` are hosts of a run that was cut off, which come back first
    (one of them may be stopped: ``away``), ``needed`` those that are taken away, by name.

    ``lowered`` and ``raised`` are whose memory for data is more or less than it is to be.
    ``wrong``: what is not in order now, because of the run that was cut off.
    """

    to: str
    maxmemory_mb: int
    needed: Mapping[str, Need] = field(default_factory=dict)
    away: Machine | None = None
    returning: tuple[str, ...] = ()
    lowered: tuple[str, ...] = ()
    raised: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.needed or self.returning or self.lowered or self.raised or self.wrong)


def misfit(size: Size, machines: Sequence[Machine]) -> str | None:
    """Why these hosts cannot have that type, None where they can."""
    for machine in machines:
        if machine.architecture not in size.architectures:
            return (
                f"{machine.name} is {machine.architecture} and {size.name} runs"
                f" {' and '.join(sorted(size.architectures))} only"
            )
        if machine.zone not in size.zones:
            where = ", ".join(sorted(size.zones)) or "no zone of this region"
            return f"{machine.name} is in {machine.zone}, and {size.name} is in {where}"
    return None


def too_small(size: Size, maxmemory_mb: int, members: Sequence[Member]) -> str | None:
    """Why the data, or the memory that it is to have, does not fit into that type."""
    fullest = max(members, key=lambda one: one.used_bytes or 0)
    used = -(-(fullest.used_bytes or 0) // MIB)
    room = int(min(size.most_mb, maxmemory_mb) * NEARLY_FULL)
    if used > int(size.most_mb * NEARLY_FULL):
        return (
            f"{size.name} has {size.memory_mb} MiB, of which {size.most_mb} are for data:"
            f" {fullest.name} uses {used} MiB now"
        )
    if maxmemory_mb > size.most_mb:
        return (
            f"fleet.redis.maxmemory_mb is {maxmemory_mb}, and of the {size.memory_mb} MiB of"
            f" {size.name} {size.most_mb} are for data"
        )
    if used > room:
        return f"fleet.redis.maxmemory_mb is {maxmemory_mb}: {fullest.name} uses {used} MiB now"
    return None


def resize(
    machines: Sequence[Machine],
    members: Sequence[Member],
    wrong: Sequence[str],
    size: Size,
    maxmemory_mb: int,
) -> Resize | str:
    """What is to be done, or why nothing may be. ``wrong`` is what is not in order now; it is
    waited for where a run that was cut off explains it.
    """
    if len(machines) < FEWEST:
        names = ", ".join(machine.name for machine in machines) or "none"
        return f"there are fewer than {FEWEST} Redis hosts: {names}"
    gone = [machine for machine in machines if machine.state not in COMING]
    if len(gone) > 1:
        return f"{' and '.join(f'{one.name} is {one.state}' for one in gone)}: one may be away"
    if not members:
        return "no Redis host answers"
    objection = misfit(size, machines) or too_small(size, maxmemory_mb, members)
    if objection:
        return objection
    away = gone[0] if gone else None
    heard = {one.name for one in members if one.role is not None}
    returning = tuple(
        machine.name
        for machine in machines
        if machine is away or (machine.type == size.name and machine.name not in heard)
    )
    is_begun = away is not None or any(machine.type == size.name for machine in machines)
    if wrong and not is_begun:
        return "; ".join(wrong)
    needed = {
        machine.name: Need(
            machine.name, (f"{machine.type} -> {size.name}",), (), (SERVER, SENTINEL)
        )
        for machine in machines
        if machine.type != size.name and machine is not away
    }
    found = {one.name: one.max_bytes for one in members if one.max_bytes is not None}
    wanted = maxmemory_mb * MIB
    return Resize(
        size.name,
        maxmemory_mb,
        needed,
        away,
        returning,
        tuple(name for name, have in found.items() if have > wanted),
        tuple(name for name, have in found.items() if have < wanted),
        tuple(wrong),
    )


def plan(found: Resize, members: Sequence[Member], size: Size) -> Iterator[str]:
    """The steps in words, as they will be unless the primary changes meanwhile."""
    if found.away:
        now = f"it is {found.away.state}, {found.away.type}"
        yield f"{found.away.name}: start as {found.to}, wait until all is well ({now})"
    elif found.wrong:
        yield f"{', '.join(found.returning) or 'first'}: wait until all is well"
        yield from (f"  now: {sentence}" for sentence in found.wrong)
    if found.lowered:
        yield f"{', '.join(found.lowered)}: set maxmemory to {found.maxmemory_mb} MiB"
    chosen = primary(members)
    last = chosen.name if chosen else ""
    for name in sorted(found.needed, key=lambda one: (one == last, one)):
        first = "move its role, then " if name == last else ""
        change = found.needed[name].reasons[0]
        yield f"{name}: {first}stop, {change}, start, wait until all is well"
    if found.raised:
        yield f"{', '.join(found.raised)}: set maxmemory to {found.maxmemory_mb} MiB"
    elif found.maxmemory_mb < size.most_mb:
        yield (
            f"maxmemory is {found.maxmemory_mb} MiB; {size.name} has room for {size.most_mb}:"
            " fleet.redis.maxmemory_mb"
        )
