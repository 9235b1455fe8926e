"""Replace the hosts of a tier by hosts of another image: what to do next, from how things are.

Nothing is remembered but what has proven itself: the next step follows from the hosts that exist,
so a run that was killed is continued by looking again, and going back is the same with the images
exchanged.

Invariants: a step takes no serving host away unless as many as are desired serve without it; the
first new host serves alone for a while before an old one goes; while a host of the wanted image is
on its way no other one is begun; there are never more than ``most`` beyond the desired ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flotilla.rules.images import Image
from flotilla.rules.rotation import Views

State = Literal["coming", "serving", "out"]


@dataclass(frozen=True, slots=True)
class Host:
    """One host of the tier. ``state``: "serving" on every load balancer, taken "out" of rotation on
    any, or neither: "coming".
    """

    name: str
    instance_id: str
    zone: str
    image_id: str
    state: State


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted: ``desired`` hosts of ``image_id``.

    ``proven`` are the instances of it that were watched and found well; ``most`` is how many are
    replaced at once, after the first.
    """

    image_id: str
    desired: int
    most: int
    proven: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Launch:
    """Start so many hosts of the wanted image."""

    count: int


@dataclass(frozen=True, slots=True)
class Await:
    """Wait until these serve; empty: until Auto Scaling has launched what it was told."""

    hosts: tuple[Host, ...]


@dataclass(frozen=True, slots=True)
class Watch:
    """See whether these serve as well as the others."""

    hosts: tuple[Host, ...]


