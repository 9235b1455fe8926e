"""What a fault of a drill is: whom it strikes, with what power, how long, what it may cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Ends(StrEnum):
    """Who is primary after a fault: another one, the same one, or whichever was quicker back."""

    MOVED = "moved"
    STAYED = "stayed"
    EITHER = "either"


class Power(StrEnum):
    """What it takes to make a fault: only to ask for it as operators do, a shell on the host, the
    EC2 API, or the network itself.
    """

    OPERATOR = "operator"
    SHELL = "shell"
    API = "api"
    OUTSIDE = "outside"


@dataclass(frozen=True, slots=True)
class Bar:
    """Seconds that clients may be without an acknowledged write: in the median, and at worst.

    ``is_clean``: no client is told of an error but in that time.
    """

    median: float
    worst: float
    is_clean: bool = False


# Of fewer runs the median says too little to be held to; each is held to the worst all the same.
MEDIAN_RUNS = 5


def beyond_median(what: str, median: float | None, runs: int, bar: Bar | None) -> list[str]:
    """The promise that only all runs together can break; ``what`` was measured in seconds."""
    if bar is None or median is None or runs < MEDIAN_RUNS or median <= bar.median:
        return []
    return [f"the median {what} is {median:.2f} s, it may be {bar.median:g} s"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault. It lasts ``hold_seconds`` at least, and until the store got over it.

    ``may_lose``: the store gives no word on writes that it acknowledges about when it falls silent,
    so their number is told and breaks no promise.
    """

    name: str
    about: str
    power: Power
    ends: Ends
    bar: Bar | None = None
    hold_seconds: float = 0.0
    may_lose: bool = False


@dataclass(frozen=True, slots=True)
class Aim:
    """Whom a fault strikes, or who gets the role: a host or a zone, and the network's words for it.

    ``cut_off`` are clients that the fault itself takes the way to every other zone: what they were
    told counts, their silence does not.
    """

    target: str
    options: Mapping[str, str] = field(default_factory=dict)
    cut_off: frozenset[str] = frozenset()


def elsewhere(primary: str, members: Mapping[str, str], spared: str) -> str | None:
    """Who is to be primary before a zone is struck, so that zone ``spared`` is not.

    ``members`` has zones by name. None where it is well as it is, or nobody is elsewhere.
    """
    if members[primary] != spared:
        return None
    return next((name for name, zone in sorted(members.items()) if zone != spared), None)
