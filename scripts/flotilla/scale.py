"""More or fewer application hosts, and no client notices.

The Auto Scaling group is told how many; new hosts are configured, get the release that the others
run and only then requests; hosts that go are drained on every load balancer before they are
terminated. ``fleet.yml`` is not written: it says how many there are in the long run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flotilla import audit, configure, deploy, inventory
from flotilla.aws import scaling
from flotilla.deploy.survey import look
from flotilla.errors import BadOption, FlotillaError, Refused
from flotilla.lock import Lock
from flotilla.options import whole
from flotilla.provision import operate as provision
from flotilla.rules import deploy as rules
from flotilla.rules import placement
from flotilla.settings import Settings
from flotilla.wait import DeadlineError, until

Say = Callable[[str], None]
ROLE = "app"
MOST = 1000
# Auto Scaling waits for the load balancers before it ends a host, at most twice a drain.
GONE_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Scale:
    """What will be done: ``add`` that many hosts, or take the hosts of ``remove`` away."""

    count: int
    present: tuple[str, ...]
    add: int
    remove: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        names = ("count", "present", "add", "remove")
        values = {name: getattr(self, name) for name in names}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def number(text: str) -> int:
    """A number of hosts as typed. Raises BadOption."""
    found = whole(text, 1, MOST)
    if found is None:
        raise BadOption(
            f"{text[:20]!r} is no number of hosts; it must be 1 to {MOST}",
            untouched="Nothing was changed",
            next=f"fab fleet.scale {ROLE} 6",
        )
    return found


def plan(settings: Settings, role: str, count: int) -> Scale:
    """Compare with the hosts there are. Raises BadOption for a role that cannot be scaled."""
    if role not in placement.SCALED:
        raise BadOption(
            f"{role!r} cannot be scaled; choose from: {', '.join(sorted(placement.SCALED))}",
            why="hosts of the other tiers hold data or addresses",
            untouched="Nothing was changed",
            next="fleet.yml, then: fab fleet.provision",
        )
    if not 1 <= count <= 1000:
        raise BadOption(
            f"{count} is no number of hosts; 1 to 1000", untouched="Nothing was changed"
        )
    snapshot = inventory.load(settings, max_age_seconds=inventory.max_age(settings), refresh=True)
    return difference([host.name for host in snapshot.by_role(role) if host.is_active], count)


def difference(present: Sequence[str], count: int) -> Scale:
    """How to get from the hosts ``present`` to ``count``: those with the highest numbers go."""
    # Names may have gaps, so the size of the tier says nothing of which names are surplus.
    highest_first = placement.difference(ROLE, 0, [], present).surplus
    too_many = max(len(present) - count, 0)
    return Scale(count, tuple(present), max(count - len(present), 0), highest_first[:too_many])


def told(scale: Scale) -> str:
    """The plan for people."""
    change = f"{len(scale.present)} -> {scale.count} application hosts"
    if scale.add:
        return f"{change}: launch {scale.add}, configure, deploy what the others run"
    if scale.remove:
        return f"{change}: drain and terminate {', '.join(scale.remove)}"
    return f"{scale.count} application hosts: nothing to do"


def to(settings: Settings, scale: Scale, *, said: Say) -> None:
    """Carry out a plan. Raises what its parts raise; the hosts that serve go on serving."""
    if scale.add:
        _grow(settings, scale, said)
    elif scale.remove:
        _shrink(settings, scale, said)
    else:
        return
    change = f"{len(scale.present)} -> {scale.count}"
    audit.record(settings, f"fab fleet.scale {ROLE} {scale.count}", "done", hosts=change)


@contextmanager
def at(settings: Settings, count: int, *, said: Say) -> Iterator[None]:
    """So many application hosts for as long as the block lasts, then as many as before."""
    scale = plan(settings, ROLE, count)
    to(settings, scale, said=said)
    try:
        yield
    finally:
        to(settings, plan(settings, ROLE, len(scale.present)), said=said)


def _resized(settings: Settings, count: int) -> Settings:
    tier = settings.tiers.app.model_copy(update={"count": count})
    return settings.model_copy(update={"tiers": settings.tiers.model_copy(update={ROLE: tier})})


def _grow(settings: Settings, scale: Scale, said: Say) -> None:
    resized = _resized(settings, scale.count)
    provision.provision(resized, confirmed=lambda _: None, said=said)
    provision.await_hosts(resized, said=said)
    # Load balancers too: they learn of the new servers, which are down until a release is on them.
    configure.configure(settings, limit="app,lb", say=said)
    version = _running(settings, scale.present)
    if version is None:
        return
    options = rules.Options(
        tuple(settings.deploy.batches), settings.deploy.floor_percent, adopt=True
    )
    deploy.deploy(
        settings,
        version,
        options,
        confirmed=lambda _: None,
        said=lambda step: said(f"{step.host} {step.name} ... {step.error or 'ok'}"),
    ).raise_failure()


def _running(settings: Settings, hosts: Sequence[str]) -> str | None:
    """The release of the hosts that were there. Raises Refused when they differ."""
    with deploy.connect(settings) as (world, zones):
        found = {h.version for h in look(world, zones).hosts if h.name in hosts}
    if len(found) > 1:
        raise Refused(
            f"the hosts run {', '.join(sorted(str(version) for version in found))}",
            why="new hosts get what the others run",
            untouched="The new hosts are there and serve nobody",
            next="fab deploy.run --version VERSION --adopt",
        )
    return found.pop() if found else None


def _shrink(settings: Settings, scale: Scale, said: Say) -> None:
    snapshot = inventory.load(settings, refresh=True)
    ids = {host.name: host.instance_id for host in snapshot.by_role(ROLE)}
    with (
        Lock(settings, "deploy", reason=f"fleet.scale {ROLE} {scale.count}") as lock,
        deploy.connect(settings) as (world, _),
    ):
        if why := rules.why_too_few(world.balancers.servers(), scale.remove, scale.count):
            raise Refused(why, untouched="Nothing was changed", next="fab fleet.status")
        roll = deploy.Roll(
            world,
            deploy.limits(settings),
            said=lambda step: said(f"{step.host} {step.name} ... {step.error or 'ok'}"),
            guard=lock.check,
        )
        with ThreadPoolExecutor(max_workers=len(scale.remove)) as pool:
            list(pool.map(roll.take_out, scale.remove))
        lock.check()
        _terminate(settings, {name: ids[name] for name in scale.remove})
        said(f"{', '.join(scale.remove)} terminated")
    configure.configure(settings, limit="lb", say=said)
    provision.provision(_resized(settings, scale.count), confirmed=lambda _: None, said=said)


def _terminate(settings: Settings, ids: dict[str, str]) -> None:
    """Through the group, which would launch others in their place otherwise."""
    for instance in ids.values():
        scaling.end(settings, ROLE, instance)

    def gone() -> bool:
        return set(scaling.states(settings, list(ids.values())).values()) <= {"terminated"}

    try:
        until(gone, seconds=GONE_SECONDS, every=1.0)
    except DeadlineError:
        raise FlotillaError(
            f"{', '.join(ids)} still run after {GONE_SECONDS:.0f} s",
            untouched="They are out of rotation",
            next="fab fleet.status",
        ) from None
