"""Certificates by ACME: when one is ordered, which one is taken, what HAProxy's map holds.

An attempt is written down before it begins. Whoever is killed in the middle has failed, as far as
the next one can tell, and waits: authorities count, and a loop of orders locks the name out for a
week. Invariant: without an operator's request no two attempts begin within FIRST_PAUSE_SECONDS,
unless the first of them brought a certificate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DAY = 86_400.0
# Renewed so long before the end, or at half of a life that is shorter than twice this.
EARLY_SECONDS = 30 * DAY
# After a failure, doubled with each further one. Let's Encrypt refuses a name for an hour after
# five failed looks at it, and for a week after five equal certificates.
FIRST_PAUSE_SECONDS = 3600.0
LONGEST_PAUSE_SECONDS = DAY
# An operator who asked waits no longer than this, and would be surprised by an order tomorrow.
REQUEST_SECONDS = 900.0
# How far the authority's clock may be ahead of ours.
SKEW_SECONDS = 3600.0

# What is said of an attempt while it lasts: so whoever is killed in it has failed.
CUT_OFF = "it was cut off before it ended"

# As role haproxy's __haproxy_acme_map.
MAP = "/etc/haproxy/acme.map"
# Where an authority looks (RFC 8555, 8.3). The map's keys are such paths, and CERTIFIED.
CHALLENGES = "/.well-known/acme-challenge/"
# Is in the map while clients can trust what :443 serves: only then does :80 redirect there.
CERTIFIED = "certified"


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate: times in seconds since the epoch, ``serial`` in upper case hex."""

    serial: str
    issuer: str
    names: tuple[str, ...]
    begins_at: float
    ends_at: float


@dataclass(frozen=True, slots=True)
class Attempts:
    """The orders until now.

    ``at``: when the last one began; ``failures``: how many in a row brought nothing, ``why`` the
    last one did not; ``limited``: the authority said that we ask too often; ``request``: the last
    one of an operator's requests that was taken up.
    """

    at: float = 0.0
    failures: int = 0
    why: str = ""
    limited: bool = False
    request: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """An operator wants a new certificate now: a word that no other request has, who, when."""

    id: str = ""
    by: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the authority is answered: path to answer; nothing at or after ``until``."""

    answers: Mapping[str, str]
    until: float

    def now(self, at: float) -> dict[str, str]:
        """Those that are answered at a moment."""
        return dict(self.answers) if at < self.until else {}


@dataclass(frozen=True, slots=True)
class Decision:
    """``at``: when the next order begins, ``why`` a sentence for it."""

    at: float
    why: str

    def is_due(self, now: float) -> bool:
        """Whether to order now."""
        return now >= self.at


def decide(
    current: Issued | None, domain: str, attempts: Attempts, request: Request, now: float
) -> Decision:
    """When to order. ``current`` is the stored certificate, None for none that can be read."""
    if is_wanted(request, attempts, now):
        return Decision(now, f"{request.by} asked for it")
    if current is None:
        due, why = now, "there is no certificate yet"
    elif unfit(current, domain, now):
        due, why = now, f"the one there is {unfit(current, domain, now)}"
    else:
        due = renewal_at(current)
        why = f"the one there is ends in {(current.ends_at - now) / DAY:.0f} days"
    held = attempts.at + pause(attempts)
    if held > due:
        return Decision(held, f"{why}; the last order failed: {attempts.why}")
    return Decision(due, why)


def is_wanted(request: Request, attempts: Attempts, now: float) -> bool:
    """Whether an operator waits for an order that nobody has begun."""
    is_new = bool(request.id) and request.id != attempts.request
    return is_new and abs(now - request.at) <= REQUEST_SECONDS


def renewal_at(current: Issued) -> float:
    """When a certificate is to be renewed."""
    life = max(0.0, current.ends_at - current.begins_at)
    return current.ends_at - min(EARLY_SECONDS, life / 2)


def pause(attempts: Attempts) -> float:
    """How long after the last attempt there is none without an operator."""
    if not attempts.failures:
        return 0.0
    if attempts.limited:
        return LONGEST_PAUSE_SECONDS
    doubled = FIRST_PAUSE_SECONDS * 2.0 ** min(attempts.failures - 1, 10)
    return float(min(doubled, LONGEST_PAUSE_SECONDS))


def begun(attempts: Attempts, request: Request, now: float) -> Attempts:
    """What is written before an attempt: that it failed, until it says otherwise."""
    return Attempts(now, attempts.failures + 1, CUT_OFF, request=request.id or attempts.request)


def unfit(one: Issued, domain: str, now: float) -> str:
    """Why a certificate is not to be served, as the end of a sentence; "" for one that is fit."""
    if domain not in one.names:
        return f"for {', '.join(one.names) or 'no name'} and not for {domain}"
    if one.ends_at <= now:
        return "over"
    if one.begins_at > now + SKEW_SECONDS:
        return "not valid yet"
    return ""


def entries(answers: Mapping[str, str], *, certified: bool) -> dict[str, str]:
    """What the map is to hold."""
    return {**answers, **({CERTIFIED: "yes"} if certified else {})}


def map_text(wanted: Mapping[str, str]) -> str:
    """The map's file."""
    return "".join(f"{key} {value}\n" for key, value in sorted(wanted.items()))


def running(text: str) -> dict[str, str]:
    """What ``show map`` says. Raises ValueError where the process knows no such map."""
    found = {}
    for line in filter(None, text.splitlines()):
        words = line.split()
        if not words[0].startswith("0x") or len(words) != 3:
            raise ValueError(line)
        found[words[1]] = words[2]
    return found


def map_commands(now: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """What the runtime socket is told to get from one to the other."""
    gone = [f"del map {MAP} {key}" for key in sorted(now) if key not in wanted]
    new = [f"add map {MAP} {key} {wanted[key]}" for key in sorted(wanted) if key not in now]
    changed = [
        f"set map {MAP} {key} {wanted[key]}"
        for key in sorted(wanted)
        if key in now and now[key] != wanted[key]
    ]
    return [*gone, *new, *changed]
