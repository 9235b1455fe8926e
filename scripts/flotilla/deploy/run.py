"""Carry out a plan: stage everywhere, migrate once, roll batch by batch, or bring it all back.

An end state with two versions is an error, never a result: all hosts have the new release, or all
have what they had, or the deploy stopped with the names of those that do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from flotilla.aws.artifacts import Release
from flotilla.deploy.hooks import Around, nothing
from flotilla.deploy.journal import Journal
from flotilla.deploy.limits import Conduct, beside
from flotilla.deploy.outcome import Outcome, Result
from flotilla.deploy.roll import Roll, Step, Trial
from flotilla.deploy.world import World
from flotilla.errors import FlotillaError, HostFailed, Unreachable
from flotilla.rules import pace
from flotilla.rules.deploy import Plan, lowered_floor, undo
from flotilla.rules.rotation import FULL, Counters, Server

__all__ = ["Deploy", "Ending", "Outcome", "Result", "Steps", "run"]

STAGE_SECONDS = 300
MIGRATE_SECONDS = 600

# The result, the reason when it is not "done", and by name the hosts that are left behind.
Ending = tuple[Result, str, dict[str, str]]


class Deploy:
    """One run. ``stopping`` is asked before each batch and while waiting; a reason goes back.

    ``done`` are hosts that an earlier, cut off run brought to the new version; with ``adopted``
    every host may be at any step.
    """

    def __init__(
        self,
        world: World,
        plan: Plan,
        journal: Journal,
        roll: Roll,
        *,
        conduct: Conduct = Conduct(),  # noqa: B008  frozen
        done: Sequence[str] = (),
        adopted: bool = False,
        around: Around = nothing,
        stopping: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._world = world
        self._plan = plan
        self._journal = journal
        self._roll = roll
        self._conduct = conduct
        self._around = around
        self._stopping = stopping
        self._clock = clock
        self._done = list(done)
        self._move = roll.restore if adopted else roll.host
        self._began = self._moved = clock()
        roll.meant = lambda host, step: journal.write("intent", host=host, step=step)
        roll.shift.overdue = self._why_give_up

    def noted(self, step: Step) -> None:
        """A step is over: write it down."""
        self._moved = self._clock()
        self._journal.write("step", host=step.host, step=step.name, error=step.error)

    def forward(self, release: Release) -> Ending:
        """Everything from staging to the old releases that are dropped."""
        self.stage(release)
        if not self._plan.hosts:
            return ("done" if self._done else "nothing to do"), "", {}
        ending = self.batches()
        if ending[0] == "done":
            self.prune()
        return ending

    def stage(self, release: Release) -> None:
        """Put the release on every host, and bring the schema up to date, before any leaves."""
        hosts, version = self._plan.hosts, release.version
        words = ("stage", version, "--sha256", release.sha256)
        self._journal.write("stage", hosts=hosts)
        errors = self._each(
            hosts,
            lambda host: self._roll.call(host, *words, limit=STAGE_SECONDS),
            most=beside(len(hosts)),
        )
        if not errors and hosts:
            self._journal.write("migrate", host=hosts[0])
            errors = self._each(
                hosts[:1],
                lambda host: self._roll.call(host, "migrate", version, limit=MIGRATE_SECONDS),
            )
        if errors:
            raise HostFailed(
                "; ".join(errors.values()),
                untouched="No host left rotation; every host runs what it ran before",
                next="fab deploy.run again, once that is mended",
            )
        self._moved = self._clock()

    def batches(self) -> Ending:
        """Roll every batch."""
        for number, batch in enumerate(self._plan.batches, 1):
            why = self._why_give_up() or self._roll.why_too_few(batch, self._plan.floor)
            if why:
                return self.back({}, why)
            self._journal.write("batch", number=number, hosts=list(batch))
            trial = self._trial(batch)
            errors = self._each(batch, partial(self._forward, trial))
            self._done += [host for host in batch if host not in errors]
            if errors:
                return self.back(errors, self._stopping() or "; ".join(errors.values()))
        return "done", "", {}

    def prune(self) -> None:
        """Drop old releases; a host that cannot is told about by its own status, not by us."""
        hosts = self._plan.hosts
        self._each(
            hosts,
            lambda host: self._world.releases.call(host, "prune", seconds=60),
            most=beside(len(hosts)),
        )

    def back(self, failed: dict[str, str], why: str) -> Ending:
        """The hosts that failed first, they are out of rotation; then those that were done.

        A host that does not answer stays out and the others go back without it; any other second
        failure stops.
        """
        names = list(failed)
        if self._conduct.on_failure == "stop" and not self._stopping():
            # One that failed its soak still serves.
            self._each(names, self._roll.hold_out)
            return self._stopped(why, failed)
        self._journal.write("going back", why=why, failed=names, done=list(self._done))
        self._roll.shift.overdue = lambda: ""
        lost: dict[str, str] = {}
        errors = self._each(names, self._restore, unreachable=lost)
        if not errors:
            errors = self._undo(lost)
        left = errors | {host: f"stays out of rotation, {said}" for host, said in lost.items()}
        return self._stopped(why, left) if left else ("rolled back", why, {})

    def conclude(self, act: Callable[[Deploy], Ending], steps: Steps) -> Outcome:
        """Do ``act`` and tell what clients saw meanwhile; the journal gets its end."""
        started, plan, shift = self._clock(), self._plan, self._roll.shift
        steps.noted = self.noted
        try:
            before = self._world.balancers.counters()
            result, reason, left = act(self)
        except FlotillaError as error:
            # Only staging ends like this: no host left rotation, so nothing is left to be resumed.
            self._journal.write("end", result="not begun", reason=error.what)
            raise
        counted = _increase(before, _counted(self._world))
        cut = sum(shift.cut.values())
        outcome = Outcome(
            id=self._journal.id,
            version=plan.version,
            result=result,
            seconds=round(self._clock() - started, 2),
            served=counted.requests - counted.failed,
            # An answer that had begun is counted by HAProxy too when it is cut off.
            failed=counted.failed + max(0, cut - counted.aborted),
            retried=counted.retried,
            redispatched=counted.redispatched,
            cut=cut,
            done=list(self._done) if result == "done" else [],
            skipped=dict(plan.skipped),
            reason=reason,
            first=bool(plan.hosts) and not any([*plan.previous.values(), *plan.skipped]),
            left=left,
            notes=list(shift.notes),
            steps=steps.seconds,
            soak=self._roll.soak.seen,
        )
        self._journal.write("end", **outcome.as_dict())
        return outcome

    def _forward(self, trial: Trial, host: str) -> None:
        with self._around(host, self._plan.version):
            self._move(host, self._plan.version, trial)
            self._journal.write("proved", host=host)

    def _restore(self, host: str) -> None:
        previous = self._plan.previous.get(host)
        with self._around(host, previous, back=True):
            self._roll.restore(host, previous)

    def _trial(self, batch: Sequence[str]) -> Trial:
        """The canary is compared with all others, later hosts with those on the old release.

        Hosts that are done are judged along with them: a release may take its time to fail. When
        no host is left on the old one, each is compared with all others: one is the first to fail.
        """
        everyone = {name for lb in self._answering().values() for name in lb}
        done = set(self._done)
        others = everyone - set(batch) - done
        canary = not done and len(batch) == 1 and bool(others)
        shares = self._roll.limits.trial if canary else (FULL,)
        return Trial(shares, judged=done, peers=others or everyone)

    def _undo(self, lost: dict[str, str]) -> dict[str, str]:
        """Bring the finished hosts back, the last one first, never more than the floor allows."""
        largest = max((len(batch) for batch in self._plan.batches), default=1)
        floor = lowered_floor(self._plan.floor, self._answering(), lost)
        while self._done:
            batch = undo(self._done, largest)[0]
            if self._roll.why_too_few(batch, floor):
                batch = batch[:1]
            if why := self._roll.why_too_few(batch, floor):
                return dict.fromkeys(batch, why)
            errors = self._each(batch, self._restore, unreachable=lost)
            self._done = [host for host in self._done if host not in batch or host in errors]
            if errors:
                return errors
        return {}

    def _answering(self) -> dict[str, dict[str, Server]]:
        """What is seen by the load balancers that answer. One that does not may serve on: then no
        other host leaves, which ``why_too_few`` sees to."""
        return self._world.balancers.answering()[0].servers()

    def _stopped(self, why: str, left: dict[str, str]) -> Ending:
        still = {host: f"runs {self._plan.version}" for host in self._done if host not in left}
        return "stopped", why, left | still

    def _why_give_up(self) -> str:
        now, conduct = self._clock(), self._conduct
        over = pace.why_over(now - self._began, now - self._moved, conduct.budget, conduct.progress)
        return self._stopping() or over or ""

    def _each(
        self,
        hosts: Sequence[str],
        work: Callable[[str], object],
        unreachable: dict[str, str] | None = None,
        most: int | None = None,
    ) -> dict[str, str]:
        """Do ``work`` for all hosts at once, or for ``most`` of them; by host, why it failed.

        Those that do not answer are put into ``unreachable`` instead, where it is given.
        """

        def attempt(host: str) -> str:
            try:
                work(host)
            except FlotillaError as error:
                self._journal.write("failed", host=host, why=error.what)
                why = error.what if error.what.startswith(host) else f"{host}: {error.what}"
                if unreachable is not None and isinstance(error, Unreachable):
                    unreachable[host] = why
                    return ""
                return why
            return ""

        if not hosts:
            return {}
        with ThreadPoolExecutor(max_workers=most or len(hosts)) as pool:
            answers = dict(zip(hosts, pool.map(attempt, hosts), strict=True))
        return {host: why for host, why in answers.items() if why}


class Steps:
    """Who hears of each step: the report, the deploy's own clock and journal, the operator."""

    def __init__(self, said: Callable[[Step], None]) -> None:
        self._said = said
        self.noted: Callable[[Step], None] = lambda step: None  # noqa: ARG005
        self.seconds: dict[str, dict[str, float]] = {}

    def __call__(self, step: Step) -> None:
        """Pass it on to all of them."""
        self.seconds.setdefault(step.host, {})[step.name] = round(step.seconds, 2)
        self.noted(step)
        self._said(step)


