"""Which snapshot a command gets: a fresh one, a stale one with a warning, or a refusal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from flotilla.errors import BadOption, Refused, Unreachable
from flotilla.inventory import store
from flotilla.inventory.collect import collect
from flotilla.settings import Settings
from flotilla.snapshot import Snapshot

FRESH_VARIABLE = "FLOTILLA_INVENTORY_FRESH"
MAX_AGE_VARIABLE = "FLOTILLA_INVENTORY_MAX_AGE"


def load(
    settings: Settings,
    *,
    max_age_seconds: float | None = None,
    refresh: bool = False,
    now: Callable[[], float] = time.time,
    variables: Mapping[str, str] = os.environ,
) -> Snapshot:
    """The hosts of the fleet, from a snapshot younger than fleet.inventory.fresh_seconds or EC2.

    While EC2 does not answer, a command that only reads (``max_age_seconds`` None) gets the last
    snapshot however old, with its ``warning`` set. One that changes things passes ``max_age()``: it
    is Refused beyond that age, and also while two instances claim one name. ``refresh`` asks EC2
    even when the snapshot is fresh. Raises Unreachable when there is nothing to fall back on.
    """
    stored = store.read(settings)
    moment = now()
    fresh = _seconds(variables, FRESH_VARIABLE, settings.inventory.fresh_seconds)
    limit = fresh if max_age_seconds is None else min(fresh, max_age_seconds)
    if stored and not refresh and _is_fresh(stored, moment, limit):
        return _usable(stored.snapshot, changing=max_age_seconds is not None)
    try:
        snapshot = collect(settings, now=moment)
    except Unreachable as outage:
        if stored is None:
            raise
        snapshot = _stale(settings, stored.snapshot, moment, max_age_seconds, outage)
        if not stored.is_current:
            store.save(settings, snapshot)
    else:
        store.save(settings, snapshot)
    return _usable(snapshot, changing=max_age_seconds is not None)


def max_age(settings: Settings, variables: Mapping[str, str] = os.environ) -> float:
    """How old, in seconds, a snapshot may be for a command that changes things.

    ``FLOTILLA_INVENTORY_MAX_AGE`` wins over fleet.inventory.max_age_seconds; BadOption if it is not
    a number of seconds.
    """
    return _seconds(variables, MAX_AGE_VARIABLE, settings.inventory.max_age_seconds)


def _seconds(variables: Mapping[str, str], name: str, default: float) -> float:
    text = variables.get(name)
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise BadOption(
            f"{name} is {text!r}: it must be a number of seconds, 0 or more",
            untouched="Nothing was changed",
            next=f"unset {name}",
        )
    return seconds


def _is_fresh(stored: store.Stored, now: float, limit: float) -> bool:
    """Whether EC2 need not be asked. An empty fleet never is: somebody is about to fill it."""
    snapshot = stored.snapshot
    return stored.is_current and bool(snapshot.hosts) and snapshot.age_seconds(now) <= limit


def _stale(
    settings: Settings,
    snapshot: Snapshot,
    now: float,
    max_age_seconds: float | None,
    outage: Unreachable,
) -> Snapshot:
    age = snapshot.age_seconds(now)
    if max_age_seconds is not None and age > max_age_seconds:
        raise Refused(
            f"the list of hosts is {age:.0f} s old and may be at most {max_age_seconds:.0f} s for "
            f"a command that changes something; it could not be renewed: {outage.what}",
            why="hosts may have come, gone or changed their addresses since",
            untouched="Nothing was changed",
            next=f"{settings.aws.hint}; or {MAX_AGE_VARIABLE}=<seconds> to accept it as it is",
        ) from outage
    return replace(
        snapshot, warning=f"the list of hosts is {age:.0f} s old: {outage.what}. {outage.next}"
    )


def _usable(snapshot: Snapshot, *, changing: bool) -> Snapshot:
    if changing and snapshot.problems:
        raise Refused(
            "the fleet's hosts cannot be told apart: " + "; ".join(snapshot.problems),
            why="a change could reach the wrong host",
            untouched="Nothing was changed",
            next="fab fleet.status",
        )
    return snapshot
