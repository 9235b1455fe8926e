"""What tests of deploys look at: the fleet from every load balancer and host, and its clients."""

from __future__ import annotations

import json
import re
import shlex
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from guests import control, until
from releases import Releases
from typed import FAB, Run, fab, interfered

from flotilla import deploy, inventory
from flotilla.aws import dynamo, edge, lease
from flotilla.aws.session import client
from flotilla.deploy import World
from flotilla.deploy.survey import look
from flotilla.errors import FlotillaError
from flotilla.hosts.ssh import Runner
from flotilla.hosts.ssh import prepare as prepare_ssh
from flotilla.rules.rotation import Views
from flotilla.settings import Settings
from flotilla.snapshot import Host
from flotilla.traffic import Background

RATE = 60
# Two batches instead of three, for tests that are not about batches.
FAST = ("--batches", "1,100%", "--floor", "30")
ONE_BY_ONE = ("--batches", "1", "--floor", "50")
WHOLE_SECONDS = 60.0
# A server in maintenance whose host is gone is deleted after 24 answers of EC2 without it.
GONE_SECONDS = 100.0
SOCKET = "/run/haproxy/admin.sock"
# How versions are named by default; those that tests spoil have other names.
_OF_THE_DEMO = re.compile(r"\d{8}-\d{6}")


@dataclass
class Rolling:
    """The standing fleet as a place for deploys."""

    settings: Settings
    releases: Releases
    version: str = ""

    @property
    def url(self) -> str:
        return edge.url(self.settings)

    @property
    def other(self) -> str:
        """The good release that the fleet does not run."""
        return self.releases.other(self.version)

    def fresh(self) -> str:
        """A good release that no host has seen."""
        return self.releases.fresh()

    @contextmanager
    def world(self) -> Iterator[World]:
        with deploy.connect(self.settings) as (made, _):
            yield made

    def order(self, server: str, *states: str) -> None:
        """Somebody's hand on every load balancer."""
        with self.world() as made:
            made.balancers.order(server, *states)

    def hosts(self, role: str) -> list[Host]:
        known = inventory.load(self.settings, refresh=True).by_role(role)
        return [host for host in known if host.is_active]

    def balancer(self, *, active: bool) -> Host:
        """The load balancer that has the Elastic IP, or the other one."""
        named = [{"Name": "tag:Name", "Values": [self.settings.name_of("edge")]}]
        found = client(self.settings, "ec2").describe_addresses(Filters=named)["Addresses"]
        owner = found[0]["InstanceId"]
        return next(lb for lb in self.hosts("lb") if (lb.instance_id == owner) is active)

    def order_of_hosts(self) -> list[Host]:
        """The application hosts in the order in which the next deploy changes them."""
        planned = fab("deploy.plan", "--version", self.other)["batches"]
        by_name = {host.name: host for host in self.hosts("app")}
        return [by_name[name] for batch in planned for name in batch]

    def canary(self) -> Host:
        """The host that the next deploy changes first."""
        return self.order_of_hosts()[0]

    def views(self, server: str) -> Views:
        """A server as each load balancer sees it."""
        with self.world() as made:
            return made.balancers.views(server)

    def up(self) -> set[str]:
        """The hosts that every load balancer gives requests."""
        with self.world() as made:
            seen = made.balancers.servers().values()
        return set.intersection(*({n for n, s in lb.items() if s.status == "UP"} for lb in seen))

    def desire(self, hosts: int) -> None:
        """Have Auto Scaling bring the number of application hosts to this."""
        client(self.settings, "autoscaling").set_desired_capacity(
            AutoScalingGroupName=self.settings.name_of("app"), DesiredCapacity=hosts
        )

    def is_replaced(self, lost: Host) -> bool:
        """Whether there are as many hosts as there should be, without that one, and all answer."""
        hosts = [host.instance_id for host in self.hosts("app")]
        return (
            lost.instance_id not in hosts
            and len(hosts) == self.settings.tiers.app.count
            and self.can_be_seen()
        )

    def is_locked(self) -> bool:
        """Whether somebody holds the deploy lock, or has not been dead for long enough."""
        held = lease.read(dynamo.locks(self.settings), "deploy")
        return held is not None and not held.is_free(time.time())

    def command(self, host: str, text: str) -> str:
        """What a shell command prints on a host, run as root."""
        snapshot = inventory.load(self.settings, refresh=True)
        prepare_ssh(self.settings, snapshot)
        with Runner(self.settings, snapshot) as runner:
            return runner.run(host, text, sudo=True).stdout

    # --- deploys ----------------------------------------------------------------------------------

    def deploy(
        self, version: str = "", *more: str, sizes: tuple[str, ...] = FAST, code: int = 0
    ) -> Any:
        """Deploy a release, by default the other one; the outcome. Fails unless it exits so."""
        words = ("deploy.run", "--version", version or self.other, "--yes", *sizes, *more)
        return fab(*words, code=code)

    def deploying(
        self,
        moment: str,
        command: str,
        version: str = "",
        *more: str,
        sizes: tuple[str, ...] = FAST,
        **special: Any,
    ) -> AbstractContextManager[Run]:
        """The same with a command at a moment of it; see ``typed.interfered``."""
        words = ("deploy.run", "--version", version or self.other, "--yes", *sizes, *more)
        return interfered(moment, command, *words, **special)

    # --- what must be true between any two tests --------------------------------------------------

    def why_not_whole(self, version: str) -> str:
        """What keeps the fleet from being as if nothing had ever happened; "" when nothing does."""
        try:
            with deploy.connect(self.settings) as (made, zones):
                survey = look(made, zones)
                weights = {
                    f"{name} on {lb}": share
                    for lb, shares in made.balancers.shares().items()
                    for name, share in shares.items()
                }
        except FlotillaError as error:
            return str(error)
        seen = {
            f"{name} on {lb}": server
            for lb, servers in survey.balancers.items()
            for name, server in servers.items()
        }
        faults = [f"{name} is {one.status}" for name, one in seen.items() if one.status != "UP"]
        faults += [f"{name} has {w:g}% of its weight" for name, w in weights.items() if w != 100]
        faults += [
            f"{host.name} runs {host.version} ({'active' if host.active else 'stopped'})"
            for host in survey.hosts
            if host.version != version or not host.active
        ]
        if len(survey.hosts) != self.settings.tiers.app.count:
            faults.append(f"there are {len(survey.hosts)} application hosts")
        if self.is_locked():
            faults.append("the lock is held")
        return "; ".join(faults)

    def is_whole(self, version: str) -> None:
        """All UP on every load balancer with all their weight, one version, nobody's lock."""
        why = "it was not looked at"

        def whole() -> bool:
            nonlocal why
            why = self.why_not_whole(version)
            return not why

        try:
            until(whole, WHOLE_SECONDS, "the fleet is whole")
        except AssertionError:
            raise AssertionError(f"the fleet is not whole: {why}") from None
        assert self.served() == {version}
        self.version = version

    def served(self, asked: int = 12) -> set[str]:
        """The versions that clients of the edge are served; each question on a new connection."""
        found = set()
        for _ in range(asked):
            with urllib.request.urlopen(f"{self.url}/version", timeout=10) as answer:
                found.add(json.load(answer)["version"])
        return found

    def heal(self) -> None:
        """Undo every fault that is in force."""
        assert not control("heal", {"target": None})["failed"]

    def make_whole(self) -> None:
        """Whatever a test left: every fault healed, every host on a good release."""
        self.heal()
        if not self.version:
            self._take_as_it_stands()
        for version in dict.fromkeys([self.version, self.releases.a, self.releases.b]):
            if version and not self.why_not_whole(version):
                self.version = version
                return
        until(self.is_known, GONE_SECONDS, "load balancers have the hosts that there are")
        fab("deploy.run", "--version", self.releases.a, "--adopt", "--take-over", "--yes")
        self.is_whole(self.releases.a)

    def _take_as_it_stands(self) -> None:
        """What the demo released is the good release that tests need: one deploy less."""
        found = self.running() if self.can_be_seen() else set()
        if len(found) == 1 and _OF_THE_DEMO.fullmatch(version := found.pop()):
            self.releases.know(version)

    def is_known(self) -> bool:
        """Whether every host answers, and every load balancer has these and no others."""
        try:
            with deploy.connect(self.settings) as (made, zones):
                found = look(made, zones)
        except FlotillaError:
            return False
        names = {host.name for host in found.hosts}
        return all(set(servers) == names for servers in found.balancers.values())

    def can_be_seen(self) -> bool:
        """Whether every host and load balancer answers."""
        try:
            with deploy.connect(self.settings) as (made, zones):
                look(made, zones)
        except FlotillaError:
            return False
        return True

    def running(self) -> set[str]:
        """The releases that run on the hosts, whether in rotation or not."""
        said = fab("fleet.run", "--on", "app", "--sudo", "app-release status")["hosts"]
        found = [json.loads(one["stdout"]) for one in said.values()]
        assert all(one["active"] for one in found), found
        return {one["current"] for one in found}

    # --- clients ----------------------------------------------------------------------------------

    @contextmanager
    def clients(self, *more: str, rate: int = RATE) -> Iterator[Clients]:
        """Clients of every kind, at a fixed rate, from first to last."""
        with Background("--url", self.url, "--rate", str(rate), "--verify", *more) as traffic:
            yield Clients(traffic)


