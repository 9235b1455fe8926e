"""A deploy as an operator starts it: look, plan, ask, lock, watch as a client, act, tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flotilla import audit
from flotilla.aws import joining
from flotilla.aws.artifacts import Release
from flotilla.deploy.attend import INTERRUPTION, interruption, watched
from flotilla.deploy.journal import Journal
from flotilla.deploy.limits import conduct, limits
from flotilla.deploy.roll import Roll, Step
from flotilla.deploy.run import Outcome, run
from flotilla.deploy.survey import connect, look, prepare
from flotilla.errors import INTERRUPTED, FlotillaError
from flotilla.lock import Lock, holder
from flotilla.rules.deploy import Options, Plan
from flotilla.settings import Settings

# Seconds one host takes besides its own start: drain, three idle reads, switch, two checks at each
# load balancer, return. Measured in the lab; requests that last longer add to it.
HOST_SECONDS = 6.0


class Interrupted(FlotillaError):  # noqa: N818  it says what happened, as its siblings do
    """The operator stopped the deploy, and every host runs what it ran before: exit 99."""

    exit_code = INTERRUPTED


def planned(settings: Settings, version: str, options: Options) -> Plan:
    """The plan as things are now. Raises what ``prepare`` raises."""
    with connect(settings) as (world, zones):
        return prepare(settings, look(world, zones), version, options)[0]


def described(plan: Plan, boot_seconds: float = 0) -> str:
    """The plan for people."""
    lines = [f"Deploy {plan.version}:"]
    for number, batch in enumerate(plan.batches, 1):
        moves = ", ".join(f"{host} ({plan.previous[host] or 'empty'})" for host in batch)
        lines.append(f"  batch {number}{' (canary)' if number == 1 else ''}: {moves}")
    lines += [f"  left alone: {host}, {why}" for host, why in plan.skipped.items()]
    if not plan.batches:
        lines.append("  nothing to do")
    else:
        seconds = len(plan.batches) * (HOST_SECONDS + boot_seconds)
        lines.append(f"  about {seconds:.0f} s; a failure brings every host back")
    return "\n".join(lines)


def deploy(
    settings: Settings,
    version: str,
    options: Options,
    *,
    confirmed: Callable[[Plan], None],
    said: Callable[[Step], None],
    take_over: bool = False,
) -> Outcome:
    """Deploy; the outcome says what clients saw, a probe of our own among them.

    ``confirmed`` is given the plan and raises to stop. Raises Refused or BadOption with nothing
    changed, HostFailed when staging or the migration failed, Interrupted when the operator stopped
    it and all is as before; ``raise_failure`` tells the rest.
    """
    with connect(settings) as (world, zones):
        plan, _ = prepare(settings, look(world, zones), version, options)
        confirmed(plan)
        with (
            Lock(settings, "deploy", reason=f"deploy {version}", take_over=take_over) as lock,
            interruption() as stopping,
        ):
            # Somebody may have deployed while the operator was reading the plan.
            survey = look(world, zones)
            again, release = prepare(settings, survey, version, options)
            if again != plan:
                confirmed(again)
            journal = Journal.begin(settings, version)
            journal.write("begin", version=version, by=holder(), plan=again.as_dict())
            with watched(settings, enabled=bool(again.hosts) and survey.is_serving) as seen:
                outcome = run(
                    world,
                    again,
                    release,
                    journal,
                    roll=lambda note: Roll(world, limits(settings), said=note, guard=lock.check),
                    said=said,
                    stopping=stopping,
                    conduct=conduct(settings),
                )
            _made_current(settings, outcome, release)
    _recorded(settings, _with_probe(outcome, seen))
    if outcome.result == "rolled back" and outcome.reason == INTERRUPTION:
        raise Interrupted(
            f"{INTERRUPTION}; {outcome.line}",
            untouched="Every host runs again what it ran before",
            next=f"fab deploy.run --version {version}",
        )
    return outcome


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


def _recorded(settings: Settings, outcome: Outcome) -> None:
    """Keep the audit line; that it could not be kept does not change how the deploy ended."""
    told = {
        name: getattr(outcome, name) for name in ("id", "served", "failed", "seconds", "reason")
    }
    try:
        audit.record(settings, f"deploy.run --version {outcome.version}", outcome.result, **told)
    except FlotillaError as error:
        outcome.notes.append(str(error))
