"""Look at the fleet before a deploy, and make a plan or say why there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from flotilla import inventory
from flotilla.aws.artifacts import Artifacts, Release
from flotilla.deploy.world import Balancers, OverSsh, World
from flotilla.errors import BadOption, Refused
from flotilla.hosts.haproxy import Runtime
from flotilla.hosts.haproxy_session import Session
from flotilla.hosts.ssh import Runner
from flotilla.hosts.ssh import prepare as prepare_ssh
from flotilla.rules import deploy as rules
from flotilla.rules import release as release_rules
from flotilla.rules.rotation import Server
from flotilla.settings import Settings

_ASK_SECONDS = 15
_UNTOUCHED = "No host was touched"


@dataclass(frozen=True, slots=True)
class Survey:
    """The fleet as it is: hosts, and by load balancer its servers."""

    hosts: tuple[rules.Host, ...]
    balancers: Mapping[str, Mapping[str, Server]]

    @property
    def is_serving(self) -> bool:
        """Whether any host answers clients."""
        return any(host.is_serving for host in self.hosts)


@contextmanager
def connect(settings: Settings) -> Iterator[tuple[World, Mapping[str, str]]]:
    """The world to deploy to, and by application host its zone. Asks EC2 for the hosts first."""
    snapshot = inventory.load(settings, max_age_seconds=inventory.max_age(settings), refresh=True)
    prepare_ssh(settings, snapshot)
    with Runner(settings, snapshot) as runner:
        sessions = {host.name: Session(runner, host.name) for host in snapshot.by_role("lb")}
        runtimes = {name: Runtime(name, one.ask, one.master) for name, one in sessions.items()}
        zones = {host.name: host.zone for host in snapshot.by_role("app")}
        yield World(Balancers(runtimes), OverSsh(runner)), zones


def look(world: World, zones: Mapping[str, str]) -> Survey:
    """Ask every load balancer and every host. Raises Refused when one cannot be controlled."""
    world.balancers.demand_control()
    servers = world.balancers.servers()

    def host(name: str) -> rules.Host:
        status = world.releases.call(name, "status", seconds=_ASK_SECONDS)
        return rules.Host(
            name=name,
            zone=zones[name],
            version=status["current"],
            active=bool(status["active"]),
            stale=bool(status["stale"]),
            views={lb: seen[name] for lb, seen in servers.items() if name in seen},
        )

    with ThreadPoolExecutor(max_workers=16) as pool:
        return Survey(tuple(pool.map(host, sorted(zones))), servers)


def prepare(
    settings: Settings, survey: Survey, version: str, options: rules.Options
) -> tuple[rules.Plan, Release]:
    """The plan for ``version`` and its artifact.

    Raises BadOption for a version that does not exist, Refused with every reason not to begin.
    """
    release = find(settings, version)
    if found := rules.faults(survey.hosts, survey.balancers, options):
        raise Refused(
            "; ".join(found),
            untouched=_UNTOUCHED,
            next="fab fleet.status, then deploy.run again (--adopt takes drained hosts along)",
        )
    plan = rules.plan(survey.hosts, version, options)
    if isinstance(plan, str):
        raise Refused(
            plan,
            why="nobody would be left to answer",
            untouched=_UNTOUCHED,
            next="add a host, or accept the outage: fab deploy.run --outage",
        )
    return plan, release


def find(settings: Settings, version: str) -> Release:
    """The release to deploy. Raises BadOption with those that exist."""
    store = Artifacts(settings)
    known = None if release_rules.why_not_a_version(version) else store.find(version)
    if known:
        return known
    names = [release.version for release in store.list(newest=10)]
    raise BadOption(
        f"there is no release {version!r}; there are: {', '.join(names) or 'none'}",
        untouched=_UNTOUCHED,
        next=f"fab app.release --version {version}" if not names else "fab app.list",
    )