class Clients:
    """Clients under way: keep-alive, close, sticky, slow, and entries that are read back."""

    def __init__(self, traffic: Background) -> None:
        self._traffic = traffic

    def mark(self, phase: str) -> None:
        self._traffic.mark(phase)

    def stop(self) -> dict[str, Any]:
        """What they saw. Every acknowledged entry must be there, whatever else happened."""
        seen = self._traffic.stop()
        assert seen["served"] > 0
        assert seen["acked"] > 0
        assert seen["lost"] == 0, seen
        return seen

    def saw_nothing(self) -> dict[str, Any]:
        """Every single request was answered as it should be."""
        seen = self.stop()
        assert seen["failed"] == 0, seen["failures"]
        assert all(kind["served"] > 0 for kind in seen["kinds"].values()), seen["kinds"]
        return seen


def strike(target: str, kind: str, **options: str) -> str:
    """The command line that breaks something, for a moment of a deploy."""
    given = [word for name, value in options.items() for word in ("--option", f"{name}={value}")]
    return shlex.join([str(FAB), "lab.fault", target, kind, *given])


def on_host(command: str, host: str = "") -> str:
    """The command line that runs a command as root on a host, by default the moment's own."""
    on = shlex.quote(host) if host else '"$HOST"'
    return f"{FAB} fleet.run --sudo --on {on} {shlex.quote(command)}"


@contextmanager
def struck(target: str, kind: str, **options: str) -> Iterator[None]:
    """Something is broken for as long as the block lasts."""
    control("fault", {"target": target, "kind": kind, "args": options})
    try:
        yield
    finally:
        assert not control("heal", {"target": target})["failed"]
