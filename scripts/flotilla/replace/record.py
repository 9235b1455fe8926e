"""What is kept of an exchange: its journal, from which a run that was cut off is gone on with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flotilla import audit
from flotilla.deploy.journal import Journal, read
from flotilla.errors import BadOption, FlotillaError
from flotilla.lock import holder
from flotilla.replace.options import COMMAND, Options
from flotilla.replace.outcome import Outcome
from flotilla.rules import replace as rules
from flotilla.rules.replace import Past, Plan
from flotilla.settings import Settings

FOLDER = "replacements"


def unfinished(settings: Settings, role: str) -> Past | None:
    """The newest run for ``role`` on this machine, if it did not end."""
    paths = sorted((settings.scratch / FOLDER).glob(f"*-{role}-*.jsonl"))
    return rules.past(paths[-1].stem, read(paths[-1])) if paths else None


def demand_unfinished(past: Past | None, options: Options) -> None:
    """Raise BadOption for ``--back`` with nothing in the middle of which one could turn."""
    if options.back and not past:
        raise BadOption(
            "there is no run to bring back: every one from this machine ended",
            untouched="Nothing was changed",
            next=f"{COMMAND} --image with the id of the image of before; fab images.list",
        )


def begin(
    settings: Settings, plan: Plan, *, largest: int = 0, resting: frozenset[str] = frozenset()
) -> Journal:
    """A new journal, or that of the run the plan continues. Raises FlotillaError."""

    def now() -> datetime:
        return datetime.now(UTC)

    name = plan.continues or f"{now():%Y%m%dT%H%M%S}-{plan.role}-{plan.image_id}"
    path = settings.scratch / FOLDER / f"{name}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlotillaError(
            f"the journal {path} cannot be written ({error.strerror})",
            why="a run that is cut off is continued from its journal",
            untouched="Nothing was changed",
            next=f"df -h {settings.scratch}",
        ) from error
    journal = Journal(path, now)
    event = "resumed" if plan.continues else "begin"
    fields = {"plan": plan.as_dict(), "largest": largest, "resting": sorted(resting)}
    journal.write(event, by=holder(), **fields)
    return journal


def recorded(settings: Settings, outcome: Outcome, **more: Any) -> None:
    """Keep the audit line, with ``more``; that it could not be kept changes nothing else."""
    names = ("id", "image", "served", "failed", "seconds", "reason", "least_serving")
    told = {name: getattr(outcome, name) for name in names} | more
    try:
        audit.record(settings, f"{COMMAND} --role {outcome.role}", outcome.result, **told)
    except FlotillaError as error:
        outcome.notes.append(str(error))
