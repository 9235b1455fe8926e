"""What would be deployed, in which order, how long it takes, and every reason not to begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flotilla.aws.artifacts import Release
from flotilla.deploy import artifact, freeze
from flotilla.deploy.journal import Journal
from flotilla.deploy.limits import Limits, limits
from flotilla.deploy.plans import Saved
from flotilla.deploy.survey import Survey, look
from flotilla.deploy.world import World
from flotilla.errors import Refused
from flotilla.rules import capacity, drift, windows
from flotilla.rules import deploy as rules
from flotilla.rules.duration import RECENT, Expected, Past, expected
from flotilla.settings import Settings
from flotilla.wait import DeadlineError, until

# HAProxy here: two checks a second apart, and the same on the other load balancer.
SETTLE_SECONDS = 3.0
_UNTOUCHED = "No host was touched"


@dataclass(frozen=True, slots=True)
class Terms:
    """What an operator says besides how to roll.

    ``override_freeze`` is the reason for deploying in a freeze window; ``headroom_percent`` 0 does
    not look at the load, None is what fleet.yml says; ``expected`` is a plan that must still hold.
    """

    reason: str = ""
    override_freeze: str = ""
    headroom_percent: int | None = None
    expected: Saved | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan with what it was made of.

    ``steps``: for each batch, how many hosts serve meanwhile and how many requests they take.
    ``closed`` is the freeze window of now, None also for a release that every host has already.
    """

    plan: rules.Plan
    release: Release
    options: rules.Options
    facts: Mapping[str, Any]
    need: capacity.Need
    steps: Sequence[Mapping[str, Any]]
    expected: Expected
    closed: windows.Closed | None
    on_failure: str
    is_serving: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON types only; what ``plans.save`` keeps."""
        zones = {name: host["zone"] for name, host in self.facts["hosts"].items()}
        closed = self.closed and {
            "reason": self.closed.reason,
            "until": self.closed.until.isoformat(),
        }
        return self.plan.as_dict() | {
            "options": {
                "batches": list(self.options.batches),
                "floor_percent": self.options.floor_percent,
                "adopt": self.options.adopt,
                "outage": self.options.outage,
                "headroom_percent": self.need.headroom_percent,
            },
            "zones": {host: zones[host] for host in [*self.plan.hosts, *self.plan.skipped]},
            "capacity": self.need.as_dict() | {"steps": [dict(step) for step in self.steps]},
            "expected_seconds": round(self.expected.seconds),
            "expected_from_deploys": self.expected.deploys,
            "closed": closed,
            "facts": dict(self.facts),
        }


def propose(
    settings: Settings,
    world: World,
    zones: Mapping[str, str],
    version: str,
    options: rules.Options,
    *,
    terms: Terms = Terms(),
    now: datetime | None = None,
) -> Proposal:
    """Look, and plan.

    Raises BadOption for a version that was never released, Refused with every reason not to begin
    but a freeze window.
    """
    release = artifact.find(settings, version)
    survey = _settled(world, zones)
    need, plan, steps = _planned(settings, world, survey, version, options=options, terms=terms)
    facts = drift.facts(
        settings.prefix,
        {"version": version, "sha256": release.sha256},
        survey.hosts,
        survey.balancers,
    )
    if terms.expected:
        _demand_same(terms.expected, facts, plan)
    served = {host.version for host in survey.hosts if host.is_serving}
    if plan.hosts:
        artifact.demand_whole(settings, release)
    return Proposal(
        plan=plan,
        release=release,
        options=options,
        facts=facts,
        need=need,
        steps=steps,
        expected=duration(settings, len(plan.batches)),
        # A host that gets what all others serve already is no new release.
        closed=None if served == {version} else freeze.closed(settings, now),
        on_failure=settings.deploy.on_failure,
        is_serving=survey.is_serving,
    )


def duration(settings: Settings, batches: int) -> Expected:
    """How long so many batches will take, from the deploys run from here."""
    limit = limits(settings)
    return expected(
        _past(settings),
        batches,
        soak_seconds=limit.soak,
        trials=len(limit.trial),
        most_seconds=_most(limit),
    )


def described(proposal: Proposal) -> str:
    """The plan for people."""
    plan, hosts = proposal.plan, proposal.facts["hosts"]
    lines = [f"Deploy {plan.version}:"]
    for number, (batch, step) in enumerate(zip(plan.batches, proposal.steps, strict=True), 1):
        moves = ", ".join(
            f"{host} ({plan.previous[host] or 'empty'}, {hosts[host]['zone']})" for host in batch
        )
        room = "" if step["sessions"] is None else f" and take {step['sessions']} requests at once"
        lines.append(f"  batch {number}{' (canary)' if number == 1 else ''}: {moves}")
        lines.append(f"    meanwhile {step['serving']} hosts serve{room}")
    lines += [f"  left alone: {host}, {why}" for host, why in plan.skipped.items()]
    if not plan.batches:
        return "\n".join([*lines, "  nothing to do"])
    need = proposal.need
    if need.peak:
        lines.append(
            f"  needed are {need.sessions} requests at once, {need.headroom_percent}% of the most "
            f"in flight ({need.peak}); now {need.rate} requests/s, at most {need.most_rate}"
        )
    if proposal.closed:
        until = proposal.closed.until
        lines.append(f"  in a freeze window until {until:%a %H:%M}: {proposal.closed.reason}")
    ends = "brings every host back" if proposal.on_failure == "rollback" else "stops it there"
    return "\n".join([*lines, f"  {proposal.expected.text}; a failure {ends}"])


def _settled(world: World, zones: Mapping[str, str]) -> Survey:
    """What is there; a check that failed on one load balancer alone gets time to fail on both."""

    def agree() -> bool:
        states = [{h: s.is_serving for h, s in seen.items()} for seen in servers().values()]
        return all(one == states[0] for one in states)

    servers = world.balancers.servers
    world.balancers.demand_control()
    with suppress(DeadlineError):
        until(agree, seconds=SETTLE_SECONDS)
    return look(world, zones)


def _planned(
    settings: Settings,
    world: World,
    survey: Survey,
    version: str,
    *,
    options: rules.Options,
    terms: Terms,
) -> tuple[capacity.Need, rules.Plan, list[dict[str, Any]]]:
    if found := rules.faults(survey.hosts, survey.balancers, options):
        raise Refused(
            "; ".join(found),
            untouched=_UNTOUCHED,
            next="fab fleet.status, then deploy.run again (--adopt takes drained hosts along)",
        )
    loads, serving = world.balancers.loads(), [h.name for h in survey.hosts if h.is_serving]
    percent = terms.headroom_percent
    percent = settings.deploy.headroom_percent if percent is None else percent
    need = capacity.need(loads, serving, percent)
    plan = rules.plan(survey.hosts, version, options, need.hosts)
    if isinstance(plan, str):
        too_small = capacity.why_too_small(need, loads, serving)
        raise Refused(
            too_small or plan,
            why="clients would wait in a queue" if too_small else "nobody would be left to answer",
            untouched=_UNTOUCHED,
            next="add a host, wait for less load, or say how much is enough: fab deploy.run "
            "--headroom PERCENT"
            if too_small
            else "add a host, or accept the outage: fab deploy.run --outage",
        )
    return need, plan, capacity.at_each_step(loads, serving, plan.batches)


def _demand_same(saved: Saved, facts: Mapping[str, Any], plan: rules.Plan) -> None:
    found = drift.drift(saved.facts, facts) or drift.moved(saved.batches, plan.batches)
    if not found:
        return
    raise Refused(
        "\n  ".join([f"the plan {saved.id} no longer holds:", *found]),
        why="what was approved is not what would be done",
        untouched=_UNTOUCHED,
        next=f"fab deploy.plan --version {saved.version} --save, and read it again",
    )


def _past(settings: Settings) -> list[Past]:
    """The newest deploys that ended well and were not cut off; exchanges of hosts are no such."""
    found: list[Past] = []
    for journal in Journal.each(settings):
        lines = journal.lines()
        batches = lines[0].get("plan", {}).get("batches")
        end = lines[-1]
        if not batches or end.get("result") != "done":
            continue
        if any(line["event"] == "resumed" for line in lines):
            continue
        found.append(Past(end["seconds"], batches, end["steps"]))
        if len(found) == RECENT:
            break
    return found


def _most(limit: Limits) -> float:
    """What one batch may take: the limits of drain, start, gate and the answers between them."""
    return limit.drain + limit.boot + limit.gate + 4 * limit.answer
