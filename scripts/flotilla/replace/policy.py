"""What stands around an exchange of hosts: freeze windows, the hooks of fleet.yml, who is told.

A run that goes back, or goes on with one that was cut off, is kept from nothing: hosts of two
images in service are worse than a change in a freeze window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flotilla.deploy import freeze, notify
from flotilla.deploy.hooks import Hooks
from flotilla.errors import FlotillaError
from flotilla.lock import holder
from flotilla.replace.options import COMMAND, Options
from flotilla.replace.outcome import Outcome
from flotilla.replace.record import recorded
from flotilla.rules.replace import Plan
from flotilla.settings import Settings


def demand_open(settings: Settings, plan: Plan, options: Options) -> None:
    """Raise Refused while a freeze window is open and nobody overrides it with a reason."""
    if _is_new(plan, options) and not options.override_freeze:
        again = f"{COMMAND} --role {plan.role}"
        freeze.demand_open(settings, freeze.closed(settings), again=again)


def attended(
    settings: Settings, plan: Plan, options: Options, act: Callable[[], Outcome]
) -> Outcome:
    """Do it; hooks, receivers and the audit hear of it however it ends.

    The hooks see ``FLOTILLA_VERSION`` as the image's name and ``FLOTILLA_DEPLOY_ID`` as its id.
    Raises Refused when a hook forbids it, and whatever ``act`` raises.
    """
    overridden = freeze.overridden(freeze.closed(settings), options.override_freeze)
    hooks = Hooks(settings, plan.image_id, plan.image_name)
    if _is_new(plan, options):
        hooks.before()
    what = f"exchange of {plan.role} hosts by {plan.image_name}"
    why: dict[str, Any] = {"why": options.reason} if options.reason else {}
    fields: dict[str, Any] = {"image": plan.image_id, "role": plan.role, "by": holder(), **why}
    notes = notify.tell(settings, "began", f"{what} by {holder()}", **fields)

    def ended(result: str, text: str) -> list[str]:
        hooks.after(result)
        line = f"{what} {result}: {text}"
        told = notify.tell(settings, "ended", line, result=result, **fields)
        return [*notes, *hooks.notes, *told]

    try:
        outcome = act()
    except (FlotillaError, KeyboardInterrupt) as error:
        text = error.what if isinstance(error, FlotillaError) else "cut off by the operator"
        left = ended("failed", text)
        if isinstance(error, FlotillaError) and left:
            error.untouched = ". ".join([error.untouched, *left] if error.untouched else left)
        raise
    outcome.notes += ended(outcome.result, outcome.line)
    recorded(settings, outcome, **why, **overridden)
    return outcome


def _is_new(plan: Plan, options: Options) -> bool:
    return not (options.back or plan.continues)