@dataclass(frozen=True, slots=True)
class Retire:
    """Drain these on every load balancer and terminate them."""

    hosts: tuple[Host, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """Every host is of the wanted image, and there are as many as are desired."""


Step = Launch | Await | Watch | Retire | Done


def step(hosts: Sequence[Host], goal: Goal, *, launching: int = 0) -> Step:
    """What to do next. ``hosts`` are those that run; ``launching``: hosts that Auto Scaling was
    told to start and has not yet.
    """
    return next(_steps(hosts, goal, launching), Done())


def _steps(hosts: Sequence[Host], goal: Goal, launching: int) -> Iterator[Step]:
    """Everything that could be done, the most urgent first."""
    serving = sum(host.state == "serving" for host in hosts)
    wanted = [host for host in hosts if host.image_id == goal.image_id]
    old = [host for host in hosts if host.image_id != goal.image_id]
    # A wanted host that somebody took out of rotation is not what was asked for either.
    useless = [host for host in old if host.state != "serving"]
    useless += [host for host in wanted if host.state == "out"]
    # Otherwise one that is only down for a moment may be needed yet.
    if useless and serving >= goal.desired:
        yield Retire(tuple(useless))
    if launching:
        yield Await(())
    if coming := [host for host in wanted if host.state == "coming"]:
        yield Await(tuple(coming))
    serves = [host for host in wanted if host.state == "serving"]
    if unproven := [host for host in serves if host.instance_id not in goal.proven]:
        yield Watch(tuple(unproven))
    leaving = [host for host in old if host.state == "serving"] or serves
    if leaving and serving > goal.desired:
        count = min(serving - goal.desired, goal.most)
        yield Retire(tuple(chosen(leaving, hosts, count)))
    room = goal.desired + goal.most - len(hosts)
    missing = goal.desired - len(serves)
    if missing > 0 and room > 0:
        yield Launch(min(missing, room) if serves else 1)
    if useless:
        yield Retire(tuple(useless[:1]))


def chosen(leaving: Sequence[Host], hosts: Sequence[Host], count: int) -> list[Host]:
    """Those to let go first: each time one of the zone that has the most hosts."""
    zones = Counter(host.zone for host in hosts)
    left, found = list(leaving), []
    for _ in range(min(count, len(left))):
        host = min(left, key=lambda one: (-zones[one.zone], one.zone, one.name))
        left.remove(host)
        zones[host.zone] -= 1
        found.append(host)
    return found


def most_at_once(desired: int, percent: int) -> int:
    """How many hosts beyond the desired ones may run for a time: a share, rounded up."""
    return max(1, math.ceil(desired * percent / 100))


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done, for people and for the journal. Versions are of the launch template."""

    role: str
    image_id: str
    image_name: str
    previous_image: str
    previous_version: str
    desired: int
    most: int
    old: tuple[str, ...]
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    continues: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {name: list(values[name]) for name in ("old", "kept", "notes")}


def faults(
    hosts: Sequence[Host], balancers: Mapping[str, Collection[str]], desired: int
) -> list[str]:
    """Why nothing may begin; empty when it may. ``balancers``: by name the servers each has."""
    found = []
    if not balancers:
        found.append("there is no running load balancer")
    if desired < 1:
        found.append("the Auto Scaling group is to have no host")
    serving = [host.name for host in hosts if host.state == "serving"]
    if len(serving) < desired:
        found.append(
            f"{len(serving)} of {desired} hosts serve on every load balancer "
            f"({', '.join(serving) or 'none'}): capacity would begin below what is desired"
        )
    for name, servers in sorted(balancers.items()):
        if strangers := sorted(set(servers) - {host.name for host in hosts}):
            found.append(f"{name} has the server {', '.join(strangers)}, which is no running host")
    return found


def why_not_image(image: Image, role: str) -> str | None:
    """Why hosts of ``role`` may not be launched from ``image``; None when they may."""
    if image.role != role:
        return f"it is an image for {image.role}, not for {role}"
    if not image.is_tested:
        return f"its state is {image.state} and its tag Status {image.status or 'missing'!r}"
    tags = {
        "ContentHash": image.content_hash,
        "SourceImage": image.source_image,
        "BuildId": image.build_id,
        "GitCommit": image.git_commit,
    }
    absent = [name for name, value in tags.items() if not value]
    return f"nobody can tell what is in it: no tag {', '.join(absent)}" if absent else None


def previous(hosts: Iterable[Host], image_id: str) -> str:
    """The image to go back to: what most of the old hosts have; "" when there is no old host."""
    counted = Counter(host.image_id for host in hosts if host.image_id != image_id)
    return max(counted, key=lambda one: (counted[one], one)) if counted else ""


def state(views: Views, balancers: Collection[str]) -> State:
    """What a host is to its load balancers."""
    if any(view.is_out for view in views.values()):
        return "out"
    everywhere = set(views) == set(balancers) and bool(views)
    return "serving" if everywhere and all(v.is_serving for v in views.values()) else "coming"


@dataclass(frozen=True, slots=True)
class Past:
    """What a journal says of a run that did not end."""

    id: str
    role: str
    image_id: str
    previous_image: str
    previous_version: str
    desired: int
    largest: int
    proven: frozenset[str] = frozenset()
    going_back: str = ""
    by: str = ""
    began: str = ""
    resting: frozenset[str] = frozenset()


def past(journal_id: str, lines: Sequence[Mapping[str, Any]]) -> Past | None:
    """A run that was cut off, from its journal; None for one that ended or never began."""
    if not lines or lines[0]["event"] != "begin" or any(one["event"] == "end" for one in lines):
        return None
    begin = lines[0]
    back = next((str(one["why"]) for one in lines if one["event"] == "going back"), "")
    return Past(
        id=journal_id,
        role=begin["plan"]["role"],
        image_id=begin["plan"]["image_id"],
        previous_image=begin["plan"]["previous_image"],
        previous_version=begin["plan"]["previous_version"],
        desired=int(begin["plan"]["desired"]),
        largest=int(begin["largest"]),
        proven=frozenset(i for one in lines if one["event"] == "proven" for i in one["instances"]),
        going_back=back,
        by=str(begin["by"]),
        began=str(begin["at"]),
        resting=frozenset(begin.get("resting", ())),
    )
