"""Who changed what: the lines that every changing command leaves behind."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from fabfile._operator import JSON, attempt, show


@task(name="list", help={"last": "how many lines (default 20)", **JSON})
def list_(_: Context, last: int = 20, json: bool = False) -> None:
    """Show what was done from this machine, oldest first."""
    import json as jsonlib

    from flotilla import audit, config

    found = attempt(lambda: audit.lines(config.load()), json=json)[-last:]
    entries = [jsonlib.loads(line) for line in found if line.endswith(b"}")]
    text = "\n".join(
        f"{one['at'][:19]} {one['by']:32} {one['command']}: {one['result']}" for one in entries
    )
    show(entries, json=json, text=text or "nothing was recorded yet")


@task(help=JSON)
def verify(_: Context, json: bool = False) -> None:
    """Check that nobody changed, dropped or added a line of var/<env>/audit.jsonl afterwards.

    Its copy in the audit bucket is compared as well. Exit 0 the file is whole and the copy the
    same, 1 it is not, 4 the API does not answer.
    """
    from flotilla import audit, config
    from flotilla.errors import FlotillaError

    settings = attempt(config.load, json=json)

    def act() -> int:
        faults = audit.faults(settings) + audit.differences(settings)
        if faults:
            raise FlotillaError(
                "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if faults[3:] else ""),
                why="each line carries the hash of the one before it",
                next=f"aws s3 ls --recursive s3://{settings.name_of('audit')}/",
            )
        return len(audit.lines(settings))

    count = attempt(act, json=json)
    show({"lines": count, "whole": True}, json=json, text=f"{count} lines, all in their place")
