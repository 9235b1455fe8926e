"""Take one database host at a time away and bring it back: replicas first, the primary last.

Nothing of this holds the cluster's lease while a host is away: if the primary dies in that moment,
the watchers do what they always do. A host that comes back is let in by its own watcher; where that
does not happen, ``fab mysql.ensure``'s own steps do it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from flotilla.errors import FlotillaError, HostFailed, Refused
from flotilla.lock import Lock
from flotilla.mysql import store
from flotilla.mysql.ensure import Ensure, refused
from flotilla.mysql.recorded import Steps
from flotilla.mysql.session import Session
from flotilla.mysql.switchover import LAG_LIMIT_SECONDS, Move, Moved
from flotilla.rules.mysql import Refusal, follower_objection
from flotilla.rules.mysql_maintain import Rolling, rolling
from flotilla.wait import DeadlineError, until

ANSWER_SECONDS = 180.0
# What a host may have to catch up with after it was away for some minutes.
CAUGHT_UP_SECONDS = 1800.0
# A watcher looks several times a second; after this we do not wait for it any longer.
WATCHER_SECONDS = 10.0

# Takes the host of that name away and brings its server back.
Work = Callable[[str], None]


class Maintenance:
    """One pass over a cluster. ``lock`` keeps other runs of ours from the same hosts."""

    def __init__(
        self,
        opened: Session,
        lock: Lock,
        steps: Steps,
        work: Work,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._opened = opened
        self._lock = lock
        self._steps = steps
        self._work = work
        self._sleep = sleep
        self._clock = clock
        self._records = store.records(opened.settings)

    def run(self, plan: Rolling) -> Moved | None:
        """Do all of the plan; the switch that was made for the primary's sake.

        Raises HostFailed at the first host that does not come back: the others are left alone.
        """
        for name in plan.replicas:
            self._one(name)
        if plan.primary is None:
            return None
        self._still_whole(plan.primary)
        move = Move(self._opened.settings, self._opened.cluster, announcer=self._opened.announcer())
        self._lock.check()
        moved = move.apply(move.plan(), self._steps.step)
        self._one(plan.primary)
        return moved

    def _one(self, name: str) -> None:
        self._still_whole(name)
        self._lock.check()
        with self._steps.step(f"work on {name}"):
            self._work(name)
        with self._steps.step(f"{name} serves again"):
            self._back(name)

    def _still_whole(self, name: str) -> None:
        """Another replica must acknowledge while this one is away."""
        plan = whole(self._opened, [name])
        if isinstance(plan, Refusal):
            error = refused(plan)
            raise Refused(
                error.what, error.why, f"{name} was left as it is, and all after it", error.next
            )

    def _back(self, name: str) -> None:
        server = self._opened.cluster.server(name)
        start = self._clock()
        objection = "it does not answer"

        def serves() -> bool:
            nonlocal objection
            found = self._objection(name)
            objection = found or ""
            if found and self._clock() - start > WATCHER_SECONDS:
                self._mend()
            return not found

        try:
            until(serves, seconds=ANSWER_SECONDS, every=0.5, clock=self._clock, sleep=self._sleep)
            until(
                lambda: self._lag(name) <= LAG_LIMIT_SECONDS,
                seconds=CAUGHT_UP_SECONDS,
                every=2.0,
                clock=self._clock,
                sleep=self._sleep,
            )
        except DeadlineError as late:
            raise HostFailed(
                f"{name} does not serve {late.seconds:g} s after the work on it: {objection}",
                "another host would be one too many",
                "The hosts after it were left as they are; the primary takes writes",
                f"fab fleet.logs {server.name} --unit mysql",
            ) from None

    def _objection(self, name: str) -> str | None:
        record = self._records.read()
        topology = self._opened.cluster.look(record)
        if name in topology.silent:
            self._opened.cluster.server(name).close()
            return topology.silent[name]
        member = topology.named(name)
        primary = topology.by_instance(record.instance_id) if record else None
        if member is None or primary is None:
            return "the primary does not answer"
        if member.name == primary.name:
            # It took over from a primary that failed while it was at work itself.
            return None
        return follower_objection(member, primary)

    def _mend(self) -> None:
        with suppress(FlotillaError):
            Ensure(self._opened.settings, self._opened.cluster).apply(self._steps.step)

    def _lag(self, name: str) -> float:
        member = self._opened.cluster.look(None).named(name)
        if member is None:
            return float("inf")
        return member.replication.lag_seconds if member.replication else 0.0


def whole(opened: Session, hosts: list[str]) -> Rolling | Refusal:
    """In which order to take hosts away now, or why not. Raises Refused for an unclear cluster."""
    repair = Ensure(opened.settings, opened.cluster).plan()
    topology = opened.cluster.look(store.records(opened.settings).read())
    return rolling(topology, repair, hosts)
