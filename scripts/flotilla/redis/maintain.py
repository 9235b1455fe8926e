"""Take one Redis host at a time away and bring it back: replicas first, the primary last.

Sentinel goes on watching meanwhile: a primary that dies in that moment is failed over as always.
Who is next is therefore looked up before every host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from flotilla.errors import FlotillaError, HostFailed, Refused, Unreachable
from flotilla.hosts.ssh import Runner
from flotilla.lock import Lock
from flotilla.mysql.recorded import Steps
from flotilla.redis.operate import move, planned, verify
from flotilla.redis.status import looked
from flotilla.rules.redis_maintain import Need, Step, next_step, objections
from flotilla.snapshot import Host
from flotilla.wait import DeadlineError, until

# A look has a time limit of less than a second for each answer, and where machines are busy a
# replica may miss the three seconds it has to keep up: no reason to refuse for good.
ORDER_SECONDS = 15.0
BACK_SECONDS = 120.0
# A replica that was away for longer than the backlog lasts copies everything.
COPY_SECONDS = 1800.0

# Something that is done on a host for what it needs. Raises HostFailed, Unreachable.
Work = Callable[[Need], None]


class Maintenance:
    """One pass over the hosts. ``locks`` keep other runs of ours from them.

    ``work`` takes services away and brings them back, ``check`` reads back that it did.
    """

    def __init__(
        self,
        runner: Runner,
        hosts: list[Host],
        locks: Sequence[Lock],
        steps: Steps,
        *,
        work: Work,
        check: Work,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._hosts = hosts
        self._locks = locks
        self._steps = steps
        self._work = work
        self._check = check
        self._sleep = sleep
        self._clock = clock
        self._done: list[str] = []

    def run(self, needed: Mapping[str, Need]) -> list[dict[str, Any]]:
        """Do all of it; the moves that were made for the primary's sake.

        Raises Refused while nothing was changed, then HostFailed at the first host that does not
        come back: the others are left alone.
        """
        moves = []
        pending = dict(needed)
        while pending:
            try:
                moved = self._one(pending)
            except Refused as error:
                raise self._stopped(error, pending) from error
            if moved:
                moves.append(moved)
        return moves

    def await_order(self, names: Sequence[str]) -> None:
        """Wait until all is in order after a run that was cut off; ``names`` were away then.

        Raises HostFailed.
        """
        title = f"{' and '.join(names)} follows again" if names else "all is in order"
        with self._steps.step(title):
            self._back(*names)
        self._done.append(title)

    def _one(self, pending: dict[str, Need]) -> dict[str, Any] | None:
        step = self._next(pending)
        for lock in self._locks:
            lock.check()
        if step.moves:
            # Then it is a replica like the others, and looked up again as one.
            return self._move(step.name)
        try:
            with self._steps.step(f"work on {step.name}"):
                self._work(pending[step.name])
            with self._steps.step(f"{step.name} follows again"):
                self._back(step.name)
                self._check(pending[step.name])
        except (HostFailed, Unreachable) as error:
            raise self._lost(step.name, error) from error
        self._done.append(step.name)
        del pending[step.name]
        return None

    def _next(self, pending: Mapping[str, Need]) -> Step:
        step = in_order(
            lambda: next_step(*looked(self._runner, self._hosts), pending),
            clock=self._clock,
            sleep=self._sleep,
        )
        if isinstance(step, str):
            raise not_in_order(step)
        return step

    def _move(self, name: str) -> dict[str, Any] | None:
        plan = planned(self._runner, self._hosts, None)
        if plan.old != name:
            return None
        with self._steps.step(f"move the primary's role from {plan.old} to {plan.new}"):
            told = move(self._runner, plan)
            verify(self._runner, self._hosts, plan.new)
            # A Sentinel takes a moment to find everybody again after a change of primary.
            self._back(plan.old)
        self._done.append(f"the role of {plan.old}")
        return told

    def _back(self, *names: str) -> None:
        """Wait until everything is in order, as long as those of ``names`` get on, or anybody."""
        wrong = ["nobody was asked yet"]
        last = start = self._clock()

        def well() -> bool:
            nonlocal wrong, last
            members, silent = looked(self._runner, self._hosts)
            wrong = objections(members, silent)
            if any(one.is_syncing and (one.name in names or not names) for one in members):
                last = self._clock()
            return not wrong or self._clock() - last > BACK_SECONDS

        with suppress(DeadlineError):
            until(well, seconds=COPY_SECONDS, every=0.5, clock=self._clock, sleep=self._sleep)
        if wrong:
            raise HostFailed(
                f"{' and '.join(names) or 'the group'} is not where it was"
                f" {self._clock() - start:.0f} s after the work on it: " + "; ".join(wrong)
            )

    def _lost(self, name: str, error: FlotillaError) -> HostFailed:
        done = f"; {', '.join(self._done)} done before" if self._done else ""
        return HostFailed(
            error.what,
            error.why or "another host would be one too many",
            f"{error.untouched}{'. ' * bool(error.untouched)}The hosts after {name} were left as"
            f" they are{done}",
            f"fab fleet.logs {name} --unit redis-server",
        )

    def _stopped(self, error: Refused, pending: Mapping[str, Need]) -> FlotillaError:
        """With work done, it is no refusal any more."""
        if not self._done:
            return error
        return HostFailed(
            error.what,
            error.why,
            f"{', '.join(self._done)} done; {', '.join(pending)} left as it is",
            error.next,
        )


def in_order(
    look: Callable[[], Step | str],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Step | str:
    """What ``look`` gives as soon as that is no objection, else the last objection."""
    found: Step | str = ""

    def ready() -> bool:
        nonlocal found
        found = look()
        return isinstance(found, Step)

    with suppress(DeadlineError):
        until(ready, seconds=ORDER_SECONDS, every=0.5, clock=clock, sleep=sleep)
    return found


def not_in_order(why: str) -> Refused:
    """The refusal to take a host away."""
    return Refused(
        f"not everything is in order: {why}",
        "taking one more host away could stop writes, or the next failover",
        "Nothing was changed",
        "fab redis.status",
    )
