"""Rule on whether a MySQL primary is dead, from what several members see at the same moment.

Invariants:

- Dead needs the judge's own failure to reach it *and* a majority of the cluster whose replication
  from it is broken or silent. One fresh stream anywhere is a veto: what is written there is
  acknowledged there. But not for a member whose own watcher finds the port closed as well: a server
  that shuts down closes it and ends its clients, and then waits for its replicas to leave, 9 s in
  20 restarts (mysqld, ``close_connections``: 8 tries, a second each). Nothing is written there.
- A stream's last word is as old as the oldest time anybody had it: a replica whose disk is slow
  reads on for seconds in what a primary sent before it froze. Only where its own watcher does not
  reach the primary: one that catches up from far behind hears nothing but old words too.
- A server that sends an error is alive: too many connections, a blocked host and a wrong password
  are answers.
- Who was not running himself has seen nothing. A judge takes its own absence out of every age, and
  a member that answers late is not believed about silence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from flotilla.rules.gtid import GtidSet


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
    ``alone`` says that it acknowledged without a replica when it last told, "" if it did not.
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
    alone: str = ""


@dataclass(frozen=True, slots=True)
class Stream:
    """What one replica's own server says about its stream. Ages are seconds.

    ``source`` is the name of the member it follows, "" for nobody or an unknown host. Both ages
    are computed by that server from its own clock; None: never. ``queued`` is the GTID of the
    transaction that came last, ``received`` the set of all that came through this stream.
    ``answer_seconds`` is how long it took to tell. ``error`` is the last error of a stream that is
    not ON. ``sees`` is how that member's own watcher meets the primary, where it is known;
    ``is_unwatched`` that this watcher gives no answer at all.
    """

    member: str
    source: str
    state: str
    heartbeat_age: float | None = None
    queued_age: float | None = None
    queued: str = ""
    received: str = ""
    answer_seconds: float = 0.0
    error: int = 0
    text: str = ""
    sees: Reach | None = None
    is_unwatched: bool = False

    @property
    def silent_seconds(self) -> float:
        """Since anything came; heartbeats are sent only while there is nothing else to send."""
        ages = [age for age in (self.heartbeat_age, self.queued_age) if age is not None]
        return min(ages, default=float("inf"))


@dataclass(frozen=True, slots=True)
class Limits:
    """How long each kind of evidence must last, in seconds.

    A closed port is the kernel's word and needs only to outlast a hiccup; a restart that is quick
    where the streams are still connected. Silence may be a busy
    host, so it must outlast two missed heartbeats (one a second). Blocked commits are waited for
    longest: clients get no wrong answer meanwhile, and a replica's restart ends them. A stream that
    is silent ends by itself after replica_net_timeout, 6 s; longer than ``ended``, it was without
    one.
    """

    refused: float = 0.3
    refusals: int = 2
    closed: float = 1.0
    silent: float = 2.5
    answer: float = 0.5
    absent: float = 0.75
    blocked: float = 8.0
    stalled: float = 30.0
    ended: float = 10.0


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
    """What is ruled, with the evidence as sentences.

    ``confirms`` are members whose stream is broken or silent, ``alive_for`` those that have a
    fresh one or an answer. ``is_actionable``: a failover may be proposed on it.
    """

    kind: Kind
    evidence: tuple[str, ...]
    confirms: tuple[str, ...] = ()
    alive_for: tuple[str, ...] = ()
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
    closed = look.reach is Reach.REFUSES and _failing(look) >= limits.closed
    words = [
        _hear(stream, primary, streams, limits, closed=closed)
        for stream in streams
        if stream.member != primary
    ]
    evidence = (
        f"{me}: {primary} {_seen(look)}",
        *(f"{word.member}: {word.text}" for word in words),
        *(f"{name} cannot be asked: {why}" for name, why in sorted(unreached.items())),
    )
    if look.reach is Reach.ANSWERS or (look.error and look.error not in DYING):
        return _alive(look, evidence, _names(w for w in words if w.is_broken), members, limits)
    confirms = _names(word for word in words if word.vote is Vote.DEAD)
    alive = _names(word for word in words if word.vote is Vote.ALIVE)
    if set(alive) - {me}:
        said = f"{me} cannot reach {primary}, but it is alive for {', '.join(alive)}"
        return Verdict(Kind.BLIND, (said, *evidence), confirms, alive)
    needed = majority(members)
    if len(words) < needed:
        said = f"{me} reaches {len(words)} replicas, {needed} would have to agree"
        return Verdict(Kind.BLIND, (said, *evidence), confirms, alive)
    doubt = _doubt(me, members, confirms) or _too_short(look, limits)
    if doubt:
        return Verdict(Kind.SUSPECT, (doubt, *evidence), confirms, alive)
    said = f"{len(confirms)} of {len(members)} members find {primary} gone"
    return Verdict(Kind.DEAD, (said, *evidence), confirms, is_actionable=True)


def majority(members: Collection[str]) -> int:
    """How many of these are more than half."""
    return len(members) // 2 + 1


class Vote(StrEnum):
    """What one replica says about the primary."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class _Word:
    """``is_broken``: nothing comes through the stream, whatever else the member sees."""

    member: str
    vote: Vote
    is_broken: bool
    text: str


