"""Go on with a deploy that was cut off, or take it back: whatever a killed run left behind.

The journal says what was wanted; what is true is asked again of every host and load balancer. A
command that the dead run started on a host may still be at work there: it is waited for first, or
it would change the host after we looked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from flotilla import audit
from flotilla.aws import joining
from flotilla.aws.artifacts import Release
from flotilla.deploy import notify
from flotilla.deploy.artifact import find
from flotilla.deploy.attend import INTERRUPTION, interruption, watched
from flotilla.deploy.hooks import Around, Hooks, nothing
from flotilla.deploy.journal import Journal
from flotilla.deploy.limits import Conduct, conduct, limits
from flotilla.deploy.operate import Interrupted
from flotilla.deploy.outcome import Outcome
from flotilla.deploy.roll import Roll, Step
from flotilla.deploy.run import MIGRATE_SECONDS, Deploy, Ending, Steps, run
from flotilla.deploy.survey import Rotation, connect
from flotilla.deploy.world import World
from flotilla.errors import FlotillaError, Refused, Unreachable
from flotilla.lock import Lock, holder
from flotilla.rules import deploy as deploy_rules
from flotilla.rules import resume as rules
from flotilla.settings import Settings

_UNTOUCHED = "No host was touched"
ANSWER_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Truth:
    """Hosts that answer, and why the others do not."""

    hosts: tuple[deploy_rules.Host, ...]
    silent: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Recovery:
    """One cut off deploy, with what is needed to end it.

    ``roll`` makes the steps, given who is told of each one.
    """

    world: World
    told: rules.Story
    journal: Journal
    roll: Callable[[Callable[[Step], None]], Roll]
    said: Callable[[Step], None]
    clock: Callable[[], float] = time.monotonic
    around: Around = nothing

    def go_on(
        self,
        truth: Truth,
        release: Release,
        *,
        conduct: Conduct = Conduct(),  # noqa: B008  frozen
        stopping: Callable[[], str] = lambda: "",
    ) -> Outcome:
        """Bring every host to the new release. Raises Unreachable when one does not answer."""
        left = remaining(self.told, truth, is_back=False)
        return run(
            self.world,
            left.plan,
            release,
            self.journal,
            roll=self.roll,
            said=self.said,
            stopping=stopping,
            conduct=conduct,
            done=left.done,
            adopted=True,
            around=self.around,
            clock=self.clock,
        )

    def take_back(self, truth: Truth) -> Outcome:
        """Bring every host back to what it ran; one that does not answer is named in ``left``."""
        left = remaining(self.told, truth, is_back=True)
        steps = Steps(self.said)
        deploy = Deploy(
            self.world,
            left.plan,
            self.journal,
            self.roll(steps),
            # Whatever the fleet's policy for failures is: this is what was asked for.
            conduct=Conduct(on_failure="rollback"),
            done=left.done,
            around=self.around,
            clock=self.clock,
        )
        silent = {
            name: f"does not answer ({why})"
            for name, why in truth.silent.items()
            if name in left.plan.previous
        }

        def act(deploy: Deploy) -> Ending:
            ending = deploy.back(dict(left.out), self.told.going_back or "it was aborted")
            return ("stopped", ending[1], ending[2] | silent) if silent else ending

        return deploy.conclude(act, steps)


def resume(
    settings: Settings,
    deploy_id: str = "",
    *,
    back: bool = False,
    confirmed: Callable[[str], None],
    said: Callable[[Step], None],
    take_over: bool = False,
) -> Outcome:
    """Finish the newest deploy, or ``deploy_id``; with ``back`` bring every host back.

    One that was going back already is not turned round again. ``confirmed`` is given what will be
    done and raises to stop. Raises Refused when nothing was cut off or the lock is held, BadOption
    for an unknown id, Unreachable when a host that must be rolled does not answer.
    """
    journal = Journal.reopen(settings, deploy_id)
    told = _told(journal)
    is_back = back or bool(told.going_back)
    verb = "abort" if back else "resume"
    with connect(settings) as (world, zones):
        world.balancers.demand_control()
        left = remaining(told, look(world, zones, limits(settings).answer), is_back=is_back)
        confirmed(rules.described(told, left, is_back=is_back))
        with (
            Lock(settings, "deploy", reason=f"{verb} {journal.id}", take_over=take_over) as lock,
            interruption() as stopping,
        ):
            told = _told(journal)  # whoever had the lock may have gone on until it was lost
            is_back = is_back or bool(told.going_back)
            taken = lock.taken_from.holder if lock.taken_from else ""
            journal.write("resumed", verb=verb, by=holder(), term=lock.term, taken_from=taken)
            ours = world.guarded(lock.check)
            roll = partial(_roll, ours, settings, lock)
            settle(ours, roll(said))
            hooks = Hooks(settings, journal.id, told.plan.version)
            recovery = Recovery(ours, told, journal, roll, said, around=hooks.around)
            truth = look(ours, zones, limits(settings).answer)
            outcome = _finish(settings, recovery, truth, stopping, is_back=is_back)
    _recorded(settings, verb, outcome, hooks)
    return outcome


def _roll(world: World, settings: Settings, lock: Lock, said: Callable[[Step], None]) -> Roll:
    return Roll(world, limits(settings), said=said, guard=lock.check)


def look(world: World, zones: Mapping[str, str], seconds: float) -> Truth:
    """Ask every host and load balancer; a host that does not answer is named, not raised."""
    rotation = Rotation.of(world.balancers)
    silent: dict[str, str] = {}

    def host(name: str) -> deploy_rules.Host | None:
        try:
            status = world.releases.call(name, "status", seconds=seconds)
        except FlotillaError as error:
            silent[name] = error.what
            return None
        return rotation.host(name, zones[name], status)

    with ThreadPoolExecutor(max_workers=16) as pool:
        found = tuple(one for one in pool.map(host, sorted(zones)) if one)
    return Truth(found, silent)


def settle(world: World, roll: Roll) -> None:
    """Wait until no release tool of the killed run is at work on any host.

    Staging a release that is there already changes nothing, and needs the tool's own lock.
    """

    def idle(name: str) -> None:
        try:
            releases = roll.status(name)["releases"]
            for version, sha256 in list(releases.items())[:1]:
                roll.call(name, "stage", version, "--sha256", sha256, limit=MIGRATE_SECONDS)
        except FlotillaError:
            return  # a host that does not answer is met, and named, when it is rolled

    names = sorted({name for servers in world.balancers.servers().values() for name in servers})
    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(idle, names))


def remaining(told: rules.Story, truth: Truth, *, is_back: bool) -> rules.Remaining:
    """What is left to do. Raises Unreachable for going on with a host that does not answer."""
    if is_back:
        return rules.back(told, truth.hosts)
    if truth.silent:
        raise Unreachable(
            "; ".join(truth.silent.values()),
            why="a release is on all hosts or on none",
            untouched=_UNTOUCHED,
            next="fab deploy.abort, which brings the other hosts back; or mend that one first",
        )
    return rules.forward(told, truth.hosts)


def previous(settings: Settings) -> str:
    """The release that the hosts had before the one they run now.

    From the newest deploy of it that was run from here, or the only other release that is still on
    every host. Raises Refused when neither tells.
    """
    with connect(settings) as (world, zones):
        statuses = [world.releases.call(h, "status", seconds=ANSWER_SECONDS) for h in sorted(zones)]
    running = {status["current"] for status in statuses}
    told = [rules.story(journal.lines()) for journal in Journal.all(settings)]
    staged = [set(status["releases"]) for status in statuses]
    found = rules.previous([one for one in told if one], running, staged)
    if len(found) == 1:
        return found[0]
    raise Refused(
        f"hosts run {', '.join(sorted(map(str, running)))}, and which release was there before "
        f"is not known; on all hosts are: {', '.join(found) or 'no others'}",
        untouched=_UNTOUCHED,
        next="fab deploy.rollback --version V",
    )


def _finish(
    settings: Settings,
    recovery: Recovery,
    truth: Truth,
    stopping: Callable[[], str],
    *,
    is_back: bool,
) -> Outcome:
    """Either way, watched by a client of ours."""
    with watched(settings, enabled=any(host.is_serving for host in truth.hosts)) as seen:
        if is_back:
            outcome = recovery.take_back(truth)
        else:
            release = find(settings, recovery.told.plan.version)
            outcome = recovery.go_on(truth, release, conduct=conduct(settings), stopping=stopping)
            if outcome.result == "done":
                joining.point(settings, "app", release.version, release.sha256)
    outcome.probe = seen
    outcome.failed += sum(n for why, n in seen.get("failures", {}).items() if "status" not in why)
    return outcome


def _told(journal: Journal) -> rules.Story:
    told = rules.story(journal.lines())
    why = rules.why_not_open(told, journal.id)
    if why or told is None:
        raise Refused(
            why or journal.id,
            untouched=_UNTOUCHED,
            next="fab deploy.history; to take the last release back: fab deploy.rollback",
        )
    return told


def _recorded(settings: Settings, verb: str, outcome: Outcome, hooks: Hooks) -> None:
    """Tell hooks, receivers and the audit. Raises Interrupted when the operator turned it round."""
    hooks.after(outcome.result)
    outcome.notes += hooks.notes
    outcome.notes += notify.tell(
        settings, "ended", outcome.line, id=outcome.id, result=outcome.result, by=holder()
    )
    told = {
        name: getattr(outcome, name) for name in ("id", "served", "failed", "seconds", "reason")
    }
    try:
        audit.record(settings, f"deploy.{verb} --id {outcome.id}", outcome.result, **told)
    except FlotillaError as error:
        outcome.notes.append(str(error))
    if outcome.result == "rolled back" and outcome.reason == INTERRUPTION:
        raise Interrupted(
            f"{INTERRUPTION}; {outcome.line}",
            untouched="Every host runs again what it ran before",
            next=f"fab deploy.run --version {outcome.version}",
        )
