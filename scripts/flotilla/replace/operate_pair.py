"""An exchange of the load balancers as an operator starts it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from flotilla.aws import images as image_edge
from flotilla.deploy import connect
from flotilla.deploy.attend import INTERRUPTION, interruption, watched
from flotilla.errors import Refused
from flotilla.images import Image
from flotilla.lock import Lock, demand_free
from flotilla.replace import policy, template
from flotilla.replace.options import COMMAND, ON_REQUEST, Options, chosen
from flotilla.replace.outcome import Interrupted, Outcome
from flotilla.replace.pair import ROLE, Pair
from flotilla.replace.pair_run import PairExchange
from flotilla.replace.record import begin, demand_unfinished, unfinished
from flotilla.replace.step import Said
from flotilla.rules import replace_pair as rules
from flotilla.rules.replace import Past, Plan
from flotilla.rules.replace_pair import PAIR, Balancer
from flotilla.settings import Settings

LOCK = "deploy"


def described(plan: Plan) -> str:
    """The plan for people."""
    lines = [f"Replace the load balancers by hosts of {plan.image_name} ({plan.image_id}):"]
    if plan.continues:
        lines[0] = f"Go on with {plan.continues}: {lines[0]}"
    lines += [f"  {name}" for name in plan.old]
    lines += [f"  left alone: {name}, it is of that image" for name in plan.kept]
    return "\n".join(
        [
            *lines,
            "  the one without the Elastic IP first; then the address moves, once, and cuts open",
            "  connections; a third one runs meanwhile, so that there is always one to take over",
            f"  a failure brings {plan.previous_image} back",
            *(f"  note: {note}" for note in plan.notes),
        ]
    )


def exchange(
    settings: Settings,
    options: Options,
    *,
    confirmed: Callable[[Plan], None],
    said: Callable[[Said], None],
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Replace both load balancers; ``outage_seconds`` is what our client saw of the move.

    ``confirmed`` is given the plan and raises to stop; ``say`` gets the playbook's news. Raises
    Refused or BadOption with nothing changed, Interrupted when the operator stopped it and the old
    image serves.
    """
    if not options.take_over:
        demand_free(settings, LOCK)
    pair = Pair(settings, say=say)
    plan, image, past = _plan(settings, pair, options)
    if not (plan.old or past):
        return Outcome("", ROLE, plan.image_name, "nothing to do", 0.0)
    policy.demand_open(settings, plan, options)
    confirmed(plan)
    why = f"{COMMAND} {plan.image_id}" + (f": {options.reason}" if options.reason else "")
    lock = Lock(settings, LOCK, reason=why, take_over=options.take_over)
    with lock, interruption() as stopping:
        again, image, past = _plan(settings, pair, options)
        policy.demand_open(settings, again, options)
        if again != plan:
            confirmed(again)

        def act() -> Outcome:
            template.version(settings, image)
            run = PairExchange(
                pair,
                again,
                settings.zones,
                begin(settings, again),
                idle_seconds=float(settings.deploy.drain_seconds),
                said=said,
                guard=lock.check,
                stopping=stopping,
                going_back=ON_REQUEST if options.back else past.going_back if past else "",
            )
            return _carried_out(settings, again, image, run)

        outcome = policy.attended(settings, again, options, act)
    if outcome.result == "rolled back" and outcome.reason == INTERRUPTION:
        raise Interrupted(f"{INTERRUPTION}; {outcome.line}", next=f"{COMMAND} --role {ROLE}")
    return outcome


def _carried_out(settings: Settings, plan: Plan, image: Image, run: PairExchange) -> Outcome:
    began = time.monotonic()
    with watched(settings, enabled=True) as seen:
        result, left = run.run()
    if run.blames_image:
        image_edge.tag(settings, image, Status="failed")
    outcome = Outcome(
        id=run.journal.id,
        role=ROLE,
        image=plan.image_name,
        result=result,
        seconds=round(time.monotonic() - began, 2),
        desired=PAIR,
        least_serving=run.fewest,
        served=int(seen.get("served", 0)),
        failed=int(seen.get("failed", 0)),
        retried=int(seen.get("retried", 0)),
        outage_seconds=seen.get("gap_seconds"),
        launched=list(run.launched),
        ended=list(run.ended),
        reason=run.reason,
        left=left,
        probe=seen,
    )
    if result != "stopped":
        run.journal.write("end", **outcome.as_dict())
    return outcome


def _plan(settings: Settings, pair: Pair, options: Options) -> tuple[Plan, Image, Past | None]:
    past = unfinished(settings, ROLE)
    demand_unfinished(past, options)
    image = chosen(settings, ROLE, options, past)
    if not past:
        # One that a run which was cut off has launched may answer to nobody yet.
        _demand_control(settings)
    hosts = pair.look()
    if not past and (found := rules.faults(hosts)):
        raise Refused(
            "; ".join(found),
            why="while one is exchanged the other one must be able to serve alone",
            untouched="Nothing was changed",
            next="fab fleet.status, then fab fleet.configure --limit lb",
        )
    plan = _planned(settings, hosts, image)
    if past:
        plan = replace(
            plan,
            previous_image=past.previous_image,
            previous_version=past.previous_version,
            continues=past.id,
        )
    return plan, image, past


def _planned(settings: Settings, hosts: list[Balancer], image: Image) -> Plan:
    old = sorted(
        (h for h in hosts if h.image_id != image.image_id), key=lambda h: (h.owner, h.name)
    )
    # The holder's: that one is serving now.
    previous = old[-1].image_id if old else ""
    version = template.version_of(settings, ROLE, previous) if previous else ""
    if previous and not version:
        raise Refused(
            f"no version of the launch template starts load balancers of {previous}",
            why="there would be no way back",
            untouched="Nothing was changed",
            next="fab images.list",
        )
    dirty = f"{image.name} was baked from sources with uncommitted changes"
    return Plan(
        role=ROLE,
        image_id=image.image_id,
        image_name=image.name,
        previous_image=previous,
        previous_version=version,
        desired=PAIR,
        most=1,
        old=tuple(f"{h.name}{' (has the address)' if h.owner else ''}" for h in old),
        kept=tuple(sorted(h.name for h in hosts if h not in old)),
        notes=(dirty,) if image.git_dirty else (),
    )


def _demand_control(settings: Settings) -> None:
    """Also of application servers somebody took out: a new load balancer does not know of that."""
    with connect(settings) as (world, _):
        world.balancers.demand_control()
        taken = {
            server.name
            for servers in world.balancers.servers().values()
            for server in servers.values()
            if server.is_out
        }
    if taken:
        raise Refused(
            f"{', '.join(sorted(taken))} was taken out of rotation",
            why="a new load balancer would not know of it and send requests there",
            untouched="Nothing was changed",
            next="fab deploy.run --adopt, which brings it back",
        )