def _names(words: Iterable[_Word]) -> tuple[str, ...]:
    return tuple(sorted(word.member for word in words))


def _hear(
    stream: Stream, primary: str, streams: Iterable[Stream], limits: Limits, *, closed: bool
) -> _Word:
    vote, text = _flow(stream, primary, limits)
    flows = vote is Vote.ALIVE and stream.state == "ON"
    had = _had_before(stream, streams, limits) if flows and stream.sees is Reach.SILENT else None
    if had:
        vote, text = Vote.DEAD, f"{text}, and {had.member} had it before: {_age(had)}"
    is_broken = vote is Vote.DEAD
    if flows and closed and stream.sees is Reach.REFUSES:
        return _Word(stream.member, Vote.DEAD, is_broken, f"{primary} refuses; {text}")
    if stream.sees is Reach.ANSWERS:
        return _Word(stream.member, Vote.ALIVE, is_broken, f"gets answers from {primary}; {text}")
    if vote is Vote.UNKNOWN and stream.sees and (stream.state, stream.source) != ("ON", primary):
        # It has no stream that could tell, but it tried for itself. One that follows somebody else
        # is what a switchover leaves whose operator was killed; a primary that then dies was given
        # up by nobody.
        return _Word(stream.member, Vote.DEAD, is_broken, f"{primary} {stream.sees}; {text}")
    if vote is Vote.UNKNOWN and stream.is_unwatched and _is_stopped(stream, primary):
        text = f"{text}, and its watcher gives no answer"
        return _Word(stream.member, Vote.DEAD, is_broken, text)
    return _Word(stream.member, vote, is_broken, text)


def _had_before(stream: Stream, streams: Iterable[Stream], limits: Limits) -> Stream | None:
    """Who had this stream's last word before, and nothing since for as long as silence must last.

    A heartbeat says of itself only that it came.
    """
    if stream.heartbeat_age is not None and stream.heartbeat_age < limits.silent:
        return None
    try:
        last = GtidSet.parse(stream.queued)
        if not last:
            return None
        return next(
            (
                other
                for other in streams
                if other.source == stream.source
                and _listened(other, limits)
                and other.silent_seconds >= limits.silent
                and other.answer_seconds <= limits.answer
                and last <= GtidSet.parse(other.received)
            ),
            None,
        )
    except ValueError:
        return None


def _listened(stream: Stream, limits: Limits) -> bool:
    """Whether it would have heard more, had there been more: not long after its stream ended."""
    if stream.state == "CONNECTING":
        return stream.silent_seconds <= limits.ended
    return stream.state == "ON"


