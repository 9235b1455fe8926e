"""Look at the fleet: every application host, and every load balancer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flotilla import inventory
from flotilla.deploy.limits import beside
from flotilla.deploy.world import Balancers, OverSsh, World
from flotilla.hosts.haproxy import Runtime
from flotilla.hosts.haproxy_session import Session
from flotilla.hosts.ssh import Runner
from flotilla.hosts.ssh import prepare as prepare_ssh
from flotilla.rules import deploy as rules
from flotilla.rules.rotation import FULL, Server
from flotilla.settings import Settings

_ASK_SECONDS = 15
# Connections through one bastion at a time, however large the fleet is.
_MOST = 16
# A session waits two seconds longer than its helper: a socket that hangs is told after five.
_ANSWER_SECONDS = 3.0


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
        sessions = {
            host.name: Session(runner, host.name, seconds=_ANSWER_SECONDS)
            for host in snapshot.by_role("lb")
        }
        runtimes = {name: Runtime(name, one.ask, one.master) for name, one in sessions.items()}
        zones = {host.name: host.zone for host in snapshot.by_role("app")}
        yield World(Balancers(runtimes), OverSsh(runner)), zones


@dataclass(frozen=True, slots=True)
class Rotation:
    """What the load balancers say of every server at one moment."""

    servers: Mapping[str, Mapping[str, Server]]
    shares: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, balancers: Balancers) -> Rotation:
        """Ask all of them. Raises what they raise."""
        return cls(balancers.servers(), balancers.shares())

    def host(self, name: str, zone: str, status: Mapping[str, Any]) -> rules.Host:
        """A host, with what its release tool says of itself."""
        return rules.Host(
            name=name,
            zone=zone,
            version=status["current"],
            active=bool(status["active"]),
            stale=bool(status["stale"]),
            views={lb: seen[name] for lb, seen in self.servers.items() if name in seen},
            share=min((seen[name] for seen in self.shares.values() if name in seen), default=FULL),
        )


def look(world: World, zones: Mapping[str, str]) -> Survey:
    """Ask every load balancer and every host. Raises Refused when one cannot be controlled."""
    world.balancers.demand_control()
    rotation = Rotation.of(world.balancers)

    def host(name: str) -> rules.Host:
        status = world.releases.call(name, "status", seconds=_ASK_SECONDS)
        return rotation.host(name, zones[name], status)

    # Logging in to six serving hosts at once made requests there wait 80 ms: the worst of a deploy.
    with ThreadPoolExecutor(max_workers=min(_MOST, beside(len(zones)))) as pool:
        return Survey(tuple(pool.map(host, sorted(zones))), rotation.servers)
