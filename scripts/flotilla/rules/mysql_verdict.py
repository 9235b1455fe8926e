"""Rule on whether a MySQL primary is dead, from what several members see at the same moment.

Invariants:

- Dead needs the judge's own failure to reach it *and* a majority of the cluster whose replication
  from it is broken or silent. One fresh stream anywhere is a veto: what is written there is
  acknowledged there.
- A server that sends an error is alive: too many connections, a blocked host and a wrong password
  are answers.
- Who was not running himself has seen nothing. A judge takes its own absence out of every age, and
  a member that answers late is not believed about silence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is ruled. Only Dead, and a Blocked that lasts, are reasons to fail over."""

    ALIVE = "alive"
    BLOCKED = "blocked"
    BLIND = "blind"
    SUSPECT = "suspect"
    DEAD = "dead"


class Reach(StrEnum):
    """How the primary met a connection to its admin port: the newest attempt that has ended."""

    ANSWERS = "answers"
    REFUSES = "refuses"  # the host is there and nobody listens: the process is gone
    SILENT = "silent"  # no answer in time, no route, a connection cut half-way


@dataclass(frozen=True, slots=True)
class Look:
    """What one watcher sees of the primary itself.

    ``answered_age`` is the seconds since it last proved to be alive to this watcher, and
    ``absent`` is for how many of them the watcher was not running (its timers fired that late).
    ``error`` is the number of an error that the server sent. ``waiting`` commits wait for an
    acknowledgement and ``blocked_seconds`` is for how long that has been so without any progress;
    ``stalled`` names another reason why commits do not end (a full disk), seen by the server.
    """

    reach: Reach
    answered_age: float
    failures: int = 0
    absent: float = 0.0
    error: int = 0
    text: str = ""
    waiting: int = 0
    blocked_seconds: float = 0.0
    stalled: str = ""


@dataclass(frozen=True, slots=True)
class Stream:
    """What one replica's own server says about its stream from the primary. Ages are seconds.

    Both ages are computed by that server from its own clock; None: never. ``answer_seconds`` is how
    long it took to tell. ``error`` is the last error of a stream that is not ON. ``sees`` is how
    that member's own watcher meets the primary, where it is known.
    """

    member: str
    source: str
    state: str
    heartbeat_age: float | None = None
    queued_age: float | None = None
    answer_seconds: float = 0.0
    error: int = 0
    text: str = ""
    sees: Reach | None = None

    @property
    def silent_seconds(self) -> float:
        """Since anything came; heartbeats are sent only while there is nothing else to send."""
        ages = [age for age in (self.heartbeat_age, self.queued_age) if age is not None]
        return min(ages, default=float("inf"))


@dataclass(frozen=True, slots=True)
class Limits:
    """How long each kind of evidence must last, in seconds.

    A closed port is the kernel's word and needs only to outlast a hiccup. Silence may be a busy
    host, so it must outlast two missed heartbeats (one a second). Blocked commits are waited for
    longest: clients get no wrong answer meanwhile, and a replica's restart ends them.
    """

    refused: float = 0.3
    refusals: int = 2
    silent: float = 2.5
    answer: float = 0.5
    absent: float = 0.75
    blocked: float = 8.0
    stalled: float = 30.0


LIMITS = Limits()

