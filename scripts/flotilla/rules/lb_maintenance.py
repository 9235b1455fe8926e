"""The maintenance page: what is kept on each load balancer, and what is said of it.

A load balancer keeps one line, ``on <word>``, in a file that HAProxy reads as a map; the same line
is in the running process. The word is one for HAProxy, whatever an operator gives as a reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from urllib.parse import quote, unquote

# As role haproxy's __haproxy_maintenance_map.
MAP = "/etc/haproxy/maintenance.map"
KEY = "on"
# A line on the runtime socket is at most 16 kB; quoted, a letter may take twelve bytes.
REASON_LETTERS = 200


@dataclass(frozen=True, slots=True)
class Notice:
    """Who put up the page, when (seconds since the epoch), and why ("" for no word)."""

    by: str
    at: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """What one load balancer has: in the process that answers clients, and for the next one."""

    running: Notice | None
    stored: Notice | None


def word(notice: Notice) -> str:
    """A notice in one word that means nothing to HAProxy's command line."""
    return quote(json.dumps(asdict(notice), separators=(",", ":")), safe="")


def line(notice: Notice | None) -> str:
    """The file's content."""
    return f"{KEY} {word(notice)}\n" if notice else ""


def stored(text: str) -> Notice | None:
    """What a file says."""
    return next(
        (_notice(rest) for key, rest in map(_parted, text.splitlines()) if key == KEY), None
    )


def running(text: str) -> Notice | None:
    """What ``show map`` says. Raises ValueError where the process knows no such map."""
    found = None
    for entry in filter(None, text.splitlines()):
        identity, rest = _parted(entry)
        if not identity.startswith("0x"):
            raise ValueError(entry)
        key, value = _parted(rest)
        found = _notice(value) if key == KEY else found
    return found


def commands(now: Notice | None, wanted: Notice | None) -> tuple[str, ...]:
    """What the runtime socket is told to get from one to the other."""
    if wanted is None:
        return (f"del map {MAP} {KEY}",) if now else ()
    return (f"{'set' if now else 'add'} map {MAP} {KEY} {word(wanted)}",)


def is_done(kept: Kept, wanted: Notice | None) -> bool:
    """Whether a load balancer has what is wanted, now and after a reload."""
    return kept.running == wanted == kept.stored


def problems(views: Mapping[str, Kept]) -> list[str]:
    """Sentences: who is in maintenance and why, and where they do not agree."""
    on = {name: kept.running for name, kept in views.items() if kept.running}
    found = []
    if on:
        first = next(iter(on.values()))
        who = "clients get" if len(on) == len(views) else f"clients of {' and '.join(on)} get"
        reason = f": {first.reason}" if first.reason else ""
        found.append(f"{who} the maintenance page, by {first.by}{reason}")
    if on and len(on) < len(views):
        others = " and ".join(name for name in views if name not in on)
        found.append(f"{others} would serve: the page would go with the address")
    found += [
        f"{name} would {'end' if kept.running else 'begin'} its maintenance at the next reload"
        for name, kept in views.items()
        if bool(kept.running) != bool(kept.stored)
    ]
    return found


def order(names: Sequence[str], owner: str) -> list[str]:
    """Who is told first: whoever clients are not on, so that a failure there is seen by nobody."""
    return sorted(names, key=lambda name: (name == owner, name))


def _parted(text: str) -> tuple[str, str]:
    key, _, rest = text.strip().partition(" ")
    return key, rest.strip()


def _notice(text: str) -> Notice:
    """Whatever somebody wrote by hand is maintenance too, of an unknown hand."""
    try:
        found = json.loads(unquote(text))
        return Notice(str(found["by"]), float(found["at"]), str(found["reason"]))
    except (ValueError, KeyError, TypeError):
        return Notice("somebody", 0.0, text)