def _is_stopped(stream: Stream, primary: str) -> bool:
    """What a failover leaves behind whose manager was frozen, or died with its host's endpoint.

    Nothing is acknowledged through it, and nobody there starts it again: where all are like that,
    the primary takes no writes, so one that the judge cannot reach either is as good as dead. Not
    counted, a watcher that hung in the middle of a failover held up every other one.
    """
    return stream.source == primary and stream.state == "OFF"


def _flow(stream: Stream, primary: str, limits: Limits) -> tuple[Vote, str]:
    """What the stream alone says."""
    if stream.source != primary:
        return Vote.UNKNOWN, f"it follows {stream.source or 'nobody'}"
    if stream.state == "ON":
        return _connected(stream, limits)
    if stream.error in ANSWERED:
        return Vote.ALIVE, f"{primary} refuses its stream: {stream.text} ({stream.error})"
    if stream.state == "OFF":
        return Vote.UNKNOWN, "its stream was stopped"
    return Vote.DEAD, f"its stream is broken: {stream.text or _age(stream)}"


def _connected(stream: Stream, limits: Limits) -> tuple[Vote, str]:
    if stream.silent_seconds < limits.silent:
        return Vote.ALIVE, f"its stream is connected, the last word is {_age(stream)}"
    if stream.answer_seconds > limits.answer:
        late = f"it took {stream.answer_seconds:.1f} s to answer, so its silence proves nothing"
        return Vote.UNKNOWN, late
    return Vote.DEAD, f"its stream is connected, but the last word is {_age(stream)}"


def _age(stream: Stream) -> str:
    silent = stream.silent_seconds
    return "unknown" if silent == float("inf") else f"{silent:.1f} s old"


def _alive(
    look: Look,
    evidence: tuple[str, ...],
    broken: tuple[str, ...],
    members: Collection[str],
    limits: Limits,
) -> Verdict:
    seconds = look.blocked_seconds
    if look.stalled:
        said = f"it answers, but no commit has ended for {seconds:.1f} s: {look.stalled}"
        lasts = seconds >= limits.stalled
        return Verdict(Kind.BLOCKED, (said, *evidence), broken, is_actionable=lasts)
    if look.waiting and len(broken) >= majority(members):
        said = (
            f"it answers, but {look.waiting} commits wait for an acknowledgement: {seconds:.1f} s"
        )
        lasts = seconds >= limits.blocked
        return Verdict(Kind.BLOCKED, (said, *evidence), broken, is_actionable=lasts)
    return Verdict(Kind.ALIVE, evidence, broken)


def _doubt(me: str, members: Collection[str], confirms: tuple[str, ...]) -> str | None:
    """Why those who were heard do not make a primary dead, or None."""
    needed = majority(members)
    if len(confirms) < needed:
        return f"{len(confirms)} members find it gone, {needed} would have to"
    if me in members and me not in confirms:
        return f"{me} itself does not find its stream broken"
    return None


def _failing(look: Look) -> float:
    """For how long it has not answered, by the time in which this watcher was running."""
    return max(0.0, look.answered_age - look.absent)


def _too_short(look: Look, limits: Limits) -> str | None:
    """Why a primary has not been away for long enough, or None."""
    failing = _failing(look)
    absent = f" ({look.absent:.1f} s of absence here left out)" if look.absent else ""
    if look.reach is Reach.REFUSES:
        if failing >= limits.refused and look.failures >= limits.refusals:
            return None
        return f"its port has been closed for {failing:.1f} s only{absent}"
    if failing >= limits.silent:
        return None
    return f"it has been silent for {failing:.1f} s only{absent}"


def _seen(look: Look) -> str:
    text = f": {look.text}" if look.text else ""
    if look.error:
        return f"answers with error {look.error} ({ANSWERED.get(look.error, look.text)})"
    if look.reach is Reach.ANSWERS:
        return f"answers{text}"
    return f"{look.reach}, no answer for {look.answered_age:.1f} s, {look.failures} tries{text}"
