"""Is this a time in which nothing new may go out? Any command that brings something new asks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flotilla.errors import Refused
from flotilla.rules import windows
from flotilla.settings import Settings


def closed(settings: Settings, now: datetime | None = None) -> windows.Closed | None:
    """The freeze window of fleet.yml that is open, if one is."""
    section = settings.deploy.windows
    freeze = [windows.Window(w.begin, w.end, w.reason, w.days) for w in section.freeze]
    return windows.closed(freeze, section.timezone, now or datetime.now(UTC))


def demand_open(settings: Settings, window: windows.Closed | None, *, again: str) -> None:
    """Raise Refused while a window is open; ``again`` is the command that may override it."""
    if window is None:
        return
    until = f"{window.until:%A %Y-%m-%d %H:%M} {settings.deploy.windows.timezone}"
    raise Refused(
        f"nothing is deployed to {settings.prefix} now: {window.reason}, until {until}",
        why="a freeze window of fleet.deploy.windows is open",
        untouched="No host was touched",
        next=f"wait, or: {again} --override-freeze REASON, which the audit line will show",
    )


def overridden(window: windows.Closed | None, reason: str) -> dict[str, Any]:
    """What the audit line says of a window that was open and overridden; nothing of any other."""
    if not (window and reason):
        return {}
    return {"freeze": {"window": window.reason, "overridden_because": reason}}
