"""May a deploy begin now? Freeze windows, weekly or dated, in a time zone of their own.

Invariant: a moment is inside a window exactly when it is not before its beginning and before its
end, both as clocks on the wall of that zone show them. Where summer time makes an hour happen twice
or not at all, the window is the longer one of the two that it could mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MIDNIGHT = "24:00"
# Windows that touch each other are followed to the end of the last one, for at most this long.
_FAR = timedelta(days=400)


@dataclass(frozen=True, slots=True)
class Window:
    """Times as in fleet.yml: "16:00" with days, "2026-12-24 12:00" without."""

    begin: str
    end: str
    reason: str
    days: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Closed:
    """Why nothing may begin now, and the first moment at which it may, in the windows' zone."""

    reason: str
    until: datetime


def closed(windows: Sequence[Window], zone: str, now: datetime) -> Closed | None:
    """The window that ``now`` (aware, of any zone) is in; None when a deploy may begin.

    Windows that overlap or touch are one: ``until`` is the end of the last of them.
    """
    place = ZoneInfo(zone)
    found = _around(windows, place, now)
    if found is None:
        return None
    reason, until = found
    while (further := _around(windows, place, until)) and until < now + _FAR:
        until = further[1]
    return Closed(reason, until.astimezone(place))


def _around(
    windows: Iterable[Window], zone: ZoneInfo, now: datetime
) -> tuple[str, datetime] | None:
    """The window around ``now`` that ends last."""
    around = [
        (end, window.reason)
        for window in windows
        for begin, end in _spans(window, zone, now)
        if begin <= now < end
    ]
    if not around:
        return None
    end, reason = max(around)
    return reason, end


def _spans(window: Window, zone: ZoneInfo, now: datetime) -> Iterator[tuple[datetime, datetime]]:
    """What could be around ``now``: for a weekly window, today's and yesterday's."""
    if not window.days:
        yield _dated(window.begin, zone)[0], _dated(window.end, zone)[1]
        return
    today = now.astimezone(zone).date()
    for day in (today - timedelta(days=1), today):
        if DAYS[day.weekday()] in window.days:
            past = window.end <= window.begin
            last = day + timedelta(days=1) if past else day
            yield _at(day, window.begin, zone)[0], _at(last, window.end, zone)[1]


def _dated(text: str, zone: ZoneInfo) -> tuple[datetime, datetime]:
    day, _, clock = text.partition(" ")
    return _at(date.fromisoformat(day), clock, zone)


def _at(day: date, clock: str, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The first and the last moment, in UTC, that a clock on the wall may mean by this."""
    if clock == _MIDNIGHT:
        day, clock = day + timedelta(days=1), "00:00"
    wall = datetime.combine(day, time.fromisoformat(clock), zone)
    both = [wall.replace(fold=fold).astimezone(UTC) for fold in (0, 1)]
    return min(both), max(both)
