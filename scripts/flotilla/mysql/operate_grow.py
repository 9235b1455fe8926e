"""Command that adds a database host: launched, configured, filled, and only then used."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from flotilla import configure, inventory
from flotilla.errors import FlotillaError
from flotilla.mysql import store
from flotilla.mysql.leasing import leased
from flotilla.mysql.operate_rebuild import rebuilding
from flotilla.mysql.operate_record import demanded
from flotilla.mysql.recorded import Confirmed, Said, Steps, recorded
from flotilla.mysql.session import Session, session
from flotilla.mysql.switchover import LAG_LIMIT_SECONDS
from flotilla.provision import operate as provision
from flotilla.provision import parts
from flotilla.provision.world import World
from flotilla.rules import mysql_maintain as rules
from flotilla.rules import placement
from flotilla.rules.mysql import follower_objection
from flotilla.settings import Settings
from flotilla.wait import DeadlineError, until

ROLE = "mysql"
COMMAND = "fab mysql.add-replica"
# A new host that has every binary log catches up by itself; one that does not within this is made a
# copy, which is quicker.
CATCH_UP_SECONDS = 60.0


def add_replica(settings: Settings, *, confirmed: Confirmed, said: Said) -> dict[str, Any]:
    """Launch the MySQL hosts that are missing, or else one more: {hosts, count, copied, seconds}.

    fleet.yml is not written. Raises what provisioning, configuring and ``rebuild`` raise; a host
    that was launched is then gone on with by the same command.
    """
    present, begun = _present(settings)
    count = rules.size(settings.tiers.mysql.count, present, begun)
    grown = _resized(settings, count)
    launch = placement.difference(ROLE, count, grown.zones, present).launch
    new = [*begun, *(place.name for place in launch)]
    changes = parts.plan(World(grown))
    confirmed(
        f"{settings.prefix}: add {', '.join(new)} and make it a replica; clients notice nothing\n"
        f"{provision.summary(changes)}"
    )
    with recorded(settings, COMMAND, said) as steps:
        with steps.step("launch " + (", ".join(place.name for place in launch) or "nobody")):
            provision.provision(grown, confirmed=lambda _: None, said=said)
            _bar(settings, new)
            provision.await_hosts(grown, said=said)
        # All of the tier: the watchers must know of a member before it may acknowledge.
        with steps.step("configure the MySQL hosts"):
            configure.configure(settings, limit=ROLE, say=said)
        copied = _fill(settings, new, steps)
        with steps.step("let the application hosts read from it"):
            configure.configure(settings, limit="app", say=said)
        steps.result = {"hosts": new, "count": count, "copied": copied, "seconds": steps.seconds}
    return steps.result


def _bar(settings: Settings, hosts: Collection[str]) -> None:
    """Keep new hosts out until they follow: whoever may acknowledge must be reached before anybody
    is promoted, and a host that boots cannot be.
    """
    snapshot = inventory.load(settings, refresh=True)
    new = {host.instance_id for host in snapshot.hosts if host.name in hosts}
    records = store.records(settings)
    with leased(settings, COMMAND) as lock:
        state = demanded(records.state())
        barred = {**dict.fromkeys(new, "it is being added"), **state.barred}
        records.bar(barred, term=state.record.term, fence=lock.term)


def _fill(settings: Settings, hosts: Iterable[str], steps: Steps) -> list[str]:
    """Wait until each follows and has caught up, or make it a copy; the copies."""
    copied = []
    with session(settings, fresh=True) as opened:
        for name in hosts:
            with steps.step(f"{name} catches up"):
                done = _catches_up(opened, name)
            if not done:
                rebuilding(opened, name).apply(steps.step)
                copied.append(name)
    return copied


def _catches_up(opened: Session, name: str) -> bool:
    record = demanded(store.records(opened.settings).state()).record

    def caught_up() -> bool:
        topology = opened.cluster.look(record)
        member, primary = topology.named(name), topology.by_instance(record.instance_id)
        if member is None or primary is None:
            return False
        follows = member.replication
        return (
            follower_objection(member, primary) is None
            and follows is not None
            and follows.lag_seconds <= LAG_LIMIT_SECONDS
        )

    try:
        return until(caught_up, seconds=CATCH_UP_SECONDS, every=1.0)
    except (DeadlineError, FlotillaError):
        return False


def _resized(settings: Settings, count: int) -> Settings:
    tier = settings.tiers.mysql.model_copy(update={"count": count})
    return settings.model_copy(update={"tiers": settings.tiers.model_copy(update={ROLE: tier})})


def _present(settings: Settings) -> tuple[list[str], list[str]]:
    """Every host of the tier, a stopped one too as its name is taken; and those only begun."""
    present = [
        host.name for host in inventory.load(settings, refresh=True).hosts if host.role == ROLE
    ]
    with session(settings, fresh=True) as opened:
        topology = opened.cluster.look(store.records(settings).read())
    return present, rules.begun(topology, settings.tiers.mysql.count)
