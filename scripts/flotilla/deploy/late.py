"""Hosts that came while a deploy was under way: each ends on the release that the others have.

A host that Auto Scaling starts reads once, as it boots, which release is the current one. When that
was before the deploy ended, it has the old one and nobody planned for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from flotilla import inventory
from flotilla.aws.artifacts import Release
from flotilla.deploy.journal import Journal
from flotilla.deploy.limits import conduct, limits
from flotilla.deploy.outcome import Outcome
from flotilla.deploy.roll import Roll, Step
from flotilla.deploy.run import run
from flotilla.deploy.survey import connect
from flotilla.deploy.world import World
from flotilla.errors import FlotillaError
from flotilla.rules.deploy import Plan
from flotilla.settings import Settings
from flotilla.wait import DeadlineError, until

# A host boots, configures itself and is followed by every load balancer in well under a minute.
JOIN_SECONDS = 120
_ASK_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Latecomers:
    """Who looks for them, under which lock (``guard`` raises once it is lost)."""

    settings: Settings
    release: Release
    plan: Plan
    journal: Journal
    guard: Callable[[], None]
    said: Callable[[Step], None]

    def bring_along(self, outcome: Outcome) -> None:
        """Roll the hosts that the plan did not know. Call it once new ones start right.

        Adds to ``outcome``: a host that could not be brought along is named in ``left``, and a look
        at EC2 that was not possible in ``notes``.
        """
        known = {*self.plan.previous, *self.plan.skipped}
        try:
            snapshot = inventory.load(self.settings, refresh=True)
            names = [host.name for host in snapshot.by_role("app") if host.name not in known]
            if names:
                self._bring(names, outcome)
        except FlotillaError as error:
            outcome.notes.append(f"whether hosts came meanwhile is not known: {error.what}")

    def _bring(self, names: Collection[str], outcome: Outcome) -> None:
        with connect(self.settings) as (found, _):
            world = found.guarded(self.guard)
            runs = {name: joined(world, name) for name in names}
            outcome.notes += [
                f"{name} came meanwhile and was not there after {JOIN_SECONDS} s"
                for name, version in runs.items()
                if version is None
            ]
            wrong = {n: v for n, v in runs.items() if v not in {None, self.release.version}}
            if not wrong:
                return
            batches = tuple((name,) for name in wrong)
            late = run(
                world,
                Plan(self.plan.version, batches, wrong, self.plan.floor),
                self.release,
                self.journal,
                roll=lambda note: Roll(world, limits(self.settings), said=note, guard=self.guard),
                said=self.said,
                conduct=conduct(self.settings),
                adopted=True,
            )
        outcome.add(late)


def joined(
    world: World,
    name: str,
    *,
    seconds: float = JOIN_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str | None:
    """What a new host runs, once it has a release and every load balancer knows it.

    None when that takes too long; it starts with the release that is the current one then.
    """

    def version() -> str | None:
        try:
            current: str | None = world.releases.call(name, "status", seconds=_ASK_SECONDS)[
                "current"
            ]
        except FlotillaError:
            return None
        known = all(name in servers for servers in world.balancers.servers().values())
        return current if known else None

    try:
        return until(version, seconds=seconds, every=1.0, clock=clock, sleep=sleep)
    except DeadlineError:
        return None
