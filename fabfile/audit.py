"""Who changed what: the lines that every changing command leaves behind."""

from __future__ import annotations

import json as jsonlib
from typing import Any

from invoke.context import Context
from invoke.tasks import task

from fabfile._operator import JSON, attempt, said, show


@task(name="list", help={"last": "how many lines (default 20)", **JSON})
def list_(_: Context, last: int = 20, json: bool = False) -> None:
    """Show what was done from this machine, oldest first."""
    from flotilla import audit, config
    from flotilla.options import at_least

    def act() -> list[bytes]:
        at_least("--last", last, 1)
        return audit.lines(config.load())

    found = attempt(act, json=json)[-last:]
    read = [_entry(line) for line in found]
    entries = [entry for entry in read if entry]
    if len(entries) < len(read):
        said(f"{len(read) - len(entries)} lines cannot be read. Next: fab audit.verify")
    text = "\n".join(map(_told, entries))
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


def _told(one: dict[str, Any]) -> str:
    """A line for people: who did what, how it ended, and why or on what if that was said."""
    said_too = [
        f"{name} {one[name]}" for name in ("on", "ran", "why", "reason", "error") if one.get(name)
    ]
    command = str(one["command"])
    command = command if command.startswith("fab ") else f"fab {command}"
    rest = f" ({'; '.join(said_too)})" if said_too else ""
    return f"{str(one['at'])[:19]} {one['by']!s:32} {command}: {one['result']}{rest}"


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line of the file; None for one that was cut off or is not ours."""
    try:
        entry = jsonlib.loads(line)
        return entry if {"at", "by", "command", "result"} <= entry.keys() else None
    except (ValueError, AttributeError):
        return None
