"""A deploy as an operator starts it: look, plan, ask, lock, watch as a client, act, tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flotilla import audit
from flotilla.aws import joining
from flotilla.aws.artifacts import Release
from flotilla.deploy import freeze, notify
from flotilla.deploy.attend import INTERRUPTION, interruption, watched
from flotilla.deploy.hooks import Hooks
from flotilla.deploy.journal import Journal
from flotilla.deploy.late import Latecomers
from flotilla.deploy.limits import conduct, limits
from flotilla.deploy.proposal import Proposal, Terms, propose
from flotilla.deploy.roll import Roll, Step
from flotilla.deploy.run import Outcome, run
from flotilla.deploy.survey import connect
from flotilla.deploy.world import World
from flotilla.errors import INTERRUPTED, FlotillaError, Refused
from flotilla.lock import Lock, demand_free, holder
from flotilla.rules.deploy import Options
from flotilla.settings import Settings


class Interrupted(FlotillaError):  # noqa: N818  it says what happened, as its siblings do
    """The operator stopped the deploy, and every host runs what it ran before: exit 99."""

    exit_code = INTERRUPTED


def planned(
    settings: Settings,
    version: str,
    options: Options,
    terms: Terms = Terms(),  # noqa: B008  frozen
) -> Proposal:
    """The plan as things are now. Raises what ``propose`` raises."""
    with connect(settings) as (world, zones):
        return propose(settings, world, zones, version, options, terms=terms)


def deploy(
    settings: Settings,
    version: str,
    options: Options,
    *,
    confirmed: Callable[[Proposal], None],
    said: Callable[[Step], None],
    take_over: bool = False,
    terms: Terms = Terms(),  # noqa: B008  frozen
) -> Outcome:
    """Deploy; the outcome says what clients saw, a probe of our own among them.

    ``confirmed`` is given the plan and raises to stop. Raises Refused or BadOption with nothing
    changed, HostFailed when staging or the migration failed, Interrupted when the operator stopped
    it and all is as before; ``raise_failure`` tells the rest.
    """
    why = f"deploy {version}" + (f": {terms.reason}" if terms.reason else "")
    if not take_over:
        demand_free(settings, "deploy")
    with connect(settings) as (world, zones):
        proposal = propose(settings, world, zones, version, options, terms=terms)
        _demand_open(settings, proposal, terms)
        confirmed(proposal)
        with (
            Lock(settings, "deploy", reason=why, take_over=take_over) as lock,
            interruption() as stopping,
        ):
            # Somebody may have deployed while the operator was reading the plan.
            again = propose(settings, world, zones, version, options, terms=terms)
            _demand_open(settings, again, terms)
            if again.plan != proposal.plan:
                confirmed(again)
            run_of = _Run(settings, world.guarded(lock.check), again, terms, said, lock.check)
            outcome = run_of.recorded(stopping)
    if outcome.result == "rolled back" and outcome.reason == INTERRUPTION:
        raise Interrupted(
            f"{INTERRUPTION}; {outcome.line}",
            untouched="Every host runs again what it ran before",
            next=f"fab deploy.run --version {version}",
        )
    return outcome


def _demand_open(settings: Settings, proposal: Proposal, terms: Terms) -> None:
    if not terms.override_freeze:
        command = f"fab deploy.run --version {proposal.plan.version}"
        freeze.demand_open(settings, proposal.closed, again=command)


@dataclass(frozen=True, slots=True)
class _Run:
    """One deploy under its lock, with everything that goes on around it."""

    settings: Settings
    world: World
    proposal: Proposal
    terms: Terms
    said: Callable[[Step], None]
    guard: Callable[[], None]

    def recorded(self, stopping: Callable[[], str]) -> Outcome:
        """Deploy; hooks, receivers and the audit hear of it however it ends."""
        journal = Journal.begin(self.settings, self.proposal.plan.version)
        hooks = Hooks(self.settings, journal.id, self.proposal.plan.version)
        try:
            outcome = self._with_hooks(hooks, journal, stopping)
        except (FlotillaError, KeyboardInterrupt) as error:
            what = error.what if isinstance(error, FlotillaError) else "cut off by the operator"
            end = "refused" if isinstance(error, Refused) else "failed"
            notes = self._ended(hooks, end, what, id=journal.id, error=what)
            if isinstance(error, FlotillaError):
                error.untouched = ". ".join([error.untouched or "No host was touched", *notes])
            raise
        figures = ("id", "served", "failed", "seconds", "reason")
        text = f"{outcome.line}{f': {outcome.reason}' if outcome.reason else ''}"
        told = {name: getattr(outcome, name) for name in figures}
        outcome.notes += self._ended(hooks, outcome.result, text, **told)
        return outcome

    def _with_hooks(self, hooks: Hooks, journal: Journal, stopping: Callable[[], str]) -> Outcome:
        plan = self.proposal.plan
        try:
            hooks.before()
        except Refused:
            # No host was touched and none will be: nothing is there to be resumed.
            journal.path.unlink()
            raise
        journal.write("begin", version=plan.version, by=holder(), plan=plan.as_dict())
        why = f": {self.terms.reason}" if self.terms.reason else ""
        told = self._told("began", f"deploy of {plan.version} by {holder()}{why}", id=journal.id)
        with watched(self.settings, enabled=bool(plan.hosts) and self.proposal.is_serving) as seen:
            outcome = run(
                self.world,
                plan,
                self.proposal.release,
                journal,
                roll=lambda note: Roll(
                    self.world, limits(self.settings), said=note, guard=self.guard
                ),
                said=self.said,
                stopping=stopping,
                conduct=conduct(self.settings),
                around=hooks.around,
            )
            self._completed(outcome, journal)
        outcome.notes += told
        return _with_probe(outcome, seen)

    def _completed(self, outcome: Outcome, journal: Journal) -> None:
        """New hosts start the release from now on, and those that came meanwhile get it."""
        release = self.proposal.release
        _made_current(self.settings, outcome, release)
        if outcome.result == "done":
            late = Latecomers(
                self.settings, release, self.proposal.plan, journal, self.guard, self.said
            )
            late.bring_along(outcome)

    def _ended(self, hooks: Hooks, end: str, text: str, **told: Any) -> list[str]:
        """Notes of whatever did not work; none of it changes how the deploy ended."""
        hooks.after(end)
        line = text if end in text else f"deploy of {self.proposal.plan.version} {end}: {text}"
        return [
            *hooks.notes,
            *self._told("ended", line, result=end, **told),
            *self._audited(end, **told),
        ]

    def _told(self, event: str, text: str, **told: Any) -> list[str]:
        why = {"why": self.terms.reason} if self.terms.reason else {}
        told |= {"version": self.proposal.plan.version, "by": holder(), **why}
        return notify.tell(self.settings, event, text, **told)

    def _audited(self, result: str, **told: Any) -> list[str]:
        terms = self.terms
        if terms.reason:
            told["why"] = terms.reason
        told |= freeze.overridden(self.proposal.closed, terms.override_freeze)
        if terms.expected:
            told["plan"] = terms.expected.id
        try:
            command = f"deploy.run --version {self.proposal.plan.version}"
            audit.record(self.settings, command, result, **told)
        except FlotillaError as error:
            return [str(error)]
        return []


def _made_current(settings: Settings, outcome: Outcome, release: Release) -> None:
    """Let hosts that start by themselves run what every host runs now."""
    if outcome.result not in {"done", "nothing to do"}:
        return
    try:
        joining.point(settings, "app", release.version, release.sha256)
    except FlotillaError as error:
        outcome.notes.append(f"new hosts will start the release of before: {error}")


def _with_probe(outcome: Outcome, seen: dict[str, Any]) -> Outcome:
    """Add the probe's view: its connections that failed are requests no load balancer counted."""
    outcome.probe = seen
    outcome.failed += sum(n for why, n in seen.get("failures", {}).items() if "status" not in why)
    return outcome
