"""What a server refused since it was looked at last, from counters that only say how often in all.

Invariant: over any number of looks, every refusal is told once, unless it and a restart of the
server, which sets the counters back, fall between two looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, order=True)
class Refused:
    """Who was refused, and by which of MySQL's errors; no account where the server kept none."""

    number: int
    account: str = ""
    address: str = ""


Counts = Mapping[Refused, int]
# MySQL's own numbers.
WHY = {1045: "access denied", 3159: "connection without TLS"}


@dataclass(frozen=True, slots=True)
class Known:
    """The counters of a server as they were looked at last: by number alone, and by account."""

    all_of_them: Counts
    by_account: Counts


def looked(
    known: Known | None, now: Counts, by_account: Callable[[], Counts]
) -> tuple[list[dict[str, Any]], Known]:
    """The lines to tell after one look, and what is known since; nothing after the first one.

    ``now`` is by number alone; ``by_account`` reads the rest, which takes longer, where that helps.
    """
    if known is None:
        return [], Known(now, by_account())
    known = _after_restart(known, now)
    more = grown(known.all_of_them, now)
    if not more:
        return [], Known(now, known.by_account)
    accounts = by_account()
    whose = grown(known.by_account, accounts)
    return told(more, whose), Known(settled(now, more, whose), accounts)


def _after_restart(known: Known, now: Counts) -> Known:
    """Without what was counted before the server set its counters back."""
    gone = {one for one, times in known.all_of_them.items() if now.get(one, 0) < times}
    return Known(
        {one: times for one, times in known.all_of_them.items() if one not in gone},
        {one: t for one, t in known.by_account.items() if Refused(one.number) not in gone},
    )


def grown(before: Counts, now: Counts) -> dict[Refused, int]:
    """How often since then; counters that were set back count from nothing on."""
    found = {}
    for one, times in now.items():
        was = before.get(one, 0)
        if more := times - was if times >= was else times:
            found[one] = more
    return found


def told(all_of_them: Counts, by_account: Counts) -> list[dict[str, Any]]:
    """A line each: {refused, account, from, times}.

    ``all_of_them`` is by number alone. A server keeps so many accounts and no more: what it counted
    for none of those it keeps is told without.
    """
    rest = _without(all_of_them, by_account)
    left = {one: times for one, times in rest.items() if times > 0}
    return [
        {
            "refused": WHY[one.number],
            "account": one.account or None,
            "from": one.address or None,
            "times": times,
        }
        for one, times in sorted({**by_account, **left}.items())
    ]


def settled(now: Counts, all_of_them: Counts, by_account: Counts) -> Counts:
    """What of ``now`` is told, when the accounts were read a moment after it: some may be ahead."""
    rest = _without(all_of_them, by_account)
    return {one: now.get(one, 0) + max(0, -rest.get(one, 0)) for one in {*now, *rest}}


def _without(all_of_them: Counts, by_account: Counts) -> dict[Refused, int]:
    rest = dict(all_of_them)
    for one, times in by_account.items():
        of_all = Refused(one.number)
        rest[of_all] = rest.get(of_all, 0) - times
    return rest
