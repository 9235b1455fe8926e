"""Strike the Redis primary again and again while clients write; see ``drill.writes``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from flotilla import inventory
from flotilla.drill import strikes, writes
from flotilla.drill.faults import Outside
from flotilla.drill.redis_clients import Clients
from flotilla.drill.redis_group import Group
from flotilla.drill.strikes import STRIKES, Site, spared
from flotilla.errors import BadOption
from flotilla.hosts.ssh import Runner, prepare
from flotilla.redis import ledger
from flotilla.rules.drill_fault import Aim, Fault, elsewhere
from flotilla.rules.drill_redis import FAULTS, promised
from flotilla.settings import Settings
from flotilla.snapshot import Host, Snapshot
from flotilla.words import counted

Say = Callable[[str], None]

UNIT = "redis-server.service"
HELP = "fab --help drill.redis"


@dataclass(frozen=True, slots=True)
class Options:
    """What to rehearse: a fault, how often, with how many writers on each application host.

    ``wait_replicas``: writers ask so many replicas for an acknowledgement of each write (WAIT).
    """

    fault: str
    runs: int = 1
    writers: int = 2
    wait_replicas: int = 0

    def demand(self) -> None:
        """Raise BadOption for what cannot be rehearsed."""
        writes.demand(FAULTS, self.fault, runs=self.runs, writers=self.writers, next_=HELP)
        # With one replica away, the other one alone can answer.
        if not 0 <= self.wait_replicas <= 1:
            raise BadOption(
                f"wait {self.wait_replicas} is 0 or 1",
                "a group of three that has lost a host has one replica left",
                "Nothing was changed",
                HELP,
            )


def described(settings: Settings, options: Options) -> str:
    """The plan for people."""
    waits = ", each write with WAIT 1" if options.wait_replicas else ""
    about = FAULTS[options.fault].about
    return "\n".join(
        [
            f"Drill on {settings.prefix}: {counted(options.runs, 'time')}, {about}",
            f"  {options.writers} writers on every application host{waits}",
            "  hosts that were stopped are started again",
        ]
    )


def failovers(
    settings: Settings, options: Options, *, said: Say, outside: Outside | None = None
) -> dict[str, Any]:
    """Rehearse; {runs, fault, wait_replicas, write_gap_seconds, acked, lost, ..., each, broken}.

    See ``rules.drill_writes``; ``broken`` names the promises that were not kept. Raises BadOption
    and Refused with nothing changed, FlotillaError when Redis could not be made whole again.
    """
    options.demand()
    fault = promised(FAULTS[options.fault], waits=bool(options.wait_replicas))
    writes.demand_power(fault, outside, settings.env)
    snapshot = inventory.load(settings, max_age_seconds=inventory.max_age(settings), refresh=True)
    prepare(settings, snapshot)
    with Runner(settings, snapshot) as runner:
        drill = Drill(settings, snapshot, runner, options, outside=outside, said=said)
        told = drill.all(fault, options.runs, options.writers)
    return told | {"wait_replicas": options.wait_replicas}


class Drill(writes.Drill):
    """Runs of one fault on the Redis hosts of a fleet."""

    board = "fab redis.status"
    # Each look starts a program on every host.
    look_seconds = 1.0

    def __init__(
        self,
        settings: Settings,
        snapshot: Snapshot,
        runner: Runner,
        options: Options,
        *,
        outside: Outside | None,
        said: Say,
    ) -> None:
        members = {host.name: host for host in snapshot.by_role("redis")}
        super().__init__(
            Group(settings, runner, members),
            members=members.values(),
            apps=snapshot.by_role("app"),
            said=said,
        )
        self._settings, self._snapshot, self._runner = settings, snapshot, runner
        self._hosts: dict[str, Host] = members
        self._wait = options.wait_replicas
        self._outside = outside
        self._known = ledger.access(settings)

    def clients(self, writers: int) -> Clients:
        """See ``writes.Drill``."""
        return Clients(
            self._known,
            self._runner,
            apps=self._apps,
            addresses={name: host.private_ip or "" for name, host in self._hosts.items()},
            writers=writers,
            wait_replicas=self._wait,
        )

    def struck(self, fault: Fault, aim: Aim) -> AbstractContextManager[None]:
        """See ``writes.Drill``."""
        site = Site(
            settings=self._settings,
            runner=self._runner,
            unit=UNIT,
            members=self._hosts,
            apps={host.name: host for host in self._apps},
            give=self._subject.give,
            outside=self._outside,
        )
        return strikes.struck(STRIKES, site, fault, aim)

    def prepare(self, fault: Fault) -> None:
        """See ``writes.Drill``. A zone is struck that has no primary of MySQL: its failover is not
        what is measured here, and would end with a host that was stopped.
        """
        if fault.name != "zone":
            return
        zones = {name: host.zone for name, host in self._hosts.items()}
        to = elsewhere(self.whole().primary, zones, spared(self._settings, self._snapshot))
        if to is not None:
            self._subject.give(to)
