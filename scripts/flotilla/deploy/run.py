"""Carry out a plan: stage everywhere, migrate once, roll batch by batch, or bring it all back.

An end state with two versions is an error, never a result: all hosts have the new release, or all
have what they had, or the deploy stopped with the names of those that do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from flotilla.aws.artifacts import Release
from flotilla.deploy.journal import Journal
from flotilla.deploy.roll import Roll, Step
from flotilla.deploy.world import World
from flotilla.errors import FlotillaError, HostFailed
from flotilla.rules.deploy import Plan, undo
from flotilla.rules.rotation import Counters

Result = Literal["done", "nothing to do", "rolled back", "stopped"]
STAGE_SECONDS = 300
MIGRATE_SECONDS = 600


@dataclass(slots=True)
class Outcome:
    """How a deploy ended, and what the load balancers counted meanwhile.

    ``failed`` are answers 5xx and answers broken off; ``left`` names hosts that are neither on the
    new release nor back on the old one; ``first``: no host had a release, so nobody was served.
    """

    id: str
    version: str
    result: Result
    seconds: float
    served: int = 0
    failed: int = 0
    retried: int = 0
    redispatched: int = 0
    done: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    first: bool = False
    probe: dict[str, Any] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    steps: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The result in one line, clients first."""
        return (
            f"served {self.served}, failed {self.failed}, retried {self.retried}; "
            f"{self.version} {self.result} in {self.seconds:.1f} s"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {name: getattr(self, name) for name in self.__slots__}

    def raise_failure(self) -> None:
        """Raise HostFailed for any end but the one that was asked for."""
        if self.result == "stopped":
            names = "; ".join(f"{host}: {why}" for host, why in self.left.items())
            raise HostFailed(
                f"{self.version} was not deployed ({self.reason}) and going back failed: {names}",
                why="these hosts stay out of rotation where that was still possible",
                untouched="The other hosts run what they ran before",
                next="fab fleet.status; mend the hosts, then: fab deploy.run --adopt",
            )
        if self.result == "rolled back":
            raise HostFailed(
                f"{self.version} was not deployed: {self.reason}",
                untouched="Every host runs again what it ran before",
                next="fab fleet.logs, and mend the release",
            )
        if self.failed and not self.first:
            raise FlotillaError(
                f"{self.version} is deployed, but {self.failed} of {self.served} requests failed",
                next="fab fleet.logs",
            )


class Deploy:
    """One run. ``stopping`` is asked before each batch; a reason rolls everything back."""

    def __init__(
        self,
        world: World,
        plan: Plan,
        journal: Journal,
        roll: Roll,
        *,
        stopping: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._world = world
        self._plan = plan
        self._journal = journal
        self._roll = roll
        self._stopping = stopping
        self._clock = clock
        self._done: list[str] = []

    def stage(self, release: Release) -> None:
        """Put the release on every host, and bring the schema up to date, before any leaves."""
        hosts, version = self._plan.hosts, release.version
        words = ("stage", version, "--sha256", release.sha256)
        self._journal.write("stage", hosts=hosts)
        errors = self._each(
            hosts, lambda host: self._world.releases.call(host, *words, seconds=STAGE_SECONDS)
        )
        if not errors and hosts:
            self._journal.write("migrate", host=hosts[0])
            errors = self._each(
                hosts[:1],
                lambda host: self._world.releases.call(
                    host, "migrate", version, seconds=MIGRATE_SECONDS
                ),
            )
        if errors:
            raise HostFailed(
                "; ".join(errors.values()),
                untouched="No host left rotation; every host runs what it ran before",
                next="fab deploy.run again, once that is mended",
            )

    def batches(self) -> tuple[Result, str, dict[str, str]]:
        """Roll every batch: the result, the reason when it is not "done", hosts left behind."""
        for number, batch in enumerate(self._plan.batches, 1):
            if why := self._stopping() or self._roll.why_too_few(batch, self._plan.floor):
                return self._back((), why)
            self._journal.write("batch", number=number, hosts=list(batch))
            errors = self._each(batch, lambda host: self._roll.host(host, self._plan.version))
            self._done += [host for host in batch if host not in errors]
            if errors:
                return self._back(tuple(errors), "; ".join(errors.values()))
        return "done", "", {}

    def prune(self) -> None:
        """Drop old releases; a host that cannot is told about by its own status, not by us."""
        self._each(
            self._plan.hosts, lambda host: self._world.releases.call(host, "prune", seconds=60)
        )

    def _back(self, failed: Sequence[str], why: str) -> tuple[Result, str, dict[str, str]]:
        """The hosts that failed first, they are out of rotation; then those that were done."""
        previous, done = self._plan.previous, self._done
        self._journal.write("going back", why=why, failed=list(failed), done=list(done))
        errors = self._each(failed, lambda host: self._roll.restore(host, previous[host]))
        largest = max((len(batch) for batch in self._plan.batches), default=1)
        for batch in [] if errors else undo(done, largest):
            errors = self._each(batch, lambda host: self._roll.host(host, previous[host]))
            if errors:
                break
            self._done = [host for host in self._done if host not in batch]
        if not errors:
            return "rolled back", why, {}
        still = {host: f"runs {self._plan.version}" for host in self._done if host not in errors}
        return "stopped", why, errors | still

    def _each(self, hosts: Sequence[str], work: Callable[[str], object]) -> dict[str, str]:
        """Do ``work`` for all hosts at once; by host, why it failed."""

        def attempt(host: str) -> str:
            try:
                work(host)
            except FlotillaError as error:
                self._journal.write("failed", host=host, why=error.what)
                return error.what if error.what.startswith(host) else f"{host}: {error.what}"
            return ""

        if not hosts:
            return {}
        with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
            answers = dict(zip(hosts, pool.map(attempt, hosts), strict=True))
        return {host: why for host, why in answers.items() if why}


def run(
    world: World,
    plan: Plan,
    release: Release,
    journal: Journal,
    *,
    roll: Callable[[Callable[[Step], None]], Roll],
    said: Callable[[Step], None],
    stopping: Callable[[], str] = lambda: "",
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Deploy ``plan``. ``roll`` makes the steps, given who is told of each one.

    Raises HostFailed before any host left rotation; afterwards the outcome tells.
    """
    started = clock()
    steps: dict[str, dict[str, float]] = {}

    def note(step: Step) -> None:
        steps.setdefault(step.host, {})[step.name] = round(step.seconds, 2)
        journal.write("step", host=step.host, step=step.name, error=step.error)
        said(step)

    deploy = Deploy(world, plan, journal, roll(note), stopping=stopping, clock=clock)
    before = world.balancers.counters()
    deploy.stage(release)
    result, reason, left = deploy.batches() if plan.hosts else ("nothing to do", "", {})
    counted = _increase(before, world.balancers.counters())
    if result == "done":
        deploy.prune()
    outcome = Outcome(
        id=journal.id,
        version=plan.version,
        result=result,
        seconds=round(clock() - started, 2),
        served=counted.requests - counted.failed,
        failed=counted.failed,
        retried=counted.retried,
        redispatched=counted.redispatched,
        done=plan.hosts if result == "done" else [],
        skipped=dict(plan.skipped),
        reason=reason,
        first=bool(plan.hosts) and not any([*plan.previous.values(), *plan.skipped]),
        left=left,
        steps=steps,
    )
    journal.write("end", **outcome.as_dict())
    return outcome


def _increase(before: dict[str, Counters], after: dict[str, Counters]) -> Counters:
    total = Counters()
    for balancer, counters in after.items():
        total = total.plus(counters.since(before.get(balancer, Counters())))
    return total
