"""Commands on what is kept about the cluster: hold the watchers back, look at what they did."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from flotilla import audit
from flotilla.errors import BadOption, FlotillaError, Refused
from flotilla.mysql import reports, store
from flotilla.mysql.recorded import Confirmed
from flotilla.mysql.session import Session, session
from flotilla.options import at_least
from flotilla.rules.mysql_flap import blocked_until
from flotilla.rules.mysql_report import Report
from flotilla.rules.mysql_state import Past, Pause, State
from flotilla.settings import Settings
from flotilla.who import holder
from flotilla.words import counted

# Nobody may forget a pause: a cluster without automatic failover for a day is an incident.
LONGEST_MINUTES = 24 * 60
# Failovers that people are shown: what a night can hold, on one screen.
TOLD = 8

Clock = Callable[[], float]


def pause(
    settings: Settings,
    reason: str,
    minutes: float,
    *,
    confirmed: Confirmed,
    clock: Clock = time.time,
) -> dict[str, Any]:
    """Keep watchers from changing anything for so long: {by, reason, until}.

    Raises BadOption without a reason or for a time that is too long, Refused without a record.
    """
    at_least("--minutes", minutes, 1)
    if not reason.strip():
        raise BadOption(
            "--reason is empty",
            "whoever finds the primary dead meanwhile reads there why nobody takes over",
            "Nothing was changed",
            "fab mysql.pause --reason 'what you are about to do'",
        )
    if minutes > LONGEST_MINUTES:
        raise BadOption(
            f"--minutes is {minutes:g}; {LONGEST_MINUTES} is the most",
            "meanwhile nobody takes over from a primary that dies",
            "Nothing was changed",
            f"fab mysql.pause --reason {shlex.quote(reason)} --minutes {LONGEST_MINUTES}",
        )
    records = store.records(settings)
    before = in_force(demanded(records.state()), clock())
    until = clock() + minutes * 60
    wanted = Pause(holder(), reason.strip(), until)
    replaced = f" (instead of {_paused(before, clock())})" if before else ""
    confirmed(
        f"{settings.prefix}: no automatic failover and no rejoin until {_time(until)}{replaced}."
        " A primary that dies stays dead until then, or until: fab mysql.failover"
    )
    records.pause(wanted)
    if demanded(records.state()).paused != wanted:
        raise FlotillaError("the pause was written and is not there", next="fab mysql.history")
    audit.record(settings, "fab mysql.pause", "done", reason=wanted.reason, minutes=minutes)
    return asdict(wanted)


def unpause(
    settings: Settings, *, confirmed: Confirmed, clock: Clock = time.time
) -> dict[str, Any]:
    """Let watchers act again: {changed, was}. What there is to do, they do at once."""
    records = store.records(settings)
    before = in_force(demanded(records.state()), clock())
    if before is None:
        return {"changed": False, "was": None}
    confirmed(
        f"{settings.prefix}: watchers act again at once, also on what they find by then;"
        f" it was {_paused(before, clock())}"
    )
    records.pause(None)
    audit.record(settings, "fab mysql.unpause", "done", was=before.reason)
    return {"changed": True, "was": asdict(before)}


def history(settings: Settings, *, clock: Clock = time.time) -> dict[str, Any]:
    """What happened: {term, paused, blocked_until, failovers, reports, notes}. Changes nothing.

    Failovers are the record's, newest first; reports are the cluster's own, by term. Without an
    answering member there are no reports, and a note says so.
    """
    state = demanded(store.records(settings).state())
    notes: list[str] = []
    found: list[Report] = []
    try:
        with session(settings, fresh=False) as opened:
            found = _reports(opened, state)
    except FlotillaError as error:
        notes.append(f"no reports could be read: {error.what}")
    paused = in_force(state, clock())
    return {
        "term": state.record.term,
        "paused": asdict(paused) if paused else None,
        "blocked_until": blocked_until(state, clock()),
        "failovers": [asdict(one) for one in reversed(state.past)],
        "reports": [one.as_dict() for one in found],
        "notes": notes,
    }


def acknowledge(settings: Settings, *, confirmed: Confirmed) -> list[Past]:
    """A human has looked: watchers may fail over again at once. Those nobody had looked at."""
    records = store.records(settings)
    unseen = [one for one in demanded(records.state()).past if not one.acknowledged]
    if not unseen:
        return []
    seen = ", ".join(f"{one.old} -> {one.new} of term {one.term}" for one in unseen)
    confirmed(f"{settings.prefix}: watchers may fail over again at once (seen: {seen})")
    fresh = records.acknowledge()
    if fresh:
        audit.record(
            settings,
            "fab mysql.history --acknowledge",
            "done",
            terms=[one.term for one in fresh],
        )
    return list(fresh)


def demanded(state: State | None) -> State:
    """The state, or Refused where there never was a record."""
    if state is None:
        raise Refused(
            "there is no record of a primary",
            untouched="Nothing was changed",
            next="fab mysql.ensure",
        )
    return state


def in_force(state: State, now: float) -> Pause | None:
    """The pause that holds at ``now``."""
    return state.paused if state.paused and now < state.paused.until else None


def told(found: dict[str, Any], now: float) -> str:
    """The history for people, newest first, TOLD of them at most."""
    lines = [f"term {found['term']}"]
    if found["paused"]:
        lines.append(f"! automatic failover is {_paused(Pause(**found['paused']), now)}")
    if found["blocked_until"]:
        lines.append(
            f"! blocked until {_time(found['blocked_until'])}: a human should look at the failover"
            " below, then: fab mysql.history --acknowledge"
        )
    reported = {one["term"]: Report.from_dict(one) for one in found["reports"]}
    for one in (Past(**each) for each in found["failovers"][:TOLD]):
        seen = "" if one.acknowledged else "  (not acknowledged)"
        lines.append(f"{_time(one.at)}  term {one.term:<4} {one.old} -> {one.new}{seen}")
        if report := reported.get(one.term):
            lines += [f"    {line}" for line in summary(report)]
    if not found["failovers"]:
        lines.append("no failover yet")
    if older := found["failovers"][TOLD:]:
        lines.append(f"and {counted(len(older), 'older one')}: fab mysql.history --json")
    return "\n".join([*lines, *(f"! {note}" for note in found["notes"])])


def summary(report: Report) -> list[str]:
    """A report in a line or two."""
    lost = "not known" if report.loss.count is None else str(report.loss.count)
    gap = report.write_gap_seconds
    seen = "" if gap is None else f"{gap:.2f} s without writes by the servers' clocks, "
    lines = [report.verdict, f"{seen}acknowledged writes lost: {lost}"]
    if report.fate:
        lines.append(report.fate)
    return lines


def the_report(found: dict[str, Any], term: int) -> Report:
    """The report of one term. Raises BadOption naming those there are."""
    reported = {one["term"]: Report.from_dict(one) for one in found["reports"]}
    if term in reported:
        return reported[term]
    known = ", ".join(map(str, sorted(reported))) or "none"
    raise BadOption(
        f"there is no report of term {term}; there are: {known}",
        untouched="Nothing was changed",
        next="fab mysql.history",
    )


def _reports(opened: Session, state: State) -> list[Report]:
    """From the recorded primary if it answers, else from whoever does."""
    seats = list(opened.cluster.seats.values())
    primary = state.record.instance_id
    errors: list[FlotillaError] = []
    for seat in sorted(seats, key=lambda seat: seat.instance_id != primary):
        try:
            return reports.read(seat.server)
        except FlotillaError as error:
            errors.append(error)
    raise Refused("; ".join(error.what for error in errors))


def _paused(found: Pause, now: float) -> str:
    left = (found.until - now) / 60
    return f"paused by {found.by} until {_time(found.until)} ({left:.0f} min more): {found.reason}"


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