# Errors that only a living server sends, and that a stream ends with: MHA's list, and the two
# numbers under which a source says that it has purged what is asked for.
ANSWERED = {
    1040: "too many connections",
    1045: "wrong password",
    1129: "host blocked after many errors",
    1130: "host not allowed",
    1203: "too many connections of one user",
    1226: "a limit of the account",
    1236: "the source cannot send what is asked for",
    13114: "the source cannot send what is asked for",
}
# "Server shutdown in progress" and its kin are last words.
DYING = frozenset({1053, 1077, 1079, 1080})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is ruled, with the evidence as sentences; ``confirms`` are members whose stream is dead.

    ``is_actionable``: a failover may be proposed on it.
    """

    kind: Kind
    evidence: tuple[str, ...]
    confirms: tuple[str, ...] = ()
    is_actionable: bool = False


def judge(
    me: str,
    primary: str,
    members: Collection[str],
    look: Look,
    streams: Collection[Stream],
    *,
    unreached: Mapping[str, str],
    limits: Limits = LIMITS,
) -> Verdict:
    """Rule on the primary. ``members`` are all names of the cluster, the primary's included.

    ``streams`` holds what each replica said that answered, the judge's own among them; the others
    are in ``unreached`` with the reason. ``me`` may be no member (an operator's machine).
    """
    words = [_hear(stream, primary, limits) for stream in streams if stream.member != primary]
    confirms = tuple(sorted(word.member for word in words if word.vote is Vote.DEAD))
    sees = _seen(look)
    evidence = (
        f"{me}: {primary} {sees}",
        *(word.text for word in words),
        *(f"{name} cannot be asked: {why}" for name, why in sorted(unreached.items())),
    )
    if _is_alive(look):
        return _alive(look, evidence, confirms, majority(members), limits)
    alive = sorted(word.member for word in words if word.vote is Vote.ALIVE)
    if any(name != me for name in alive):
        said = f"{me} cannot reach {primary}, but {', '.join(alive)} can"
        return Verdict(Kind.BLIND, (said, *evidence), confirms)
    doubt = _doubt(me, members, look, confirms, words, limits)
    if doubt:
        return Verdict(doubt[0], (doubt[1], *evidence), confirms)
    said = f"{len(confirms)} of {len(members)} members find {primary} gone"
    return Verdict(Kind.DEAD, (said, *evidence), confirms, is_actionable=True)


def majority(members: Collection[str]) -> int:
    """How many of these are more than half."""
    return len(members) // 2 + 1


class Vote(StrEnum):
    """What one replica's stream says about the primary."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class _Word:
    member: str
    vote: Vote
    text: str


def _hear(stream: Stream, primary: str, limits: Limits) -> _Word:
    vote, why = _vote(stream, primary, limits)
    return _Word(stream.member, vote, f"{stream.member}: {why}")


def _vote(stream: Stream, primary: str, limits: Limits) -> tuple[Vote, str]:
    silent = stream.silent_seconds
    age = f"nothing came for {silent:.1f} s" if silent != float("inf") else "nothing ever came"
    if stream.sees is Reach.ANSWERS:
        return Vote.ALIVE, f"its watcher gets answers from {primary}"
    if stream.source != primary:
        return Vote.UNKNOWN, f"it follows {stream.source or 'nobody'}"
    if stream.state == "ON":
        if silent < limits.silent:
            return Vote.ALIVE, f"its stream is connected, the last word came {silent:.1f} s ago"
        if stream.answer_seconds > limits.answer:
            late = f"it took {stream.answer_seconds:.1f} s to answer, so its silence proves nothing"
            return Vote.UNKNOWN, late
        return Vote.DEAD, f"its stream is connected, but {age}"
    if stream.error in ANSWERED:
        return Vote.ALIVE, f"{primary} refuses its stream: {stream.text} ({stream.error})"
    if stream.state == "OFF" and stream.sees is None:
        return Vote.UNKNOWN, "its stream was stopped"
    return Vote.DEAD, f"its stream is {stream.state.lower()}: {stream.text or age}"


def _is_alive(look: Look) -> bool:
    return look.reach is Reach.ANSWERS or bool(look.error and look.error not in DYING)


def _alive(
    look: Look, evidence: tuple[str, ...], confirms: tuple[str, ...], needed: int, limits: Limits
) -> Verdict:
    if look.stalled:
        lasts = look.blocked_seconds >= limits.stalled
        said = f"it answers, but no commit ends for {look.blocked_seconds:.1f} s: {look.stalled}"
        return Verdict(Kind.BLOCKED, (said, *evidence), confirms, is_actionable=lasts)
    if look.waiting and len(confirms) >= needed:
        lasts = look.blocked_seconds >= limits.blocked
        said = f"it answers, but {look.waiting} commits wait for an acknowledgement"
        return Verdict(Kind.BLOCKED, (said, *evidence), confirms, is_actionable=lasts)
    return Verdict(Kind.ALIVE, evidence, confirms)


def _doubt(
    me: str,
    members: Collection[str],
    look: Look,
    confirms: tuple[str, ...],
    words: Collection[_Word],
    limits: Limits,
) -> tuple[Kind, str] | None:
    """Why a primary that cannot be reached from here is not called dead yet, or None."""
    needed = majority(members)
    if len(words) < needed:
        return Kind.BLIND, f"{me} reaches {len(words)} replicas, {needed} would have to agree"
    if len(confirms) < needed:
        return Kind.SUSPECT, f"{len(confirms)} replicas find it gone, {needed} would have to"
    if me in members and me not in confirms:
        return Kind.SUSPECT, f"{me} itself does not find its stream broken"
    failing = max(0.0, look.answered_age - look.absent)
    if look.reach is Reach.REFUSES:
        if failing >= limits.refused and look.failures >= limits.refusals:
            return None
        return Kind.SUSPECT, f"its port has been closed for {failing:.1f} s only"
    if failing >= limits.silent:
        return None
    absent = f" ({look.absent:.1f} s of absence here left out)" if look.absent else ""
    return Kind.SUSPECT, f"it has been silent for {failing:.1f} s only{absent}"


def _seen(look: Look) -> str:
    if look.error:
        return f"answers with error {look.error} ({ANSWERED.get(look.error, look.text)})"
    text = f": {look.text}" if look.text else ""
    if look.reach is Reach.ANSWERS:
        return f"answers{text}"
    return f"{look.reach} since {look.answered_age:.1f} s, {look.failures} times{text}"
