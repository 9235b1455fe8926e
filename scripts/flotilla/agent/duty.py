"""Keep this host's own server in the role that the record gives it.

A watcher changes no server but its own, except in a failover. Whatever lets acknowledgements or
writes begin is done under the cluster's lease and after everything was looked at again, so it can
never undo what a failover elsewhere has just revoked; what only closes is done at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from flotilla.agent.guard import Guard
from flotilla.agent.knowledge import Knowledge
from flotilla.aws.lease import Held
from flotilla.errors import FlotillaError, Unreachable
from flotilla.hosts.mysql import Server, look, position, subtract
from flotilla.hosts.mysql_glimpse import Glimpse
from flotilla.mysql import steps, takeover
from flotilla.mysql.accounts import Secrets
from flotilla.rules.mysql_rejoin import CLOSING, Advice, Do, Peers, advise
from flotilla.rules.mysql_standing import is_in_place
from flotilla.rules.mysql_state import Place, State
from flotilla.rules.mysql_topology import Member

# A server that looks right is looked at in full all the same, as not all shows at a glance.
CHECK_SECONDS = 30.0
RETRY_SECONDS = 1.0

log = logging.getLogger("flotilla.watcher")


class Opens(Protocol):
    """Who makes sessions on members."""

    def server(self, place: Place) -> Server:
        """A new session, not yet opened."""


class Duty:
    """One host's duty; ``holder`` is how its watcher signs leases. Not for two threads."""

    def __init__(
        self,
        knowledge: Knowledge,
        sessions: Opens,
        known: Secrets,
        *,
        holder: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._knowledge = knowledge
        self._sessions = sessions
        self._known = known
        self._holder = holder
        self._clock = clock
        self._now = now
        self._servers: dict[str, tuple[Place, Server]] = {}
        self._checked = clock() - CHECK_SECONDS
        self._advice = Advice(Do.WAIT, "nothing was looked at yet")
        self._trouble = ""

    @property
    def word(self) -> str:
        """What is to be done and why, for the endpoint; "" while all is well."""
        return "" if self._advice.do is Do.NOTHING else f"{self._advice.do}: {self._advice.why}"

    def turn(self, seen: Glimpse | None) -> None:
        """Do what this host's server needs, if it does. Raises nothing of ours."""
        me, state, primary = self._knowledge.me, self._knowledge.state, self._knowledge.primary
        if seen is None or me is None or state is None or not self._is_due(seen, state, primary):
            return
        self._checked = self._clock()
        try:
            self._serve(me)
            self._trouble = ""
        except FlotillaError as error:
            if error.what != self._trouble and not isinstance(error, Held):
                log.warning("%s", error)
            self._trouble = error.what

    def _is_due(self, seen: Glimpse, state: State, primary: Place | None) -> bool:
        waited = self._clock() - self._checked
        mine = self._knowledge.instance_id
        right = (
            self._advice.do is Do.NOTHING
            and mine not in state.barred
            and is_in_place(
                seen,
                state.record,
                is_primary=mine == state.record.instance_id,
                source=primary.address if primary else "",
            )
        )
        return waited >= (CHECK_SECONDS if right else RETRY_SECONDS)

    def _serve(self, me: Place) -> None:
        advice, _, _ = self._advised(me)
        self._note(advice)
        if advice.do in {Do.NOTHING, Do.WAIT, Do.CLONE}:
            return
        server = self._server(me)
        if advice.do in CLOSING:
            _close(advice.do, server)
            return
        term = self._knowledge.state.record.term if self._knowledge.state else 0
        with Guard(self._knowledge.records, self._holder, advice.why, term=term) as guard:
            again, member, state = self._advised(me)
            if again.do is not advice.do or state is None:
                self._note(again)
                return
            guard.check()
            self._open(again, member, state, guard)
        # What it led to is looked at soon.
        self._checked = self._clock() - CHECK_SECONDS
        self._knowledge.hurry()

    def _advised(self, me: Place) -> tuple[Advice, Member, State | None]:
        """Look at this server, then at the record, then at the others; what follows from it."""
        server = self._server(me)
        member, _ = look(server, instance_id=me.instance_id, address=me.address)
        asked = self._clock()
        state = self._knowledge.records.state()
        self._knowledge.learn(state, asked)
        primary = self._knowledge.primary
        peers = Peers(None)
        if state and primary == me:
            peers = self._of_primary(member, server)
        elif state and primary:
            peers = self._of_replica(member, server, primary)
        advice = advise(member, state, peers, holder=self._holder, now=self._now())
        return advice, member, state

    def _of_primary(self, me: Member, server: Server) -> Peers:
        others = {
            place.name: answer[0]
            for place in self._knowledge.places.values()
            if place.instance_id != me.instance_id and (answer := self._look(place))
        }
        sets = {name: position(other) for name, other in others.items()}
        found = subtract(server, {me.name: position(me), **sets})
        lacks = ",".join(filter(None, (found.get((name, me.name), "") for name in others)))
        acknowledgers = [
            name
            for name, other in others.items()
            if other.replication
            and (other.replication.host, other.replication.io) == (me.address, "ON")
            and other.semi_sync.replica
        ]
        return Peers(me, lacks=lacks, acknowledgers=acknowledgers)

    def _of_replica(self, me: Member, server: Server, place: Place) -> Peers:
        found = self._look(place)
        if found is None:
            return Peers(None)
        primary, purged = found
        sets = {"me": position(me), "primary": position(primary), "purged": purged}
        differ = subtract(server, sets)
        return Peers(
            primary,
            surplus=differ.get(("me", "primary"), ""),
            stranded=bool(differ.get(("purged", "me"))),
        )

    def _look(self, place: Place) -> tuple[Member, str] | None:
        server = self._server(place)
        for _ in range(1 if server.socket is None else 2):
            try:
                return look(server, instance_id=place.instance_id, address=place.address)
            except Unreachable:
                continue  # a session may have ended long ago: that says nothing of now
            except FlotillaError:
                return None
        return None

    def _open(self, advice: Advice, me: Member, state: State, guard: Guard) -> None:
        if advice.do is Do.QUARANTINE:
            self._quarantine(advice, me, state, guard)
            return
        if advice.unbar:
            left = {k: why for k, why in state.barred.items() if k != me.instance_id}
            self._knowledge.records.bar(left, term=state.record.term, fence=guard.term)
        server = self._server(self._place(me))
        source = self._knowledge.primary.address if self._knowledge.primary else ""
        actions: Mapping[Do, Callable[[], None]] = {
            Do.DETACH: lambda: steps.detach(server),
            Do.FOLLOW: lambda: steps.follow(server, source, self._known),
            Do.REPOINT: lambda: takeover.turn(server, source),
            Do.RESUME: lambda: steps.resume(server),
            Do.ACKNOWLEDGE: lambda: steps.acknowledge(server),
            Do.REOPEN: lambda: _set(server, "offline_mode = OFF"),
            Do.GRANT: lambda: takeover.grant(server, state.record.term, me.uuid),
        }
        actions[advice.do]()
        log.warning("%s: done", advice.do)

    def _quarantine(self, advice: Advice, me: Member, state: State, guard: Guard) -> None:
        """Out for all to know, and nothing comes or goes: its rows must not spread."""
        server = self._server(self._place(me))
        takeover.revoke(server)
        server.query("STOP REPLICA", seconds=steps.DRAIN_SECONDS)
        barred = {**state.barred, me.instance_id: advice.why}
        self._knowledge.records.bar(barred, term=state.record.term, fence=guard.term)
        log.warning("quarantined: %s; next: fab mysql.rebuild %s", advice.why, me.name)

    def _place(self, me: Member) -> Place:
        return self._knowledge.places[me.name]

    def _server(self, place: Place) -> Server:
        known = self._servers.get(place.name)
        if known is None or known[0] != place:
            known = self._servers[place.name] = (place, self._sessions.server(place))
        return known[1]

    def _note(self, advice: Advice) -> None:
        if replace(advice, gtids="") != replace(self._advice, gtids=""):
            log.info("%s: %s", advice.do, advice.why)
        self._advice = advice


def _close(do: Do, server: Server) -> None:
    if do is Do.CLOSE:
        takeover.fence(server)
    else:
        steps.source_off(server)
    log.warning("%s: done", do)


def _set(server: Server, what: str) -> None:
    server.query(f"SET GLOBAL {what}")
