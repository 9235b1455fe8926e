"""An exchange of hosts as an operator starts it: look, plan, ask, lock, watch as a client, act."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from flotilla.aws import images as image_edge
from flotilla.aws import joining, scaling
from flotilla.deploy import connect
from flotilla.deploy.attend import INTERRUPTION, interruption, watched
from flotilla.deploy.journal import Journal
from flotilla.deploy.limits import limits
from flotilla.deploy.world import Balancers
from flotilla.errors import Refused
from flotilla.images import Image
from flotilla.lock import Lock, demand_free
from flotilla.replace import policy, template
from flotilla.replace.options import COMMAND, ON_REQUEST, Options, chosen
from flotilla.replace.outcome import Interrupted, Outcome
from flotilla.replace.record import begin, demand_unfinished, unfinished
from flotilla.replace.run import Exchange, Limits, outcome_of
from flotilla.replace.step import Said
from flotilla.replace.tier import Scaled, counted
from flotilla.rules import replace as rules
from flotilla.rules.deploy import batch_sizes
from flotilla.rules.replace import Host, Past, Plan
from flotilla.rules.rotation import Counters
from flotilla.settings import Settings

# The same lock as a deploy's, configure's and provision's.
LOCK = "deploy"
ROLE = "app"


def described(plan: Plan) -> str:
    """The plan for people."""
    lines = [f"Replace {plan.role} hosts by hosts of {plan.image_name} ({plan.image_id}):"]
    if plan.continues:
        lines[0] = f"Go on with {plan.continues}: {lines[0]}"
    lines += [f"  {name}" for name in plan.old]
    lines += [f"  left alone: {name}, it is of that image" for name in plan.kept]
    lines += [
        f"  one new host first, then {plan.most} at a time; {plan.desired} serve throughout",
        f"  a failure brings {plan.previous_image} back (template version {plan.previous_version})",
        *(f"  note: {note}" for note in plan.notes),
    ]
    return "\n".join(lines)


def exchange(
    settings: Settings,
    options: Options,
    *,
    confirmed: Callable[[Plan], None],
    said: Callable[[Said], None],
) -> Outcome:
    """Replace the application hosts; the outcome says what clients saw.

    ``confirmed`` is given the plan and raises to stop. Raises Refused or BadOption with nothing
    changed, Interrupted when the operator stopped it and the hosts of before serve.
    """
    if not options.take_over:
        demand_free(settings, LOCK)
    with connect(settings) as (world, _):
        agreed = _plan(settings, world.balancers, options)
        plan = agreed.plan
        if not (plan.old or agreed.past):
            return Outcome("", plan.role, plan.image_name, "nothing to do", 0.0)
        policy.demand_open(settings, plan, options)
        confirmed(plan)
        why = f"{COMMAND} {plan.image_id}" + (f": {options.reason}" if options.reason else "")
        lock = Lock(settings, LOCK, reason=why, take_over=options.take_over)
        with lock, interruption() as stopping:
            # Somebody may have changed something while the operator was reading the plan.
            agreed = _plan(settings, world.balancers, options)
            policy.demand_open(settings, agreed.plan, options)
            if agreed.plan != plan:
                confirmed(agreed.plan)

            def made(tier: Scaled, journal: Journal, version: str) -> Exchange:
                return Exchange(
                    tier,
                    agreed.plan,
                    version,
                    journal,
                    Limits(come=options.come_seconds or float(settings.deploy.progress_seconds)),
                    said=said,
                    guard=lock.check,
                    stopping=stopping,
                    proven=agreed.past.proven if agreed.past else (),
                    going_back=ON_REQUEST if options.back else agreed.why_back,
                )

            ours = world.guarded(lock.check).balancers
            outcome = policy.attended(
                settings,
                agreed.plan,
                options,
                lambda: _carry_out(settings, agreed, ours, made),
            )
    if outcome.result == "rolled back" and outcome.reason == INTERRUPTION:
        raise Interrupted(
            f"{INTERRUPTION}; {outcome.line}",
            untouched="Hosts of the image of before serve, as many as are desired",
            next=COMMAND,
        )
    return outcome


@dataclass(frozen=True, slots=True)
class _Agreed:
    """What is to be done; ``past`` is the run that it goes on with."""

    plan: Plan
    image: Image
    past: Past | None

    @property
    def why_back(self) -> str:
        """Why the image of before is wanted from the beginning; "" when it is not."""
        return self.past.going_back if self.past else ""


def _carry_out(
    settings: Settings,
    agreed: _Agreed,
    balancers: Balancers,
    make: Callable[[Scaled, Journal, str], Exchange],
) -> Outcome:
    """One exchange under the lock, from its first line in the journal to the last."""
    plan, past = agreed.plan, agreed.past
    group = scaling.group(settings, plan.role)
    largest, resting = past.largest if past else group.largest, _resting(past, group)
    version = template.version(settings, agreed.image)
    journal = begin(settings, plan, largest=largest, resting=resting)
    run = make(Scaled(settings, plan.role, balancers, limits(settings)), journal, version)
    before, began = balancers.counters(), time.monotonic()
    with (
        _at_rest(settings, plan.role, resting),
        watched(settings, enabled=True) as seen,
        counted(balancers) as fewest,
    ):
        ended = run.run()
    if ended[0] != "stopped":
        scaling.resize(settings, plan.role, desired=plan.desired, largest=largest)
    if run.blames_image:
        image_edge.tag(settings, agreed.image, Status="failed")
    outcome = outcome_of(run, journal, plan, ended, time.monotonic() - began)
    outcome.least_serving = fewest.count
    if fewest.count is not None and fewest.count < plan.desired:
        outcome.notes.append(
            f"for a time only {fewest.count} of {plan.desired} hosts served: one was lost meanwhile"
        )
    _count(outcome, before, balancers.counters(), seen)
    # Without this line the next run goes on with this one.
    if ended[0] != "stopped":
        journal.write("end", **outcome.as_dict())
    return outcome


def _plan(settings: Settings, balancers: Balancers, options: Options) -> _Agreed:
    balancers.demand_control()
    past = unfinished(settings, ROLE)
    demand_unfinished(past, options)
    image = chosen(settings, ROLE, options, past)
    group = scaling.group(settings, ROLE)
    hosts, _ = Scaled(settings, ROLE, balancers, limits(settings)).look()
    desired = past.desired if past else group.desired
    found = [] if past else rules.faults(hosts, balancers.servers(), desired)
    if joining.read(settings, ROLE, joining.BUNDLE) is None:
        found.append("nothing is published that a new host could configure itself with")
    if found:
        raise Refused(
            "; ".join(found),
            untouched="Nothing was changed",
            next="fab fleet.status, then fab fleet.configure",
        )
    plan = _planned(settings, hosts, image, desired)
    if past:
        plan = replace(
            plan,
            previous_image=past.previous_image,
            previous_version=past.previous_version,
            continues=past.id,
        )
    return _Agreed(plan, image, past)


def _planned(settings: Settings, hosts: list[Host], image: Image, desired: int) -> Plan:
    old = sorted(h.name for h in hosts if h.image_id != image.image_id)
    previous = rules.previous(hosts, image.image_id)
    version = template.version_of(settings, ROLE, previous) if previous else ""
    if previous and not version:
        raise Refused(
            f"no version of the launch template starts hosts of {previous}",
            why="there would be no way back",
            untouched="Nothing was changed",
            next="fab images.list",
        )
    sizes = islice(batch_sizes(settings.deploy.batches, desired), 1, 2)
    dirty = f"{image.name} was baked from sources with uncommitted changes"
    return Plan(
        role=ROLE,
        image_id=image.image_id,
        image_name=image.name,
        previous_image=previous,
        previous_version=version,
        desired=desired,
        most=next(sizes),
        old=tuple(old),
        kept=tuple(sorted(h.name for h in hosts if h.name not in old)),
        notes=(dirty,) if image.git_dirty else (),
    )


def _resting(past: Past | None, group: scaling.Group) -> frozenset[str]:
    """Processes that rest because of us; what an operator suspended before stays suspended."""
    ours = frozenset(scaling.DISTURBING) - group.suspended
    return ours | past.resting if past else ours


@contextmanager
def _at_rest(settings: Settings, role: str, processes: frozenset[str]) -> Iterator[None]:
    scaling.suspend(settings, role, processes)
    try:
        yield
    finally:
        scaling.resume(settings, role, processes)


def _count(
    outcome: Outcome,
    before: dict[str, Counters],
    after: dict[str, Counters],
    seen: dict[str, Any],
) -> None:
    """What clients saw: the load balancers' counts, and our own client's broken connections."""
    total = Counters()
    for balancer, counters in after.items():
        total = total.plus(counters.since(before.get(balancer, Counters())))
    outcome.served = total.requests - total.failed
    outcome.failed = total.failed
    outcome.failed += sum(n for why, n in seen.get("failures", {}).items() if "status" not in why)
    outcome.retried, outcome.redispatched = total.retried, total.redispatched
    outcome.outage_seconds = seen.get("gap_seconds")
    outcome.probe = seen
