"""How many hosts an Auto Scaling group lacks or has too many, and where: no I/O, no clock.

Invariant: carrying out a plan and planning again gives an empty plan. A plan never takes a member
that is protected from scale-in or in standby, and never leaves one zone more than one launch ahead
of another that it could have used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

# Members in these states are on their way out and no longer count.
_LEAVING = ("Terminating", "Detaching", "Terminated")
_DIFFERENCE = "a difference between desired and actual capacity"


@dataclass(frozen=True, slots=True)
class Subnet:
    """Where a group may launch."""

    id: str
    zone: str


@dataclass(frozen=True, slots=True)
class Group:
    """What a group is to be. `suspended` has the processes as SuspendProcesses names them."""

    desired: int
    subnets: tuple[Subnet, ...]
    suspended: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Member:
    """One instance of the group.

    `failure` says why it must be replaced, "" when it is well; `current` whether it was launched
    from what the group would launch from now.
    """

    instance_id: str
    subnet: str
    zone: str
    lifecycle: str
    launched_at: datetime
    failure: str = ""
    protected: bool = False
    current: bool = True


@dataclass(frozen=True, slots=True)
class Launch:
    """Start one instance there. `before` and `after` are the group's capacities around it."""

    subnet: Subnet
    before: int
    after: int

    @property
    def cause(self) -> str:
        """In Auto Scaling's words."""
        return f"{_DIFFERENCE}, increasing the capacity from {self.before} to {self.after}"


@dataclass(frozen=True, slots=True)
class Terminate:
    """Take one instance away, and why."""

    instance_id: str
    failure: str
    before: int
    after: int

    @property
    def cause(self) -> str:
        """In Auto Scaling's words."""
        shrinking = f"{_DIFFERENCE}, shrinking the capacity from {self.before} to {self.after}"
        return self.failure or shrinking


@dataclass(slots=True)
class Wait:
    """The lifecycle hooks one member waits for: name to deadline, default result, result."""

    deadlines: dict[str, datetime]
    defaults: dict[str, str]
    seconds: dict[str, int]
    results: dict[str, str] = field(default_factory=dict)

    def verdict(self, now: datetime) -> str | None:
        """CONTINUE or ABANDON, once every hook has spoken or run out of time; None before."""
        for name, deadline in self.deadlines.items():
            if name not in self.results and now >= deadline:
                self.results[name] = self.defaults[name]
        if "ABANDON" in self.results.values():
            return "ABANDON"
        return "CONTINUE" if len(self.results) == len(self.deadlines) else None


def plan(group: Group, members: Iterable[Member]) -> list[Launch | Terminate]:
    """What to do to reach the group's desired capacity: replacements first, then the rest."""
    present = [m for m in members if not m.lifecycle.startswith(_LEAVING)]
    counted = [m for m in present if m.lifecycle != "Standby"]
    replacing = not group.suspended & {"ReplaceUnhealthy", "Terminate"}
    failed = [m for m in counted if m.failure] if replacing else []
    good = [m for m in counted if m not in failed]
    actions: list[Launch | Terminate] = [
        Terminate(m.instance_id, m.failure, len(counted), len(counted)) for m in failed
    ]
    surplus = len(good) - group.desired
    if surplus < 0 and "Launch" not in group.suspended:
        actions += _launches(group, good, -surplus)
    elif surplus > 0 and "Terminate" not in group.suspended:
        actions += _cuts(good, surplus)
    return actions


def _launches(group: Group, good: Sequence[Member], count: int) -> list[Launch | Terminate]:
    zones = Counter(m.zone for m in good)
    subnets = Counter(m.subnet for m in good)
    actions: list[Launch | Terminate] = []
    for number in range(count):
        chosen = min(
            enumerate(group.subnets),
            key=lambda item: (zones[item[1].zone], subnets[item[1].id], item[0]),
        )[1]
        zones[chosen.zone] += 1
        subnets[chosen.id] += 1
        actions.append(Launch(chosen, len(good) + number, len(good) + number + 1))
    return actions


def _cuts(good: Sequence[Member], count: int) -> list[Launch | Terminate]:
    """The default termination policy: the fullest zone, what is not current, then the oldest."""
    left, size = list(good), len(good)
    actions: list[Launch | Terminate] = []
    for _ in range(count):
        zones = Counter(m.zone for m in left)
        free = [m for m in left if not m.protected]
        if not free:
            break
        chosen = min(free, key=lambda m: (-zones[m.zone], m.current, m.launched_at, m.instance_id))
        left.remove(chosen)
        actions.append(Terminate(chosen.instance_id, "", size, size - 1))
        size -= 1
    return actions
