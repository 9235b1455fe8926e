"""Faults of a drill: when each strikes in a deploy, on whom, with what, and how it is undone.

What a root shell can do is done over SSH, so that it works on any fleet; what it cannot (a network
that swallows packets, an API that answers nobody) is asked of ``Outside``, where there is one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from flotilla import inventory
from flotilla.aws.session import client, described
from flotilla.drill.follow import Follower
from flotilla.errors import FlotillaError, Refused
from flotilla.hosts.ssh import Runner
from flotilla.hosts.ssh import prepare as prepare_ssh
from flotilla.settings import Settings

Line = Mapping[str, Any]
Moment = Callable[[Line], bool]

# A reload waits for old processes, a restart for requests under way.
_SECONDS = 90
# From the order to drain until the host is idle is at least three looks, 0.2 s apart.
_INTO_DRAIN_SECONDS = 0.3
_RUN = "systemctl kill --kill-whom=all --signal=KILL app.service"
_AGAIN = "systemctl reset-failed app.service; systemctl start app.service"


class Outside(Protocol):
    """Power over the fleet from outside its hosts."""

    def strike(self, target: str, kind: str, **options: str) -> None:
        """Break something. Raises FlotillaError."""

    def heal(self, target: str = "") -> None:
        """Undo what was done to ``target``, or all of it. Raises FlotillaError."""


@dataclass(slots=True)
class Site:
    """The fleet as a fault sees it. ``pid`` is the process that deploys, where it is its own."""

    settings: Settings
    runner: Runner
    balancers: list[str]
    hosts: list[str]
    outside: Outside | None = None
    pid: int | None = None
    undoing: list[Callable[[], None]] = field(default_factory=list)

    def on(self, host: str, command: str) -> None:
        """Run a command as root. Raises HostFailed, Unreachable."""
        self.runner.run(host, command, sudo=True, seconds=_SECONDS)

    def active(self) -> str:
        """The load balancer that has the edge address."""
        name = self.settings.name_of("edge")
        with described(self.settings, "look up the edge address"):
            found = client(self.settings, "ec2").describe_addresses(
                Filters=[{"Name": "tag:Name", "Values": [name]}]
            )["Addresses"]
        owner = found[0].get("InstanceId") if found else None
        hosts = inventory.load(self.settings).by_role("lb")
        chosen = next((host.name for host in hosts if host.instance_id == owner), None)
        if chosen is None:
            raise FlotillaError(f"no load balancer has the edge address {name}")
        return chosen


@dataclass(frozen=True, slots=True)
class Strike:
    """``act`` is called once, at the first line of the journal that is its ``moment``."""

    moment: Moment
    act: Callable[[Site, Line], None]
    needs_outside: bool = False


def _event(name: str) -> Moment:
    return lambda line: line["event"] == name


def _after(step: str) -> Moment:
    """When a host has finished the step whose name begins so."""
    return lambda line: (
        line["event"] == "step" and str(line["step"]).startswith(step) and not line["error"]
    )


def _reload(site: Site, _: Line) -> None:
    for balancer in site.balancers:
        site.on(balancer, "systemctl reload haproxy")


def _restart(site: Site, _: Line) -> None:
    site.on(site.active(), "systemctl restart haproxy")


def _failover(site: Site, _: Line) -> None:
    active = site.active()
    site.undoing.append(lambda: site.on(active, "systemctl start keepalived"))
    site.on(active, "systemctl stop keepalived")


def _kill_draining(site: Site, line: Line) -> None:
    time.sleep(_INTO_DRAIN_SECONDS)
    host = str(line["hosts"][0])
    # No undo: the deploy itself starts the application again.
    site.on(host, _RUN)


def _crash(site: Site, line: Line) -> None:
    other = next((host for host in reversed(site.hosts) if host != line["host"]), None)
    if other is None:
        raise FlotillaError("there is one application host only: no other one serves")
    site.undoing.append(lambda: site.on(other, _AGAIN))
    site.on(other, _RUN)


def _kill_operator(site: Site, _: Line) -> None:
    if site.pid is None:
        raise FlotillaError("the deploy is no process of its own: it cannot be killed alone")
    os.kill(site.pid, signal.SIGKILL)


def _from_outside(kind: str, target: Callable[[Line], str], **options: str) -> Strike:
    def act(site: Site, line: Line) -> None:
        if site.outside is not None:
            site.undoing.append(site.outside.heal)
            site.outside.strike(target(line), kind, **options)

    return Strike(_after("drain"), act, needs_outside=True)


STRIKES: Mapping[str, Strike] = {
    "lb-reload": Strike(_after("drain"), _reload),
    "lb-restart": Strike(_after("drain"), _restart),
    "lb-failover": Strike(_after("drain"), _failover),
    "app-kill-in-drain": Strike(_event("batch"), _kill_draining),
    "app-crash": Strike(_after("drain"), _crash),
    "operator-kill": Strike(_after("drain"), _kill_operator),
    "api-down": _from_outside("api-outage", lambda _: "api"),
    "host-unreachable": _from_outside(
        "cut", lambda line: str(line["host"]), **{"from": "bastion-1"}
    ),
}
# Where a deploy is killed, one run after the other.
KILL_AT: tuple[tuple[str, Moment], ...] = (
    ("staged", _event("stage")),
    ("a batch begun", _event("batch")),
    ("drained", _after("drain")),
    ("switched", _after("switch")),
    ("ready on the host", _after("ready")),
    ("checked", _after("checked")),
    ("returned", _after("return")),
)


def strike_of(kind: str, number: int) -> Strike | None:
    """The strike of a fault in run ``number`` (from 0); None when the release is the fault."""
    if kind == "operator-kill":
        return Strike(KILL_AT[number % len(KILL_AT)][1], _kill_operator)
    return STRIKES.get(kind)


def demand(kind: str, outside: Outside | None, env: str) -> None:
    """Raise Refused where a fault cannot be made."""
    strike = STRIKES.get(kind)
    if strike and strike.needs_outside and outside is None:
        raise Refused(
            f"the fault {kind} cannot be made in environment {env}",
            why="it is made outside of the hosts, and nothing here has that power over them",
            untouched="Nothing was changed",
            next="another --fault",
        )


@contextmanager
def site(settings: Settings, outside: Outside | None) -> Iterator[Site]:
    """The fleet of now, with a connection of its own to every host."""
    snapshot = inventory.load(settings, max_age_seconds=inventory.max_age(settings), refresh=True)
    prepare_ssh(settings, snapshot)
    with Runner(settings, snapshot) as runner:
        yield Site(
            settings,
            runner,
            balancers=[host.name for host in snapshot.by_role("lb")],
            hosts=[host.name for host in snapshot.by_role("app")],
            outside=outside,
        )


@contextmanager
def struck(where: Site, strike: Strike | None) -> Iterator[list[str]]:
    """The fault comes at its moment, and is undone at the end of the block whatever happened.

    Gives a list that holds the line of the journal it struck at, once it has; empty at the end when
    the moment never came.
    """
    moments: list[str] = []
    if strike is None:
        yield moments
        return

    def heard(line: dict[str, Any]) -> None:
        if not moments and strike.moment(line):
            moments.append(
                " ".join(str(line[key]) for key in ("event", "host", "step") if key in line)
            )
            strike.act(where, line)

    try:
        with Follower(where.settings.scratch / "deploys", heard):
            yield moments
    finally:
        undo(where.undoing)


def missed(result: str, reason: str) -> FlotillaError:
    """The error for a deploy that ended, in whatever way, before its fault's moment came."""
    kind = Refused if result == "refused" else FlotillaError
    return kind(
        f"the deploy was {result} before the fault struck{f': {reason}' if reason else ''}",
        why="such a run shows nothing",
        next="fab deploy.history",
    )


def undo(undoing: list[Callable[[], None]]) -> None:
    """Undo everything, the newest first; each is tried even when another one fails, or when
    somebody has no patience and interrupts it.
    """
    errors: list[BaseException] = []
    while undoing:
        one = undoing.pop()
        try:
            one()
        except KeyboardInterrupt as error:
            errors.insert(0, error)
        except FlotillaError as error:
            errors.append(error)
    if errors:
        raise errors[0]
