"""Commands on the MySQL cluster, each plan, confirm, act, verify, record: look, mend, move."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from typing import Any

from flotilla.errors import BadOption, FlotillaError, Refused
from flotilla.mysql import status as board
from flotilla.mysql import store
from flotilla.mysql.ensure import Ensure
from flotilla.mysql.ledger import Ledger
from flotilla.mysql.recorded import Confirmed, Said, recorded
from flotilla.mysql.session import Session, session
from flotilla.mysql.switchover import Move, Moved
from flotilla.options import within
from flotilla.rules.mysql import Repair, Switchover
from flotilla.settings import Settings

# What the ledger writes before and after a switch, to know how fast writes are without one.
CALM_SECONDS = 1.0


def status(settings: Settings) -> dict[str, Any]:
    """The cluster as ``flotilla.mysql.status.status`` describes it. Changes nothing."""
    with session(settings, fresh=False) as opened:
        stopped = opened.snapshot.stopped("mysql")
        return board.status(opened.cluster, store.records(settings), stopped=stopped)


def ensure(settings: Settings, *, confirmed: Confirmed, said: Said) -> dict[str, Any]:
    """Make the cluster whole: {changed, term, primary, steps, notes}.

    ``confirmed`` is given the plan and raises Refused to stop; it is not asked when there is
    nothing to do. Raises Refused where the cluster is not clear, HostFailed when a step failed.
    """
    with session(settings, fresh=True) as opened:
        run = Ensure(settings, opened.cluster)
        plan = run.plan()
        if not plan.steps:
            return _ensured(plan, changed=False)
        confirmed(_plan_text(settings, plan))
        with recorded(settings, "fab mysql.ensure", said, len(plan.steps)) as steps:
            outcome = run.apply(steps.step)
            steps.result = {"term": outcome.term, "primary": outcome.primary}
        return _ensured(plan, changed=True) | {"notes": list(outcome.notes)}


# What clients saw of a switchover that none measured.
_UNSEEN: Mapping[str, Any] = dict.fromkeys(
    ("ledger_host", "write_gap_seconds", "acked", "failed", "unknown", "lost")
)
# More would measure the host they run on.
MOST_WRITERS = 64


def switchover(
    settings: Settings,
    to: str | None = None,
    *,
    writers: int,
    confirmed: Confirmed,
    said: Said,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Move the primary's role while ``writers`` clients write through an application host.

    {changed, term, old, new, paused_seconds, seconds: {step: s}, ledger_host, write_gap_seconds,
    acked, failed, unknown, lost}; what the writers saw is None without writers. Raises Refused when
    it was not begun or was called off, HostFailed when it must be finished (``fab mysql.ensure``).
    """
    within("--writers", writers, 0, MOST_WRITERS)
    with ExitStack() as stack:
        opened = stack.enter_context(session(settings, fresh=True))
        demand_member(opened, to)
        term = _primary_already(settings, opened, to)
        if to and term is not None:
            return _stayed(to, term)
        move = Move(settings, opened.cluster, announcer=opened.announcer())
        plan = move.plan(to)
        confirmed(_move_text(settings, plan, writers))
        steps = stack.enter_context(recorded(settings, "fab mysql.switchover", said))
        ledger = stack.enter_context(opened.ledger(writers=writers)) if writers else None
        if ledger:
            sleep(CALM_SECONDS)
        try:
            moved = move.apply(plan, steps.step)
        except Refused:
            # The old primary takes writes as before, and our writers' rows are in it.
            if ledger:
                with suppress(FlotillaError):
                    ledger.close_against(opened.cluster.server(plan.old.name))
            raise
        if ledger:
            sleep(CALM_SECONDS)
        steps.result = _moved(moved, ledger, opened)
        return steps.result


def _primary_already(settings: Settings, opened: Session, name: str | None) -> int | None:
    """The term in which that member is primary now; None when it is not."""
    state = store.records(settings).state()
    if name is None or state is None:
        return None
    is_primary = opened.cluster.seats[name].instance_id == state.record.instance_id
    return state.record.term if is_primary else None


def _stayed(primary: str, term: int) -> dict[str, Any]:
    """The outcome of a switchover to who is primary already."""
    same = {"term": term, "old": primary, "new": primary}
    return {**same, "changed": False, "paused_seconds": 0.0, "seconds": {}, **_UNSEEN}


def demand_member(opened: Session, name: str | None) -> None:
    """Raise BadOption for a name that no MySQL host has."""
    if name is not None and name not in opened.cluster.seats:
        raise BadOption(
            f"there is no MySQL host {name!r}; there are {', '.join(opened.cluster.seats)}",
            untouched="Nothing was changed",
            next="fab mysql.status",
        )


def _ensured(plan: Repair, *, changed: bool) -> dict[str, Any]:
    return {
        "changed": changed,
        "term": plan.term,
        "primary": plan.primary.name,
        "steps": [asdict(step) for step in plan.steps],
        "notes": list(plan.notes),
    }


def _moved(moved: Moved, ledger: Ledger | None, opened: Session) -> dict[str, Any]:
    seen = _UNSEEN
    if ledger:
        summary = ledger.close_against(opened.cluster.server(moved.new))
        seen = {
            "ledger_host": ledger.host,
            "write_gap_seconds": round(summary.write_gap_seconds, 3),
            "acked": summary.acked,
            "failed": summary.failed,
            "unknown": summary.unknown,
            "lost": len(summary.lost),
        }
    return {
        "changed": True,
        "term": moved.term,
        "old": moved.old,
        "new": moved.new,
        "paused_seconds": round(moved.paused_seconds, 3),
        "seconds": dict(moved.seconds),
        **seen,
    }


def _plan_text(settings: Settings, plan: Repair) -> str:
    lines = [f"  {step.verb} {step.member}: {step.why}" for step in plan.steps]
    head = f"{settings.prefix}: {plan.primary.name} is primary of term {plan.term}"
    return "\n".join([head, *lines, *(f"  note: {note}" for note in plan.notes)])


def _move_text(settings: Settings, plan: Switchover, writers: int) -> str:
    follow = ", ".join([plan.old.name, *(member.name for member in plan.followers)])
    seen = f"{writers} writers on an application host measure it" if writers else "not measured"
    return (
        f"{settings.prefix}: term {plan.term} goes from {plan.old.name} to {plan.new.name};"
        f" {follow} follow. Writes pause for less than a second ({seen})."
    )
