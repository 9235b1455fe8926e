"""Watch the primary from a replica's host, and take over when the rules say that it is dead.

Healthy, a turn is one ping on a session that stays open; the end of that session, which is
how a killed server is noticed, wakes the watcher at once. Everything else is asked only once the
primary does not answer.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from flotilla.agent.knowledge import Knowledge
from flotilla.errors import FlotillaError, Unreachable
from flotilla.hosts.mysql import Server
from flotilla.hosts.mysql_glimpse import Glimpse, Regard, glimpse
from flotilla.mysql.steps import PORT
from flotilla.rules.mysql_health import HEALTH_PORT
from flotilla.rules.mysql_state import Place, State
from flotilla.rules.mysql_verdict import Kind, Look, Reach, Stream, Verdict, judge

PERIOD_SECONDS = 0.25
# Once it does not answer: how soon to ask again.
HASTE_SECONDS = 0.1
PROBE_SECONDS = 0.5
# How often a primary that answers is asked whether its commits end.
STALL_SECONDS = 2.0
SIGHT_SECONDS = 0.3
# A host that has just refused a connection answers another one at once, or is gone.
OPEN_SECONDS = 0.1
# A wait that ends so much late means that this process was not running.
LATE_SECONDS = 0.1
# Without a failover under way, whoever may not act says so again only after this.
SAY_AGAIN_SECONDS = 60.0

log = logging.getLogger("flotilla.watcher")


class Opens(Protocol):
    """Who makes sessions on members."""

    def server(self, place: Place) -> Server:
        """A new session, not yet opened."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a verdict was made from, for whoever acts on it.

    ``reachable`` are members whose servers answer, ``mute`` those whose endpoints do not.
    """

    state: State
    primary: Place
    look: Look
    verdict: Verdict
    reachable: frozenset[str]
    mute: frozenset[str]


class Watcher:
    """One watcher's eye. ``propose`` is given a case on which a failover may be proposed.

    ``dry`` says whether this host's own stream from the primary is not connected; ``sight`` asks a
    member's own watcher how it meets the primary. Not for two threads.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        sessions: Opens,
        propose: Callable[[Case], None],
        *,
        dry: Callable[[], bool],
        sight: Callable[[Place], Mapping[str, str] | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._knowledge = knowledge
        self._sessions = sessions
        self._propose = propose
        self._dry = dry
        self._sight = sight
        self._clock = clock
        self._regard: Regard | None = None
        self._regarded: Place | None = None
        self._servers: dict[str, tuple[Place, Server]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._mute: set[str] = set()
        self._stall_asked = clock()
        self._said = ("", 0.0)
        # How the primary was met last, for other watchers: its instance id, how, and when.
        self.sees: tuple[str, Reach, float] | None = None

    def turn(self) -> Look | None:
        """Wait a moment, look once, and act on it. How the primary was met, None where there is
        nobody to look at: before the record is known, and on the primary itself.
        """
        state, primary = self._knowledge.state, self._knowledge.primary
        regard = self._aim(primary)
        hasty = self.sees is not None and self.sees[1] is not Reach.ANSWERS
        pause = HASTE_SECONDS if regard and hasty else PERIOD_SECONDS
        start = self._clock()
        if regard is None:
            time.sleep(pause)
            return None
        regard.await_end(pause)
        regard.missed(max(0.0, self._clock() - start - pause - LATE_SECONDS))
        if state is None or primary is None:
            return None
        look = self._look(regard, primary)
        if look.reach is not Reach.ANSWERS or look.waiting or look.stalled:
            # Another watcher may be quicker, and make this host the primary.
            self._knowledge.hurry()
            self._consider(state, primary, look)
        return look

    def _aim(self, primary: Place | None) -> Regard | None:
        """The eye on the primary of now; None on the primary itself."""
        me = self._knowledge.me
        target = primary if me and primary and primary != me else None
        if target != self._regarded:
            if self._regard:
                self._regard.close()
            self._regard = self._regard_of(target) if target else None
            self._regarded, self.sees = target, None
        return self._regard

    def _regard_of(self, target: Place) -> Regard:
        server = self._sessions.server(target)
        return Regard(server, self._clock, listens=lambda: listens(target.address))

    def _look(self, regard: Regard, primary: Place) -> Look:
        start = self._clock()
        # Whether commits wait matters only when this replica gets nothing; asking costs a lot.
        ask_stall = start - self._stall_asked >= STALL_SECONDS
        look = regard.look(seconds=PROBE_SECONDS, waiting=self._dry(), stalled=ask_stall)
        self._stall_asked = start if ask_stall else self._stall_asked
        if look.reach is Reach.SILENT and self._clock() - start < PROBE_SECONDS / 2:
            # A session that ended says nothing about the server; a new one does.
            look = regard.look(seconds=PROBE_SECONDS, waiting=False)
        regard.missed(max(0.0, self._clock() - start - 2 * PROBE_SECONDS - LATE_SECONDS))
        self.sees = (primary.instance_id, look.reach, self._clock())
        return look

    def _consider(self, state: State, primary: Place, look: Look) -> None:
        """Hear the others, rule, and propose."""
        me = self._knowledge.me
        if me is None:
            return
        streams, unreached = self._hear(primary)
        members = list(self._knowledge.places)
        verdict = judge(me.name, primary.name, members, look, streams, unreached=unreached)
        self.say(verdict.kind, f"{primary.name} is {verdict.kind}: {'; '.join(verdict.evidence)}")
        if verdict.is_actionable:
            reachable = {stream.member for stream in streams}
            if look.reach is Reach.ANSWERS:
                reachable.add(primary.name)
            mute = frozenset(self._mute)
            self._propose(Case(state, primary, look, verdict, frozenset(reachable), mute))

    def say(self, kind: str, text: str) -> None:
        """Log what is new, and what lasts once in a while."""
        now = self._clock()
        if kind != self._said[0] or now - self._said[1] > SAY_AGAIN_SECONDS:
            self._said = (kind, now)
            log.info("%s", text)

    def _hear(self, primary: Place) -> tuple[list[Stream], dict[str, str]]:
        """What each replica says about its stream, this host's own too; and who says nothing."""
        places = [p for p in self._knowledge.places.values() if p != primary]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(8, "hear")
        answers = list(self._pool.map(lambda place: self._ask(place, primary), places))
        streams = [answer for answer in answers if isinstance(answer, Stream)]
        unreached = {
            place.name: answer
            for place, answer in zip(places, answers, strict=True)
            if isinstance(answer, str)
        }
        return streams, unreached

    def _ask(self, place: Place, primary: Place) -> Stream | str:
        start = self._clock()
        try:
            seen = self._glimpse(place)
        except FlotillaError as error:
            return error.what
        seconds = self._clock() - start
        sees = self._ask_watcher(place, primary)
        unwatched = place.name in self._mute
        follows = self._name(seen.follows)
        return seen.stream(place.name, follows, seconds, sees, is_unwatched=unwatched)

    def _ask_watcher(self, place: Place, primary: Place) -> Reach | None:
        """How a member's own watcher meets the primary, None where it does not say."""
        self._mute.discard(place.name)
        if place == self._knowledge.me:
            # A stream that somebody stopped says nothing; that this host cannot reach it, does.
            return self.sees[1] if self.sees else None
        said = self._sight(place)
        if said is None:
            self._mute.add(place.name)
            return None
        with suppress(KeyError, ValueError):
            return Reach(said["reach"]) if said["primary"] == primary.instance_id else None
        return None

    def _glimpse(self, place: Place) -> Glimpse:
        known = self._servers.get(place.name)
        if known is None or known[0] != place:
            known = self._servers[place.name] = (place, self._sessions.server(place))
        server = known[1]
        is_open = server.socket is not None
        try:
            return glimpse(server, seconds=PROBE_SECONDS)
        except Unreachable:
            if not is_open:
                raise
        # The session had ended meanwhile; that says nothing about the server of now.
        return glimpse(server, seconds=PROBE_SECONDS)

    def _name(self, address: str | None) -> str:
        """The member at an address, "" for none."""
        places = self._knowledge.places.values()
        return next((place.name for place in places if place.address == address), "")


def listens(address: str, port: int = PORT, *, seconds: float = OPEN_SECONDS) -> bool:
    """Whether a connection is taken there, within so many seconds."""
    try:
        socket.create_connection((address, port), seconds).close()
    except OSError:
        return False
    return True


def sight(place: Place, *, port: int = HEALTH_PORT) -> Mapping[str, str] | None:
    """What another host's endpoint says of how it met the primary (``described``); None where it
    does not answer.
    """
    try:
        with socket.create_connection((place.address, port), SIGHT_SECONDS) as stream:
            stream.settimeout(SIGHT_SECONDS)
            stream.sendall(b"GET /watch HTTP/1.0\r\n\r\n")
            with stream.makefile("rb") as file:
                answer = json.loads(file.read().partition(b"\r\n\r\n")[2])
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def described(sees: tuple[str, Reach, float] | None, now: float) -> Mapping[str, str]:
    """The answer to ``sight``; nothing where the newest look is too old to count."""
    if sees is None or now - sees[2] > PERIOD_SECONDS + 2 * PROBE_SECONDS:
        return {}
    return {"primary": sees[0], "reach": sees[1].value}


__all__ = ["Case", "Kind", "Watcher", "described", "sight"]