def run(
    world: World,
    plan: Plan,
    release: Release,
    journal: Journal,
    *,
    roll: Callable[[Callable[[Step], None]], Roll],
    said: Callable[[Step], None],
    stopping: Callable[[], str] = lambda: "",
    conduct: Conduct = Conduct(),  # noqa: B008  frozen
    done: Sequence[str] = (),
    adopted: bool = False,
    around: Around = nothing,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Deploy ``plan``. ``roll`` makes the steps, given who is told of each one.

    Each host is changed inside of ``around``: hooks that may forbid it.

    Raises HostFailed before any host left rotation; afterwards the outcome tells.
    """

    steps = Steps(said)
    deploy = Deploy(
        world,
        plan,
        journal,
        roll(steps),
        conduct=conduct,
        done=done,
        adopted=adopted,
        around=around,
        stopping=stopping,
        clock=clock,
    )
    return deploy.conclude(lambda one: one.forward(release), steps)


def _counted(world: World) -> dict[str, Counters]:
    """The counters of the load balancers that still answer: a lost one ends no report."""
    return world.balancers.answering()[0].counters()


def _increase(before: dict[str, Counters], after: dict[str, Counters]) -> Counters:
    total = Counters()
    for balancer, counters in after.items():
        total = total.plus(counters.since(before.get(balancer, Counters())))
    return total
